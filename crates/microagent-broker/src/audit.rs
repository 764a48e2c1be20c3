//! The audit: one decision per request, as a message to the supervisor, and the bound on their number.
//!
//! The guest decides how many requests there are, so lines are bounded as those of the egress filter are, and a
//! `suppressed` line says how many were left out. Nothing here waits.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use microagent_model::decisions;
use microagent_model::egress::Decision;
use rustix::net::{SendFlags, send};
use tokio::time::{Duration, Instant};

/// Lines that may come at once.
pub const BURST: u32 = 1000;

/// Lines per second, for longer.
pub const PER_SECOND: u32 = 100;

/// Where decisions go.
#[derive(Debug)]
pub(crate) struct Audit {
    socket: OwnedFd,
    budget: Mutex<Budget>,
}

#[derive(Debug)]
struct Budget {
    credit: u32,
    /// Up to when credit was given.
    credited: Instant,
    suppressed: u64,
}

impl Budget {
    /// Whether one more line may come now.
    fn spend(&mut self, now: Instant) -> bool {
        let each = Duration::from_secs(1) / PER_SECOND;
        let earned = now.saturating_duration_since(self.credited).as_nanos() / each.as_nanos();
        let earned = u32::try_from(earned).unwrap_or(u32::MAX).min(BURST);
        self.credited = if earned == BURST { now } else { self.credited + each * earned };
        self.credit = self.credit.saturating_add(earned).min(BURST);
        let may = self.credit > 0;
        self.credit = self.credit.saturating_sub(1);
        may
    }
}

impl Audit {
    pub(crate) fn new(socket: OwnedFd) -> Audit {
        let budget = Budget { credit: BURST, credited: Instant::now(), suppressed: 0 };
        Audit { socket, budget: Mutex::new(budget) }
    }

    /// Records a decision.
    pub(crate) fn record(&self, decision: &Decision) {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        if !budget.spend(Instant::now()) {
            budget.suppressed += 1;
            return;
        }
        self.tell_suppressed(&mut budget);
        if !self.send(decision) {
            budget.suppressed += 1;
        }
    }

    /// Says what was left out, if anything.
    pub(crate) fn flush(&self) {
        self.tell_suppressed(&mut self.budget.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn tell_suppressed(&self, budget: &mut Budget) {
        if budget.suppressed > 0 && self.send(&suppressed(budget.suppressed)) {
            budget.suppressed = 0;
        }
    }

    /// False if the supervisor does not take it now.
    fn send(&self, decision: &Decision) -> bool {
        let line = serde_json::to_vec(decision).expect("a decision is plain data");
        send(&self.socket, &line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_ok()
    }
}

fn suppressed(count: u64) -> Decision {
    decisions::suppressed(Timestamp::now(), count)
}

#[cfg(test)]
mod tests {
    use microagent_model::egress::Subject;
    use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_bounded_and_counted() {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let audit = Audit::new(theirs);
        let one = Decision { record: Subject::Request, count: None, ..suppressed(0) };
        let (mut lines, mut counted) = (0_u64, 0);
        let mut receive = || {
            let mut text = vec![0; 4096];
            while let Ok((len @ 1.., _)) = recv(&ours, &mut text[..], RecvFlags::DONTWAIT) {
                let decision: Decision = serde_json::from_slice(&text[..len]).unwrap();
                match decision.count {
                    Some(count) => counted += count,
                    None => lines += 1,
                }
            }
            (lines, counted)
        };
        for _ in 0..10_000 {
            audit.record(&one);
            tokio::time::advance(Duration::from_millis(1)).await;
            receive();
        }
        audit.flush();
        let (lines, counted) = receive();
        assert_eq!(lines + counted, 10_000);
        let most = u64::from(BURST + 10 * PER_SECOND);
        assert!((most - u64::from(PER_SECOND)..=most + 1).contains(&lines), "{lines}");
    }
}
