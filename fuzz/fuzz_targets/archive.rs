//! Whatever a file holds in place of an archive of images.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| microagent_image::fuzzing::archive(bytes));
