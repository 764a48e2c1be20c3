//! Whatever a spec file says: options or an error that quotes no value.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use microagent::SpecFile;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err(error) = SpecFile::parse(Path::new("microagent.yaml"), text) {
        assert!(error.to_string().len() < 2000);
    }
});
