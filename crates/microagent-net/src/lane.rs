//! One direction of a stream of frames: read in large pieces, judged where they lie, written on in runs.
//!
//! A stream is a sequence of frames, each with four bytes of length before it, big-endian, as QEMU's stream sockets and
//! passt have it. Nothing is copied but the part of a frame at the end of a piece. While something waits to be
//! written nothing more is read, so the side that does not take holds back the side that sends.

use std::io::IoSlice;
use std::ops::Range;

use crate::engine::Verdict;
use crate::frame::MAX_FRAME_LEN;
use crate::reply::LENGTH_LEN;

/// Bytes that are read at once, at most.
const BUFFER_LEN: usize = 256 * 1024;
// Room for a frame of any length that passes, and a piece beside it.
const _: () = assert!(BUFFER_LEN >= 2 * (LENGTH_LEN + MAX_FRAME_LEN));

/// Runs that are written with one call. Linux takes 1024; with more refusals than that in a piece, speed is no matter.
const SLICES_MAX: usize = 64;

/// Frames on their way in one direction.
#[derive(Debug)]
pub(crate) struct Lane {
    buffer: Box<[u8]>,
    /// Bytes of the buffer that are in use.
    filled: usize,
    /// Where the first frame begins that was not judged.
    judged: usize,
    /// Bytes that are still to come of a frame that is too long.
    skip: usize,
    /// What is to be written: runs of frames that go on, lengths included.
    runs: Vec<Range<usize>>,
    /// The first run that is not written, and how much of it is.
    next: usize,
    written: usize,
}

impl Default for Lane {
    fn default() -> Lane {
        Lane {
            buffer: vec![0; BUFFER_LEN].into_boxed_slice(),
            filled: 0,
            judged: 0,
            skip: 0,
            runs: Vec::new(),
            next: 0,
            written: 0,
        }
    }
}

impl Lane {
    /// Whether more may be read.
    pub(crate) fn takes(&self) -> bool {
        self.next == self.runs.len()
    }

    /// Whether a run was written in part, so that nothing may come between.
    pub(crate) fn is_mid_run(&self) -> bool {
        self.written > 0
    }

    /// Where to read to; never empty. To be used only if the lane takes.
    pub(crate) fn spare(&mut self) -> &mut [u8] {
        debug_assert!(self.takes());
        // What is left of a frame: all before it is written.
        self.buffer.copy_within(self.judged..self.filled, 0);
        self.filled -= self.judged;
        self.judged = 0;
        self.runs.clear();
        self.next = 0;
        &mut self.buffer[self.filled..]
    }

    /// Takes note of `count` bytes that were read, and has every whole frame judged.
    pub(crate) fn take(&mut self, count: usize, mut judge: impl FnMut(&[u8]) -> Verdict) {
        self.filled += count;
        loop {
            let waiting = &self.buffer[self.judged..self.filled];
            if self.skip > 0 {
                let skipped = self.skip.min(waiting.len());
                self.skip -= skipped;
                self.judged += skipped;
                if self.skip > 0 {
                    return;
                }
                continue;
            }
            let Some((len, rest)) = waiting.split_first_chunk::<LENGTH_LEN>() else { return };
            let len = u32::from_be_bytes(*len) as usize;
            if len > MAX_FRAME_LEN {
                self.judged += LENGTH_LEN;
                self.skip = len;
                continue;
            }
            let Some(frame) = rest.get(..len) else { return };
            let begin = self.judged;
            self.judged += LENGTH_LEN + len;
            if judge(frame) == Verdict::Forward {
                match self.runs.last_mut() {
                    Some(run) if run.end == begin => run.end = self.judged,
                    _ => self.runs.push(begin..self.judged),
                }
            }
        }
    }

    /// What is to be written next, into `slices`.
    pub(crate) fn pending<'a>(&'a self, slices: &mut Vec<IoSlice<'a>>) {
        let mut written = self.written;
        for run in self.runs[self.next..].iter().take(SLICES_MAX) {
            slices.push(IoSlice::new(&self.buffer[run.start + written..run.end]));
            written = 0;
        }
    }

    /// Takes note of `count` bytes that were written.
    pub(crate) fn advance(&mut self, mut count: usize) {
        while let Some(run) = self.runs.get(self.next) {
            let left = run.len() - self.written;
            if count < left {
                self.written += count;
                return;
            }
            count -= left;
            self.written = 0;
            self.next += 1;
        }
    }

    /// Gives up what is to be written: nobody is there.
    pub(crate) fn give_up(&mut self) {
        self.next = self.runs.len();
        self.written = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{frames, streamed};

    /// Moves a stream through a lane: `read` and `write` say how much goes at a time.
    fn through(stream: &[u8], read: &mut dyn FnMut() -> usize, write: &mut dyn FnMut() -> usize) -> Vec<u8> {
        let mut lane = Lane::default();
        let mut out = Vec::new();
        let mut rest = stream;
        while !rest.is_empty() {
            let spare = lane.spare();
            let count = read().clamp(1, spare.len()).min(rest.len());
            spare[..count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            lane.take(count, |frame| match frame.first() {
                Some(1) => Verdict::Forward,
                _ => Verdict::Drop,
            });
            while !lane.takes() {
                let mut slices = Vec::new();
                lane.pending(&mut slices);
                let all = slices.iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<u8>>();
                assert!(!all.is_empty() && slices.len() <= SLICES_MAX);
                let count = write().clamp(1, all.len());
                out.extend_from_slice(&all[..count]);
                lane.advance(count);
            }
            assert!(!lane.is_mid_run());
        }
        out
    }

    proptest! {
        #[test]
        fn what_goes_on_comes_out_whole_and_in_order(
            shapes in proptest::collection::vec((0_u8..2, 0_usize..3000), 1..60),
            reads in proptest::collection::vec(1_usize..5000, 1..20),
            writes in proptest::collection::vec(1_usize..5000, 1..20),
        ) {
            let mut all: Vec<Vec<u8>> = Vec::new();
            for (number, (mark, len)) in shapes.iter().enumerate() {
                let mut frame = vec![number as u8; *len];
                frame.iter_mut().take(1).for_each(|byte| *byte = *mark);
                all.push(frame);
            }
            let stream: Vec<u8> = all.iter().flat_map(|frame| streamed(frame)).collect();
            let (mut reads, mut writes) = (reads.into_iter().cycle(), writes.into_iter().cycle());
            let out = through(&stream, &mut || reads.next().unwrap(), &mut || writes.next().unwrap());
            all.retain(|frame| frame.first() == Some(&1));
            prop_assert_eq!(frames(&out), all);
        }

        #[test]
        fn any_stream_comes_to_an_end(bytes in proptest::collection::vec(0_u8..3, 0..4000)) {
            let mut read = || 700;
            let mut write = || 90;
            let out = through(&bytes, &mut read, &mut write);
            prop_assert!(out.len() <= bytes.len());
            frames(&out);
        }
    }

    #[test]
    fn a_frame_that_is_too_long_is_skipped_and_the_next_is_read() {
        let long = streamed(&vec![1; MAX_FRAME_LEN + 1]);
        let longest = streamed(&vec![1; MAX_FRAME_LEN]);
        let short = streamed(&[1, 2, 3]);
        let stream = [long, longest.clone(), vec![0; 4], short.clone()].concat();
        for step in [1000, 65_000, BUFFER_LEN] {
            let out = through(&stream, &mut || step, &mut || BUFFER_LEN);
            assert_eq!(out, [longest.clone(), short.clone()].concat());
        }
    }

    #[test]
    fn many_refusals_leave_many_runs() {
        let stream = [streamed(&[1, 1]), streamed(&[0, 0])].concat().repeat(5000);
        let out = through(&stream, &mut || BUFFER_LEN, &mut || 100_000);
        assert_eq!(out, streamed(&[1, 1]).repeat(5000));
    }
}
