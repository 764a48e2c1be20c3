//! The life of one machine, as states and events. Pure: no clock, no I/O, no tasks.
//!
//! ```text
//!            AgentReady            WorkDone(keep)           Flushed / deadline
//! Starting ────────────▶ Running ────────────────▶ Stopping ───────────────────┐
//!    ▲ │                    │ WorkDone(scratch)       │                         ▼
//!    │ └────────────────────┴─────────────────────────┴──── any end ────────▶ Ended
//! Restoring (AgentReady ▶ Running; the guest's or QEMU's failure ▶ Starting, once, cold)
//! ```
//!
//! The first end wins, with one exception: once the work is done its outcome stands, whatever happens to
//! the machine afterwards, unless the disk that was to be kept could not be flushed.

use microagent_store::{Failure, FailureKind};

use crate::spec::Outcome;

/// Where the machine is in its life.
#[derive(Debug, Clone)]
pub enum Phase {
    /// From the spawn of a machine that goes on from a template to the agent's answer.
    Restoring,
    /// From the spawn of a machine that boots to the agent's answer.
    Starting,
    /// The guest works.
    Running,
    /// The work is done; the guest flushes its disk.
    Stopping(Outcome),
    /// Nothing more happens.
    Ended(Outcome),
}

/// Something that happened to the machine.
#[derive(Debug)]
pub enum Event {
    /// The guest is configured.
    AgentReady,
    /// The work came to an end.
    WorkDone(Outcome),
    /// The disk is flushed.
    Flushed,
    /// The guest could not flush its disk, or did not in time.
    FlushFailed(String),
    /// The guest did not answer in time, or broke the protocol, or could not be configured.
    GuestFailed(String),
    /// QEMU ended by itself.
    MachineGone(String),
    /// The host's disk is full.
    HostFull(String),
    /// The run's time is up.
    TimedOut,
    /// The caller asked for the end, or is gone.
    Cancelled,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Write the new state down and tell the caller.
    Publish,
    /// Ask the guest to flush its disk.
    Flush,
    /// End QEMU in good order, so that its disk is closed.
    Quit,
    /// Kill QEMU.
    Kill,
    /// Throw the template away and start once more, cold.
    StartCold,
}

/// Advances the life by one event. `keep` says whether the disk outlives the machine.
pub fn step(phase: Phase, event: Event, keep: bool) -> (Phase, Effect) {
    use Event as E;
    use Phase as P;
    match (phase, event) {
        (P::Ended(outcome), _) => (P::Ended(outcome), Effect::None), // absorbing
        (P::Restoring, E::GuestFailed(_) | E::MachineGone(_)) => (P::Starting, Effect::StartCold),
        (P::Restoring | P::Starting, E::AgentReady) => (P::Running, Effect::Publish),
        (P::Starting | P::Running, E::WorkDone(outcome)) if keep => (P::Stopping(outcome), Effect::Flush),
        (P::Starting | P::Running, E::WorkDone(outcome)) => (P::Ended(outcome), Effect::Kill),
        (P::Stopping(outcome), E::Flushed) => (P::Ended(outcome), Effect::Quit),
        (P::Stopping(_), E::FlushFailed(message) | E::MachineGone(message)) => {
            let message = format!("the command ended, but its disk was not flushed: {message}");
            (failed(FailureKind::GuestDied, message), Effect::Kill)
        }
        (P::Stopping(_), E::HostFull(message)) => (failed(FailureKind::HostFull, message), Effect::Kill),
        // The command has ended in time; only its flush is under way, and that has a deadline of its own.
        (P::Stopping(outcome), E::TimedOut) => (P::Stopping(outcome), Effect::None),
        (_, E::Cancelled) => (failed(FailureKind::Cancelled, "cancelled".to_owned()), Effect::Kill),
        (_, E::TimedOut) => (failed(FailureKind::Timeout, "signal: killed".to_owned()), Effect::Kill),
        (_, E::HostFull(message)) => (failed(FailureKind::HostFull, message), Effect::Kill),
        (P::Starting, E::GuestFailed(message) | E::MachineGone(message)) => {
            (failed(FailureKind::Boot, message), Effect::Kill)
        }
        (P::Running, E::GuestFailed(message)) => (failed(FailureKind::Protocol, message), Effect::Kill),
        (P::Running, E::MachineGone(message)) => (failed(FailureKind::GuestDied, message), Effect::Kill),
        // The worker reports these only in the phase that they belong to; late ones change nothing.
        (phase, E::AgentReady | E::WorkDone(_) | E::Flushed | E::FlushFailed(_) | E::GuestFailed(_)) => {
            (phase, Effect::None)
        }
    }
}

fn failed(kind: FailureKind, message: String) -> Phase {
    Phase::Ended(Outcome::Failed(Failure { kind, message }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(phase: &Phase) -> &Outcome {
        match phase {
            Phase::Ended(outcome) => outcome,
            other => panic!("not ended: {other:?}"),
        }
    }

    fn failure_kind(phase: &Phase) -> FailureKind {
        match outcome(phase) {
            Outcome::Failed(failure) => failure.kind,
            other => panic!("not failed: {other:?}"),
        }
    }

    #[test]
    fn a_scratch_run_ends_with_its_command_and_a_kept_one_flushes_first() {
        let (phase, effect) = step(Phase::Starting, Event::AgentReady, false);
        assert_eq!(effect, Effect::Publish);
        let (phase, effect) = step(phase, Event::WorkDone(Outcome::Fetched), false);
        assert_eq!(effect, Effect::Kill);
        assert!(matches!(outcome(&phase), Outcome::Fetched));

        let (phase, effect) = step(Phase::Running, Event::WorkDone(Outcome::Fetched), true);
        assert_eq!(effect, Effect::Flush);
        let (phase, effect) = step(phase, Event::TimedOut, true);
        assert_eq!(effect, Effect::None);
        let (phase, effect) = step(phase, Event::Flushed, true);
        assert_eq!(effect, Effect::Quit);
        assert!(matches!(outcome(&phase), Outcome::Fetched));
    }

    #[test]
    fn every_bad_end_kills_the_machine_and_is_named() {
        type Case = (fn() -> Event, FailureKind, FailureKind);
        let cases: [Case; 5] = [
            (|| Event::GuestFailed("x".into()), FailureKind::Boot, FailureKind::Protocol),
            (|| Event::MachineGone("x".into()), FailureKind::Boot, FailureKind::GuestDied),
            (|| Event::HostFull("x".into()), FailureKind::HostFull, FailureKind::HostFull),
            (|| Event::TimedOut, FailureKind::Timeout, FailureKind::Timeout),
            (|| Event::Cancelled, FailureKind::Cancelled, FailureKind::Cancelled),
        ];
        for (event, while_starting, while_running) in cases {
            for (phase, kind) in [(Phase::Starting, while_starting), (Phase::Running, while_running)] {
                let (phase, effect) = step(phase, event(), true);
                assert_eq!(effect, Effect::Kill);
                assert_eq!(failure_kind(&phase), kind);
            }
        }
    }

    #[test]
    fn a_kept_disk_that_was_not_flushed_is_a_failure() {
        for event in [Event::FlushFailed("x".into()), Event::MachineGone("x".into())] {
            let (phase, effect) = step(Phase::Stopping(Outcome::Fetched), event, true);
            assert_eq!((failure_kind(&phase), effect), (FailureKind::GuestDied, Effect::Kill));
        }
    }

    #[test]
    fn a_failed_restore_is_tried_once_more_cold() {
        for event in [Event::GuestFailed("x".into()), Event::MachineGone("x".into())] {
            let (phase, effect) = step(Phase::Restoring, event, false);
            assert_eq!(effect, Effect::StartCold);
            assert!(matches!(phase, Phase::Starting));
        }
        for event in [Event::TimedOut, Event::Cancelled, Event::HostFull("x".into())] {
            let (phase, effect) = step(Phase::Restoring, event, false);
            assert_eq!(effect, Effect::Kill);
            assert!(matches!(phase, Phase::Ended(_)));
        }
    }

    #[test]
    fn an_end_is_final() {
        let ended = Phase::Ended(Outcome::Fetched);
        for event in [Event::MachineGone("x".into()), Event::TimedOut, Event::Cancelled, Event::AgentReady] {
            let (phase, effect) = step(ended.clone(), event, true);
            assert!(matches!(outcome(&phase), Outcome::Fetched));
            assert_eq!(effect, Effect::None);
        }
    }
}
