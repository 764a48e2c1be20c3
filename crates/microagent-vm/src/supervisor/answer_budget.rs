//! The deadline of a guest's answers, in the guest's own time: time in which its CPUs work or are idle. Time in which
//! they wait for a CPU or a disk of the host does not count. So a good template is not treated as broken on an
//! overloaded host, which would have to do a cold boot in addition.
//!
//! # Source
//! proc_pid_stat(5): state, utime, stime.

use std::path::Path;
use std::time::{Duration, Instant};

use microagent_store::{ProcessId, read_limited};
use tokio::time::sleep;

/// Deadline of a restored guest, in its own time. On an idle host it takes milliseconds.
const RESTORE_TIME: Duration = Duration::from_secs(10);

/// A restored guest has at least this part of what a guest that boots has, so that a longer boot lengthens both.
const RESTORE_SHARE: u32 = 12;

/// Wall time, as a multiple of the own time of a boot, after which a guest is given up though it had no time of its
/// own.
const STARVED_FACTOR: u32 = 4;

/// How often the time is taken. A warm start is over before the first.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);

/// Unit of times in `stat` (`USER_HZ`), the same on all architectures that QEMU's machine is for.
const TICKS_PER_SECOND: u64 = 100;

/// Most bytes of a file of `/proc` that are read.
const STAT_LIMIT: u64 = 4096;

/// Most threads of QEMU that are looked at.
const THREADS_MAX: usize = 1024;

/// The deadline of an answer.
#[derive(Debug, Clone)]
pub(super) struct AnswerBudget {
    own: Duration,
    wall: Duration,
    machine: Option<ProcessId>,
}

/// Why a guest that has not answered is not waited for any longer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Exhausted {
    /// The guest had its time.
    Guest,
    /// The host did not give the guest enough CPU time.
    Host,
}

impl AnswerBudget {
    /// For the first answer of a machine; `boot_time` is what one that boots may take.
    pub(super) fn of(restored: bool, boot_time: Duration, machine: Option<ProcessId>) -> AnswerBudget {
        let own = match restored {
            true => RESTORE_TIME.max(boot_time / RESTORE_SHARE).min(boot_time),
            false => boot_time,
        };
        AnswerBudget { own, wall: boot_time * STARVED_FACTOR, machine }
    }

    /// For another answer of the same machine.
    pub(super) fn with_own_time(&self, own: Duration) -> AnswerBudget {
        AnswerBudget { own, wall: self.wall.max(own * STARVED_FACTOR), machine: self.machine.clone() }
    }

    /// The same own time, given up after this wall time in any case.
    pub(super) fn at_most(&self, wall: Duration) -> AnswerBudget {
        AnswerBudget { wall, ..self.clone() }
    }

    /// Waits until it is used up.
    pub(super) async fn exhausted(&self) -> Exhausted {
        let begun = Instant::now();
        let mut used = Duration::ZERO;
        let mut before = self.sample();
        loop {
            sleep(SAMPLE_INTERVAL.min(self.own)).await;
            let now = self.sample();
            used += own_time(&before, &now);
            before = now;
            if used >= self.own {
                return Exhausted::Guest;
            }
            if begun.elapsed() >= self.wall {
                return Exhausted::Host;
            }
        }
    }

    /// What is said of a guest that did not answer.
    pub(super) fn describe(&self, exhausted: &Exhausted) -> String {
        match exhausted {
            Exhausted::Guest => format!("within {} s", self.own.as_secs()),
            Exhausted::Host => format!(
                "within {} s, in which the host gave it less than {} s: the host has too much to do",
                self.wall.as_secs(),
                self.own.as_secs()
            ),
        }
    }

    fn sample(&self) -> Sample {
        let threads = self.machine.as_ref().and_then(|machine| Threads::read(machine.pid));
        Sample { at: Instant::now(), threads }
    }
}

/// A process at one moment.
struct Sample {
    at: Instant,
    /// None of a process that is gone or cannot be looked at.
    threads: Option<Threads>,
}

/// The threads of a process at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Threads {
    /// Processor time of all of them so far.
    processor_time: Duration,
    /// Whether one works, or waits for a processor or disk of the host, or was stopped by somebody.
    busy: bool,
}

impl Threads {
    fn read(pid: i32) -> Option<Threads> {
        let proc = Path::new("/proc").join(pid.to_string());
        let processor_time = Stat::read(&proc.join("stat"))?.processor_time;
        let threads = std::fs::read_dir(proc.join("task")).ok()?.take(THREADS_MAX).flatten();
        let busy = threads
            .filter_map(|thread| Stat::read(&thread.path().join("stat")))
            .any(|thread| !matches!(thread.state, b'S' | b'I'));
        Some(Threads { processor_time, busy })
    }
}

/// What is used of a `stat` file.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: u8,
    processor_time: Duration,
}

impl Stat {
    fn read(path: &Path) -> Option<Stat> {
        Stat::parse(&read_limited(path, STAT_LIMIT).ok()?)
    }

    fn parse(bytes: &[u8]) -> Option<Stat> {
        let text = std::str::from_utf8(bytes).ok()?;
        // The name before may contain anything, parentheses too.
        let (_, fields) = text.rsplit_once(") ")?;
        let mut fields = fields.split(' ');
        let state = *fields.next()?.as_bytes().first()?;
        let user: u64 = fields.nth(10)?.parse().ok()?;
        let system: u64 = fields.next()?.parse().ok()?;
        let milliseconds = user.saturating_add(system).saturating_mul(1000 / TICKS_PER_SECOND);
        Some(Stat { state, processor_time: Duration::from_millis(milliseconds) })
    }
}

/// How much of the time between two samples was the guest's own.
fn own_time(before: &Sample, now: &Sample) -> Duration {
    // A host that slept, or a supervisor that got no processor, has not given the guest that time either.
    let elapsed = now.at.duration_since(before.at).min(2 * SAMPLE_INTERVAL);
    match (&before.threads, &now.threads) {
        (Some(before), Some(now)) if now.busy => {
            now.processor_time.saturating_sub(before.processor_time).min(elapsed)
        }
        _ => elapsed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn sample(at: Instant, ms: u64, processor_ms: u64, busy: bool) -> Sample {
        let threads = Threads { processor_time: Duration::from_millis(processor_ms), busy };
        Sample { at: at + Duration::from_millis(ms), threads: Some(threads) }
    }

    #[test]
    fn only_time_that_the_host_gave_counts() {
        let at = Instant::now();
        let before = sample(at, 0, 40, true);
        let own = |now| own_time(&before, &now).as_millis();
        assert_eq!(own(sample(at, 100, 70, true)), 30, "it worked for a part of it and waited for the rest");
        assert_eq!(own(sample(at, 100, 40, true)), 0, "it waited for a processor all the time");
        assert_eq!(own(sample(at, 100, 240, true)), 100, "two processors worked");
        assert_eq!(own(sample(at, 100, 41, false)), 100, "it had nothing to do");
        assert_eq!(own(sample(at, 9000, 41, false)), 200, "the host slept");
        let gone = Sample { at: at + Duration::from_millis(100), threads: None };
        assert_eq!(own(gone), 100);
    }

    #[test]
    fn a_longer_boot_lengthens_a_restore_and_a_short_one_bounds_it() {
        let own = |restored, seconds: u32| AnswerBudget::of(restored, seconds * SECOND, None).own;
        assert_eq!(own(true, 120), 10 * SECOND);
        assert_eq!(own(true, 600), 50 * SECOND);
        assert_eq!(own(true, 3), 3 * SECOND);
        assert_eq!(own(false, 3), 3 * SECOND);
        let budget = AnswerBudget::of(true, 120 * SECOND, None);
        assert!(budget.wall >= STARVED_FACTOR * budget.own);
        assert_eq!(budget.with_own_time(300 * SECOND).wall, 1200 * SECOND);
    }

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let line = b"7 (a) R (b) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 3 0 1 1 1\n";
        let found = Stat::parse(line).unwrap();
        assert_eq!(found, Stat { state: b'S', processor_time: 2 * SECOND });
        assert_eq!(Stat::parse(b"7 (qemu"), None);
        let own = Threads::read(std::process::id().cast_signed()).unwrap();
        assert!(own.busy, "this thread works: {own:?}");
    }

    #[tokio::test]
    async fn a_guest_that_has_nothing_to_do_and_says_nothing_is_given_up() {
        let budget = AnswerBudget::of(false, Duration::from_millis(1), None);
        assert_eq!(budget.exhausted().await, Exhausted::Guest);
    }
}
