//! What is printed while it comes, as bytes or as lines of `--json=stream`.

use microagent::{OutputFrame, OutputStream};

use crate::documents::output::json_bytes;
use crate::documents::stream::StreamLine;
use crate::failure::Failure;
use crate::output::{finish, stdout};

/// Most bytes of a character in UTF-8 that can be missing its end.
const CHARACTER_REST: usize = 3;

/// Prints a line.
pub(crate) fn print_line(line: &StreamLine) -> Result<(), Failure> {
    use std::io::Write;
    let mut out = stdout();
    out.write_all(&line.to_bytes()?)?;
    finish(out)
}

/// How the output of a command is passed on.
#[derive(Debug)]
pub(crate) enum Passing {
    /// Byte for byte, each stream to its own.
    Bytes,
    /// As lines on standard output.
    Lines(Characters, Characters),
}

impl Passing {
    /// As lines.
    pub(crate) fn lines() -> Passing {
        Passing::Lines(Characters::default(), Characters::default())
    }

    /// What a piece of output is printed as, if anything yet.
    pub(crate) fn piece(&mut self, frame: OutputFrame) -> Result<Option<(OutputStream, Vec<u8>)>, Failure> {
        let OutputFrame { stream, bytes } = frame;
        let whole = match (&mut *self, stream) {
            (Passing::Bytes, stream) => return Ok(Some((stream, bytes))),
            (Passing::Lines(stdout, _), OutputStream::Stdout) => stdout.whole(bytes),
            (Passing::Lines(_, stderr), OutputStream::Stderr) => stderr.whole(bytes),
        };
        printed(stream, whole)
    }

    /// What is printed at the end of the output.
    pub(crate) fn rest(&mut self) -> Result<Vec<(OutputStream, Vec<u8>)>, Failure> {
        let Passing::Lines(stdout, stderr) = self else { return Ok(Vec::new()) };
        let rests = [(OutputStream::Stdout, stdout.rest()), (OutputStream::Stderr, stderr.rest())];
        let printed: Result<Vec<_>, _> =
            rests.into_iter().map(|(stream, rest)| printed(stream, rest)).collect();
        Ok(printed?.into_iter().flatten().collect())
    }
}

fn printed(stream: OutputStream, bytes: Vec<u8>) -> Result<Option<(OutputStream, Vec<u8>)>, Failure> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let (data, encoding) = json_bytes(bytes);
    let line = match stream {
        OutputStream::Stdout => StreamLine::Stdout { data, encoding },
        OutputStream::Stderr => StreamLine::Stderr { data, encoding },
    };
    Ok(Some((OutputStream::Stdout, line.to_bytes()?)))
}

/// Puts the characters of a stream together that its pieces divide, so that text stays text.
#[derive(Debug, Default)]
pub(crate) struct Characters {
    /// The beginning of a character.
    begun: Vec<u8>,
}

impl Characters {
    /// The bytes up to the last whole character, where they are text; else all of them.
    pub(crate) fn whole(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        let mut all = std::mem::take(&mut self.begun);
        all.extend(bytes);
        if let Err(error) = std::str::from_utf8(&all)
            && error.error_len().is_none()
        {
            self.begun = all.split_off(error.valid_up_to());
            debug_assert!(self.begun.len() <= CHARACTER_REST, "longer ones are no beginning of a character");
        }
        all
    }

    /// A character that never came to its end.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.begun)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn characters_are_put_together() {
        let mut characters = Characters::default();
        let pieces = [&b"a\xe2"[..], b"\x82", b"\xac", b"\xff\xe2\x82", b"b", b"\xf0\x9f"];
        let whole: Vec<_> = pieces.map(|piece| characters.whole(piece.to_vec())).into();
        assert_eq!(whole, [&b"a"[..], b"", "€".as_bytes(), b"\xff\xe2\x82", b"b", b""]);
        assert_eq!(characters.rest(), b"\xf0\x9f");
        assert_eq!(characters.rest(), b"");
    }

    #[test]
    fn a_line_is_one_object_whose_first_key_is_its_type() {
        let mut passing = Passing::lines();
        let frame = OutputFrame { stream: OutputStream::Stdout, bytes: b"a\n\xe2".to_vec() };
        let (stream, line) = passing.piece(frame).unwrap().unwrap();
        assert_eq!(stream, OutputStream::Stdout);
        assert!(line.starts_with(br#"{"type":"stdout","#) && line.ends_with(b"}\n"));
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let value: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value, json!({"type": "stdout", "data": "a\n", "encoding": "utf-8"}));
        let frame = OutputFrame { stream: OutputStream::Stderr, bytes: vec![0xff] };
        let (stream, line) = passing.piece(frame).unwrap().unwrap();
        let value: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value, json!({"type": "stderr", "data": "/w==", "encoding": "base64"}));
        assert_eq!(stream, OutputStream::Stdout);
        assert_eq!(passing.rest().unwrap().len(), 1);
    }
}
