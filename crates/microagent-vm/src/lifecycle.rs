//! The life of one machine, as states and events. Pure: no clock, no I/O, no tasks.
//!
//! ```text
//!                          Pause         Stop (with a service)
//!                   Paused ◀─────▶ Running ◀──────▶ Asked
//!                     │    Resume    ▲ │   ServiceStopTimedOut  │
//!                     │ Halt         │ │               │ WorkDone, Halt
//!            AgentReady              │ │ WorkDone(keep), Halt, Stop              Flushed / deadline
//! Starting ──────────┼───────────────┘ └───────────────┴─────────▶ Stopping ───────────────┐
//!    ▲ │             ▼                   WorkDone(scratch)            │                     ▼
//!    │ └──────────────────────────────────────────────────────────────┴─ Kill, any end ▶ Ended
//! Restoring (AgentReady ▶ Running; the guest's or QEMU's failure ▶ Starting, once, cold)
//!
//! Running, Paused, Asked, Stopping ── Quarantine ▶ Quarantined ── Halt, Stop, Kill, QEMU's end ▶ Ended
//! ```
//!
//! The first end wins, with one exception: once the work is done its outcome stands, whatever happens to
//! the machine afterwards, unless the disk that was to be kept could not be flushed. A quarantined machine has no
//! work any more: nothing but its end is expected of it, and whatever its guest still seems to say is not heard.

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
    /// The service was asked to end and has not yet.
    StoppingService,
    /// The work is done; the guest flushes its disk.
    Stopping(Outcome),
    /// Cut off, its processors stopped for good; memory and disk are kept to be examined.
    Quarantined,
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
    /// The channel to the guest broke, and nobody knows why.
    ChannelBroken(String),
    /// The guest is well and cannot use one of its disks beside the root disk.
    DiskUnfit(String),
    /// QEMU ended by itself.
    MachineGone(String),
    /// The host's disk is full.
    HostFull(String),
    /// The network device leads nowhere any more.
    LinkLost(String),
    /// The run's time is up.
    TimedOut,
    /// The caller asked for the end, or is gone.
    Cancelled,
    /// A client requests a change.
    ChangeRequested(ChangeRequest),
    /// The service had its time to follow a request, and did not.
    ServiceStopTimedOut,
}

/// What a machine is, once for its whole life.
#[derive(Debug, Clone, Copy)]
pub struct MachineTraits {
    /// Its disk outlives it.
    pub keep: bool,
    /// It has a service, which can be asked to end.
    pub service: bool,
}

/// What a client of the supervisor can ask of a machine that serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeRequest {
    /// A clean shutdown, to be started again. What does not follow is ended.
    Halt,
    /// A clean shutdown, which its service may not follow.
    Stop,
    /// The end, now.
    Kill,
    /// That the guest stands still.
    Pause,
    /// That it goes on.
    Resume,
    /// That it is cut off and never goes on, with its memory kept.
    Quarantine,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Write the new state down and tell the caller.
    Publish,
    /// The same for a machine that serves from here on.
    PublishServing,
    /// ChangeRequest the guest to flush its disk.
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
    /// ChangeRequest the service to end, and publish that.
    SignalService,
    /// Tell whoever asked that the service did not follow, and publish that it goes on.
    KeepServiceRunning,
    /// Tell that the network is gone; the machine goes on without.
    NoteLinkLost,
    /// Cut the guest off, stop it for good, and publish that.
    Quarantine,
    /// Nothing, but the client waits for the end that is under way.
    AwaitEnd,
    /// Tell the client that this is not possible now.
    Refuse,
}

/// Advances the life by one event.
pub fn step(phase: Phase, event: Event, traits: MachineTraits) -> (Phase, Effect) {
    use Event as E;
    use Phase as P;
    match (phase, event) {
        (P::Ended(outcome), _) => (P::Ended(outcome), Effect::None), // absorbing
        (phase, E::ChangeRequested(request)) => requested(phase, request, traits),
        (P::Quarantined, E::MachineGone(message)) => {
            (P::Ended(Outcome::Quarantined(memory_lost(message))), Effect::Kill)
        }
        (P::Quarantined, _) => (P::Quarantined, Effect::None),
        (P::StoppingService, E::ServiceStopTimedOut) => (P::Running, Effect::KeepServiceRunning),
        (P::StoppingService, E::WorkDone(_)) => (P::Stopping(Outcome::Stopped), Effect::Flush),
        (P::Restoring, E::GuestFailed(_) | E::ChannelBroken(_) | E::MachineGone(_)) => {
            (P::Starting, Effect::StartCold)
        }
        // No template is to blame, and another boot would not help.
        (P::Restoring | P::Starting, E::DiskUnfit(message)) => {
            (failed(FailureKind::Disk, message), Effect::Kill)
        }
        (P::Running, E::Serving) => (P::Running, Effect::PublishServing),
        (P::Restoring | P::Starting, E::AgentReady) => (P::Running, Effect::Publish),
        // It ended in the moment in which the guest was made to stand still.
        (P::Paused, E::WorkDone(outcome)) => (P::Stopping(outcome), Effect::ResumeToFlush),
        (P::Starting | P::Running, E::WorkDone(outcome)) if traits.keep => {
            (P::Stopping(outcome), Effect::Flush)
        }
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
        (
            phase @ (P::Restoring | P::Starting | P::Running | P::Paused | P::StoppingService),
            E::LinkLost(_),
        ) => (phase, Effect::NoteLinkLost),
        (_, E::Cancelled) => (failed(FailureKind::Cancelled, "cancelled".to_owned()), Effect::Kill),
        (_, E::TimedOut) => (failed(FailureKind::Timeout, "signal: killed".to_owned()), Effect::Kill),
        (_, E::HostFull(message)) => (failed(FailureKind::HostFull, message), Effect::Kill),
        (P::Starting, E::GuestFailed(message) | E::ChannelBroken(message) | E::MachineGone(message)) => {
            (failed(FailureKind::Boot, message), Effect::Kill)
        }
        (
            P::Running | P::Paused | P::StoppingService,
            E::GuestFailed(message) | E::ChannelBroken(message),
        ) => (failed(FailureKind::Protocol, message), Effect::Kill),
        (P::Running | P::Paused | P::StoppingService, E::MachineGone(message)) => {
            (failed(FailureKind::GuestDied, message), Effect::Kill)
        }
        // The worker reports these only in the phase that they belong to; late ones change nothing.
        (
            phase,
            E::AgentReady
            | E::Serving
            | E::WorkDone(_)
            | E::Flushed
            | E::FlushFailed(_)
            | E::GuestFailed(_)
            | E::ChannelBroken(_)
            | E::LinkLost(_)
            | E::DiskUnfit(_)
            | E::ServiceStopTimedOut,
        ) => (phase, Effect::None),
    }
}

/// What a client asks for, answered by where the machine is.
fn requested(phase: Phase, request: ChangeRequest, traits: MachineTraits) -> (Phase, Effect) {
    use Phase as P;
    let outcome = if request == ChangeRequest::Halt { Outcome::Halted } else { Outcome::Stopped };
    match (phase, request) {
        (_, ChangeRequest::Kill) => (P::Ended(outcome), Effect::Kill),
        // It is not asked to flush: not one more instruction of it runs. QEMU closes the disk as it is.
        (P::Quarantined, ChangeRequest::Halt | ChangeRequest::Stop) => {
            (P::Ended(Outcome::Stopped), Effect::Quit)
        }
        (P::Running | P::StoppingService | P::Paused | P::Stopping(_), ChangeRequest::Quarantine) => {
            (P::Quarantined, Effect::Quarantine)
        }
        (P::Stopping(under_way), ChangeRequest::Halt | ChangeRequest::Stop) => {
            (P::Stopping(under_way), Effect::AwaitEnd)
        }
        (P::Running | P::StoppingService, ChangeRequest::Stop) if traits.service => {
            (P::StoppingService, Effect::SignalService)
        }
        // Whether its service follows shows only while it can.
        (P::Paused, ChangeRequest::Stop) if traits.service => (P::Paused, Effect::Refuse),
        (P::Running | P::StoppingService, ChangeRequest::Halt | ChangeRequest::Stop) if traits.keep => {
            (P::Stopping(outcome), Effect::Flush)
        }
        (P::Running | P::StoppingService | P::Paused, ChangeRequest::Halt | ChangeRequest::Stop)
            if !traits.keep =>
        {
            (P::Ended(outcome), Effect::Kill)
        }
        (P::Paused, ChangeRequest::Halt | ChangeRequest::Stop) => {
            (P::Stopping(outcome), Effect::ResumeToFlush)
        }
        (P::Running, ChangeRequest::Pause) => (P::Paused, Effect::Pause),
        (P::Paused, ChangeRequest::Resume) => (P::Running, Effect::Resume),
        (phase, _) => (phase, Effect::Refuse),
    }
}

/// A quarantined machine is gone before anybody released it.
pub(crate) fn memory_lost(message: String) -> Failure {
    Failure { kind: FailureKind::GuestDied, message: format!("its memory is lost: {message}") }
}

fn failed(kind: FailureKind, message: String) -> Phase {
    Phase::Ended(Outcome::Failed(Failure { kind, message }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEPT: MachineTraits = MachineTraits { keep: true, service: false };
    const SCRATCH: MachineTraits = MachineTraits { keep: false, service: false };
    const SERVING: MachineTraits = MachineTraits { keep: true, service: true };

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
        let (phase, effect) = step(Phase::Starting, Event::AgentReady, SCRATCH);
        assert_eq!(effect, Effect::Publish);
        let (phase, effect) = step(phase, Event::WorkDone(Outcome::Prepared), SCRATCH);
        assert_eq!(effect, Effect::Kill);
        assert!(matches!(outcome(&phase), Outcome::Prepared));

        let (phase, effect) = step(Phase::Running, Event::WorkDone(Outcome::Prepared), KEPT);
        assert_eq!(effect, Effect::Flush);
        let (phase, effect) = step(phase, Event::TimedOut, KEPT);
        assert_eq!(effect, Effect::None);
        let (phase, effect) = step(phase, Event::Flushed, KEPT);
        assert_eq!(effect, Effect::Quit);
        assert!(matches!(outcome(&phase), Outcome::Prepared));
    }

    #[test]
    fn a_machine_serves_only_while_it_runs() {
        let (phase, effect) = step(Phase::Running, Event::Serving, SERVING);
        assert!(matches!(phase, Phase::Running));
        assert_eq!(effect, Effect::PublishServing);
        let (phase, effect) = step(Phase::Stopping(Outcome::Halted), Event::Serving, SERVING);
        assert_eq!((format!("{phase:?}").as_str(), effect), ("Stopping(Halted)", Effect::None));
    }

    #[test]
    fn every_bad_end_kills_the_machine_and_is_named() {
        type Case = (fn() -> Event, FailureKind, FailureKind);
        let cases: [Case; 6] = [
            (|| Event::GuestFailed("x".into()), FailureKind::Boot, FailureKind::Protocol),
            (|| Event::ChannelBroken("x".into()), FailureKind::Boot, FailureKind::Protocol),
            (|| Event::MachineGone("x".into()), FailureKind::Boot, FailureKind::GuestDied),
            (|| Event::HostFull("x".into()), FailureKind::HostFull, FailureKind::HostFull),
            (|| Event::TimedOut, FailureKind::Timeout, FailureKind::Timeout),
            (|| Event::Cancelled, FailureKind::Cancelled, FailureKind::Cancelled),
        ];
        for (event, while_starting, while_running) in cases {
            for (phase, kind) in [(Phase::Starting, while_starting), (Phase::Running, while_running)] {
                let (phase, effect) = step(phase, event(), KEPT);
                assert_eq!(effect, Effect::Kill);
                assert_eq!(failure_kind(&phase), kind);
            }
        }
    }

    #[test]
    fn a_machine_goes_on_without_its_network() {
        let phases: [fn() -> Phase; 5] = [
            || Phase::Restoring,
            || Phase::Starting,
            || Phase::Running,
            || Phase::Paused,
            || Phase::StoppingService,
        ];
        for phase in phases {
            let (after, effect) = step(phase(), Event::LinkLost("x".into()), SERVING);
            assert_eq!((format!("{after:?}"), effect), (format!("{:?}", phase()), Effect::NoteLinkLost));
        }
        let (phase, effect) = step(Phase::Stopping(Outcome::Halted), Event::LinkLost("x".into()), SERVING);
        assert_eq!((format!("{phase:?}").as_str(), effect), ("Stopping(Halted)", Effect::None));
    }

    #[test]
    fn a_kept_disk_that_was_not_flushed_is_a_failure() {
        for event in [Event::FlushFailed("x".into()), Event::MachineGone("x".into())] {
            let (phase, effect) = step(Phase::Stopping(Outcome::Prepared), event, KEPT);
            assert_eq!((failure_kind(&phase), effect), (FailureKind::GuestDied, Effect::Kill));
        }
    }

    #[test]
    fn a_failed_restore_is_tried_once_more_cold() {
        for event in
            [Event::GuestFailed, Event::ChannelBroken, Event::MachineGone].map(|event| event("x".into()))
        {
            let (phase, effect) = step(Phase::Restoring, event, SCRATCH);
            assert_eq!(effect, Effect::StartCold);
            assert!(matches!(phase, Phase::Starting));
        }
        let disk = || Event::DiskUnfit("x".into());
        for phase in [Phase::Restoring, Phase::Starting] {
            let (phase, effect) = step(phase, disk(), KEPT);
            assert_eq!((failure_kind(&phase), effect), (FailureKind::Disk, Effect::Kill));
        }
        for event in [Event::TimedOut, Event::Cancelled, Event::HostFull("x".into())] {
            let (phase, effect) = step(Phase::Restoring, event, SCRATCH);
            assert_eq!(effect, Effect::Kill);
            assert!(matches!(phase, Phase::Ended(_)));
        }
    }

    #[test]
    fn every_request_is_answered_by_where_the_machine_is() {
        use ChangeRequest::{Halt, Kill, Pause, Resume, Stop};
        type Case = (fn() -> Phase, ChangeRequest, &'static str, Effect);
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
            (|| Phase::Ended(Outcome::Halted), Kill, "Ended(Halted)", Effect::None),
        ];
        for (phase, ask, next, effect) in cases {
            let (phase, got) = step(phase(), Event::ChangeRequested(ask), KEPT);
            assert_eq!((format!("{phase:?}").as_str(), got), (next, effect), "{ask:?}");
        }
    }

    #[test]
    fn a_quarantined_machine_only_ends() {
        let phases: [fn() -> Phase; 4] = [
            || Phase::Running,
            || Phase::StoppingService,
            || Phase::Paused,
            || Phase::Stopping(Outcome::Halted),
        ];
        for phase in phases {
            let (phase, effect) = step(phase(), Event::ChangeRequested(ChangeRequest::Quarantine), SERVING);
            assert_eq!((format!("{phase:?}").as_str(), effect), ("Quarantined", Effect::Quarantine));
        }
        for phase in [Phase::Starting, Phase::Restoring, Phase::Quarantined] {
            assert_eq!(
                step(phase, Event::ChangeRequested(ChangeRequest::Quarantine), KEPT).1,
                Effect::Refuse
            );
        }
        type Case = (fn() -> Event, &'static str, Effect);
        let cases: [Case; 14] = [
            (|| Event::ChangeRequested(ChangeRequest::Halt), "Ended(Stopped)", Effect::Quit),
            (|| Event::ChangeRequested(ChangeRequest::Stop), "Ended(Stopped)", Effect::Quit),
            (|| Event::ChangeRequested(ChangeRequest::Kill), "Ended(Stopped)", Effect::Kill),
            (|| Event::ChangeRequested(ChangeRequest::Pause), "Quarantined", Effect::Refuse),
            (|| Event::ChangeRequested(ChangeRequest::Resume), "Quarantined", Effect::Refuse),
            (|| Event::Serving, "Quarantined", Effect::None),
            (|| Event::WorkDone(Outcome::Prepared), "Quarantined", Effect::None),
            (|| Event::Flushed, "Quarantined", Effect::None),
            (|| Event::FlushFailed("x".into()), "Quarantined", Effect::None),
            (|| Event::GuestFailed("x".into()), "Quarantined", Effect::None),
            (|| Event::ChannelBroken("x".into()), "Quarantined", Effect::None),
            (|| Event::HostFull("x".into()), "Quarantined", Effect::None),
            (|| Event::ServiceStopTimedOut, "Quarantined", Effect::None),
            (|| Event::Cancelled, "Quarantined", Effect::None),
        ];
        for (event, next, effect) in cases {
            for traits in [KEPT, SERVING] {
                let (phase, got) = step(Phase::Quarantined, event(), traits);
                assert_eq!((format!("{phase:?}").as_str(), got), (next, effect), "{:?}", event());
            }
        }
        let (phase, effect) = step(Phase::Quarantined, Event::MachineGone("x".into()), KEPT);
        assert_eq!(effect, Effect::Kill);
        match outcome(&phase) {
            Outcome::Quarantined(failure) => assert_eq!(failure.message, "its memory is lost: x"),
            other => panic!("released: {other:?}"),
        }
    }

    #[test]
    fn a_service_that_is_asked_to_end_may_follow_or_not() {
        let asked = || {
            let (phase, effect) = step(Phase::Running, Event::ChangeRequested(ChangeRequest::Stop), SERVING);
            assert!(matches!(phase, Phase::StoppingService));
            assert_eq!(effect, Effect::SignalService);
            phase
        };
        let (phase, effect) = step(asked(), Event::WorkDone(Outcome::Prepared), SERVING);
        assert_eq!((format!("{phase:?}").as_str(), effect), ("Stopping(Stopped)", Effect::Flush));
        let (phase, effect) = step(asked(), Event::ServiceStopTimedOut, SERVING);
        assert_eq!((format!("{phase:?}").as_str(), effect), ("Running", Effect::KeepServiceRunning));
        let (phase, effect) = step(asked(), Event::ChangeRequested(ChangeRequest::Halt), SERVING);
        assert_eq!((format!("{phase:?}").as_str(), effect), ("Stopping(Halted)", Effect::Flush));
        let (phase, effect) = step(asked(), Event::MachineGone("x".into()), SERVING);
        assert_eq!((failure_kind(&phase), effect), (FailureKind::GuestDied, Effect::Kill));
        let (_, effect) = step(Phase::Paused, Event::ChangeRequested(ChangeRequest::Stop), SERVING);
        assert_eq!(effect, Effect::Refuse);
        // The window of an earlier request that was followed by another end.
        let (phase, effect) = step(Phase::Stopping(Outcome::Halted), Event::ServiceStopTimedOut, SERVING);
        assert_eq!((format!("{phase:?}").as_str(), effect), ("Stopping(Halted)", Effect::None));
    }

    #[test]
    fn a_disk_that_is_not_kept_is_not_flushed() {
        for ask in [ChangeRequest::Halt, ChangeRequest::Stop] {
            let (phase, effect) = step(Phase::Running, Event::ChangeRequested(ask), SCRATCH);
            assert!(matches!(phase, Phase::Ended(_)));
            assert_eq!(effect, Effect::Kill);
        }
    }

    #[test]
    fn an_end_is_final() {
        let ended = Phase::Ended(Outcome::Prepared);
        for event in [Event::MachineGone("x".into()), Event::TimedOut, Event::Cancelled, Event::AgentReady] {
            let (phase, effect) = step(ended.clone(), event, KEPT);
            assert!(matches!(outcome(&phase), Outcome::Prepared));
            assert_eq!(effect, Effect::None);
        }
    }
}
