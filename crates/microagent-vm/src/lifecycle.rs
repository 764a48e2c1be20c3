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
//! Running, Pausing, Paused, Resuming, StoppingService, Stopping ── Quarantine ▶ Containing ── Contained ▶ Quarantined
//! every state ── Kill, failures, QEMU's exit ▶ Ended
//! ```
//!
//! [`Lifecycle::step`] is the only place that decides. What the driver does about an [`Effect`] comes back as another
//! [`Event`]; a client that requested something is known here by its [`ClientId`] until it has its [`Answer`].
//!
//! The first end counts, with one exception: once the work is done its outcome stands, whatever happens to the machine
//! afterwards, unless the disk that must be kept could not be flushed. In a quarantined machine nothing runs; only its
//! end is an event there, and whatever its guest still seems to say is ignored.

mod answers;
#[cfg(test)]
mod tests;

use microagent_model::{FailureKind, State, WorkspaceFailure};
use serde::{Deserialize, Serialize};

use crate::control::{Answer, Refusal};
use crate::spec::Outcome;
use answers::Waiter;

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
    /// The service was sent its stop signal and has not ended yet.
    StoppingService,
    /// The work is done; the guest flushes its disk.
    Stopping(Outcome),
    /// Network and clients are being cut off, and the processors stopped.
    Containing,
    /// Cut off, its processors stopped for good; memory and disk are kept to be examined.
    Quarantined,
    /// The machine has ended; nothing more happens.
    Ended(Outcome),
}

/// Something that happened to the machine.
#[derive(Debug, Clone)]
pub enum Event {
    /// The guest is configured.
    AgentReady,
    /// The service runs; clients can come.
    Serving,
    /// The work ended.
    WorkDone(Outcome),
    /// The disk is flushed.
    Flushed,
    /// The guest could not flush its disk, or did not in time.
    FlushFailed(String),
    /// The guest did not answer in time, or broke the protocol, or could not be configured.
    GuestFailed(String),
    /// The guest had too little of the host's processors to answer.
    HostTooSlow(String),
    /// The agent of a running guest does not answer any more.
    GuestHung(String),
    /// The directory of the workspace was removed.
    DirectoryGone,
    /// The channel to the guest broke, and nobody knows why.
    ChannelBroken(String),
    /// The guest works and cannot use one of its disks: the disk is to blame, not the machine.
    DiskUnfit(String),
    /// QEMU ended or the guest ended its machine.
    MachineGone(MachineExit),
    /// The host's disk is full.
    HostFull(String),
    /// The network device leads nowhere any more.
    LinkLost(String),
    /// The guest's kernel killed this program, because memory ran out.
    OutOfMemory(String),
    /// The time of the run is over.
    TimedOut,
    /// The caller requests the end, or is gone.
    Cancelled,
    /// A client requests a change.
    ChangeRequested(ClientId, ChangeRequest),
    /// The service had its time to end, and did not.
    ServiceStopTimedOut,
    /// QEMU has paused the guest.
    Paused,
    /// QEMU did not pause the guest.
    PauseFailed(String),
    /// QEMU has resumed the guest.
    Resumed,
    /// QEMU did not resume the guest.
    ResumeFailed(String),
    /// The machine is cut off and its processors are stopped. The text says why that could not be recorded, if so.
    Contained(Option<String>),
    /// The machine is cut off, but QEMU did not stop its processors.
    ContainFailed(String),
    /// It could not be recorded that the machine runs.
    StartNotRecorded(WorkspaceFailure),
}

/// How a machine ended that nobody on the host ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineExit {
    /// The guest turned itself off.
    PoweredOff,
    /// The guest restarted itself; its processors are stopped.
    Rebooted,
    /// The guest's kernel panicked; its line.
    Panicked(String),
    /// QEMU failed or was killed; how.
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

/// What is true of a machine from its start to its end.
#[derive(Debug, Clone, Copy)]
pub struct MachineTraits {
    /// A disk that the guest writes to outlives the machine.
    pub keep: bool,
    /// The machine is there for clients, and runs once its service does. The machine of a run runs with its agent.
    pub serves: bool,
    /// It has a service, which can be sent a stop signal.
    pub service: bool,
    /// It does not end with its caller once it serves.
    pub detached: bool,
}

/// Stands for a client that waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

/// A change of the machine's state that a client can request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeRequest {
    /// A clean shutdown, to be started again. What does not end in time is killed.
    Halt,
    /// A clean shutdown, which the service may refuse by not ending.
    Stop,
    /// The end, now.
    Kill,
    /// Stops the processors of the guest.
    Pause,
    /// Lets the processors of the guest continue.
    Resume,
    /// Cuts the machine off and stops its processors for good; its memory is kept.
    Quarantine,
}

/// What the driver does about an event.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Records the state ([`Lifecycle::state`]).
    Publish,
    /// Records that the machine runs. A failure is [`Event::StartNotRecorded`].
    PublishStart,
    /// Tells the caller that the guest is configured.
    ReportBooted,
    /// Tells the caller that the service runs.
    ReportServing,
    /// Tells that the network is gone; the machine continues without it.
    NoteLinkLost(String),
    /// Tells that the guest killed this program, because memory ran out.
    NoteOutOfMemory(String),
    /// Has the guest flush its disk: [`Event::Flushed`] or [`Event::FlushFailed`].
    Flush,
    /// Sends the service its stop signal; if the work is not done in time, [`Event::ServiceStopTimedOut`].
    SignalService,
    /// Stops the processors: [`Event::Paused`] or [`Event::PauseFailed`].
    Pause,
    /// Lets the processors continue: [`Event::Resumed`] or [`Event::ResumeFailed`].
    Resume,
    /// Records the quarantine with the client's reason, cuts the machine off, stops its processors:
    /// [`Event::Contained`] or [`Event::ContainFailed`].
    Contain(ClientId),
    /// Discards the template, for this reason, and boots another machine.
    StartCold(String),
    /// Resets the machine, whose processors are stopped, and starts the conversation with its guest anew.
    Reboot,
    /// Ends QEMU in good order, so that its disk is closed.
    Quit,
    /// Kills QEMU.
    Kill,
    /// Answers a client.
    Answer(ClientId, Answer),
}

/// The state of one machine, and who waits for a change of it.
#[derive(Debug)]
pub struct Lifecycle {
    phase: Phase,
    /// Whether clients could use it before.
    served: bool,
    /// Whether they can since its guest was last booted.
    serving: bool,
    waiters: Vec<Waiter>,
}

impl Default for Lifecycle {
    fn default() -> Lifecycle {
        Lifecycle { phase: Phase::Starting, served: false, serving: false, waiters: Vec::new() }
    }
}

/// The next phase and what to do.
type Next = (Phase, Vec<Effect>);

impl Lifecycle {
    /// Something else than an event has led to this phase: another machine was started, or none could be.
    pub fn enter(&mut self, phase: Phase) {
        self.phase = phase;
    }

    /// Where it is.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The state as it is recorded, while there is a machine.
    pub fn state(&self, traits: MachineTraits) -> State {
        match self.phase {
            Phase::Restoring | Phase::Starting => State::Starting,
            Phase::Running if traits.serves && !self.serving => State::Starting,
            Phase::Running | Phase::Pausing => State::Running,
            Phase::Paused | Phase::Resuming => State::Paused,
            Phase::StoppingService | Phase::Stopping(_) | Phase::Ended(_) => State::Stopping,
            Phase::Containing | Phase::Quarantined => State::Quarantined,
        }
    }

    /// Advances by one event.
    pub fn step(&mut self, event: Event, traits: MachineTraits) -> Vec<Effect> {
        let phase = std::mem::replace(&mut self.phase, Phase::Quarantined);
        let (next, effects) = match event {
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
            (phase @ (P::Restoring | P::Starting), event) => self.while_starting(phase, event, traits),
            (P::Stopping(outcome), event) => while_stopping(outcome, event, traits),
            (phase, event @ (E::Paused | E::PauseFailed(_) | E::Resumed | E::ResumeFailed(_))) => {
                self.paused_or_resumed(phase, event)
            }
            (P::Running, E::Serving) => {
                (self.served, self.serving) = (true, true);
                (P::Running, vec![Effect::PublishStart, Effect::ReportServing])
            }
            (P::StoppingService, E::ServiceStopTimedOut) => {
                let answers = self.service_continues();
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
            (_, E::MachineGone(MachineExit::Rebooted)) if traits.detached && self.served => {
                self.serving = false;
                let interrupted = self.interrupt("the guest restarted meanwhile");
                (P::Starting, [interrupted, vec![Effect::Publish, Effect::Reboot]].concat())
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
            (_, E::GuestFailed(message) | E::ChannelBroken(message) | E::HostTooSlow(message)) => {
                fail(FailureKind::Boot, message)
            }
            (_, E::MachineGone(exit)) => fail(FailureKind::Boot, exit.to_string()),
            (phase, E::LinkLost(reason)) => (phase, vec![Effect::NoteLinkLost(reason)]),
            // The guest restarted; the caller of its first start is not needed any more.
            (phase, E::Cancelled) if traits.detached && self.served => (phase, Vec::new()),
            (phase, event) => ended_by_host(phase, event),
        }
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

    fn in_quarantine(&mut self, phase: Phase, event: Event) -> Next {
        match (phase, event) {
            (Phase::Containing, Event::Contained(None)) => {
                (Phase::Quarantined, self.answer_all(ChangeRequest::Quarantine, &Answer::Done))
            }
            (Phase::Containing, Event::Contained(Some(reason))) => {
                let message = format!("it is cut off and paused, but that could not be recorded: {reason}");
                let answer = Answer::Failed(WorkspaceFailure { kind: FailureKind::HostFull, message });
                (Phase::Quarantined, self.answer_all(ChangeRequest::Quarantine, &answer))
            }
            // Containing it comes before keeping its memory.
            (Phase::Containing, Event::ContainFailed(message)) => {
                end(Outcome::Quarantined(memory_lost(&format!("{message}, so it was killed"))))
            }
            (_, Event::MachineGone(exit)) => end(Outcome::Quarantined(memory_lost(&exit.to_string()))),
            (phase, _) => (phase, Vec::new()),
        }
    }

    /// The work is done: what must be kept is flushed first.
    fn finish(&mut self, phase: &Phase, outcome: Outcome, traits: MachineTraits) -> Next {
        if !traits.keep {
            return end(outcome);
        }
        let mut effects = self.interrupt("it is being shut down");
        effects.push(Effect::Publish);
        // Of work that ended in the moment of the pause, or of a machine that is shut down while it is paused. One that
        // does not resume does not flush, and the deadline of the flush ends it.
        if matches!(phase, Phase::Pausing | Phase::Paused | Phase::Resuming) {
            effects.push(Effect::Resume);
        }
        effects.push(Effect::Flush);
        (Phase::Stopping(outcome), effects)
    }

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
            // Before it serves its caller waits for that, and a paused guest does not get there.
            (P::Running, R::Pause) if self.serving => {
                self.await_change(P::Pausing, client, request, vec![Effect::Pause])
            }
            (P::Pausing, R::Pause) => self.await_change(P::Pausing, client, request, Vec::new()),
            (P::Paused, R::Resume) => self.await_change(P::Resuming, client, request, vec![Effect::Resume]),
            (P::Resuming, R::Resume) => self.await_change(P::Resuming, client, request, Vec::new()),
            (phase, R::Halt | R::Stop | R::Pause | R::Resume | R::Quarantine) => {
                self.refuse(phase, client, traits)
            }
        }
    }

    fn refuse(&mut self, phase: Phase, client: ClientId, traits: MachineTraits) -> Next {
        self.phase = phase.clone();
        let refusal = Answer::Refused(Refusal::State(self.state(traits)));
        (phase, vec![Effect::Answer(client, refusal)])
    }
}

/// The disk is being flushed; the outcome of the work is known.
fn while_stopping(outcome: Outcome, event: Event, traits: MachineTraits) -> Next {
    use Event as E;
    let not_flushed = |message: String| {
        let message = match outcome {
            Outcome::Halted | Outcome::Stopped => format!("it did not shut down cleanly: {message}"),
            _ => format!("the command ended, but its disk was not flushed: {message}"),
        };
        fail(FailureKind::GuestDied, message)
    };
    match event {
        E::Flushed => (Phase::Ended(outcome), vec![Effect::Quit]),
        E::FlushFailed(message) => not_flushed(message),
        E::MachineGone(exit) => not_flushed(exit.to_string()),
        E::HostFull(message) => fail(FailureKind::HostFull, message),
        // A caller that does not wait for an end that a client requested; the flush has a deadline of its own.
        E::Cancelled if !traits.detached => fail(FailureKind::Cancelled, "cancelled".to_owned()),
        // The command has ended in time; only its flush is under way. What else is late changes nothing.
        _ => (Phase::Stopping(outcome), Vec::new()),
    }
}

/// What ends a machine whatever it does, and events that come too late for their phase.
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
        | E::DiskUnfit(_)
        | E::ServiceStopTimedOut
        | E::Paused
        | E::PauseFailed(_)
        | E::Resumed
        | E::ResumeFailed(_)
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

fn guest_died(message: String) -> Answer {
    Answer::Failed(WorkspaceFailure { kind: FailureKind::GuestDied, message })
}

/// A quarantined machine is gone before anybody released it.
fn memory_lost(message: &str) -> WorkspaceFailure {
    WorkspaceFailure { kind: FailureKind::GuestDied, message: format!("its memory is lost: {message}") }
}
