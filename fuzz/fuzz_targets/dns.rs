//! Whatever a guest asks a name server, and whatever that answers.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| microagent_net::fuzzing::dns(bytes));
