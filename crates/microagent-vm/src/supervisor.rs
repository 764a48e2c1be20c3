//! The supervisor's process: the one driver of [`crate::lifecycle`].
//! One thread runs one task that owns the state (`Driver`) and helper tasks that send it events: the worker
//! (communicates with the guest), readers of console and error output, watches of the monitor and of the caller's
//! socket, and the control server (accepts clients). Only the driver writes the state.

mod answer_budget;
mod base_disk;
mod brokers;
mod capture;
mod claims;
mod clients;
mod console;
mod control_server;
mod copies;
mod dir_watch;
mod drive;
mod effects;
mod guest_end;
mod health;
mod jobs;
mod liveness;
mod machine;
mod monitor;
mod network;
mod notified;
mod outcome;
mod plan;
mod ports;
mod qemu;
mod relay;
mod time_to_live;
mod worker;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use microagent_model::{FailureKind, State, WorkspaceFailure};
use microagent_proto::{GENERATION, SHUT_DOWN_REST, read_secret_message, write_message};
use microagent_qemu::features::Features;
use microagent_store::{
    HealthReport, Lock, LockError, MachineProcesses, ProcessId, StateDir, WorkspaceDir, WorkspaceRecord,
    WriteError,
};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::timeout;

use crate::bounded_log::BoundedLog;
use crate::brokers::{BROKERS_ARGUMENT, brokers};
use crate::core_dump::never_dump_core;
use crate::descriptors::close_inherited;
use crate::file_size::fail_oversized_writes;
use crate::lifecycle::{Event, Lifecycle, MachineTraits};
use crate::network_stack::{NETWORK_STACK_ARGUMENT, network_stack, use_descriptors};
use crate::spec::{
    DiskStamp, Ended, Outcome, REPORT_LIMIT, Report, SPEC_LIMIT, SUPERVISOR_PROTOCOL, StartMode,
    SupervisorSpec, Timeline, Work,
};
use claims::Claims;
use clients::Clients;
use control_server::ControlServer;
use dir_watch::DirWatch;
pub(crate) use jobs::JOB_START_DEADLINE;
use liveness::StateWatch;
use outcome::LastAnswers;
use relay::Relay;
use time_to_live::TimeToLive;
use worker::HALT_GRACE;

/// How long to wait for a lock that was just released: a process that another thread of the caller forks meanwhile has a
/// copy of it until it executes its program, and a supervisor exits a moment after its last answer.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// Deadline for the caller's spec.
const SPEC_DEADLINE: Duration = Duration::from_secs(10);

/// Deadline for the caller to read the last report.
const LAST_WORD_DEADLINE: Duration = Duration::from_secs(10);

/// Deadline for the guest to end its processes and flush its disk.
const FLUSH_DEADLINE: Duration = Duration::from_secs(30);

/// Deadline of a client for a clean shutdown: at worst the flush takes all of its time, QEMU does not quit and is
/// killed, and so is the network stack.
pub(crate) const END_DEADLINE: Duration = Duration::from_secs(165);
const _: () = {
    let flushed = STOP_WINDOW.as_secs() + FLUSH_DEADLINE.as_secs();
    let ended = machine::QUIT_DEADLINE.as_secs() + 2 * machine::REAP_DEADLINE.as_secs();
    let before = CAPTURE_DEADLINE.as_secs();
    assert!(before + flushed + ended + TELL_MARGIN.as_secs() <= END_DEADLINE.as_secs());
    assert!(HALT_GRACE.as_secs() + SHUT_DOWN_REST.as_secs() < FLUSH_DEADLINE.as_secs());
};

/// The part of a client's deadline for writing the record and the answer on a busy host.
const TELL_MARGIN: Duration = Duration::from_secs(10);

/// Deadline for a service to end after its stop signal; then the request counts as refused.
pub(crate) const STOP_WINDOW: Duration = Duration::from_secs(10);

/// Deadline for QEMU to pause or resume the guest.
const PAUSE_DEADLINE: Duration = Duration::from_secs(5);

/// Deadline of a client for a quarantine: at worst the network stack and QEMU have to be killed.
pub(crate) const QUARANTINE_DEADLINE: Duration = Duration::from_secs(115);
const _: () = {
    let killed = 2 * machine::REAP_DEADLINE.as_secs();
    let asked = machine::LINK_DEADLINE.as_secs() + PAUSE_DEADLINE.as_secs();
    let before = CAPTURE_DEADLINE.as_secs();
    assert!(before + killed + asked + TELL_MARGIN.as_secs() <= QUARANTINE_DEADLINE.as_secs());
};

/// Deadline for a capture, for which other requests wait.
pub(crate) const CAPTURE_DEADLINE: Duration = Duration::from_secs(75);
const _: () = assert!(capture::MOST.as_secs() <= CAPTURE_DEADLINE.as_secs());

/// Deadline for the end of a machine whose supervisor was killed.
const ORPHAN_DEADLINE: Duration = Duration::from_secs(10);

/// Most reports of processes of one machine that ran out of memory.
const OUT_OF_MEMORY_MAX: usize = 8;

/// Limit of the console log in bytes (twice that on disk).
const CONSOLE_LIMIT: u64 = 8 * 1024 * 1024;

/// Limit of the log of QEMU's and the network stack's messages in bytes (twice that on disk).
const VMM_LOG_LIMIT: u64 = 256 * 1024;

/// Length of the queues of events and reports; senders wait if a queue is full.
const QUEUE: usize = 16;

/// Data that the tasks of a supervisor share; there is one thread, so no locks.
type Shared<T> = Rc<RefCell<T>>;

/// Runs this process as a supervisor, whose standard input is the socket to the caller, or as one that a supervisor
/// started: the network stack, or the brokers. Returns the exit code.
pub fn supervise() -> i32 {
    // A lock or pipe that the caller's caller left open is not for this process and what it starts.
    close_inherited();
    match std::env::args_os().nth(2) {
        Some(argument) if argument == NETWORK_STACK_ARGUMENT => return network_stack(),
        Some(argument) if argument == BROKERS_ARGUMENT => return brokers(),
        _ => {}
    }
    // Before anything of the caller's is in memory. QEMU and the network stack inherit the limit.
    never_dump_core();
    // A disk or log that reaches a limit of the caller is an error of that write.
    let _ = fail_oversized_writes();
    // A shell's limit may be lower than what a machine with several disks needs.
    use_descriptors();
    // A session of its own, where its caller has not made one.
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
    let (mut reader, mut writer) = tether_stream(tether)?.into_split();
    let spec: Option<SupervisorSpec> = timeout(SPEC_DEADLINE, read_secret_message(&mut reader, SPEC_LIMIT))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
        .map_err(io::Error::other)?;
    let Some(spec) =
        spec.filter(|spec| (spec.protocol, spec.generation) == (SUPERVISOR_PROTOCOL, GENERATION))
    else {
        return Err(io::Error::other("the caller is of another build, or gone"));
    };
    // A caller that has ended already is noticed later.
    let _ = write_message(&mut writer, &Report::Instructed, REPORT_LIMIT).await;
    let relay = if spec.work.is_relayed() { Some(Relay::take_stdout()?) } else { None };
    // A machine that outlives its caller must not keep the caller's directory busy.
    std::env::set_current_dir("/")?;

    let dir = WorkspaceDir::at(&spec.dir);
    let (reports, reporter) = report_to(writer, spec.work.is_detached());
    let disposable = match Driver::take(spec, dir.clone(), reports.clone(), relay, started) {
        Ok(driver) => {
            let disposable = driver.record.as_ref().is_some_and(|record| record.disposable);
            let (ended, answers) = driver.drive(reader).await;
            // The workspace is free: whoever hears of the end may start it again.
            answers.give().await;
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
        dir.remove_in_place()?;
    }
    Ok(())
}

/// A socket that the caller has left as a standard stream.
fn tether_stream(fd: OwnedFd) -> io::Result<UnixStream> {
    let stream = StdUnixStream::from(fd);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// Sends reports in a task of its own, so that a caller that does not read cannot block the driver. The task's result
/// says whether the last report was read. A detached supervisor sends no reports after the start.
///
/// The driver reports that the guest has booted, and the worker, which does not wait for the driver, what it does next.
/// So the worker's reports are held back until the driver's was sent.
fn report_to(mut writer: OwnedWriteHalf, detached: bool) -> (mpsc::Sender<Report>, JoinHandle<bool>) {
    let (sender, mut receiver) = mpsc::channel::<Report>(QUEUE);
    let task = spawn_local(async move {
        let (mut booted, mut held) = (false, Vec::new());
        while let Some(report) = receiver.recv().await {
            if !booted && matches!(report, Report::Setup(_) | Report::Command) {
                held.push(report);
                continue;
            }
            booted |= matches!(report, Report::Booted);
            let ready = if booted { std::mem::take(&mut held) } else { Vec::new() };
            for report in std::iter::once(report).chain(ready) {
                if write_message(&mut writer, &report, REPORT_LIMIT).await.is_err() {
                    return false;
                }
                if detached && matches!(report, Report::Serving) {
                    return false;
                }
            }
        }
        true
    });
    (sender, task)
}

/// Takes a place among the machines that may run at a time. The lock ends with this process, however it ends. A machine
/// that only reads a disk or makes a template has none.
fn take_place(spec: &SupervisorSpec, state: &StateDir) -> Result<Option<Lock>, Outcome> {
    if !spec.work.is_recorded() {
        return Ok(None);
    }
    let failed = |error: &LockError| {
        let message = format!("the number of running machines cannot be limited: {error}");
        Outcome::Failed(WorkspaceFailure { kind: FailureKind::Boot, message })
    };
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        for place in 0..spec.max_running {
            match Lock::try_exclusive(&state.running_place(place)) {
                Ok(lock) => return Ok(Some(lock)),
                Err(LockError::Held { .. }) => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        if Instant::now() >= deadline {
            return Err(Outcome::TooManyRunning(spec.max_running));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn never_started(outcome: Outcome) -> Ended {
    Ended {
        outcome,
        start: StartMode::Cold { reason: "it was never started".to_owned() },
        timeline: Timeline::default(),
        console_tail: String::new(),
    }
}

/// Owns one machine from its start to its end.
struct Driver {
    spec: SupervisorSpec,
    state: StateDir,
    dir: WorkspaceDir,
    /// The settings as they were at the start, and the state, which this process writes. Looking into a resting workspace
    /// and freezing leave no trace in it.
    record: Option<WorkspaceRecord>,
    start: StartMode,
    reports: mpsc::Sender<Report>,
    console: Shared<BoundedLog>,
    timeline: Shared<Timeline>,
    started: Instant,
    clients: Clients,
    lifecycle: Lifecycle,
    traits: MachineTraits,
    /// Events of effects that were carried out at once.
    carried_out: VecDeque<Event>,
    /// State as last published.
    published: Rc<StateWatch>,
    dir_watch: DirWatch,
    /// Whether the time limit of the work was reported.
    timed_out: bool,
    /// Processes that ran out of memory, as far as they were told.
    out_of_memory: usize,
    /// Whether the caller's end was reported.
    caller_gone: bool,
    /// How long the guest's processes have to end, as the newest client that ends the machine wants it.
    grace: Option<Duration>,
    /// When the machine ends by itself.
    ttl: TimeToLive,
    /// Its further disks.
    claims: Claims,
    /// The caller's stream to the command, until a conversation has it.
    relay: Shared<Option<Relay>>,
    /// What QEMU can do.
    features: Features,
    /// What the machine can be captured with.
    captures: capture::Captures,
    _lock: Lock,
    /// Its place among the machines that may run at a time.
    _place: Option<Lock>,
}

/// Whether the disk is still the one that the caller saw: a setup needs a disk that no guest has used, and a snapshot or a
/// restore gives the workspace another one.
fn has_disk(spec: &SupervisorSpec, dir: &WorkspaceDir) -> bool {
    let Some(disk) = &spec.machine.disk else { return true };
    let stamp = match &spec.work {
        Work::Prepare { disk, .. } => Some(disk),
        _ => spec.restore.as_ref().map(|captured| &captured.disk),
    };
    if stamp.is_some_and(|stamp| DiskStamp::of(&disk.overlay).ok().as_ref() != Some(stamp)) {
        return false;
    }
    // What is wrong with a record that cannot be read is said when it is needed.
    WorkspaceRecord::load(dir)
        .map_or(true, |record| record.layers.iter().eq(disk.layers.iter().map(|file| &file.layer)))
}

/// The record of the workspace, if this machine is recorded, and the directory as that record is written to it. What is
/// left of its last machine is ended.
fn own_record(
    spec: &SupervisorSpec,
    dir: WorkspaceDir,
) -> Result<(Option<WorkspaceRecord>, WorkspaceDir), Outcome> {
    if !spec.work.is_recorded() {
        return Ok((None, dir));
    }
    let boot = |message: String| Outcome::Failed(WorkspaceFailure { kind: FailureKind::Boot, message });
    let record = WorkspaceRecord::load(&dir).map_err(|e| boot(e.to_string()))?;
    end_orphan(&record.processes(&dir)).map_err(boot)?;
    let durability = record.durability();
    Ok((Some(record), dir.with_durability(durability)))
}

impl Driver {
    /// Makes the workspace this supervisor's: lock, logs, record, socket.
    fn take(
        spec: SupervisorSpec,
        dir: WorkspaceDir,
        reports: mpsc::Sender<Report>,
        relay: Option<Relay>,
        started: Instant,
    ) -> Result<Driver, Outcome> {
        let boot = |message: String| Outcome::Failed(WorkspaceFailure { kind: FailureKind::Boot, message });
        let lock = dir.lock_within(LOCK_PATIENCE).map_err(|error| match error {
            LockError::Held { .. } => Outcome::Busy,
            error => boot(error.to_string()),
        })?;
        if !has_disk(&spec, &dir) {
            // Another command was quicker, and what it has made of the disk is not to be touched.
            return Err(Outcome::Busy);
        }
        dir.make_machine_dir().map_err(|e| Outcome::Failed(full_or_boot(&e, "directory of the machine")))?;
        let state = StateDir::at(&spec.state_dir);
        let place = take_place(&spec, &state)?;
        let claims = Claims::take(&spec, &state)?;
        let (record, dir) = own_record(&spec, dir)?;
        // Looking into a disk must not lose what its last run printed.
        let console = if record.is_some() { dir.console_log() } else { dir.offline_log() };
        let host = |error: &io::Error, what| Outcome::Failed(full_or_boot(error, what));
        let console = BoundedLog::create(&console, CONSOLE_LIMIT)
            .and_then(|log| if record.is_some() { log.with_times() } else { Ok(log) })
            .map_err(|e| host(&e, "console log"))?;
        let control = match spec.work.has_clients() {
            true => Some(ControlServer::open(&dir).map_err(|e| host(&e, "socket for commands"))?),
            false => None,
        };
        let dir_watch = DirWatch::of(&dir).map_err(|e| host(&e, "directory"))?;
        let traits = spec.traits();
        let mut driver = Driver {
            state,
            ttl: TimeToLive::of(spec.ttl),
            spec,
            dir,
            record,
            start: StartMode::Cold { reason: "it was never started".to_owned() },
            reports,
            console: Rc::new(RefCell::new(console)),
            timeline: Rc::default(),
            started,
            clients: Clients::of(control),
            lifecycle: Lifecycle::default(),
            traits,
            carried_out: VecDeque::new(),
            published: Rc::new(StateWatch::new(State::Starting)),
            dir_watch,
            timed_out: false,
            out_of_memory: 0,
            caller_gone: false,
            grace: None,
            claims,
            relay: Rc::new(RefCell::new(relay)),
            features: Features::default(),
            captures: capture::Captures::default(),
            _lock: lock,
            _place: place,
        };
        driver.record_start().map_err(|e| Outcome::Failed(write_failure(&e)))?;
        Ok(driver)
    }

    /// Records that a machine is being started by this process.
    fn record_start(&mut self) -> Result<(), WriteError> {
        if let Some(record) = &mut self.record {
            record.machine.supervisor = ProcessId::current();
            record.machine.backend = Some(self.spec.backend.clone());
            record.machine.vmm = None;
            record.machine.link = None;
            record.machine.failure = None;
            record.machine.asked_to_end = false;
            record.machine.expires_at = None;
            record.machine.one_start.clone_from(&self.spec.one_start);
            record.machine.weak_jail.clone_from(&self.spec.weak_jail);
        }
        if self.record.is_some() {
            // Readers would take the last machine's health for this one's.
            HealthReport::remove(&self.dir)
                .map_err(|source| WriteError::Write { path: self.dir.machine(), source })?;
        }
        let weak = &self.spec.weak_jail;
        let weak = (!weak.is_empty()).then(|| format!("weak jail: {}", weak.join("; ")));
        self.publish_because(State::Starting, weak.as_deref())?;
        // A disposable one has a disk to spare.
        if self.record.as_ref().is_some_and(|record| !record.disposable) {
            self.dir.keep_room();
        }
        Ok(())
    }

    /// From the start of a machine to the end of everything. The workspace is free afterwards.
    async fn drive(mut self, tether: OwnedReadHalf) -> (Ended, LastAnswers) {
        let outcome = match self.run_machine(tether).await {
            Ok(outcome) => outcome,
            Err(failure) => Outcome::Failed(failure),
        };
        self.timeline.borrow_mut().gone_us = self.elapsed_us();
        if let Some(server) = self.clients.server() {
            // Before anybody can see that the machine has ended.
            server.take_back();
        }
        self.note_shortage(&outcome).await;
        let outcome = self.record_outcome(outcome);
        let console_tail = match &outcome {
            Outcome::Failed(_) => self.console.borrow().tail(),
            _ => String::new(),
        };
        let answers = LastAnswers::of(&mut self, &outcome);
        let ended = Ended { outcome, start: self.start, timeline: *self.timeline.borrow(), console_tail };
        (ended, answers)
    }

    /// Writes the state, if there is a record.
    fn publish(&mut self, state: State) -> Result<(), WriteError> {
        self.publish_because(state, None)
    }

    /// The same, with a reason for the events where the record has none.
    fn publish_because(&mut self, state: State, reason: Option<&str>) -> Result<(), WriteError> {
        let news = self.published.set(state) != state;
        self.clients.show_state(state);
        let Some(record) = &mut self.record else { return Ok(()) };
        let machine = &mut record.machine;
        let news = news || machine.state != state;
        machine.state = state;
        machine.changed_at = Timestamp::now();
        machine.save(&self.dir).or_else(|error| match self.dir.give_room() {
            // A guest that has filled the disk must not keep the truth from being written down.
            true => machine.save(&self.dir),
            false => Err(error),
        })?;
        if news {
            let failure = record.machine.failure.as_ref().map(|failure| failure.message.as_str());
            self.dir.note_event(state, failure.or(reason));
        }
        Ok(())
    }

    fn elapsed_us(&self) -> u64 {
        elapsed_us(self.started)
    }
}

/// QEMU ends a moment after its supervisor, and uses the disk until then.
fn end_orphan(processes: &MachineProcesses<'_>) -> Result<(), String> {
    processes.kill_orphan();
    let deadline = Instant::now() + ORPHAN_DEADLINE;
    while let Some(orphan) = processes.orphan() {
        if Instant::now() >= deadline {
            return Err(format!("QEMU of its last machine (process {}) cannot be killed", orphan.pid));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn elapsed_us(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn write_failure(error: &WriteError) -> WorkspaceFailure {
    match error.io() {
        Some(io) => full_or_boot(io, &error.to_string()),
        None => WorkspaceFailure { kind: FailureKind::Boot, message: error.to_string() },
    }
}

/// A failure of the host: full, or something else.
fn full_or_boot(error: &io::Error, what: &str) -> WorkspaceFailure {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FailureKind::HostFull,
        _ => FailureKind::Boot,
    };
    WorkspaceFailure { kind, message: format!("{what}: {error}") }
}
