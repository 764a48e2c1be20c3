//! `memory.json` of a snapshot: what its memory can be restored in.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| microagent::fuzzing::memory_record(bytes));
