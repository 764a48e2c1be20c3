//! How often a process that has ended is replaced. Pure.

use std::time::Duration;

/// A process that has run for this long has not ended because of how it was started.
const HELD: Duration = Duration::from_secs(60);

/// Time before the first process that replaces another; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Processes in a row that replace one that did not hold. Then there is no other.
pub(crate) const REPLACEMENTS_MAX: u32 = 8;

/// When a process is replaced.
#[derive(Debug, Default)]
pub(crate) struct Replacements {
    in_a_row: u32,
}

impl Replacements {
    /// How long to wait before a process takes the place of one that ran for `ran`; `None` if there are no more.
    pub(crate) fn next(&mut self, ran: Duration) -> Option<Duration> {
        if ran >= HELD {
            self.in_a_row = 0;
        }
        if self.in_a_row >= REPLACEMENTS_MAX {
            return None;
        }
        self.in_a_row += 1;
        Some(FIRST_PAUSE * 2_u32.pow(self.in_a_row - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_hold_is_replaced_eight_times_with_growing_pauses() {
        let mut replacements = Replacements::default();
        let mut pauses = || replacements.next(Duration::from_secs(1)).map(|pause| pause.as_millis());
        let all: Vec<_> = std::iter::from_fn(&mut pauses).collect();
        assert_eq!(all, [50, 100, 200, 400, 800, 1600, 3200, 6400]);
        assert_eq!(pauses(), None);
        assert_eq!(replacements.next(HELD), Some(FIRST_PAUSE), "one that has held");
    }
}
