//! Both output streams of a command, in JSON.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use microagent::{OutputReader, OutputStream};
use serde::Serialize;

/// Both streams: as text when they are UTF-8, else in base64, which `*_encoding` says.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct OutputDocument {
    stdout: String,
    stdout_encoding: &'static str,
    stderr: String,
    stderr_encoding: &'static str,
}

impl OutputDocument {
    /// Whether nothing was printed.
    pub(crate) fn is_empty(&self) -> bool {
        self.stdout.is_empty() && self.stderr.is_empty()
    }

    /// Reads all that is left; the run bounded it.
    pub(crate) fn read(output: &mut OutputReader) -> io::Result<OutputDocument> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        for frame in output {
            let frame = frame?;
            match frame.stream {
                OutputStream::Stdout => out.extend(frame.bytes),
                OutputStream::Stderr => err.extend(frame.bytes),
            }
        }
        let (stdout, stdout_encoding) = json_bytes(out);
        let (stderr, stderr_encoding) = json_bytes(err);
        Ok(OutputDocument { stdout, stdout_encoding, stderr, stderr_encoding })
    }
}

/// Bytes in JSON: as they are when they are UTF-8, else in base64, and which of the two.
pub(crate) fn json_bytes(bytes: Vec<u8>) -> (String, &'static str) {
    match String::from_utf8(bytes) {
        Ok(text) => (text, "utf-8"),
        Err(e) => (STANDARD.encode(e.as_bytes()), "base64"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_json() {
        assert_eq!(json_bytes(b"gr\xc3\xbcn\n".to_vec()), ("grün\n".to_owned(), "utf-8"));
        assert_eq!(json_bytes(vec![0xff, 0x00]), ("/wA=".to_owned(), "base64"));
        assert_eq!(json_bytes(Vec::new()), (String::new(), "utf-8"));
    }
}
