//! The file of an exported snapshot: header, pieces, ranges.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| microagent::fuzzing::snapshot_file(bytes));
