//! Whatever lies in a file of secrets: variables whose values are in it, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| microagent::fuzzing::dotenv(bytes));
