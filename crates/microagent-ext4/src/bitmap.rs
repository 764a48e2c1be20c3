//! Which blocks of the image are taken, and a cursor that hands out free ones in ascending order.

/// Consecutive blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: u64,
    pub(crate) length: u64,
}

/// One bit per block, set when taken. The words are those of the on-disk bitmaps, little-endian.
#[derive(Debug)]
pub(crate) struct Bitmap {
    words: Vec<u64>,
    blocks: u64,
    /// Everything below has been handed out or was taken before.
    cursor: u64,
    used: u64,
}

impl Bitmap {
    /// `blocks` is a multiple of 64, as whole groups are.
    pub(crate) fn new(blocks: u64) -> Bitmap {
        Bitmap { words: vec![0; (blocks / 64) as usize], blocks, cursor: 0, used: 0 }
    }

    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// Bits of `count` blocks from `start` on, both multiples of 64, as a bitmap block holds them.
    pub(crate) fn words(&self, start: u64, count: u64) -> &[u64] {
        &self.words[(start / 64) as usize..][..(count / 64) as usize]
    }

    /// Takes a place that geometry fixes.
    pub(crate) fn mark(&mut self, run: Run) {
        let (mut block, end) = (run.start, run.start + run.length);
        while block < end {
            let bit = block % 64;
            let count = (64 - bit).min(end - block);
            let mask = (u64::MAX >> (64 - count)) << bit;
            let word = &mut self.words[(block / 64) as usize];
            debug_assert_eq!(*word & mask, 0, "block {block} is taken twice");
            *word |= mask;
            block += count;
        }
        self.used += run.length;
    }

    /// First free block at or after `from`.
    fn next_free(&self, from: u64) -> Option<u64> {
        self.scan(from, self.blocks, 0)
    }

    /// How many of the `most` blocks from `from` on are free up to the first taken one. Looks no further than that: a
    /// disk of terabytes is free nearly to its end.
    fn free_from(&self, from: u64, most: u64) -> u64 {
        let end = self.blocks.min(from.saturating_add(most));
        self.scan(from, end, u64::MAX).map_or(end, |taken| taken.min(end)) - from
    }

    /// First block at or after `from` whose bit is that of `flip`; none if the search reaches `end`.
    fn scan(&self, from: u64, end: u64, flip: u64) -> Option<u64> {
        let mut block = from;
        while block < end {
            // Bits of interest become ones.
            let word = !(self.words[(block / 64) as usize] ^ flip) >> (block % 64);
            if word != 0 {
                return Some(block + u64::from(word.trailing_zeros()));
            }
            block = (block / 64 + 1) * 64;
        }
        None
    }

    /// Takes `length` consecutive blocks, the first that are free at or after `from`.
    pub(crate) fn take_contiguous(&mut self, from: u64, length: u64) -> Option<u64> {
        let mut start = self.next_free(from)?;
        loop {
            let free = self.free_from(start, length);
            if free >= length {
                self.mark(Run { start, length });
                return Some(start);
            }
            start = self.next_free(start + free)?;
        }
    }

    /// Takes up to `most` of the next consecutive free blocks.
    pub(crate) fn take(&mut self, most: u64) -> Option<Run> {
        let start = self.next_free(self.cursor)?;
        let length = self.free_from(start, most);
        let run = Run { start, length };
        self.mark(run);
        self.cursor = start + length;
        Some(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taking_skips_marked_runs_and_ends() {
        let mut b = Bitmap::new(128);
        b.mark(Run { start: 0, length: 10 });
        b.mark(Run { start: 20, length: 50 });
        assert_eq!(b.take(4), Some(Run { start: 10, length: 4 }));
        assert_eq!(b.take(100), Some(Run { start: 14, length: 6 }));
        assert_eq!(b.take(100), Some(Run { start: 70, length: 58 }));
        assert_eq!(b.take(1), None);
        assert_eq!(b.used(), 128);
        assert_eq!(b.words(64, 64), &[u64::MAX]);
    }

    #[test]
    fn contiguous_runs_leave_gaps_for_later() {
        let mut b = Bitmap::new(256);
        b.mark(Run { start: 8, length: 1 });
        assert_eq!(b.take_contiguous(0, 100), Some(9));
        assert_eq!(b.take(100), Some(Run { start: 0, length: 8 }));
        assert_eq!(b.take_contiguous(0, 200), None);
    }

    proptest::proptest! {
        #[test]
        fn runs_never_overlap(marks in proptest::collection::vec((0u64..500, 1u64..70), 0..6),
                              takes in proptest::collection::vec(1u64..90, 0..40)) {
            let mut b = Bitmap::new(512);
            let mut seen = [false; 512];
            for (start, length) in marks {
                let length = length.min(512 - start);
                if seen[start as usize..(start + length) as usize].iter().any(|&s| s) { continue; }
                b.mark(Run { start, length });
                seen[start as usize..(start + length) as usize].fill(true);
            }
            for most in takes {
                let Some(run) = b.take(most) else { break };
                proptest::prop_assert!(run.length >= 1 && run.length <= most);
                for s in &mut seen[run.start as usize..(run.start + run.length) as usize] {
                    proptest::prop_assert!(!*s);
                    *s = true;
                }
            }
            proptest::prop_assert_eq!(b.used(), seen.iter().filter(|&&s| s).count() as u64);
        }
    }
}
