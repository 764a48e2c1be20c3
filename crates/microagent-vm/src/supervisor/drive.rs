//! Runs one machine through its lifecycle: starts it, waits for events, passes them to
//! [`Lifecycle::step`](crate::lifecycle::Lifecycle::step), and executes the effects until the machine has ended.

use std::future::Future;
use std::path::Path;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use microagent_model::{FailureKind, State, WorkspaceFailure};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{sleep, sleep_until, timeout};

use super::answer_budget::AnswerBudget;
use super::base_disk::BaseDisk;
use super::capture::Captures;
use super::clients::ClientRequest;
use super::console::Console;
use super::health::HealthWatch;
use super::machine::{Loss, Machine};
use super::network::LinkChange;
use super::plan::Plan;
use super::worker::{Freeze, Worker, WorkerContext};
use super::{Driver, QUEUE, full_or_boot, write_failure};
use crate::confinement::{Needs, Templates, confine, leave_templates};
use crate::features::features_of;
use crate::handed::admit_guest_files;
use crate::lifecycle::{Effect, Event, Phase};
use crate::machine::{INSERTED_NODE, ROOT_NODE, add_extra_disks, insert_disk};
use crate::spec::{Outcome, Report};
use crate::template::{MachineShape, Template};

/// How long a broken control channel waits for the reason: the death of QEMU explains it best.
const REASON_PATIENCE: Duration = Duration::from_millis(500);

/// How long a QEMU that does not answer any more may take to be gone.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// One machine with the tasks that serve it.
pub(super) struct RunningMachine {
    pub(super) machine: Machine,
    pub(super) conversation: Conversation,
    incoming: mpsc::Receiver<Event>,
    /// For tasks that carry an effect out.
    pub(super) events: mpsc::Sender<Event>,
    template: Option<Template>,
}

/// The conversation with one guest, which ends when this is dropped.
pub(super) struct Conversation {
    worker: JoinHandle<()>,
    /// Has the guest flush its disk.
    pub(super) flush: Option<oneshot::Sender<Option<Duration>>>,
    /// When the flush must be done.
    pub(super) flush_deadline: Option<tokio::time::Instant>,
    /// Signals for the service.
    pub(super) signals: mpsc::Sender<u8>,
    /// When the service that was sent its stop signal must have ended.
    pub(super) service_deadline: Option<tokio::time::Instant>,
    /// Its health check.
    pub(super) health: Option<HealthWatch>,
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

impl Conversation {
    /// Ends the conversation and waits until its task has dropped what it holds: a half-made template is among that.
    async fn end(mut self) {
        self.worker.abort();
        let _ = (&mut self.worker).await;
    }
}

/// How the events of one machine ended.
enum MachineOutcome {
    /// It has ended.
    Ended(Outcome),
    /// It was not restored from its template; why.
    NotRestored(String),
}

impl Driver {
    /// Runs a machine until it has ended for good: its first guest may fail to be restored from a template.
    pub(super) async fn run_machine(&mut self, tether: OwnedReadHalf) -> Result<Outcome, WorkspaceFailure> {
        let mut cancelled = pin!(caller_gone(tether));
        admit_guest_files(&self.spec.machine, &self.state);
        // QEMU is asked by a process of its own, which a host that swaps starts slowly.
        self.features = tokio::select! {
            biased;
            () = cancelled.as_mut() => return Ok(cancelled_early()),
            features = features_of(&self.spec.machine.qemu, &self.state) => features,
        };
        // A confined supervisor could not look at the files.
        self.captures.shape = MachineShape::of(&self.spec.machine, self.spec.network.is_some()).ok();
        let plan = Plan::choose(&self.spec, &self.state)
            .map_err(|e| full_or_boot(&e, "the memory of the snapshot"))?;
        let mut running = self.start(plan).await?;
        loop {
            match self.follow_events(&mut running, cancelled.as_mut()).await {
                MachineOutcome::Ended(outcome) => return Ok(outcome),
                MachineOutcome::NotRestored(reason) => {
                    running = self.boot_instead(running, &reason).await?;
                }
            }
        }
    }

    /// Boots a guest that replaces one that could not be restored.
    async fn boot_instead(
        &mut self,
        running: RunningMachine,
        reason: &str,
    ) -> Result<RunningMachine, WorkspaceFailure> {
        let why = format!("the template could not be restored: {reason}");
        let _ = self.reports.send(Report::Notice(format!("{why}; the machine boots instead"))).await;
        let RunningMachine { mut machine, conversation, template, .. } = running;
        conversation.end().await;
        // What the first guest's tasks may still say is not heard.
        let (events, incoming) = mpsc::channel(QUEUE);
        machine.boot_instead(&events).await.map_err(|e| full_or_boot(&e, "it cannot be booted instead"))?;
        if let Some(template) = template {
            template.discard(&self.state);
        }
        leave_templates(&self.needs(&machine, Templates::None))
            .map_err(|e| full_or_boot(&e, "the supervisor cannot be confined further"))?;
        self.timeline.borrow_mut().spawned_us = self.elapsed_us();
        self.begin(machine, Plan::Cold(why), (events, incoming)).await
    }

    /// Starts a machine and the conversation with its guest.
    async fn start(&mut self, plan: Plan) -> Result<RunningMachine, WorkspaceFailure> {
        let (events, incoming) = mpsc::channel(QUEUE);
        if let Some(freezer) = plan.freezer() {
            // Without it, machines get copies of the memory.
            let _ = freezer.admit(&self.spec.machine);
            freezer
                .hold_overlay(&self.spec.machine)
                .map_err(|e| full_or_boot(&e, "the disk of the template"))?;
        }
        if let Plan::Warm(template) = &plan {
            template
                .lay_disk(&self.spec.machine)
                .map_err(|e| full_or_boot(&e, "the disk of the template"))?;
        }
        let console = Rc::clone(&self.console);
        let (claimed, features) = (self.claims.files(), self.features);
        let machine =
            Machine::start(&self.spec, &plan, claimed, features, &self.dir, console, &events).await?;
        self.timeline.borrow_mut().spawned_us = self.elapsed_us();
        // Nothing has been read of the guest yet: no task that reads has run.
        let templates = match (plan.freezer(), &plan) {
            (Some(freezer), _) => Templates::Makes(freezer.scratch().to_owned()),
            (None, Plan::Warm(template)) => Templates::Discards(template.dir().to_owned()),
            (None, _) => Templates::None,
        };
        confine(&self.needs(&machine, templates))
            .map_err(|e| full_or_boot(&e, "the supervisor cannot be confined"))?;
        self.begin(machine, plan, (events, incoming)).await
    }

    /// Records a machine that was started and begins the conversation with its guest.
    async fn begin(
        &mut self,
        mut machine: Machine,
        plan: Plan,
        (events, incoming): (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    ) -> Result<RunningMachine, WorkspaceFailure> {
        self.start = plan.mode();
        self.record_machine(&machine).await?;
        let add_disks = self.disks_to_add(&plan);
        let top = if matches!(plan, Plan::Freeze(..)) { INSERTED_NODE } else { ROOT_NODE };
        self.captures = Captures::of(self.captures.shape.take(), top);
        let restores = matches!(plan, Plan::Captured(_));
        let renewal = self.spec.restore.as_ref().filter(|_| restores).map(|captured| captured.token);
        let (template, freezer) = match plan {
            Plan::Warm(template) => (Some(template), None),
            Plan::WarmToFreeze(template, freezer) => (Some(template), Some(freezer)),
            Plan::Freeze(freezer, _) => (None, Some(freezer)),
            Plan::Captured(_) | Plan::Cold(_) => (None, None),
        };
        if restores {
            self.lifecycle.continue_copy();
        }
        self.lifecycle.enter(if template.is_some() { Phase::Restoring } else { Phase::Starting });
        let changes_templates = template.is_some() || freezer.is_some();
        let without_templates = changes_templates.then(|| self.needs(&machine, Templates::None));
        let (monitor, state) = (machine.monitor(), self.state.clone());
        let freeze = freezer.map(|freezer| Freeze { freezer, monitor, add_disks, state });
        if let Some(server) = self.clients.server() {
            server.lend_base(BaseDisk::of(machine.monitor(), &self.spec.machine));
            server.show_console(Console::new(machine.take_keys(), Rc::clone(&self.console)));
        }
        let (from, to) = ((template.is_some(), renewal), (freeze, without_templates));
        let conversation = self.converse(&machine, from, to, &events)?;
        Ok(RunningMachine { machine, conversation, incoming, events, template })
    }

    /// Starts the conversation with the guest of a machine that was started or reset.
    fn converse(
        &self,
        machine: &Machine,
        (restored, renewal): (bool, Option<[u8; 16]>),
        templates: (Option<Freeze>, Option<Needs>),
        events: &mpsc::Sender<Event>,
    ) -> Result<Conversation, WorkspaceFailure> {
        let context = WorkerContext {
            console: Rc::clone(&self.console),
            timeline: Rc::clone(&self.timeline),
            reports: self.reports.clone(),
            started: self.started,
            control: self.clients.server().map(Rc::clone),
            budget: AnswerBudget::of(restored, self.spec.boot_deadline, machine.process_id()),
            state: Rc::clone(&self.published),
            guest_end: machine.guest_end(),
            renewal,
            relay: Rc::clone(&self.relay),
        };
        let channel = machine.control_channel().map_err(|e| full_or_boot(&e, "control channel"))?;
        let worker =
            Worker::new(&self.spec, &self.dir, templates, context).map_err(|e| full_or_boot(&e, "output"))?;
        let (flush, flush_requested) = oneshot::channel();
        let (signals, signalled) = mpsc::channel(QUEUE);
        let worker = spawn_local(worker.run(channel, events.clone(), flush_requested, signalled));
        Ok(Conversation {
            worker,
            flush: Some(flush),
            flush_deadline: None,
            signals,
            service_deadline: None,
            health: None,
        })
    }

    /// Boots the same machine again: its guest has reset it, and QEMU has stopped it.
    pub(super) fn reboot(&mut self, running: &mut RunningMachine) {
        // The old conversation ends here, and with it all streams that are lent.
        if let Some(server) = self.clients.server() {
            server.take_back();
        }
        let (reset, events) = (running.machine.reset(), running.events.clone());
        spawn_local(async move {
            if let Err(error) = reset.await {
                let _ = events.send(Event::GuestFailed(format!("it cannot be restarted: {error}"))).await;
            }
        });
        match self.converse(&running.machine, (false, None), (None, None), &running.events) {
            Ok(conversation) => running.conversation = conversation,
            Err(failure) => self.carried_out.push_back(Event::GuestFailed(failure.message)),
        }
    }

    /// What this process needs when its machine runs.
    fn needs(&self, machine: &Machine, templates: Templates) -> Needs {
        Needs {
            dir: self.dir.clone(),
            state: self.state.clone(),
            templates,
            removes: self.record.as_ref().is_some_and(|record| record.disposable),
            groups: machine.group().parents().map(Path::to_owned).collect(),
            children: machine.children(),
            other_user: machine.has_account(),
        }
    }

    /// Records the processes of a machine, and tells the caller which ports it publishes.
    async fn record_machine(&mut self, machine: &Machine) -> Result<(), WorkspaceFailure> {
        self.claims.note(machine.process_id())?;
        if let Some(record) = &mut self.record {
            record.machine.vmm = machine.process_id();
            record.machine.link = machine.link();
        }
        self.publish(State::Starting).map_err(|e| write_failure(&e))?;
        let published = machine.link().map(|link| link.published).filter(|published| !published.is_empty());
        if let Some(published) = published {
            let _ = self.reports.send(Report::Published(published)).await;
        }
        Ok(())
    }

    /// What the monitor is told to give a machine that was frozen on the way its disks.
    fn disks_to_add(&self, plan: &Plan) -> Vec<(&'static str, serde_json::Value)> {
        let root = match plan {
            // It has its root disk already.
            Plan::Warm(_) | Plan::WarmToFreeze(..) | Plan::Captured(_) => Vec::new(),
            Plan::Freeze(..) | Plan::Cold(_) => insert_disk(&self.spec.machine),
        };
        [root, add_extra_disks(&self.spec.machine)].concat()
    }

    /// Takes events one by one until the machine has ended or must be replaced.
    async fn follow_events(
        &mut self,
        running: &mut RunningMachine,
        mut cancelled: Pin<&mut impl Future<Output = ()>>,
    ) -> MachineOutcome {
        loop {
            let event = self.next_event(running, cancelled.as_mut()).await;
            if matches!(event, Event::AgentReady) {
                running.machine.dismiss_stand_by();
                if !self.traits.detached {
                    // They are in the guest. A workspace needs them again when its guest restarts.
                    self.spec.configure.secrets.clear();
                    if let Some(network) = &mut self.spec.network {
                        network.brokers = None;
                    }
                }
            }
            for effect in self.lifecycle.step(event, self.traits) {
                match effect {
                    Effect::StartCold(reason) => return MachineOutcome::NotRestored(reason),
                    effect => self.carry_out(effect, running).await,
                }
            }
            if let Phase::Ended(outcome) = self.lifecycle.phase() {
                return MachineOutcome::Ended(outcome.clone());
            }
        }
    }

    /// Waits for the next event. Results of effects come first.
    async fn next_event(
        &mut self,
        running: &mut RunningMachine,
        mut cancelled: Pin<&mut impl Future<Output = ()>>,
    ) -> Event {
        if let Some(event) = self.carried_out.pop_front() {
            return event;
        }
        let time_up = self.spec.timeout.map(|timeout| tokio::time::Instant::from_std(self.started + timeout));
        loop {
            return tokio::select! {
                biased;
                Some(event) = running.incoming.recv() => explain(event, &mut running.machine).await,
                loss = running.machine.loss() => match loss {
                    Loss::Machine(exit) => Event::MachineGone(exit),
                    Loss::Link(LinkChange::Lost(reason)) => {
                        explain(Event::LinkLost(reason), &mut running.machine).await
                    }
                    // Nothing that the lifecycle notices.
                    Loss::Link(change) => {
                        self.note_link_change(change, &running.machine).await;
                        continue;
                    }
                },
                () = cancelled.as_mut(), if !self.caller_gone => {
                    self.caller_gone = true;
                    Event::Cancelled
                }
                () = wait_until(running.conversation.flush_deadline) => {
                    running.conversation.flush_deadline = None;
                    Event::FlushFailed("the guest did not answer in time".to_owned())
                }
                () = wait_until(running.conversation.service_deadline) => {
                    running.conversation.service_deadline = None;
                    Event::ServiceStopTimedOut { seconds: self.stop_window().as_secs() }
                }
                () = wait_until(time_up.filter(|_| !self.timed_out)) => {
                    self.timed_out = true;
                    Event::TimedOut
                }
                () = self.ttl.expired() => {
                    self.ttl.told();
                    Event::Expired
                }
                () = self.dir_watch.gone(&self.dir) => Event::DirectoryGone,
                request = self.clients.next() => match request {
                    ClientRequest::Change(change) => {
                        self.grace = change.grace.or(self.grace);
                        self.clients.enter(change)
                    }
                    // Nothing that the machine notices.
                    ClientRequest::RenewTtl(renewal) => {
                        self.renew_ttl(renewal);
                        continue;
                    }
                    ClientRequest::Port(port) => {
                        self.change_port(port, &mut running.machine);
                        continue;
                    }
                },
            };
        }
    }
}

/// A broken channel, or a network that ends, is mostly the first sign of a machine that is gone, which says more.
async fn explain(event: Event, machine: &mut Machine) -> Event {
    if !matches!(event, Event::ChannelBroken(_) | Event::LinkLost(_)) {
        return event;
    }
    if let Ok(exit) = timeout(REASON_PATIENCE, machine.gone()).await {
        return Event::MachineGone(exit);
    }
    let monitor = machine.monitor();
    // A QEMU that still answers has not ended. One that does not is ending, which takes its time on a busy host.
    tokio::select! {
        biased;
        exit = machine.gone() => Event::MachineGone(exit),
        Ok(()) = monitor.execute(vec![("query-status", json!({}))]) => event,
        () = sleep(END_PATIENCE) => event,
    }
}

/// The end of a machine that was not started, because its caller wants none.
fn cancelled_early() -> Outcome {
    Outcome::Failed(WorkspaceFailure { kind: FailureKind::Cancelled, message: "cancelled".to_owned() })
}

async fn wait_until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// The caller sends nothing after the spec: whatever it sends, and its end, ends the machine.
async fn caller_gone(mut tether: OwnedReadHalf) {
    let _ = tether.read_u8().await;
}
