//! A rate for one direction of the link.

use std::num::NonZeroU64;
use std::time::Duration;

/// Time whose bytes may pass at once after a pause.
const BURST: Duration = Duration::from_millis(100);

/// Lets bytes pass at a rate: a token bucket, kept as the time at which the bytes that passed are paid for. Without a rate
/// everything passes.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: Option<NonZeroU64>,
    paid_at: Duration,
}

impl Pace {
    pub(super) fn new(bytes_per_second: Option<NonZeroU64>) -> Pace {
        Pace { bytes_per_second, paid_at: Duration::ZERO }
    }

    /// Whether something may pass now. What passes may be more than is due; the next waits for longer then.
    pub(super) fn is_open(&self, now: Duration) -> bool {
        self.paid_at <= now
    }

    /// When something may pass again.
    pub(super) fn opens_at(&self) -> Duration {
        self.paid_at
    }

    /// Counts bytes that passed.
    pub(super) fn count(&mut self, now: Duration, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        let nanoseconds = bytes as u128 * 1_000_000_000 / u128::from(rate.get());
        let cost = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        self.paid_at = self.paid_at.max(now.saturating_sub(BURST)).saturating_add(cost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What passes within a time at this rate, where a piece waits whenever something may pass.
    fn passed(rate: Option<u64>, piece: usize, time: Duration) -> usize {
        let mut pace = Pace::new(rate.and_then(NonZeroU64::new));
        let (mut now, mut bytes) = (Duration::from_secs(10), 0);
        let end = now + time;
        while now < end && bytes < 1 << 40 {
            if pace.is_open(now) {
                pace.count(now, piece);
                bytes += piece;
            } else {
                now = pace.opens_at();
            }
        }
        bytes
    }

    #[test]
    fn no_more_than_the_rate_passes_and_hardly_less() {
        for (rate, piece) in
            [(1_000_000, 1500), (1_000_000, 65_550), (16_384, 65_550), (1, 1), (u64::MAX, 1 << 30)]
        {
            let bytes = passed(Some(rate), piece, Duration::from_secs(10)) as u128;
            let due = u128::from(rate) * 10;
            assert!(bytes <= due + u128::from(rate) / 10 + 2 * piece as u128, "{rate} {piece}: {bytes}");
            assert!(bytes >= due.min(1 << 40), "{rate} {piece}: {bytes}");
        }
        assert_eq!(
            passed(None, 1 << 30, Duration::from_secs(1)),
            1 << 40,
            "without a rate all passes at once"
        );
    }

    #[test]
    fn a_pause_saves_up_no_more_than_the_burst() {
        let mut pace = Pace::new(NonZeroU64::new(1000));
        pace.count(Duration::from_secs(100), 100);
        assert!(pace.is_open(Duration::from_secs(100)));
        pace.count(Duration::from_secs(100), 100);
        assert!(!pace.is_open(Duration::from_secs(100)));
        assert_eq!(pace.opens_at(), Duration::from_millis(100_100));
    }
}
