//! Whatever the stack of another member of a private network sends: connections, flows and pieces.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| microagent_net::fuzzing::member(bytes));
