//! Starting and ending the machine of a workspace, and changing its state.
//!
//! A start returns when the machine is running; its supervisor keeps running without the caller. Every later change
//! is a request to that supervisor, which answers when the change is complete. The current state is always read from
//! record and processes.

use std::cell::RefCell;
use std::time::Duration;

use jiff::Timestamp;
use microagent_model::{Resources, SIGTERM, SetupStep, State, WorkspaceName, signal_number};
use microagent_store::{
    MachineState, OneStart, RELEASED, Workload, WorkspaceDir, WorkspaceRecord, processes_are_hidden,
};
use microagent_vm::control::{change, change_with, renew_ttl};
use microagent_vm::{
    Answer, ChangeRequest, ControlError, DiskStamp, Outcome, Refusal, SupervisorSpec, Work, choose_ports,
};
use tokio::time::{Instant, sleep};

use super::health::health_spec;
use super::memory::SnapshotMemory;
use super::{Workspace, WorkspaceDetails, kill_processes, lock_patiently};
#[cfg(doc)]
use crate::ErrorKind;
use crate::broker::with_brokers;
use crate::error::{Action, InvalidRequest, JobError};
use crate::host_memory::check_host_memory;
use crate::limits::check_work;
use crate::provision::{
    FirstStart, Provision, check_options, check_size, check_stop_timeout, main_request, resolve_command,
    setup_steps,
};
use crate::secret::Resolved;
use crate::supervisor_events::{EndTranslator, Purpose, SupervisorProgress};
use crate::supervisor_spec::{HostPrograms, MachineRequest};
use crate::{CreateOptions, Engine, Error, Event, Profile, Progress};

/// Interval of reading the state while waiting for a change.
const WAIT_INTERVAL: Duration = Duration::from_millis(50);

/// Longest reason of a quarantine, in bytes.
pub const REASON_LIMIT: usize = 1000;

/// Deadline for the end of a supervisor's process after the end of its machine.
const REST_PATIENCE: Duration = Duration::from_secs(2);

/// Options of one start: a size and a time to live that replace the workspace's. Later starts are not affected. Create with
/// [`StartOptions::new`] and change with its methods.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct StartOptions {
    /// Profile that memory and CPUs are taken from.
    pub profile: Option<Profile>,
    /// Guest memory in MiB; replaces the profile's or the workspace's.
    pub memory_mib: Option<u32>,
    /// Virtual CPUs; replaces the profile's or the workspace's.
    pub cpu_count: Option<u32>,
    /// How long the machine may run; replaces the workspace's time to live. Zero is no limit.
    pub ttl: Option<Duration>,
}

impl StartOptions {
    /// Creates options for a start with the settings of the workspace.
    pub fn new() -> StartOptions {
        StartOptions::default()
    }

    /// Sets the profile of memory and CPUs.
    #[must_use]
    pub fn profile(self, profile: Profile) -> StartOptions {
        StartOptions { profile: Some(profile), ..self }
    }

    /// Sets guest memory in MiB.
    #[must_use]
    pub fn memory_mib(self, memory_mib: u32) -> StartOptions {
        StartOptions { memory_mib: Some(memory_mib), ..self }
    }

    /// Sets the number of virtual CPUs.
    #[must_use]
    pub fn cpu_count(self, cpu_count: u32) -> StartOptions {
        StartOptions { cpu_count: Some(cpu_count), ..self }
    }

    /// Sets how long the machine may run before it is halted. Zero is no limit.
    #[must_use]
    pub fn ttl(self, ttl: Duration) -> StartOptions {
        StartOptions { ttl: Some(ttl), ..self }
    }

    /// Returns the size of this start, if it differs from the workspace's.
    fn size(&self, record: &WorkspaceRecord) -> Option<OneStart> {
        let base = self.profile.map_or(record.resources, |profile| profile.resources);
        let resources = Resources {
            memory_mib: self.memory_mib.unwrap_or(base.memory_mib),
            cpu_count: self.cpu_count.unwrap_or(base.cpu_count),
            size_mib: record.resources.size_mib,
        };
        let profile = self.profile.map_or(record.profile.as_str(), |profile| profile.name);
        let other = resources != record.resources || profile != record.profile;
        other.then(|| OneStart { profile: profile.to_owned(), resources })
    }
}

impl Engine {
    /// Creates a workspace in state [`Prepared`](State::Prepared): fetches the image if it is not in the cache, makes the
    /// disk, and runs the setup steps, if there are any, in a machine that ends afterwards. [`Workspace::start`] starts
    /// the workspace.
    ///
    /// # Errors
    /// Fails if the options are not valid ([`Invalid`](ErrorKind::Invalid)), the name is taken
    /// ([`AlreadyExists`](ErrorKind::AlreadyExists)), the image cannot be used ([`Image`](ErrorKind::Image),
    /// [`NotFound`](ErrorKind::NotFound)), a secret or disk cannot be used ([`Secret`](ErrorKind::Secret),
    /// [`Disk`](ErrorKind::Disk)), or the setup fails ([`SetupFailed`](ErrorKind::SetupFailed)). After a failed setup the
    /// workspace is kept in state `failed`, with its logs, and its next start runs the setup on a fresh disk. After a
    /// cancellation, or if the supervisor cannot be started, nothing is kept.
    pub async fn create(&self, options: CreateOptions, progress: &Progress) -> Result<Workspace, Error> {
        self.create_as(options, false, progress).await
    }

    /// As [`Engine::create`]. A disposable workspace is removed when its first machine ends.
    pub(crate) async fn create_as(
        &self,
        options: CreateOptions,
        disposable: bool,
        progress: &Progress,
    ) -> Result<Workspace, Error> {
        check_options(&options.workspace)?;
        progress.check()?;
        self.prepare()?;
        let workspace = self.workspace(&options.name);
        let has_setup = !options.workspace.setup.is_empty();
        let first_start = if has_setup { FirstStart::Now } else { FirstStart::Later };
        let mut provision = self.provision(&options.name, &options.workspace, first_start, progress).await?;
        provision.record.restart = options.restart;
        provision.record.disposable = disposable;
        if let Some(command) = &options.service {
            provision.workload.service = Some(resolve_command(command, &provision.image.config)?);
        }
        provision.workload.shell = options.shell;
        let workload = provision.workload.clone();
        check_work(&workload, workload.service.as_ref())?;
        let dir = self.create_provisioned(&mut provision, Some(&workload), progress).await?;
        if first_start == FirstStart::Now {
            let Provision { programs, record, secrets, .. } = provision;
            let done = workspace.set_up(&programs, &record, workload, secrets, progress).await;
            if let Err(error) = done {
                if error.leaves_no_machine() {
                    self.remove(&options.name, &dir).await?;
                }
                return Err(error);
            }
        }
        Ok(workspace)
    }
}

impl Workspace {
    /// Starts the [resting](State::is_resting) workspace. Returns when the guest answers and the service, if there is one,
    /// runs; then the state is [`Running`](State::Running). The machine keeps running after this program has ended.
    /// Setup steps that have not run yet run before, in a machine of the workspace's own size.
    ///
    /// # Errors
    /// Fails if the workspace is not resting ([`WrongState`](ErrorKind::WrongState)), the size is not valid
    /// ([`Invalid`](ErrorKind::Invalid)), another command uses the workspace or its disks ([`Busy`](ErrorKind::Busy)),
    /// a port is taken ([`PortUnavailable`](ErrorKind::PortUnavailable)), a secret has no value
    /// ([`Secret`](ErrorKind::Secret)), or the machine does not start ([`RunFailed`](ErrorKind::RunFailed),
    /// [`SetupFailed`](ErrorKind::SetupFailed)); in the last case the state is `failed`. If `progress` is cancelled while
    /// the machine is being started, the state is `stopped`, on a very busy host a moment later; before that the state is
    /// unchanged.
    pub async fn start(&self, options: StartOptions, progress: &Progress) -> Result<WorkspaceDetails, Error> {
        progress.check()?;
        self.engine.prepare()?;
        let record = self.observe()?;
        let state = record.observed_state();
        if !state.is_resting() {
            return Err(self.wrong_state(state, Action::Start));
        }
        if record.disposable {
            return Err(InvalidRequest::Leftover { name: self.name.clone(), verb: "started" }.into());
        }
        self.start_recorded(record, options, progress).await?;
        self.details()
    }

    /// Starts the resting workspace of this record.
    pub(crate) async fn start_recorded(
        &self,
        record: WorkspaceRecord,
        options: StartOptions,
        progress: &Progress,
    ) -> Result<(), Error> {
        self.start_with(record, options, None, progress).await
    }

    /// The same, with the memory of a snapshot whose disk the workspace has.
    pub(super) async fn start_with(
        &self,
        record: WorkspaceRecord,
        options: StartOptions,
        memory: Option<SnapshotMemory>,
        progress: &Progress,
    ) -> Result<(), Error> {
        // A disposable one goes with its machine, and the error says why that has ended.
        let disposable = record.disposable;
        let started = self.start_machine(record, options, memory, progress).await;
        started.map_err(|error| if disposable { error } else { self.unless_gone(error) })
    }

    async fn start_machine(
        &self,
        record: WorkspaceRecord,
        options: StartOptions,
        memory: Option<SnapshotMemory>,
        progress: &Progress,
    ) -> Result<(), Error> {
        let engine = &self.engine;
        let record = self.seal_resting(record).await?;
        let one_start = match &memory {
            Some(memory) => memory.size(&record),
            None => options.size(&record),
        };
        let settings_ttl = record.settings.ttl();
        if let Some(size) = &one_start {
            check_size(size.resources)?;
        }
        check_host_memory(one_start.as_ref().map_or(record.resources, |size| size.resources).memory_mib)?;
        if processes_are_hidden() {
            return Err(Error::ProcessesHidden);
        }
        // A taken port is reported before anything is done; the supervisor checks again.
        choose_ports(&record.publish).map_err(|error| engine.port_error(error))?;
        let dir = self.dir();
        let mut workload = Workload::load(&dir).map_err(|e| self.damaged(e))?;
        let programs = engine.host_programs(record.network)?;
        let secrets = engine.resolve_secrets(&record.secrets, &record.brokers, progress.token()).await?;
        // After this point a cancellation ends a machine, and the state is `stopped`.
        progress.check()?;
        if !workload.setup.is_empty() {
            workload = self.set_up(&programs, &record, workload, secrets.clone(), progress).await?;
        }
        let brokered = with_brokers(&workload, &record.brokers);
        let service = workload.service.as_ref().map(|service| main_request(&brokered, service));
        let stop_signal = record.settings.stop_signal.as_deref().or(workload.stop_signal.as_deref());
        let stop_signal = stop_signal.and_then(signal_number).unwrap_or(SIGTERM);
        let health = health_spec(&record, &workload);
        let work = Work::Serve { service, stop_signal, health, detached: true };
        let base = engine.image_store().disk_path(&record.image.disk);
        let resources = one_start.as_ref().map_or(record.resources, |size| size.resources);
        let machine = MachineRequest { resources, ..MachineRequest::of(&record, &dir, &base)? };
        let spec = engine.spec(&programs, &machine, work)?;
        let ttl = options.ttl.or(settings_ttl).filter(|ttl| !ttl.is_zero());
        let spec = SupervisorSpec { one_start, ttl, ..spec };
        let spec = secrets.deliver(spec, &workload.user);
        let spec = match &memory {
            Some(memory) => memory.begin(spec)?,
            None => spec,
        };
        self.announce(&programs, memory.as_ref(), progress);
        let end = self.end_of_start(&programs, &dir, &[]);
        let supervisor = engine.launch(spec, progress).await?;
        match supervisor.follow(progress).await.map_err(|error| end.lost(error))? {
            SupervisorProgress::Serving(_) => {
                let note = memory.and_then(|memory| memory.smaller_disk(&record));
                note.into_iter().for_each(|note| progress.event(Event::Notice(note)));
                Ok(())
            }
            SupervisorProgress::Ended(ended) => Err(end.ended(*ended)),
        }
    }

    /// Runs the setup steps on a fresh disk, and records that they need not run again.
    async fn set_up(
        &self,
        programs: &HostPrograms,
        record: &WorkspaceRecord,
        workload: Workload,
        secrets: Resolved,
        progress: &Progress,
    ) -> Result<Workload, Error> {
        let engine = &self.engine;
        let dir = self.dir();
        let base = engine.image_store().disk_path(&record.image.disk);
        let disk = {
            let _lock = lock_patiently(&self.name, &dir).await?;
            let now = Workload::load(&dir).map_err(|e| self.damaged(e))?;
            if now.setup.is_empty() {
                // Another command has run the setup in the meantime, and the disk is in use.
                return Ok(now);
            }
            self.lay_overlay(&dir, record)?;
            let path = record.disk(&dir);
            DiskStamp::of(&path).map_err(|source| Error::File { action: "read", path, source })?
        };
        let labels: Vec<String> = workload.setup.iter().map(SetupStep::label).collect();
        let work = Work::Prepare { setup: setup_steps(&with_brokers(&workload, &record.brokers)), disk };
        // The disk is flushed also for a disposable workspace: its next machine needs what the setup wrote.
        let kept = WorkspaceRecord { disposable: false, ..record.clone() };
        let machine = MachineRequest::of(&kept, &dir, &base)?.first().unpublished().for_setup();
        let spec = engine.spec(programs, &machine, work)?;
        let spec = secrets.deliver(spec, &workload.user);
        self.booting(programs, progress);
        let end = self.end_of_start(programs, &dir, &labels);
        let supervisor = engine.launch(spec, progress).await?;
        let ended = match supervisor.follow(progress).await.map_err(|error| end.lost(error)) {
            Ok(SupervisorProgress::Ended(ended)) => *ended,
            Ok(SupervisorProgress::Serving(_)) => return Err(end.still_serving()),
            Err(error) => {
                if let Error::StartFailed { kind, message, .. } = &error {
                    engine.record_failure(&self.name, &dir, *kind, message).await?;
                }
                return Err(error);
            }
        };
        if !matches!(ended.outcome, Outcome::Prepared) {
            return Err(end.ended(ended));
        }
        let done = Workload { setup: Vec::new(), ..workload };
        let _lock = lock_patiently(&self.name, &dir).await?;
        done.save(&dir)?;
        Ok(done)
    }

    /// Reports that a machine of the workspace is being started.
    pub(crate) fn booting(&self, programs: &HostPrograms, progress: &Progress) {
        let (workspace, backend) = (self.name.to_string(), programs.backend().to_owned());
        progress.event(Event::Booting { workspace, backend });
    }

    /// Returns the translator of the end of a supervisor that starts the workspace.
    pub(crate) fn end_of_start<'a>(
        &'a self,
        programs: &'a HostPrograms,
        dir: &'a WorkspaceDir,
        labels: &'a [String],
    ) -> EndTranslator<'a> {
        EndTranslator {
            purpose: Purpose::Start,
            workspace: &self.name,
            backend: programs.backend(),
            dir,
            labels,
            opened: RefCell::default(),
        }
    }

    /// Shuts the machine down: the service gets its stop signal, all processes that are left after the stop timeout are
    /// killed, and the disk is flushed. Then the state is [`Halted`](State::Halted). This is the usual way to end a
    /// machine. A [resting](State::is_resting) workspace is not changed.
    ///
    /// # Errors
    /// Fails if the workspace cannot be reached or does not shut down cleanly ([`RunFailed`](ErrorKind::RunFailed); in the
    /// second case the state is `failed`), or is starting ([`WrongState`](ErrorKind::WrongState)).
    pub async fn halt(&self) -> Result<WorkspaceDetails, Error> {
        self.end(ChangeRequest::Halt, Action::Halt, None).await
    }

    /// As [`Workspace::halt`], with this time for processes to end before they are killed.
    ///
    /// # Errors
    /// As [`Workspace::halt`]; also if the time is longer than a day.
    pub async fn halt_within(&self, limit: Duration) -> Result<WorkspaceDetails, Error> {
        check_stop_timeout(Some(limit))?;
        self.end(ChangeRequest::Halt, Action::Halt, Some(limit)).await
    }

    /// Sends the service its stop signal, and shuts the machine down when the service has ended. Nothing is killed: a
    /// service that ignores the signal keeps running. Then the state is [`Stopped`](State::Stopped). A
    /// [resting](State::is_resting) workspace is not changed.
    ///
    /// # Errors
    /// As [`Workspace::halt`], and if the service does not end within the stop timeout
    /// ([`RunFailed`](ErrorKind::RunFailed)); then the workspace keeps running.
    pub async fn stop(&self) -> Result<WorkspaceDetails, Error> {
        self.end(ChangeRequest::Stop, Action::Stop, None).await
    }

    /// As [`Workspace::stop`], with this time for the service to end.
    ///
    /// # Errors
    /// As [`Workspace::halt_within`].
    pub async fn stop_within(&self, limit: Duration) -> Result<WorkspaceDetails, Error> {
        check_stop_timeout(Some(limit))?;
        self.end(ChangeRequest::Stop, Action::Stop, Some(limit)).await
    }

    /// Gives the machine a time to live from now on: `ttl`, or the one that it was started with. The machine is halted
    /// when the time has passed; zero removes the limit. The next start has the workspace's own time to live again.
    ///
    /// # Errors
    /// Fails if the workspace is neither running nor paused, or if it has no time to live and `ttl` is absent.
    pub async fn renew(&self, ttl: Option<Duration>) -> Result<WorkspaceDetails, Error> {
        let dir = self.existing()?;
        let record = self.observe()?;
        if !record.has_machine() {
            return Err(self.wrong_state(record.observed_state(), Action::Renew));
        }
        self.changed(renew_ttl(&dir, ttl).await, Action::Renew)?;
        self.details()
    }

    /// Ends the machine at once, without a flush: data that the guest has not written to its disk is lost. Works also if
    /// guest or supervisor do not answer. Then the state is [`Stopped`](State::Stopped). A
    /// [resting](State::is_resting) workspace is not changed.
    ///
    /// # Errors
    /// Fails if the processes cannot be killed.
    pub async fn kill(&self) -> Result<WorkspaceDetails, Error> {
        let dir = self.existing()?;
        let record = WorkspaceRecord::load(&dir)?;
        let may_have_one = |state: State| state.is_live() || state == State::Quarantined;
        if !may_have_one(record.machine.state) {
            return self.details();
        }
        if record.has_machine()
            && let Ok(Answer::Done) = change(&dir, ChangeRequest::Kill).await
        {
            return self.wait_until_resting(record).await;
        }
        kill_processes(&record, &dir).await;
        let _lock = lock_patiently(&self.name, &dir).await?;
        // The supervisor may have recorded the end in the meantime.
        let record = WorkspaceRecord::load(&dir)?;
        if may_have_one(record.machine.state) {
            let why = if record.machine.state == State::Quarantined { RELEASED } else { "killed" };
            let ended = MachineState {
                state: State::Stopped,
                changed_at: Timestamp::now(),
                failure: None,
                asked_to_end: true,
                ..record.machine
            };
            ended.save(&dir)?;
            dir.note_event(State::Stopped, Some(why));
        }
        self.details()
    }

    /// Stops the processors of the machine. Its memory is kept, and connections stay open.
    ///
    /// # Errors
    /// Fails if the workspace is not running ([`WrongState`](ErrorKind::WrongState)) or QEMU does not pause it.
    pub async fn pause(&self) -> Result<WorkspaceDetails, Error> {
        self.change(ChangeRequest::Pause, Action::Pause, None).await?;
        self.details()
    }

    /// Lets the processors of the paused machine continue.
    ///
    /// # Errors
    /// Fails if the workspace is not paused ([`WrongState`](ErrorKind::WrongState)) or QEMU does not resume it.
    pub async fn resume(&self) -> Result<WorkspaceDetails, Error> {
        self.change(ChangeRequest::Resume, Action::Resume, None).await?;
        self.details()
    }

    /// Quarantines the workspace: disconnects network and clients, and stops the processors of the guest permanently.
    /// Memory and disk are kept for examination, the memory only while QEMU runs. [`Workspace::halt`],
    /// [`Workspace::stop`] and [`Workspace::kill`] release it without resuming the guest. The reason, of at most
    /// [`REASON_LIMIT`] bytes, is recorded in its events. A quarantined workspace is not changed.
    ///
    /// # Errors
    /// Fails if the workspace is not running, cannot be reached, or its memory could not be kept; in the last case it
    /// is quarantined.
    pub async fn quarantine(&self, reason: Option<&str>) -> Result<WorkspaceDetails, Error> {
        if reason.is_some_and(|reason| reason.len() > REASON_LIMIT) {
            return Err(InvalidRequest::LongReason.into());
        }
        let record = self.observe()?;
        if record.machine.state != State::Quarantined {
            let dir = self.existing()?;
            let state = record.observed_state();
            if !state.is_live() {
                return Err(self.wrong_state(state, Action::Quarantine));
            }
            let answer = change_with(&dir, ChangeRequest::Quarantine, reason.map(str::to_owned), None).await;
            self.changed(answer, Action::Quarantine)?;
        }
        self.details()
    }

    /// Waits until the workspace is [resting](State::is_resting) or quarantined. Does not end the machine if `progress` is
    /// cancelled.
    ///
    /// # Errors
    /// Fails if the workspace does not exist or is deleted during the wait ([`NotFound`](ErrorKind::NotFound)), or
    /// `progress` is cancelled.
    pub async fn wait(&self, progress: &Progress) -> Result<WorkspaceDetails, Error> {
        loop {
            let details = self.details()?;
            if !details.state.is_live() {
                return Ok(details);
            }
            tokio::select! {
                () = progress.token().cancelled() => return Err(Error::Cancelled),
                () = sleep(WAIT_INTERVAL) => {}
            }
        }
    }

    async fn end(
        &self,
        request: ChangeRequest,
        action: Action,
        limit: Option<Duration>,
    ) -> Result<WorkspaceDetails, Error> {
        let record = self.observe()?;
        if record.observed_state().is_resting() {
            return self.details();
        }
        if record.machine.state == State::Quarantined && !record.has_machine() {
            // There is no supervisor that could take a request; only the disk is released.
            return self.kill().await;
        }
        let grace = limit.or_else(|| Some(Duration::from_secs(record.settings.stop_timeout_s?.into())));
        self.change(request, action, grace).await?;
        self.wait_until_resting(record).await
    }

    /// A machine that has ended is seen as such at once, but for the moment in which its supervisor exits. A
    /// disposable run goes with its machine.
    async fn wait_until_resting(&self, before: WorkspaceRecord) -> Result<WorkspaceDetails, Error> {
        let end = Instant::now() + REST_PATIENCE;
        loop {
            match self.details() {
                Ok(details) if !details.state.is_live() || Instant::now() >= end => return Ok(details),
                Err(Error::NoSuchWorkspace { .. }) if before.disposable => {
                    let machine = MachineState { state: State::Stopped, failure: None, ..before.machine };
                    let record = WorkspaceRecord { machine, ..before };
                    return Ok(WorkspaceDetails::of(record));
                }
                // It is being removed at this moment.
                Err(_) if before.disposable && Instant::now() < end => {}
                Err(error) => return Err(error),
                Ok(_) => {}
            }
            sleep(WAIT_INTERVAL).await;
        }
    }

    pub(super) async fn change(
        &self,
        request: ChangeRequest,
        action: Action,
        grace: Option<Duration>,
    ) -> Result<(), Error> {
        let dir = self.existing()?;
        let record = self.observe()?;
        if !record.has_machine() {
            return Err(self.wrong_state(record.observed_state(), action));
        }
        let answer = change_with(&dir, request, None, grace).await;
        self.changed(answer, action)
    }

    /// Converts a supervisor's answer.
    pub(super) fn changed(&self, answer: Result<Answer, ControlError>, action: Action) -> Result<(), Error> {
        let workspace = self.name.clone();
        match answer {
            Ok(Answer::Done) => Ok(()),
            Ok(Answer::Failed(failure)) => {
                Err(Error::ChangeFailed { workspace, action, message: failure.message })
            }
            Ok(Answer::Refused(refusal)) => Err(refused(&self.name, refusal, action)),
            Ok(_) => Err(Error::Unreachable { workspace, source: ControlError::Closed }),
            Err(source) => Err(self.unreachable(action, source)),
        }
    }

    /// No supervisor listens: the machine may have ended meanwhile, or belongs to a run.
    pub(crate) fn unreachable(&self, action: Action, source: ControlError) -> Error {
        match self.state() {
            Ok(state) if !state.is_live() || nobody_listens(&source) => self.wrong_state(state, action),
            _ => Error::Unreachable { workspace: self.name.clone(), source },
        }
    }
}

/// Whether there is no socket: the supervisor of a run has none.
fn nobody_listens(error: &ControlError) -> bool {
    matches!(error, ControlError::Connect(source) if source.kind() == std::io::ErrorKind::NotFound)
}

/// Converts a supervisor's refusal to an error.
pub(crate) fn refused(name: &WorkspaceName, refusal: Refusal, action: Action) -> Error {
    match refusal {
        Refusal::State(state) => Error::WrongState { name: name.clone(), state, action },
        // Only a stream of input of a job or an order to one is refused otherwise, and those know their job.
        Refusal::Crowded | Refusal::NoSuchJob | Refusal::JobEnded | Refusal::NoStdin => {
            Error::Crowded { workspace: name.clone() }
        }
        Refusal::JobsFull(running) => JobError::TooMany { workspace: name.clone(), running }.into(),
        Refusal::NoTtl => InvalidRequest::NothingToRenew { name: name.clone() }.into(),
        Refusal::BaseTaken => Error::BaseTaken { workspace: name.clone() },
        Refusal::ConsoleTaken => Error::ConsoleTaken { workspace: name.clone() },
        Refusal::OtherBuild => Error::OtherBuild { workspace: name.clone() },
    }
}
