//! The supervisor's process: the one driver of [`crate::lifecycle`].
//!
//! One thread, one task that owns the state (`Driver`), helpers that feed it events: the worker (speaks to
//! the guest), readers of console and error output, the monitor's watch, the tether's watch, the control server (takes
//! clients in). The record is written by the driver alone.

mod claims;
mod console;
mod control_server;
mod effects;
mod machine;
mod network;
mod outcome;
mod plan;
mod worker;

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use microagent_proto::{GENERATION, SHUT_DOWN_REST, read_secret_message, write_message};
use microagent_store::{
    Failure, FailureKind, Lock, LockError, ProcessId, State, StateDir, WorkspaceDir, WorkspaceRecord,
    WriteError,
};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::{sleep_until, timeout};

use crate::bounded_log::BoundedLog;
use crate::core_dump::never_dump_core;
use crate::lifecycle::{Effect, Event, MachineTraits, Phase, step};
use crate::machine::{add_extra_disks, insert_disk};
use crate::spec::{
    DiskStamp, Ended, Outcome, REPORT_LIMIT, Report, SPEC_LIMIT, StartMode, SupervisorSpec, Timeline, Work,
};
use crate::template::Template;
use claims::Claims;
use console::Console;
use control_server::{ClientRequests, ControlServer, PendingAmendment, PendingChange};
use machine::Machine;
use outcome::EndWaiters;
use plan::Plan;
use worker::{Freeze, HALT_GRACE, Worker, WorkerContext};

/// First argument of a process that is to be a supervisor.
pub const SUPERVISE_ARGUMENT: &str = "__supervise";

/// How long the caller may take to say what is to be done.
const SPEC_DEADLINE: Duration = Duration::from_secs(10);

/// How long the caller may take to accept the last word.
const LAST_WORD_DEADLINE: Duration = Duration::from_secs(10);

/// How long the guest may take to end its processes and flush its disk.
const FLUSH_DEADLINE: Duration = Duration::from_secs(30);

/// How long a client waits for a clean shutdown: the flush, QEMU's end, and some time to tell.
pub(crate) const END_DEADLINE: Duration = Duration::from_secs(60);
const _: () = {
    let rest = FLUSH_DEADLINE.as_secs() + 2 * 10;
    assert!(rest + STOP_WINDOW.as_secs() <= END_DEADLINE.as_secs());
    assert!(HALT_GRACE.as_secs() + SHUT_DOWN_REST.as_secs() < FLUSH_DEADLINE.as_secs());
};

/// How long a service that was asked to end may take to do so before that is called a refusal.
const STOP_WINDOW: Duration = Duration::from_secs(10);

/// How long QEMU may take to have the guest stand still or go on.
const PAUSE_DEADLINE: Duration = Duration::from_secs(5);

/// How long a client waits for a quarantine: at worst passt and QEMU have to be killed.
pub(crate) const QUARANTINE_DEADLINE: Duration = Duration::from_secs(40);
const _: () = {
    let killed = 2 * machine::REAP_DEADLINE.as_secs();
    let asked = machine::LINK_DEADLINE.as_secs() + PAUSE_DEADLINE.as_secs();
    assert!(killed + asked < QUARANTINE_DEADLINE.as_secs());
};

/// How long a machine may take to be gone whose supervisor was killed.
const ORPHAN_DEADLINE: Duration = Duration::from_secs(10);

/// How long a restored guest may take to answer. Alone it takes milliseconds; under load it waits for a
/// processor like everybody else, and a cold start would only make that worse.
const RESTORE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a broken control channel waits for the reason: the death of QEMU explains it best.
const REASON_PATIENCE: Duration = Duration::from_millis(500);

/// Bound of the console log in bytes (twice that on disk).
const CONSOLE_LIMIT: u64 = 8 * 1024 * 1024;

/// Bound of the log of QEMU's and passt's own words in bytes (twice that on disk).
const VMM_LOG_LIMIT: u64 = 256 * 1024;

/// Events and reports that may wait; senders wait when it is full.
const QUEUE: usize = 16;

/// What the tasks of a supervisor share; one thread, so no locks.
type Shared<T> = Rc<RefCell<T>>;

/// Runs this process as a supervisor: standard input is the socket to the caller. Gives the exit code,
/// which only a log reader sees.
pub fn supervise() -> i32 {
    // Before anything of the caller's is in memory. QEMU and passt inherit the limit.
    never_dump_core();
    // A session of its own: Ctrl-C at the caller's terminal is the caller's to handle.
    let _ = rustix::process::setsid();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(_) => return 1,
    };
    let done = LocalSet::new().block_on(&runtime, run());
    // Whatever helper still waits for a pipe must not keep the process.
    runtime.shutdown_background();
    i32::from(done.is_err())
}

async fn run() -> io::Result<()> {
    let started = Instant::now();
    let tether = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let (mut reader, writer) = tether_stream(tether)?.into_split();
    let spec: Option<SupervisorSpec> = timeout(SPEC_DEADLINE, read_secret_message(&mut reader, SPEC_LIMIT))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
        .map_err(io::Error::other)?;
    let Some(spec) = spec.filter(|spec| spec.generation == GENERATION) else {
        return Err(io::Error::other("the caller is of another build, or gone"));
    };
    // A machine that outlives its caller must not keep the caller's directory busy.
    std::env::set_current_dir("/")?;

    let state = StateDir::at(&spec.state_dir);
    let dir = WorkspaceDir::at(&spec.dir);
    let detached = matches!(spec.work, Work::Serve { detached: true, .. });
    let (reports, reporter) = report_to(writer, detached);
    let disposable = match Driver::take(spec, dir.clone(), reports.clone(), started) {
        Ok(driver) => {
            let disposable = driver.record.as_ref().is_some_and(|record| record.disposable);
            let (ended, end_waiters) = driver.drive(reader).await;
            // The workspace is free: whoever hears of the end may start it again.
            end_waiters.answer(&ended.outcome).await;
            let _ = reports.send(Report::Ended(Box::new(ended))).await;
            disposable
        }
        Err(outcome) => {
            let _ = reports.send(Report::Ended(Box::new(never_started(outcome)))).await;
            false
        }
    };
    drop(reports);
    let heard = matches!(timeout(LAST_WORD_DEADLINE, reporter).await, Ok(Ok(true)));
    if disposable && !heard {
        // Nobody is left who would remove it.
        let _lock = dir.lock().map_err(io::Error::other)?;
        dir.remove(&state)?;
    }
    Ok(())
}

fn tether_stream(fd: OwnedFd) -> io::Result<UnixStream> {
    let stream = StdUnixStream::from(fd);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// Sends reports from a task of its own, so that a caller who does not read cannot stop the driver. The
/// task's result says whether everything was taken. A detached supervisor has nobody to tell once it serves.
fn report_to(mut writer: OwnedWriteHalf, detached: bool) -> (mpsc::Sender<Report>, JoinHandle<bool>) {
    let (sender, mut receiver) = mpsc::channel::<Report>(QUEUE);
    let task = spawn_local(async move {
        while let Some(report) = receiver.recv().await {
            if write_message(&mut writer, &report, REPORT_LIMIT).await.is_err() {
                return false;
            }
            if detached && matches!(report, Report::Serving) {
                return true;
            }
        }
        true
    });
    (sender, task)
}

fn never_started(outcome: Outcome) -> Ended {
    Ended {
        outcome,
        start: StartMode::Cold { reason: "it was never started".to_owned() },
        timeline: Timeline::default(),
        console_tail: String::new(),
    }
}

/// Owns the life of one machine.
struct Driver {
    spec: SupervisorSpec,
    state: StateDir,
    dir: WorkspaceDir,
    /// Looking into a resting workspace and freezing leave no trace in a record.
    record: Option<WorkspaceRecord>,
    start: StartMode,
    reports: mpsc::Sender<Report>,
    console: Shared<BoundedLog>,
    timeline: Shared<Timeline>,
    started: Instant,
    /// Where clients come in, and what they request.
    control: Option<(Rc<ControlServer>, ClientRequests)>,
    end_waiters: EndWaiters,
    /// State as last published.
    at: State,
    /// Whether the machine's life no longer depends on its caller's.
    detached: bool,
    /// Its disks beside the root disk.
    claims: Claims,
    _lock: Lock,
}

impl Driver {
    /// Makes the workspace this supervisor's: lock, logs, record, socket.
    fn take(
        spec: SupervisorSpec,
        dir: WorkspaceDir,
        reports: mpsc::Sender<Report>,
        started: Instant,
    ) -> Result<Driver, Outcome> {
        let boot = |message: String| Outcome::Failed(Failure { kind: FailureKind::Boot, message });
        let lock = dir.lock().map_err(|error| match error {
            LockError::Held { .. } => Outcome::Busy,
            error => boot(error.to_string()),
        })?;
        if let Work::Prepare { disk, .. } = &spec.work
            && DiskStamp::of(&dir.disk()).ok().as_ref() != Some(disk)
        {
            // Another command was quicker, and what it has made of the disk is not to be touched.
            return Err(Outcome::Busy);
        }
        let state = StateDir::at(&spec.state_dir);
        let claims = Claims::take(&spec, &state)?;
        let (record, console) = if spec.work.is_recorded() {
            (Some(WorkspaceRecord::load(&dir).map_err(|e| boot(e.to_string()))?), dir.console_log())
        } else {
            // Looking into a disk must not lose what its last run printed.
            (None, dir.offline_log())
        };
        if let Some(orphan) = record.as_ref().and_then(|record| record.vmm.as_ref()) {
            end_orphan(orphan).map_err(boot)?;
        }
        let host = |error: &io::Error, what| Outcome::Failed(full_or_boot(error, what));
        let console = BoundedLog::create(&console, CONSOLE_LIMIT)
            .and_then(|log| if record.is_some() { log.with_times() } else { Ok(log) })
            .map_err(|e| host(&e, "console log"))?;
        let control = match spec.work.is_serving() {
            true => Some(ControlServer::open(&dir).map_err(|e| host(&e, "socket for commands"))?),
            false => None,
        };
        let mut driver = Driver {
            state,
            spec,
            dir,
            record,
            start: StartMode::Cold { reason: "it was never started".to_owned() },
            reports,
            console: Rc::new(RefCell::new(console)),
            timeline: Rc::default(),
            started,
            control: control.map(|(control, requests)| (Rc::new(control), requests)),
            end_waiters: EndWaiters::default(),
            at: State::Starting,
            detached: false,
            claims,
            _lock: lock,
        };
        if let Some(record) = &mut driver.record {
            record.supervisor = ProcessId::current();
            record.backend = Some(driver.spec.backend.clone());
            record.vmm = None;
            record.link = None;
            record.failure = None;
            record.asked_to_end = false;
            record.one_start.clone_from(&driver.spec.one_start);
        }
        driver.publish(State::Starting).map_err(|e| Outcome::Failed(write_failure(&e)))?;
        // A disposable one has a disk to spare.
        if driver.record.as_ref().is_some_and(|record| !record.disposable) {
            driver.dir.keep_room();
        }
        Ok(driver)
    }

    /// From the spawn to the end of everything. The workspace is free afterwards.
    async fn drive(mut self, tether: OwnedReadHalf) -> (Ended, EndWaiters) {
        let outcome = match self.live(tether).await {
            Ok(outcome) => outcome,
            Err(failure) => Outcome::Failed(failure),
        };
        self.timeline.borrow_mut().gone_us = self.elapsed_us();
        let outcome = self.record_outcome(outcome);
        let console_tail = match &outcome {
            Outcome::Failed(_) => self.console.borrow().tail(),
            _ => String::new(),
        };
        if let Some((control, mut requests)) = self.control.take() {
            self.end_waiters.unwritten = Some(control.last_answers());
            drop(control);
            while let Ok(late) = requests.changes.try_recv() {
                self.end_waiters.clients.push(late);
            }
        }
        let ended = Ended { outcome, start: self.start, timeline: *self.timeline.borrow(), console_tail };
        (ended, self.end_waiters)
    }

    async fn live(&mut self, tether: OwnedReadHalf) -> Result<Outcome, Failure> {
        let mut cancelled = pin!(caller_gone(tether));
        let mut plan = Plan::choose(&self.spec, &self.state);
        loop {
            let mut running = self.start(plan).await?;
            let restored = running.template.is_some();
            let outcome = self.follow(&mut running, restored, cancelled.as_mut()).await;
            running.worker.abort();
            match outcome? {
                LifeOutcome::Ended(outcome) => return Ok(outcome),
                LifeOutcome::NotRestored(reason) => {
                    let notice =
                        format!("the template did not come back to life, so the machine boots: {reason}");
                    let _ = self.reports.send(Report::Notice(notice)).await;
                    if let Some(template) = running.template {
                        template.discard(&self.state);
                    }
                    plan = Plan::Cold(format!("the template did not come back to life: {reason}"));
                }
            }
        }
    }

    /// Starts the machine and the conversation with its guest.
    async fn start(&mut self, plan: Plan) -> Result<RunningMachine, Failure> {
        let (events, incoming) = mpsc::channel(QUEUE);
        if let Plan::Warm(template) = &plan {
            template
                .lay_disk(&self.spec.machine)
                .map_err(|e| full_or_boot(&e, "the disk of the template"))?;
        }
        let mut machine = Machine::start(
            &self.spec,
            &plan,
            self.claims.files(),
            &self.dir,
            Rc::clone(&self.console),
            &events,
        )
        .await?;
        self.start = plan.mode();
        self.timeline.borrow_mut().spawned_us = self.elapsed_us();
        self.claims.note(machine.process_id())?;
        if let Some(record) = &mut self.record {
            record.vmm = machine.process_id();
            record.link = machine.link();
        }
        self.publish(State::Starting).map_err(|e| write_failure(&e))?;
        let published = machine.link().map(|link| link.published).filter(|published| !published.is_empty());
        if let Some(published) = published {
            let _ = self.reports.send(Report::Published(published)).await;
        }

        let (template, freezer) = match plan {
            Plan::Warm(template) => (Some(template), None),
            Plan::WarmToFreeze(template, freezer) => (Some(template), Some(freezer)),
            Plan::Freeze(freezer, _) => (None, Some(freezer)),
            Plan::Cold(_) => (None, None),
        };
        let answer_deadline = match template {
            Some(_) => RESTORE_DEADLINE.min(self.spec.boot_deadline),
            None => self.spec.boot_deadline,
        };
        let add_disks = match &template {
            // It has its root disk already.
            Some(_) => Ok(Vec::new()),
            None => insert_disk(&self.spec.machine),
        };
        let add_disks = add_disks
            .and_then(|root| Ok([root, add_extra_disks(&self.spec.machine)?].concat()))
            .map_err(|e| Failure { kind: FailureKind::Boot, message: e.to_string() })?;
        let freeze = freezer.map(|freezer| Freeze {
            freezer,
            monitor: machine.monitor(),
            machine: self.spec.machine.clone(),
            add_disks,
            state: self.state.clone(),
        });
        if let Some((control, _)) = &self.control {
            control.show(Console::new(machine.take_keys(), Rc::clone(&self.console)));
        }
        let context = WorkerContext {
            console: Rc::clone(&self.console),
            timeline: Rc::clone(&self.timeline),
            reports: self.reports.clone(),
            started: self.started,
            control: self.control.as_ref().map(|(control, _)| Rc::clone(control)),
        };
        let worker = Worker::new(&self.spec, &self.dir, answer_deadline, freeze, context)
            .map_err(|e| full_or_boot(&e, "output"))?;
        let (flush, flush_requested) = oneshot::channel();
        let (signals, signalled) = mpsc::channel(QUEUE);
        let worker = spawn_local(worker.run(machine.take_control(), events, flush_requested, signalled));
        let flush = Some(flush);
        Ok(RunningMachine {
            machine,
            worker,
            incoming,
            flush,
            flush_deadline: None,
            signals,
            service_deadline: None,
            template,
        })
    }

    /// Takes events one by one until the end.
    async fn follow(
        &mut self,
        running: &mut RunningMachine,
        restored: bool,
        mut cancelled: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<LifeOutcome, Failure> {
        let traits =
            MachineTraits { keep: self.spec.machine.keeps_disk(), service: self.spec.work.has_service() };
        let mut phase = if restored { Phase::Restoring } else { Phase::Starting };
        loop {
            let (event, client) = self.next_event(running, &phase, cancelled.as_mut()).await;
            if matches!(event, Event::AgentReady) {
                // They are in the guest: no further machine of this life will need them.
                self.spec.configure.secrets.clear();
            }
            let reason = match &event {
                Event::GuestFailed(reason)
                | Event::ChannelBroken(reason)
                | Event::MachineGone(reason)
                | Event::LinkLost(reason) => reason.clone(),
                _ => String::new(),
            };
            let (next, effect) = step(phase, event, traits);
            phase = next;
            if effect == Effect::StartCold {
                running.machine.kill().await;
                return Ok(LifeOutcome::NotRestored(reason));
            }
            if effect == Effect::NoteLinkLost {
                self.note_link_lost(&reason).await;
            }
            if let Some(reached) = self.carry_out(effect, running, client).await? {
                phase = reached;
            }
            if let Phase::Ended(outcome) = phase {
                return Ok(LifeOutcome::Ended(outcome));
            }
        }
    }

    /// Waits for what happens next; with it comes the client that requested it, if one did.
    async fn next_event(
        &mut self,
        running: &mut RunningMachine,
        phase: &Phase,
        mut cancelled: Pin<&mut impl Future<Output = ()>>,
    ) -> (Event, Option<PendingChange>) {
        let time_up = self.spec.timeout.map(|timeout| tokio::time::Instant::from_std(self.started + timeout));
        let working = !matches!(phase, Phase::Stopping(_));
        loop {
            let event = tokio::select! {
                biased;
                Some(event) = running.incoming.recv() => explain(event, &mut running.machine).await,
                loss = running.machine.loss() => explain(loss, &mut running.machine).await,
                () = cancelled.as_mut(), if !self.detached => Event::Cancelled,
                () = wait_until(running.flush_deadline) => {
                    running.flush_deadline = None;
                    Event::FlushFailed("the guest did not answer in time".to_owned())
                }
                () = wait_until(running.service_deadline) => {
                    running.service_deadline = None;
                    Event::ServiceStopTimedOut
                }
                () = wait_until(time_up.filter(|_| working)) => Event::TimedOut,
                request = next_client_request(&mut self.control) => match request {
                    ClientRequest::Change(change) => return (Event::ChangeRequested(change.request), Some(change)),
                    // Nothing that the machine notices.
                    ClientRequest::Amend(amendment) => {
                        self.amend(amendment);
                        continue;
                    }
                },
            };
            return (event, None);
        }
    }

    /// Writes the record, if this life has one.
    fn publish(&mut self, state: State) -> Result<(), WriteError> {
        self.publish_because(state, None)
    }

    /// The same, with a reason for the events where the record has none.
    fn publish_because(&mut self, state: State, reason: Option<&str>) -> Result<(), WriteError> {
        let news = self.at != state;
        self.at = state;
        if let Some((control, _)) = &self.control {
            control.follow(state);
        }
        let Some(record) = &mut self.record else { return Ok(()) };
        let news = news || record.state != state;
        record.state = state;
        record.changed_at = Timestamp::now();
        record.save(&self.dir).or_else(|error| match self.dir.give_room() {
            // A guest that has filled the disk must not keep the truth from being written down.
            true => record.save(&self.dir),
            false => Err(error),
        })?;
        if news {
            let failure = record.failure.as_ref().map(|failure| failure.message.as_str());
            self.dir.note_event(state, failure.or(reason));
        }
        Ok(())
    }

    fn elapsed_us(&self) -> u64 {
        elapsed_us(self.started)
    }
}

/// QEMU dies with its supervisor, but a moment later, and holds the disk until then.
fn end_orphan(orphan: &ProcessId) -> Result<(), String> {
    orphan.kill();
    let deadline = Instant::now() + ORPHAN_DEADLINE;
    while orphan.is_alive() {
        if Instant::now() >= deadline {
            return Err(format!("QEMU of its last life (process {}) cannot be killed", orphan.pid));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Waits for the next request of a client; for ever without a control socket.
async fn next_client_request(control: &mut Option<(Rc<ControlServer>, ClientRequests)>) -> ClientRequest {
    let Some((_, requests)) = control else { return std::future::pending().await };
    tokio::select! {
        Some(change) = requests.changes.recv() => ClientRequest::Change(change),
        Some(amendment) = requests.amendments.recv() => ClientRequest::Amend(amendment),
        else => std::future::pending().await,
    }
}

/// A request of a client.
enum ClientRequest {
    /// A change of the state of the machine.
    Change(PendingChange),
    /// A change of the record.
    Amend(PendingAmendment),
}

/// One machine and what is known of it.
struct RunningMachine {
    machine: Machine,
    worker: JoinHandle<()>,
    incoming: mpsc::Receiver<Event>,
    flush: Option<oneshot::Sender<()>>,
    /// When the flush that was asked for must be done.
    flush_deadline: Option<tokio::time::Instant>,
    /// For the service.
    signals: mpsc::Sender<u8>,
    /// When the service that was asked to end must have ended.
    service_deadline: Option<tokio::time::Instant>,
    template: Option<Template>,
}

/// What came of a machine.
enum LifeOutcome {
    /// Its life is over.
    Ended(Outcome),
    /// It did not come back from its template; why.
    NotRestored(String),
}

/// A broken channel, or a network that ends, is mostly the first sign of a machine that is gone, which says more.
async fn explain(event: Event, machine: &mut Machine) -> Event {
    match event {
        event @ (Event::ChannelBroken(_) | Event::LinkLost(_)) => {
            match timeout(REASON_PATIENCE, machine.gone()).await {
                Ok(reason) => Event::MachineGone(reason),
                Err(_) => event,
            }
        }
        event => event,
    }
}

async fn wait_until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// The caller says nothing after the spec: whatever it sends, and its end, ends the machine.
async fn caller_gone(mut tether: OwnedReadHalf) {
    let _ = tether.read_u8().await;
}

fn elapsed_us(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn write_failure(error: &WriteError) -> Failure {
    match error.io() {
        Some(io) => full_or_boot(io, &error.to_string()),
        None => Failure { kind: FailureKind::Boot, message: error.to_string() },
    }
}

/// A failure of ours on the host: full, or something else.
fn full_or_boot(error: &io::Error, what: &str) -> Failure {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FailureKind::HostFull,
        _ => FailureKind::Boot,
    };
    Failure { kind, message: format!("{what}: {error}") }
}
