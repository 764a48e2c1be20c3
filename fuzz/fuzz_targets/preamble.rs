//! Whatever a guest sends before a session: what is found is what decodes, and nothing panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use microagent_proto::{Preamble, PreambleScanner};

fuzz_target!(|bytes: &[u8]| {
    let mut scanner = PreambleScanner::default();
    for byte in bytes {
        if let Some(found) = scanner.push(*byte) {
            assert_eq!(Preamble::decode(&found.encode()), Some(found));
        }
    }
});
