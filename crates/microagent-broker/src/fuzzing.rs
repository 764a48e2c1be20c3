//! Entry points for fuzzers.

use microagent_model::AllowedRequest;

use crate::path::{allows, check_target};

/// A path of a guest with a pattern: what passes is below the pattern, however often a server decodes it.
///
/// # Panics
/// When it is not.
pub fn path(bytes: &[u8]) {
    let Ok(path) = std::str::from_utf8(bytes) else { return };
    let pattern = AllowedRequest { method: "GET".to_owned(), path: "/v1/*".to_owned() };
    if check_target(path).is_err() || !allows(&[pattern], "GET", path) {
        return;
    }
    let mut read = bytes.to_vec();
    for _ in 0..4 {
        assert!(read.starts_with(b"/v1/"), "{path}");
        let mut segments = read.split(|byte| matches!(byte, b'/' | b'\\')).skip(1);
        assert!(segments.all(|segment| !matches!(segment, b".." | b".")), "{path}");
        let Some(next) = crate::path::decode_bytes(&read) else { return };
        read = next;
    }
}
