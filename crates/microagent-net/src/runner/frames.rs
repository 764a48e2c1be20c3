//! A stream of frames, each with four bytes of length before it: read in large pieces, taken where they lie.

use crate::frame::MAX_FRAME_LEN;
use crate::outbox::LENGTH_LEN;

/// Bytes that are read at once, at most.
const BUFFER_LEN: usize = 256 * 1024;

// Room for a frame of any length, and a piece beside it.
const _: () = assert!(BUFFER_LEN >= 2 * (LENGTH_LEN + MAX_FRAME_LEN));

/// What was read of a stream.
pub(super) struct FrameReader {
    buffer: Box<[u8]>,
    /// Bytes at the beginning that are in use: part of a frame.
    filled: usize,
    /// Bytes that are still to come of a frame that is too long.
    skip: usize,
}

impl Default for FrameReader {
    fn default() -> FrameReader {
        FrameReader { buffer: vec![0; BUFFER_LEN].into_boxed_slice(), filled: 0, skip: 0 }
    }
}

impl FrameReader {
    /// Where to read to. Never empty.
    pub(super) fn spare(&mut self) -> &mut [u8] {
        &mut self.buffer[self.filled..]
    }

    /// Takes the first `count` bytes of [`FrameReader::spare`]; gives each whole frame to `take`.
    pub(super) fn take(&mut self, count: usize, mut take: impl FnMut(&[u8])) {
        let end = (self.filled + count).min(self.buffer.len());
        let mut at = 0;
        loop {
            let skipped = self.skip.min(end - at);
            at += skipped;
            self.skip -= skipped;
            let Some(length) = self.buffer[at..end].first_chunk::<LENGTH_LEN>() else { break };
            // Four bytes fit.
            let length = u32::from_be_bytes(*length) as usize;
            if length > MAX_FRAME_LEN {
                at += LENGTH_LEN;
                self.skip = length;
                continue;
            }
            let Some(frame) = self.buffer[at + LENGTH_LEN..end].get(..length) else { break };
            take(frame);
            at += LENGTH_LEN + length;
        }
        self.buffer.copy_within(at..end, 0);
        self.filled = end - at;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::streamed;

    fn read(stream: &[u8], pieces: &[usize]) -> Vec<Vec<u8>> {
        let mut reader = FrameReader::default();
        let mut frames = Vec::new();
        let (mut rest, mut pieces) = (stream, pieces.iter().cycle());
        while !rest.is_empty() {
            let spare = reader.spare();
            let count = (*pieces.next().unwrap()).clamp(1, rest.len().min(spare.len()));
            spare[..count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            reader.take(count, |frame| frames.push(frame.to_vec()));
        }
        frames
    }

    #[test]
    fn a_frame_that_is_too_long_is_passed_over() {
        let long = vec![7; MAX_FRAME_LEN + 1];
        let stream = [streamed(b"first"), streamed(&long), streamed(b""), streamed(b"last")].concat();
        for piece in [1, 7, 100_000] {
            assert_eq!(read(&stream, &[piece]), [&b"first"[..], b"", b"last"]);
        }
        let longest = vec![7; MAX_FRAME_LEN];
        assert_eq!(read(&streamed(&longest), &[60_000]), [longest]);
    }

    proptest! {
        #[test]
        fn frames_are_the_same_in_whatever_pieces_they_come(
            lengths in proptest::collection::vec(0_usize..3000, 0..20),
            pieces in proptest::collection::vec(1_usize..5000, 1..10),
        ) {
            let frames: Vec<Vec<u8>> = lengths.iter().map(|len| vec![*len as u8; *len]).collect();
            let stream: Vec<u8> = frames.iter().flat_map(|frame| streamed(frame)).collect();
            prop_assert_eq!(read(&stream, &pieces), frames);
        }
    }
}
