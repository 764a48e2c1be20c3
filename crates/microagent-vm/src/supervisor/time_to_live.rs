//! The time to live of a machine: when it ends by itself, also when no client exists any more.
//!
//! The time is measured by a clock that also counts while the host sleeps and that nobody can set: a machine that was
//! given an hour ends an hour later. The time of day in the record is for display.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, clock_gettime};
use tokio::time::sleep;

/// Longest sleep at a time: timers do not count while the host sleeps, and this bounds how late the end is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);

/// The time to live of one machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimeToLive {
    limit: Option<Duration>,
    /// On the clock of [`now`]; `None` before the machine runs, without a limit, and after the end was told.
    ends_at: Option<Duration>,
}

impl TimeToLive {
    /// A limit that counts from [`TimeToLive::start`] on.
    pub(super) fn of(limit: Option<Duration>) -> TimeToLive {
        TimeToLive { limit, ends_at: None }
    }

    /// Starts to count, unless it counts already: a guest that restarts gets no more time. Returns when it ends.
    pub(super) fn start(&mut self) -> Option<Timestamp> {
        self.ends_at = self.ends_at.or_else(|| Some(now().saturating_add(self.limit?)));
        self.expires_at()
    }

    /// The same from now on, with another limit if one is given; 0 removes it. `None` if there is nothing to renew.
    pub(super) fn renewed(&self, limit: Option<Duration>) -> Option<TimeToLive> {
        let limit = Some(limit.or(self.limit)?).filter(|limit| !limit.is_zero());
        Some(TimeToLive { limit, ends_at: limit.map(|limit| now().saturating_add(limit)) })
    }

    /// When it ends, by the time of day.
    pub(super) fn expires_at(&self) -> Option<Timestamp> {
        let left = self.ends_at?.saturating_sub(now());
        let left = SignedDuration::try_from(left).unwrap_or(SignedDuration::MAX);
        Some(Timestamp::now().saturating_add(left).unwrap_or(Timestamp::MAX))
    }

    /// Waits for the end; for ever without one. Cancel-safe.
    pub(super) async fn expired(&self) {
        let Some(ends_at) = self.ends_at else { return std::future::pending().await };
        loop {
            match ends_at.saturating_sub(now()) {
                Duration::ZERO => return,
                left => sleep(left.min(LONGEST_SLEEP)).await,
            }
        }
    }

    /// The end was told, and is not told again.
    pub(super) fn told(&mut self) {
        self.ends_at = None;
    }
}

/// Time since the host's boot, sleep included.
fn now() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn it_counts_from_the_start_and_not_again() {
        assert_eq!(TimeToLive::of(None).start(), None);
        let mut ttl = TimeToLive::of(Some(HOUR));
        assert_eq!(ttl.expires_at(), None);
        ttl.start();
        let ends_at = ttl.ends_at.unwrap();
        assert!(ends_at <= now() + HOUR);
        ttl.start();
        assert_eq!(ttl.ends_at, Some(ends_at));
    }

    #[test]
    fn it_is_renewed_replaced_and_removed() {
        assert!(TimeToLive::of(None).renewed(None).is_none());
        let mut ttl = TimeToLive::of(Some(HOUR));
        ttl.start();
        let first = ttl.ends_at.unwrap();
        assert!(ttl.renewed(None).unwrap().ends_at.unwrap() >= first);
        let longer = ttl.renewed(Some(2 * HOUR)).unwrap();
        assert!(longer.ends_at.unwrap() >= first + HOUR);
        assert_eq!(longer.limit, Some(2 * HOUR));
        let none = longer.renewed(Some(Duration::ZERO)).unwrap();
        assert_eq!((none.limit, none.ends_at, none.expires_at()), (None, None, None));
        assert!(none.renewed(None).is_none());
    }

    #[test]
    fn a_time_beyond_the_calendar_is_its_end() {
        let ttl = TimeToLive::of(Some(HOUR)).renewed(Some(Duration::MAX)).unwrap();
        assert_eq!(ttl.expires_at(), Some(Timestamp::MAX));
    }

    #[tokio::test]
    async fn it_expires_when_the_time_has_passed() {
        let mut ttl = TimeToLive::of(Some(Duration::from_millis(1)));
        ttl.start();
        ttl.expired().await;
        ttl.told();
        assert_eq!(ttl.expires_at(), None);
    }
}
