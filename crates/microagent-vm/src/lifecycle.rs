//! The lifecycle of one machine, as states and events. Pure: no clock, no I/O, no tasks.
//!
//! ```text
//! Starting ──────── AgentReady ──────────▶ Running ◀── Paused events ──▶ Pausing, Paused, Resuming
//!    ▲                    ▲                 │  ▲ │
//!    │ the guest's or     │            Stop │  │ │ WorkDone(keep), Halt, Stop
//!    │ QEMU's failure,    │  (service)      ▼  │ │
//!    │ once, cold         │     StoppingService │
//! Restoring ──────────────┘                 │   ▼    Flushed, deadline
//!         Running ── MachineGone(Rebooted) ▶ Starting
//!                                           └▶ Stopping ─────────────▶ Ended
//!
//! Running, Paused ── Capture ▶ Capturing ── Captured ▶ Running, Paused; other requests wait
//! Running, Pausing, Paused, Resuming, StoppingService, Stopping ── Quarantine ▶ Containing ── Contained ▶ Quarantined
//! every state ── Kill, failures, QEMU's exit ▶ Ended
//! ```
//!
//! [`Lifecycle::step`] is the only place that decides. The driver executes an [`Effect`] and reports its result as
//! another [`Event`]. A client that waits for an [`Answer`] is identified by its [`ClientId`].
//!
//! The first end counts. One exception: after the work is done its outcome counts, regardless of what happens to the
//! machine later, unless a disk that is kept could not be flushed. In a quarantined machine nothing runs; its end is
//! the only event, and messages of its guest are ignored.

mod answers;
mod capture;
mod quarantine;
mod stopping;
#[cfg(test)]
mod tests;

use microagent_model::{FailureKind, State, WorkspaceFailure};
use serde::{Deserialize, Serialize};

use crate::control::{Answer, Capture, Refusal};
use crate::spec::Outcome;
use answers::Waiter;
use stopping::while_stopping;

/// Where the machine is in its lifecycle.
#[derive(Debug, Clone)]
pub enum Phase {
    /// From the start of a machine that restores a template to the agent's answer.
    Restoring,
    /// From the start of a machine that boots to the agent's answer.
    Starting,
    /// The guest works.
    Running,
    /// QEMU was told to pause the guest.
    Pausing,
    /// The processors of the guest are stopped; its memory is kept.
    Paused,
    /// QEMU was told to resume the guest.
    Resuming,
    /// The guest is being captured.
    Capturing {
        /// Whether it was paused, and is again afterwards.
        paused: bool,
    },
    /// The service was sent its stop signal and has not ended yet.
    StoppingService,
    /// The work is done; the guest flushes its disk.
    Stopping(Outcome),
    /// Network and clients are being disconnected, and the processors stopped.
    Containing,
    /// Isolated, with its processors stopped permanently; memory and disk are kept for examination.
    Quarantined,
    /// The machine has ended; nothing more happens.
    Ended(Outcome),
}

/// Something that happened to the machine.
#[derive(Debug, Clone)]
pub enum Event {
    /// The guest is configured.
    AgentReady,
    /// The service runs; clients can connect.
    Serving,
    /// The work ended.
    WorkDone(Outcome),
    /// The disk is flushed.
    Flushed,
    /// The guest could not flush its disk, or did not in time.
    FlushFailed(String),
    /// The guest did not answer in time, violated the protocol, or could not be configured.
    GuestFailed(String),
    /// The guest had too little of the host's processors to answer.
    HostTooSlow(String),
    /// The agent of a running guest does not answer any more.
    GuestHung(String),
    /// The directory of the workspace was removed.
    DirectoryGone,
    /// The control channel failed for an unknown reason.
    ChannelBroken(String),
    /// The guest works and cannot use one of its disks, so the disk is the cause and not the machine.
    DiskUnfit(String),
    /// The guest works and cannot have one of its settings.
    SettingRefused(String),
    /// QEMU ended or the guest ended its machine.
    MachineGone(MachineExit),
    /// The host's disk is full.
    HostFull(String),
    /// The network stack has ended.
    LinkLost(String),
    /// The guest's kernel killed this program, because memory ran out.
    OutOfMemory(String),
    /// The time limit of the run is reached.
    TimedOut,
    /// The time to live of the machine has ended.
    Expired,
    /// The caller requests the end, or has ended.
    Cancelled,
    /// A client requests a change.
    ChangeRequested(ClientId, ChangeRequest),
    /// The service did not end within the time that it had.
    ServiceStopTimedOut {
        /// The time.
        seconds: u64,
    },
    /// QEMU has paused the guest.
    Paused,
    /// QEMU did not pause the guest.
    PauseFailed(String),
    /// QEMU has resumed the guest.
    Resumed,
    /// QEMU did not resume the guest.
    ResumeFailed(String),
    /// The guest was captured, or why it was not.
    Captured(Result<Capture, WorkspaceFailure>),
    /// The machine is isolated and its processors are stopped. The text is the error of recording it, if any.
    Contained(Option<String>),
    /// The machine is isolated, but QEMU did not stop its processors.
    ContainFailed(String),
    /// The record of the running machine could not be written.
    StartNotRecorded(WorkspaceFailure),
}

/// How a machine ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineExit {
    /// The guest turned itself off.
    PoweredOff,
    /// The guest restarted itself; its processors are stopped.
    Rebooted,
    /// The guest's kernel panicked, with this line.
    Panicked(String),
    /// QEMU failed or was killed, in this way.
    Died(String),
}

impl std::fmt::Display for MachineExit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            MachineExit::PoweredOff => f.write_str("the guest turned itself off"),
            MachineExit::Rebooted => f.write_str("the guest restarted itself"),
            MachineExit::Panicked(line) => write!(f, "the guest kernel panicked: {line}"),
            MachineExit::Died(how) => f.write_str(how),
        }
    }
}

/// Properties of a machine that do not change.
#[derive(Debug, Clone, Copy)]
pub struct MachineTraits {
    /// Whether a disk that the guest writes to outlives the machine.
    pub keep: bool,
    /// Whether clients can connect; it is `running` when its service runs. The machine of a run is `running` when its
    /// agent answers.
    pub serves: bool,
    /// Whether it has a service, to which a stop signal can be sent.
    pub service: bool,
    /// Whether it outlives its caller after the start is complete.
    pub detached: bool,
}

/// Identifies a client that waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

/// A change of the machine's state that a client can request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeRequest {
    /// A clean shutdown. Processes that do not end in time are killed.
    Halt,
    /// A clean shutdown, which fails if the service does not end.
    Stop,
    /// An immediate end.
    Kill,
    /// Stops the processors of the guest.
    Pause,
    /// Lets the processors of the guest continue.
    Resume,
    /// Isolates the machine and stops its processors permanently; its memory is kept.
    Quarantine,
    /// A clean shutdown because the health check failed, after which the workspace is `failed`. Processes that do not end
    /// in time are killed.
    EndUnhealthy,
    /// Gives the guest another overlay, so that the one that it had never changes again.
    Capture {
        /// Whether memory and devices are written to a file at the same instant.
        memory: bool,
        /// Whether the guest is stopped until the client has copied its further disks.
        copies: bool,
    },
}

/// An action of the driver after an event.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Records the state ([`Lifecycle::state`]).
    Publish,
    /// Records that the machine runs; [`Event::StartNotRecorded`] reports a failure.
    PublishStart,
    /// Tells the caller that the guest is configured.
    ReportBooted,
    /// Tells the caller that the service runs.
    ReportServing,
    /// Reports that the network stack has ended; the machine continues without it.
    NoteLinkLost(String),
    /// Reports that the guest's kernel killed this program, because memory ran out.
    NoteOutOfMemory(String),
    /// Reports that the time to live has ended.
    NoteExpired,
    /// Makes the guest flush its disk; the result is [`Event::Flushed`] or [`Event::FlushFailed`].
    Flush,
    /// Sends the service its stop signal; [`Event::ServiceStopTimedOut`] if it does not end in time.
    SignalService,
    /// Stops the processors; the result is [`Event::Paused`] or [`Event::PauseFailed`].
    Pause,
    /// Lets the processors continue; the result is [`Event::Resumed`] or [`Event::ResumeFailed`].
    Resume,
    /// Captures the guest into the files of this client; the result is [`Event::Captured`].
    Capture(ClientId),
    /// Records the quarantine with the client's reason, isolates the machine and stops its processors; the result is
    /// [`Event::Contained`] or [`Event::ContainFailed`].
    Contain(ClientId),
    /// Discards the template, for this reason, and boots another machine.
    StartCold(String),
    /// Resets the machine, whose processors are stopped, and connects to its guest again.
    Reboot,
    /// Makes QEMU quit, so that it closes its disk.
    Quit,
    /// Kills QEMU.
    Kill,
    /// Answers a client.
    Answer(ClientId, Answer),
}

/// The state of one machine, and the clients that wait for a change of it.
#[derive(Debug)]
pub struct Lifecycle {
    phase: Phase,
    /// Whether clients could connect before.
    served: bool,
    /// Whether clients can connect since the last boot of the guest.
    serving: bool,
    /// Whether the guest is the copy of one that served, and has not restarted since.
    copied: bool,
    waiters: Vec<Waiter>,
}

impl Default for Lifecycle {
    fn default() -> Lifecycle {
        Lifecycle {
            phase: Phase::Starting,
            served: false,
            serving: false,
            copied: false,
            waiters: Vec::new(),
        }
    }
}

/// The next phase and the effects.
type Next = (Phase, Vec<Effect>);

impl Lifecycle {
    /// Sets the phase after another machine was started or could not be started, which is not an event.
    pub fn enter(&mut self, phase: Phase) {
        self.phase = phase;
    }

    /// The current phase.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The state for the record, while there is a machine.
    pub fn state(&self, traits: MachineTraits) -> State {
        match self.phase {
            Phase::Restoring | Phase::Starting => State::Starting,
            Phase::Running if traits.serves && !self.serving => State::Starting,
            Phase::Running | Phase::Pausing | Phase::Capturing { paused: false } => State::Running,
            Phase::Paused | Phase::Resuming | Phase::Capturing { paused: true } => State::Paused,
            Phase::StoppingService | Phase::Stopping(_) | Phase::Ended(_) => State::Stopping,
            Phase::Containing | Phase::Quarantined => State::Quarantined,
        }
    }

    /// Advances by one event.
    pub fn step(&mut self, event: Event, traits: MachineTraits) -> Vec<Effect> {
        let phase = std::mem::replace(&mut self.phase, Phase::Quarantined);
        let (next, effects) = match event {
            Event::ChangeRequested(client, request) if capture::concerns(&phase, request) => {
                self.capture_requested(phase, client, request, traits)
            }
            Event::ChangeRequested(client, request) => self.requested(phase, client, request, traits),
            event => self.happened(phase, event, traits),
        };
        self.phase = next;
        effects
    }

    fn happened(&mut self, phase: Phase, event: Event, traits: MachineTraits) -> Next {
        use Event as E;
        use Phase as P;
        match (phase, event) {
            (P::Ended(outcome), _) => (P::Ended(outcome), Vec::new()), // absorbing
            (phase, E::OutOfMemory(program)) => (phase, vec![Effect::NoteOutOfMemory(program)]),
            // Nobody can find or use it any more.
            (_, E::DirectoryGone) => {
                fail(FailureKind::Disk, "the directory of the workspace was removed".to_owned())
            }
            (phase @ (P::Containing | P::Quarantined), event) => self.in_quarantine(phase, event),
            (phase, E::Expired) => self.expired(phase, traits),
            (phase @ (P::Restoring | P::Starting), event) => self.while_starting(phase, event, traits),
            (P::Stopping(outcome), event) => while_stopping(outcome, event, traits),
            (P::Capturing { paused }, E::Captured(captured)) => self.captured(paused, captured, traits),
            (phase, event @ (E::Paused | E::PauseFailed(_) | E::Resumed | E::ResumeFailed(_))) => {
                self.paused_or_resumed(phase, event)
            }
            (P::Running, E::Serving) => {
                (self.served, self.serving) = (true, true);
                (P::Running, vec![Effect::PublishStart, Effect::ReportServing])
            }
            (P::StoppingService, E::ServiceStopTimedOut { seconds }) => {
                let answers = self.service_continues(seconds);
                (P::Running, [vec![Effect::Publish], answers].concat())
            }
            (P::StoppingService, E::WorkDone(_)) => {
                self.finish(&P::StoppingService, Outcome::Stopped, traits)
            }
            (phase, E::WorkDone(outcome)) => self.finish(&phase, outcome, traits),
            (P::StoppingService, E::MachineGone(MachineExit::PoweredOff | MachineExit::Rebooted)) => {
                end(Outcome::Stopped)
            }
            // As every machine does. One that was never of use to anybody is not tried again.
            (_, E::MachineGone(MachineExit::Rebooted)) if traits.detached && (self.served || self.copied) => {
                self.restarted()
            }
            (_, E::MachineGone(MachineExit::Rebooted)) => end(Outcome::Rebooted),
            (_, E::MachineGone(MachineExit::PoweredOff)) => end(Outcome::PoweredOff),
            (_, E::MachineGone(exit)) => fail(FailureKind::GuestDied, exit.to_string()),
            (_, E::GuestFailed(message) | E::ChannelBroken(message)) => fail(FailureKind::Protocol, message),
            (_, E::GuestHung(message)) => fail(FailureKind::GuestDied, message),
            (phase, E::LinkLost(reason)) => (phase, vec![Effect::NoteLinkLost(reason)]),
            // Its caller is not needed once it serves, and only waits for it before.
            (phase, E::Cancelled) if traits.detached && self.served => (phase, Vec::new()),
            (phase, event) => ended_by_host(phase, event),
        }
    }

    fn while_starting(&mut self, phase: Phase, event: Event, traits: MachineTraits) -> Next {
        use Event as E;
        match (phase, event) {
            (_, E::AgentReady) if traits.serves => (Phase::Running, vec![Effect::ReportBooted]),
            (_, E::AgentReady) => {
                (self.served, self.serving) = (true, true);
                (Phase::Running, vec![Effect::PublishStart, Effect::ReportBooted])
            }
            // A guest that was to be frozen, and is not configured for that.
            (Phase::Starting, E::WorkDone(outcome)) => self.finish(&Phase::Starting, outcome, traits),
            (Phase::Restoring, E::GuestFailed(reason) | E::ChannelBroken(reason)) => {
                (Phase::Starting, vec![Effect::StartCold(reason)])
            }
            (Phase::Restoring, E::MachineGone(exit)) => {
                (Phase::Starting, vec![Effect::StartCold(exit.to_string())])
            }
            // No template is to blame, and another boot would not help.
            (_, E::DiskUnfit(message)) => fail(FailureKind::Disk, message),
            (
                _,
                E::SettingRefused(message)
                | E::GuestFailed(message)
                | E::ChannelBroken(message)
                | E::HostTooSlow(message),
            ) => fail(FailureKind::Boot, message),
            (_, E::MachineGone(MachineExit::Rebooted)) if self.copied => self.restarted(),
            (_, E::MachineGone(exit)) => fail(FailureKind::Boot, exit.to_string()),
            (phase, E::LinkLost(reason)) => (phase, vec![Effect::NoteLinkLost(reason)]),
            // The guest restarted; the caller of its first start is not needed any more.
            (phase, E::Cancelled) if traits.detached && self.served => (phase, Vec::new()),
            (phase, event) => ended_by_host(phase, event),
        }
    }

    /// Ends the machine as a request to halt it does; a guest that restarts has nothing to flush.
    fn expired(&mut self, phase: Phase, traits: MachineTraits) -> Next {
        let (next, effects) = match phase {
            // It is being shut down, which has a deadline of its own.
            phase @ Phase::Stopping(_) => return (phase, Vec::new()),
            phase if !traits.serves => ended_by_host(phase, Event::TimedOut),
            Phase::Restoring | Phase::Starting => end(Outcome::Halted),
            phase => self.finish(&phase, Outcome::Halted, traits),
        };
        (next, [vec![Effect::NoteExpired], effects].concat())
    }

    fn paused_or_resumed(&mut self, phase: Phase, event: Event) -> Next {
        use Event as E;
        match (phase, event) {
            (Phase::Pausing, E::Paused) => (
                Phase::Paused,
                [vec![Effect::Publish], self.answer_all(ChangeRequest::Pause, &Answer::Done)].concat(),
            ),
            // A QEMU that was only late pauses later; the guest must not end up paused while it counts as running.
            (Phase::Pausing, E::PauseFailed(message)) => (
                Phase::Running,
                [vec![Effect::Resume], self.answer_all(ChangeRequest::Pause, &guest_died(message))].concat(),
            ),
            (Phase::Resuming, E::Resumed) => (
                Phase::Running,
                [vec![Effect::Publish], self.answer_all(ChangeRequest::Resume, &Answer::Done)].concat(),
            ),
            (Phase::Resuming, E::ResumeFailed(message)) => {
                (Phase::Paused, self.answer_all(ChangeRequest::Resume, &guest_died(message)))
            }
            // Of a request that another one has overtaken.
            (phase, _) => (phase, Vec::new()),
        }
    }

    /// Handles the end of the work: disks that are kept are flushed first.
    fn finish(&mut self, phase: &Phase, outcome: Outcome, traits: MachineTraits) -> Next {
        if !traits.keep {
            return end(outcome);
        }
        let mut effects = self.interrupt("it is being shut down");
        effects.push(Effect::Publish);
        // Of work that ended in the moment of the pause, or of a machine that is shut down while it is paused. One that
        // does not resume does not flush, and the deadline of the flush ends it.
        if matches!(
            phase,
            Phase::Pausing | Phase::Paused | Phase::Resuming | Phase::Capturing { paused: true }
        ) {
            effects.push(Effect::Resume);
        }
        effects.push(Effect::Flush);
        (Phase::Stopping(outcome), effects)
    }

    /// Handles the request of a client.
    fn requested(
        &mut self,
        phase: Phase,
        client: ClientId,
        request: ChangeRequest,
        traits: MachineTraits,
    ) -> Next {
        use ChangeRequest as R;
        use Phase as P;
        let outcome = if request == R::Halt { Outcome::Halted } else { Outcome::Stopped };
        // A machine that has not served yet is either being started, which its caller waits for, or an offline boot.
        let may_be_quarantined = traits.detached && self.served;
        match (phase, request) {
            (P::Ended(outcome), _) => self.await_change(P::Ended(outcome), client, request, Vec::new()),
            (_, R::Kill) => self.await_change(P::Ended(outcome), client, request, vec![Effect::Kill]),
            // It is not told to flush: not one more instruction of it runs. QEMU closes the disk as it is.
            (P::Containing | P::Quarantined, R::Halt | R::Stop) => {
                self.await_change(P::Ended(Outcome::Stopped), client, request, vec![Effect::Quit])
            }
            (P::Containing, R::Quarantine) => self.await_change(P::Containing, client, request, Vec::new()),
            (
                P::Running | P::Pausing | P::Paused | P::Resuming | P::StoppingService | P::Stopping(_),
                R::Quarantine,
            ) if may_be_quarantined => {
                let mut effects = self.interrupt_all("it was quarantined meanwhile");
                effects.push(Effect::Contain(client));
                self.await_change(P::Containing, client, request, effects)
            }
            (P::Stopping(under_way), R::Halt | R::Stop) => {
                self.await_change(P::Stopping(under_way), client, request, Vec::new())
            }
            (P::Running | P::StoppingService, R::Stop) if traits.service => {
                let effects = vec![Effect::SignalService];
                let (phase, effects) = self.await_change(P::StoppingService, client, request, effects);
                (phase, [vec![Effect::Publish], effects].concat())
            }
            // Whether its service ends shows only while it runs.
            (phase @ (P::Pausing | P::Paused | P::Resuming), R::Stop) if traits.service => {
                self.refuse(phase, client, traits)
            }
            (
                phase @ (P::Running | P::Pausing | P::Paused | P::Resuming | P::StoppingService),
                R::Halt | R::Stop,
            ) => {
                let (next, effects) = self.finish(&phase, outcome, traits);
                self.await_change(next, client, request, effects)
            }
            (phase @ (P::Running | P::StoppingService), R::EndUnhealthy) if self.serving => {
                let (next, effects) = self.finish(&phase, unhealthy(), traits);
                self.await_change(next, client, request, effects)
            }
            // Before it serves its caller waits for that, and a paused guest does not get there.
            (P::Running, R::Pause) if self.serving => {
                self.await_change(P::Pausing, client, request, vec![Effect::Pause])
            }
            (P::Pausing, R::Pause) => self.await_change(P::Pausing, client, request, Vec::new()),
            (P::Paused, R::Resume) => self.await_change(P::Resuming, client, request, vec![Effect::Resume]),
            (P::Resuming, R::Resume) => self.await_change(P::Resuming, client, request, Vec::new()),
            (
                phase,
                R::Halt
                | R::Stop
                | R::Pause
                | R::Resume
                | R::Quarantine
                | R::EndUnhealthy
                | R::Capture { .. },
            ) => self.refuse(phase, client, traits),
        }
    }

    fn refuse(&mut self, phase: Phase, client: ClientId, traits: MachineTraits) -> Next {
        self.phase = phase.clone();
        let refusal = Answer::Refused(Refusal::State(self.state(traits)));
        (phase, vec![Effect::Answer(client, refusal)])
    }
}

/// Handles events that end a machine in any phase, and ignores late events.
fn ended_by_host(phase: Phase, event: Event) -> Next {
    use Event as E;
    match event {
        E::Cancelled => fail(FailureKind::Cancelled, "cancelled".to_owned()),
        E::TimedOut => fail(FailureKind::Timeout, "the time limit was reached (signal: killed)".to_owned()),
        E::HostFull(message) => fail(FailureKind::HostFull, message),
        E::StartNotRecorded(failure) => end(Outcome::Failed(failure)),
        E::MachineGone(_)
        | E::GuestFailed(_)
        | E::ChannelBroken(_)
        | E::LinkLost(_)
        | E::OutOfMemory(_)
        | E::ChangeRequested(..)
        | E::AgentReady
        | E::Serving
        | E::WorkDone(_)
        | E::Flushed
        | E::FlushFailed(_)
        | E::HostTooSlow(_)
        | E::GuestHung(_)
        | E::DirectoryGone
        | E::Expired
        | E::DiskUnfit(_)
        | E::SettingRefused(_)
        | E::ServiceStopTimedOut { .. }
        | E::Paused
        | E::PauseFailed(_)
        | E::Resumed
        | E::ResumeFailed(_)
        | E::Captured(_)
        | E::Contained(_)
        | E::ContainFailed(_) => (phase, Vec::new()),
    }
}

fn end(outcome: Outcome) -> Next {
    (Phase::Ended(outcome), vec![Effect::Kill])
}

fn fail(kind: FailureKind, message: String) -> Next {
    end(Outcome::Failed(WorkspaceFailure { kind, message }))
}

fn unhealthy() -> Outcome {
    let message = "its health check failed".to_owned();
    Outcome::Failed(WorkspaceFailure { kind: FailureKind::Unhealthy, message })
}

fn guest_died(message: String) -> Answer {
    Answer::Failed(WorkspaceFailure { kind: FailureKind::GuestDied, message })
}
