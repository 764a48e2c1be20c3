//! Standard output: data only, text or one JSON document.

use std::io::{self, BufWriter, StdoutLock, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use microagent::ImageReport;
use microagent::image::Origin;
use serde::Serialize;

use crate::failure::Failure;

/// How a command answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// One document, snake_case keys.
    Json,
}

/// Buffered standard output; everything is flushed by [`finish`].
pub(crate) fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(64 * 1024, io::stdout().lock())
}

/// Flushes; a reader that went away (`| head`) is reported as [`Failure::ClosedOutput`], which is quiet.
pub(crate) fn finish(mut out: impl Write) -> Result<(), Failure> {
    Ok(out.flush()?)
}

/// Prints one JSON document and a line end.
pub(crate) fn print_json<T: Serialize>(document: &T) -> Result<(), Failure> {
    let mut out = stdout();
    serde_json::to_writer_pretty(&mut out, document).map_err(io::Error::from)?;
    out.write_all(b"\n")?;
    finish(out)
}

/// Prints text as it is.
pub(crate) fn print_text(text: &str) -> Result<(), Failure> {
    let mut out = stdout();
    out.write_all(text.as_bytes())?;
    finish(out)
}

/// Bytes in JSON: as they are when they are UTF-8, else in base64, and which of the two.
pub(crate) fn json_bytes(bytes: Vec<u8>) -> (String, &'static str) {
    match String::from_utf8(bytes) {
        Ok(text) => (text, "utf-8"),
        Err(e) => (STANDARD.encode(e.as_bytes()), "base64"),
    }
}

/// The image of what was run or made, in JSON.
#[derive(Debug, Serialize)]
pub(crate) struct ImageDocument {
    reference: String,
    resolved_reference: String,
    digest: String,
    origin: Origin,
}

impl From<ImageReport> for ImageDocument {
    fn from(image: ImageReport) -> ImageDocument {
        let ImageReport { reference, resolved_reference, digest, origin } = image;
        ImageDocument { reference, resolved_reference, digest, origin }
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
