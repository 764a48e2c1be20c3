//! What commands print, within the size that a model can read.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::Serialize;

/// Bytes in JSON: as they are, or in base64 when they are not UTF-8. The variants have no text, which every schema would
/// repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) enum Encoding {
    #[serde(rename = "utf-8")]
    Utf8,
    #[serde(rename = "base64")]
    Base64,
}

/// The beginning and the end of a stream.
#[derive(Debug)]
pub(crate) struct Clipped {
    half: usize,
    head: Vec<u8>,
    /// The newest bytes behind the head; at most twice as many as are kept.
    tail: Vec<u8>,
    len: u64,
}

impl Clipped {
    /// Keeps at most so many bytes.
    pub(crate) fn new(limit: usize) -> Clipped {
        Clipped { half: limit / 2, head: Vec::new(), tail: Vec::new(), len: 0 }
    }

    /// How many bytes there were.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Takes the next bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.len += bytes.len() as u64;
        let room = bytes.len().min(self.half - self.head.len());
        self.head.extend_from_slice(&bytes[..room]);
        self.tail.extend_from_slice(&bytes[room..]);
        if self.tail.len() > 2 * self.half {
            self.tail.drain(..self.tail.len() - self.half);
        }
    }

    /// The text, how it is encoded, and how many bytes were left out, which a line tells.
    pub(crate) fn into_text(mut self) -> (String, Encoding, u64) {
        let kept = self.tail.len().min(self.half);
        self.tail.drain(..self.tail.len() - kept);
        let gap = self.len - (self.head.len() + kept) as u64;
        if gap == 0 {
            self.head.append(&mut self.tail);
            let (text, encoding) = text(self.head);
            return (text, encoding, 0);
        }
        let (head, tail) = (whole_head(&self.head), whole_tail(&self.tail));
        match (std::str::from_utf8(head), std::str::from_utf8(tail)) {
            (Ok(head), Ok(tail)) => {
                let omitted = self.len - (head.len() + tail.len()) as u64;
                (format!("{head}\n[... {omitted} bytes left out ...]\n{tail}"), Encoding::Utf8, omitted)
            }
            // Two parts do not make one text in base64.
            _ => (STANDARD.encode(&self.head), Encoding::Base64, self.len - self.head.len() as u64),
        }
    }
}

/// Says that output was cut, where no line between its parts can.
pub(crate) fn cut_note(stream: &str, encoding: Encoding, omitted: u64) -> Option<String> {
    (encoding == Encoding::Base64 && omitted > 0).then(|| {
        format!(
            "{stream} is not text: only its beginning is here, and {omitted} bytes after it were left out"
        )
    })
}

/// Bytes in JSON: as they are when they are UTF-8, else in base64, and which of the two.
pub(crate) fn text(bytes: Vec<u8>) -> (String, Encoding) {
    match String::from_utf8(bytes) {
        Ok(text) => (text, Encoding::Utf8),
        Err(error) => (STANDARD.encode(error.as_bytes()), Encoding::Base64),
    }
}

/// Without the beginning of a character at the end of what is a part of a text. Other bytes stay as they are.
pub(crate) fn whole_characters(mut bytes: Vec<u8>) -> Vec<u8> {
    match whole_head(&bytes).len() {
        // A part that is shorter than a character, or nothing would ever be read.
        0 => bytes,
        whole => {
            bytes.truncate(whole);
            bytes
        }
    }
}

/// The last bytes as text; what is not UTF-8 is replaced.
pub(crate) fn tail(bytes: &[u8], limit: usize) -> String {
    let start = bytes.len().saturating_sub(limit);
    String::from_utf8_lossy(whole_tail(&bytes[start..])).into_owned()
}

/// Without the beginning of a character at the end.
pub(crate) fn whole_head(bytes: &[u8]) -> &[u8] {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => &bytes[..error.valid_up_to()],
        _ => bytes,
    }
}

/// Without the rest of a character at the beginning.
fn whole_tail(bytes: &[u8]) -> &[u8] {
    let rest = bytes.iter().take(3).take_while(|byte| **byte & 0xc0 == 0x80).count();
    &bytes[rest..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clipped(limit: usize, pieces: &[&[u8]]) -> (String, Encoding, u64) {
        let mut clipped = Clipped::new(limit);
        for piece in pieces {
            clipped.push(piece);
        }
        clipped.into_text()
    }

    #[test]
    fn what_fits_is_whole() {
        assert_eq!(clipped(8, &[b"0123", b"4567"]), ("01234567".into(), Encoding::Utf8, 0));
        assert_eq!(clipped(8, &[]), (String::new(), Encoding::Utf8, 0));
        assert_eq!(clipped(8, &[&[0xff, 0]]), ("/wA=".into(), Encoding::Base64, 0));
    }

    #[test]
    fn of_what_is_longer_both_ends_are_kept_and_the_rest_is_counted() {
        let (text, encoding, omitted) = clipped(8, &[b"abcd", &[b'x'; 1000], b"w", b"xyz"]);
        assert_eq!((text.as_str(), omitted), ("abcd\n[... 1000 bytes left out ...]\nwxyz", 1000));
        assert_eq!(encoding, Encoding::Utf8);
        let many: Vec<&[u8]> = vec![b"0123456789"; 10_000];
        assert_eq!(clipped(20, &many).2, 100_000 - 20);
    }

    #[test]
    fn characters_are_not_cut() {
        // Two bytes each; an odd limit cuts one at both ends.
        let (text, encoding, omitted) = clipped(6, &["äöüäöü".as_bytes()]);
        assert_eq!((text.as_str(), encoding), ("ä\n[... 8 bytes left out ...]\nü", Encoding::Utf8));
        assert_eq!(omitted, 8);
    }

    #[test]
    fn of_other_bytes_the_beginning_is_kept() {
        let (text, encoding, omitted) = clipped(4, &[&[0xff; 100]]);
        assert_eq!((text.as_str(), encoding, omitted), ("//8=", Encoding::Base64, 98));
        let note = cut_note("stdout", encoding, omitted).unwrap();
        assert!(note.contains("stdout") && note.contains("98 bytes"), "{note}");
        assert_eq!(cut_note("stdout", Encoding::Utf8, 98).or(cut_note("stdout", Encoding::Base64, 0)), None);
    }

    #[test]
    fn a_tail_is_text() {
        assert_eq!(tail("aäö".as_bytes(), 3), "ö");
        assert_eq!(tail(b"abc", 100), "abc");
    }
}
