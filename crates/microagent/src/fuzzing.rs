//! Gives fuzzers access to private decoders. Built with the feature `fuzzing` only.

use std::path::Path;

use microagent_proto::SecretValue;

use crate::secret;

/// Reads bytes as a file of `NAME=VALUE` lines. No value is longer than what it is written as.
pub fn dotenv(bytes: &[u8]) {
    for (key, length) in secret::lengths_of_variables(&SecretValue(bytes.to_vec()), Path::new(".env")) {
        assert!(!key.is_empty() && key.len() + length < bytes.len());
    }
}

/// Reads bytes as what a snapshot says of its memory.
pub fn memory_record(bytes: &[u8]) {
    crate::workspace::memory::read_for_fuzzing(bytes);
}

/// Reads bytes as the file of a snapshot.
pub fn snapshot_file(bytes: &[u8]) {
    crate::workspace::portable::read_for_fuzzing(bytes);
}
