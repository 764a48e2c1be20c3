//! The life of one machine, as states and events. Pure: no clock, no I/O, no tasks.
//!
//! ```text
//!                               Pause
//!                        Paused ◀───▶ Running
//!                           │ Resume   ▲
//!                           │ Halt     │
//!            AgentReady     ▼ Stop     │    WorkDone(keep), Halt, Stop       Flushed / deadline
//! Starting ─────────────────┼──────────┴───────────────────────▶ Stopping ───────────────────┐
//!    ▲ │                    │             WorkDone(scratch)         │                         ▼
//!    │ └────────────────────┴───────────────────────────────────────┴── Kill, any end ────▶ Ended
//! Restoring (AgentReady ▶ Running; the guest's or QEMU's failure ▶ Starting, once, cold)
//! ```
//!
//! The first end wins, with one exception: once the work is done its outcome stands, whatever happens to
//! the machine afterwards, unless the disk that was to be kept could not be flushed.

use microagent_store::{Failure, FailureKind};
use serde::{Deserialize, Serialize};

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
    /// The guest stands still, its memory kept.
    Paused,
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
    /// The service runs; clients can come.
    Serving,
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
    /// A client asks for something.
    Asked(Ask),
}

/// What a client of the supervisor can ask of a machine that serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// A clean shutdown, to be started again.
    Halt,
    /// A clean shutdown.
    Stop,
    /// The end, now.
    Kill,
    /// That the guest stands still.
    Pause,
    /// That it goes on.
    Resume,
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
    /// Have the guest stand still, and publish that.
    Pause,
    /// Have the guest go on, and publish that.
    Resume,
    /// Have the guest go on, and ask it to flush its disk.
    ResumeToFlush,
    /// Nothing, but the client waits for the end that is under way.
    AwaitEnd,
    /// Tell the client that this is not possible now.
    Refuse,
}

/// Advances the life by one event. `keep` says whether the disk outlives the machine.
pub fn step(phase: Phase, event: Event, keep: bool) -> (Phase, Effect) {
    use Event as E;
    use Phase as P;
    match (phase, event) {
        (P::Ended(outcome), _) => (P::Ended(outcome), Effect::None), // absorbing
        (phase, E::Asked(ask)) => asked(phase, ask, keep),
        (P::Restoring, E::GuestFailed(_) | E::MachineGone(_)) => (P::Starting, Effect::StartCold),
        (P::Restoring | P::Starting, E::AgentReady) => (P::Running, Effect::Publish),
        // It ended in the moment in which the guest was made to stand still.
        (P::Paused, E::WorkDone(outcome)) => (P::Stopping(outcome), Effect::ResumeToFlush),
        (P::Starting | P::Running, E::WorkDone(outcome)) if keep => (P::Stopping(outcome), Effect::Flush),
        (P::Starting | P::Running, E::WorkDone(outcome)) => (P::Ended(outcome), Effect::Kill),
        (P::Stopping(outcome), E::Flushed) => (P::Ended(outcome), Effect::Quit),
        (P::Stopping(outcome), E::FlushFailed(message) | E::MachineGone(message)) => {
            let message = match outcome {
                Outcome::Halted | Outcome::Stopped => format!("it did not shut down cleanly: {message}"),
                _ => format!("the command ended, but its disk was not flushed: {message}"),
            };
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
        (P::Running | P::Paused, E::GuestFailed(message)) => {
            (failed(FailureKind::Protocol, message), Effect::Kill)
        }
        (P::Running | P::Paused, E::MachineGone(message)) => {
            (failed(FailureKind::GuestDied, message), Effect::Kill)
        }
        // The worker reports these only in the phase that they belong to; late ones change nothing.
        (
            phase,
            E::AgentReady | E::Serving | E::WorkDone(_) | E::Flushed | E::FlushFailed(_) | E::GuestFailed(_),
        ) => (phase, Effect::None),
    }
}

/// What a client asks for, answered by where the machine is.
fn asked(phase: Phase, ask: Ask, keep: bool) -> (Phase, Effect) {
    use Phase as P;
    let outcome = if ask == Ask::Halt { Outcome::Halted } else { Outcome::Stopped };
    match (phase, ask) {
        (P::Ended(outcome), _) => (P::Ended(outcome), Effect::AwaitEnd),
        (_, Ask::Kill) => (P::Ended(outcome), Effect::Kill),
        (P::Stopping(under_way), Ask::Halt | Ask::Stop) => (P::Stopping(under_way), Effect::AwaitEnd),
        (P::Running, Ask::Halt | Ask::Stop) if keep => (P::Stopping(outcome), Effect::Flush),
        (P::Running | P::Paused, Ask::Halt | Ask::Stop) if !keep => (P::Ended(outcome), Effect::Kill),
        (P::Paused, Ask::Halt | Ask::Stop) => (P::Stopping(outcome), Effect::ResumeToFlush),
        (P::Running, Ask::Pause) => (P::Paused, Effect::Pause),
        (P::Paused, Ask::Resume) => (P::Running, Effect::Resume),
        (phase, _) => (phase, Effect::Refuse),
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
        let (phase, effect) = step(phase, Event::WorkDone(Outcome::Prepared), false);
        assert_eq!(effect, Effect::Kill);
        assert!(matches!(outcome(&phase), Outcome::Prepared));

        let (phase, effect) = step(Phase::Running, Event::WorkDone(Outcome::Prepared), true);
        assert_eq!(effect, Effect::Flush);
        let (phase, effect) = step(phase, Event::TimedOut, true);
        assert_eq!(effect, Effect::None);
        let (phase, effect) = step(phase, Event::Flushed, true);
        assert_eq!(effect, Effect::Quit);
        assert!(matches!(outcome(&phase), Outcome::Prepared));
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
            let (phase, effect) = step(Phase::Stopping(Outcome::Prepared), event, true);
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
    fn every_wish_is_answered_by_where_the_machine_is() {
        use Ask::{Halt, Kill, Pause, Resume, Stop};
        type Case = (fn() -> Phase, Ask, &'static str, Effect);
        let cases: [Case; 17] = [
            (|| Phase::Starting, Halt, "Starting", Effect::Refuse),
            (|| Phase::Restoring, Stop, "Restoring", Effect::Refuse),
            (|| Phase::Starting, Pause, "Starting", Effect::Refuse),
            (|| Phase::Starting, Kill, "Ended(Stopped)", Effect::Kill),
            (|| Phase::Running, Halt, "Stopping(Halted)", Effect::Flush),
            (|| Phase::Running, Stop, "Stopping(Stopped)", Effect::Flush),
            (|| Phase::Running, Kill, "Ended(Stopped)", Effect::Kill),
            (|| Phase::Running, Pause, "Paused", Effect::Pause),
            (|| Phase::Running, Resume, "Running", Effect::Refuse),
            (|| Phase::Paused, Halt, "Stopping(Halted)", Effect::ResumeToFlush),
            (|| Phase::Paused, Pause, "Paused", Effect::Refuse),
            (|| Phase::Paused, Resume, "Running", Effect::Resume),
            (|| Phase::Paused, Kill, "Ended(Stopped)", Effect::Kill),
            (|| Phase::Stopping(Outcome::Stopped), Halt, "Stopping(Stopped)", Effect::AwaitEnd),
            (|| Phase::Stopping(Outcome::Halted), Kill, "Ended(Stopped)", Effect::Kill),
            (|| Phase::Stopping(Outcome::Halted), Pause, "Stopping(Halted)", Effect::Refuse),
            (|| Phase::Ended(Outcome::Halted), Kill, "Ended(Halted)", Effect::AwaitEnd),
        ];
        for (phase, ask, next, effect) in cases {
            let (phase, got) = step(phase(), Event::Asked(ask), true);
            assert_eq!((format!("{phase:?}").as_str(), got), (next, effect), "{ask:?}");
        }
    }

    #[test]
    fn a_disk_that_is_not_kept_is_not_flushed() {
        for ask in [Ask::Halt, Ask::Stop] {
            let (phase, effect) = step(Phase::Running, Event::Asked(ask), false);
            assert!(matches!(phase, Phase::Ended(_)));
            assert_eq!(effect, Effect::Kill);
        }
    }

    #[test]
    fn an_end_is_final() {
        let ended = Phase::Ended(Outcome::Prepared);
        for event in [Event::MachineGone("x".into()), Event::TimedOut, Event::Cancelled, Event::AgentReady] {
            let (phase, effect) = step(ended.clone(), event, true);
            assert!(matches!(outcome(&phase), Outcome::Prepared));
            assert_eq!(effect, Effect::None);
        }
    }
}
