//! A stream of frames, each with four bytes of length before it: read in large pieces, taken where they lie.

use crate::frame::{
    ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_LEN, IPV6_LEN, MAX_FRAME_LEN, Mac, u16_at,
};
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
    /// The sender of all frames, if the stream may begin within one: its reader before this one has ended.
    resumes_at: Option<Mac>,
}

impl FrameReader {
    /// A reader of a stream from its beginning; with a sender, of one that was read before up to any byte.
    pub(super) fn new(resumes_at: Option<Mac>) -> FrameReader {
        FrameReader { buffer: vec![0; BUFFER_LEN].into_boxed_slice(), filled: 0, skip: 0, resumes_at }
    }

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
            match self.resumes_at.map_or(Some(true), |sender| begins_frame(&self.buffer[at..end], sender)) {
                Some(true) => {}
                Some(false) => {
                    at += 1;
                    continue;
                }
                None => break,
            }
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

/// Whether a frame of this sender begins here, with the length before it; `None` if too little is there to say. A frame
/// that is inside of another one, as in a recording of packets, is taken for one.
fn begins_frame(bytes: &[u8], sender: Mac) -> Option<bool> {
    const TYPE_AT: usize = LENGTH_LEN + 12;
    const IP_AT: usize = LENGTH_LEN + ETHERNET_LEN;
    let length = u32::from_be_bytes(*bytes.first_chunk::<LENGTH_LEN>()?) as usize;
    if !(ETHERNET_LEN + IPV4_LEN..=MAX_FRAME_LEN).contains(&length) {
        return Some(false);
    }
    let head = bytes.get(..IP_AT + 6)?;
    if head[LENGTH_LEN + 6..TYPE_AT] != sender {
        return Some(false);
    }
    let (version, packet_len) = match u16_at(head, TYPE_AT) {
        ETHERTYPE_IPV4 => (4, usize::from(u16_at(head, IP_AT + 2))),
        ETHERTYPE_IPV6 => (6, IPV6_LEN + usize::from(u16_at(head, IP_AT + 4))),
        _ => return Some(true),
    };
    Some(head[IP_AT] >> 4 == version && packet_len <= length - ETHERNET_LEN)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::streamed;

    fn read(stream: &[u8], pieces: &[usize]) -> Vec<Vec<u8>> {
        let mut reader = FrameReader::new(None);
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

    const SENDER: Mac = [0x52, 0x54, 0, 7, 7, 7];

    fn packet(payload: &[u8]) -> Vec<u8> {
        let mut frame = [&[0x52, 0x55, 10, 0, 2, 2][..], &SENDER, &[8, 0, 0x45, 0]].concat();
        frame.extend(u16::try_from(IPV4_LEN + payload.len()).unwrap().to_be_bytes());
        frame.extend([0; IPV4_LEN - 4]);
        frame.extend(payload);
        frame
    }

    fn packet_v6(payload: &[u8]) -> Vec<u8> {
        let mut frame = [&[0x52, 0x55, 10, 0, 2, 2][..], &SENDER, &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
        frame.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
        frame.extend([0; IPV6_LEN - 6]);
        frame.extend(payload);
        frame
    }

    #[test]
    fn a_stream_that_was_read_up_to_any_byte_is_read_from_the_next_frame_on() {
        let mut frames: Vec<Vec<u8>> = (0..4).map(|n| packet(&vec![n * 7; 40 * usize::from(n)])).collect();
        frames.insert(2, packet_v6(&[3; 50]));
        let stream: Vec<u8> = frames.iter().flat_map(|frame| streamed(frame)).collect();
        for begin in 0..stream.len() {
            for piece in [1, 3, 1000] {
                let mut reader = FrameReader::new(Some(SENDER));
                let mut read = Vec::new();
                for bytes in stream[begin..].chunks(piece) {
                    reader.spare()[..bytes.len()].copy_from_slice(bytes);
                    reader.take(bytes.len(), |frame| read.push(frame.to_vec()));
                }
                let mut offset = 0;
                let whole = frames.iter().filter(|frame| {
                    let is_whole = offset >= begin;
                    offset += LENGTH_LEN + frame.len();
                    is_whole
                });
                assert_eq!(read, whole.cloned().collect::<Vec<_>>(), "from byte {begin}");
            }
        }
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
