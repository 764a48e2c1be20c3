//! The journal of the filter: which decisions are written down, and the bound on their number.
//!
//! The guest decides how often there is something to decide, so the number of lines is bounded: a refusal is not
//! repeated within half a minute, there are at most [`BURST`] lines at once and [`PER_SECOND`] in a second for longer,
//! and a `suppressed` line says how many were left out.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hash};
use std::time::Duration;

use jiff::Timestamp;
use microagent_model::decisions;
use microagent_model::egress::Decision;

/// Lines that may come at once.
pub const BURST: u32 = 1000;
/// Lines per second, for longer.
pub const PER_SECOND: u32 = 100;
/// Time within which the same refusal is not repeated.
const SAME: Duration = Duration::from_secs(30);
/// Refusals that are remembered for that.
const REMEMBERED_MAX: usize = 1024;
/// Time between two lines about what was left out.
const SUPPRESSED_EVERY: Duration = Duration::from_secs(1);

/// Decisions that wait for the log, and the bound on them.
#[derive(Debug)]
pub(crate) struct Journal {
    waiting: Vec<Decision>,
    /// When each refusal was recorded last, by hash.
    refused: HashMap<u64, Duration>,
    hasher: RandomState,
    /// Lines that may come now.
    credit: u32,
    /// Up to when credit was given.
    credited: Duration,
    suppressed: u64,
    suppressed_said: Option<Duration>,
}

impl Default for Journal {
    fn default() -> Journal {
        Journal {
            waiting: Vec::new(),
            refused: HashMap::new(),
            hasher: RandomState::new(),
            credit: BURST,
            credited: Duration::ZERO,
            suppressed: 0,
            suppressed_said: None,
        }
    }
}

impl Journal {
    /// Records a decision that is made once.
    pub(crate) fn record(&mut self, decision: Decision, now: Duration) {
        self.refill(now);
        if self.credit == 0 {
            self.suppressed += 1;
            return;
        }
        self.credit -= 1;
        self.waiting.push(decision);
    }

    /// Whether a refusal is a new one. `what` tells it apart from others.
    pub(crate) fn is_new(&mut self, what: impl Hash, now: Duration) -> bool {
        let hash = self.hasher.hash_one(what);
        if self.refused.get(&hash).is_some_and(|at| now < *at + SAME) {
            return false;
        }
        if self.refused.len() >= REMEMBERED_MAX {
            self.refused.retain(|_, at| now < *at + SAME);
            if self.refused.len() >= REMEMBERED_MAX {
                self.refused.clear();
            }
        }
        self.refused.insert(hash, now);
        true
    }

    /// Says how much was left out, now and then. `at` is the time of day.
    pub(crate) fn tick(&mut self, now: Duration, at: Timestamp) {
        let due = self.suppressed_said.is_none_or(|said| said + SUPPRESSED_EVERY <= now);
        if self.suppressed == 0 || !due {
            return;
        }
        self.suppressed_said = Some(now);
        self.waiting.push(decisions::suppressed(at, std::mem::take(&mut self.suppressed)));
    }

    /// Whether [`Journal::tick`] will have something to say.
    pub(crate) fn has_suppressed(&self) -> bool {
        self.suppressed > 0
    }

    /// What is to be logged. The caller takes it often: at most [`BURST`] and a line wait.
    pub(crate) fn take(&mut self) -> Vec<Decision> {
        std::mem::take(&mut self.waiting)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn remembered(&self) -> usize {
        self.refused.len()
    }

    fn refill(&mut self, now: Duration) {
        let each = Duration::from_secs(1) / PER_SECOND;
        let earned = now.saturating_sub(self.credited).as_nanos() / each.as_nanos();
        if earned >= u128::from(BURST) {
            (self.credit, self.credited) = (BURST, now);
        } else {
            // Below BURST, so it fits.
            let earned = earned as u32;
            self.credit = BURST.min(self.credit + earned);
            self.credited += each * earned;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use microagent_model::egress::{Protocol, Reason, Subject};

    use super::*;

    fn decision() -> Decision {
        Decision {
            protocol: Some(Protocol::Tcp),
            name: Some("example.org".to_owned()),
            address: Some(Ipv4Addr::new(192, 0, 2, 1).into()),
            port: Some(443),
            ..decisions::new(Timestamp::UNIX_EPOCH, Subject::Connection, true, Reason::Name)
        }
    }

    #[test]
    fn a_flood_is_bounded_and_counted() {
        let mut journal = Journal::default();
        let mut lines = 0;
        let mut counted = 0;
        for ms in 0..20_000_u64 {
            let now = Duration::from_millis(ms);
            for _ in 0..2 {
                journal.record(decision(), now);
            }
            journal.tick(now, Timestamp::UNIX_EPOCH);
            for line in journal.take() {
                match line.count {
                    Some(count) => counted += count,
                    None => lines += 1,
                }
            }
        }
        journal.tick(Duration::from_secs(21), Timestamp::UNIX_EPOCH);
        counted += journal.take().iter().filter_map(|line| line.count).sum::<u64>();
        assert!((BURST + 19 * PER_SECOND..=BURST + 20 * PER_SECOND).contains(&lines), "{lines}");
        assert_eq!(u64::from(lines) + counted, 40_000);
    }

    #[test]
    fn the_same_refusal_is_new_again_after_a_while() {
        let mut journal = Journal::default();
        assert!(journal.is_new(("tcp", 1), Duration::ZERO));
        assert!(!journal.is_new(("tcp", 1), SAME - Duration::from_millis(1)));
        assert!(journal.is_new(("tcp", 2), SAME - Duration::from_millis(1)));
        assert!(journal.is_new(("tcp", 1), SAME));
        for number in 0..5000 {
            journal.is_new(number, SAME);
            assert!(journal.remembered() <= REMEMBERED_MAX);
        }
    }
}
