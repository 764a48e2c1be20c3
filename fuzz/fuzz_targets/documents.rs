//! Manifests, indexes, configurations, references, login challenges: whatever a registry or a person says.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| microagent_image::fuzzing::documents(bytes));
