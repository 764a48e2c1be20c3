//! Paths of requests that a guest sends to a broker.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| microagent_broker::fuzzing::path(bytes));
