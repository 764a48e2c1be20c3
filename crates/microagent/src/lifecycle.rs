//! Workspaces that are kept between their starts: made, started, shut down, killed.
//!
//! A start returns when the machine serves; its supervisor then lives on alone. Every later change is asked of
//! that supervisor, which answers when it has come about. What is true is always read from record and processes.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use microagent_image::PullOptions;
use microagent_model::{SIGTERM, signal_number};
use microagent_store::{
    FailureKind, OneStart, Resources, State, Workload, WorkspaceDir, WorkspaceName, WorkspaceRecord,
};
use microagent_vm::control::{change, change_because};
use microagent_vm::{
    Answer, ChangeRequest, ControlError, DiskStamp, Ended, Outcome, OutputReader, Refusal, SuperviseError,
    SupervisorSpec, Work, choose_ports, create_overlay,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::limits::check_work;
use crate::provision::{
    check_options, check_size, invalid, main_request, new_record, new_workload, resolve_command,
    resolve_resources, setup_steps,
};
use crate::secret::Resolved;
use crate::supervisor_events::{Forward, SupervisorProgress};
use crate::supervisor_spec::{HostPrograms, MachineRequest};
use crate::workspace::{kill, lock_patiently};
use crate::{
    CreateOptions, Engine, Error, Event, ImageReport, Observer, Profile, SetupFailure, WorkspaceDetails,
};

/// How often a waiting command looks at a workspace again.
const WAIT_INTERVAL: Duration = Duration::from_millis(50);

/// Longest reason of a quarantine, in bytes.
pub const REASON_LIMIT: usize = 1000;

/// What is done to a workspace that is cut off.
pub(crate) const QUARANTINE: &str = "quarantine it";

/// How long a machine that has just ended may take to be seen as ended.
const REST_PATIENCE: Duration = Duration::from_secs(2);

/// A workspace that was made.
#[derive(Debug)]
pub struct Created {
    /// The workspace as recorded, in state `prepared`.
    pub details: WorkspaceDetails,
    /// What it was made from.
    pub image: ImageReport,
    /// Things the user should know.
    pub notices: Vec<String>,
}

/// What one start has otherwise than the workspace.
#[derive(Debug, Clone, Default)]
pub struct StartOptions {
    /// Profile to take memory and CPUs from.
    pub profile: Option<Profile>,
    /// Guest memory in MiB, in place of the profile's or the workspace's.
    pub memory_mib: Option<u32>,
    /// Virtual CPUs, in place of the profile's or the workspace's.
    pub cpu_count: Option<u32>,
}

impl StartOptions {
    /// The size that is asked for, if it is another than the workspace's.
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

/// A workspace that was started.
#[derive(Debug)]
pub struct Started {
    /// The workspace as recorded.
    pub details: WorkspaceDetails,
    /// `linux-kvm` or `linux-tcg`.
    pub backend: String,
}

impl Engine {
    /// Makes a workspace: image, disk, record, and its setup steps in a boot of their own. Nothing runs
    /// afterwards.
    ///
    /// # Errors
    /// Fails when the name is taken, the image cannot be had, or a setup step fails; then the workspace stays, in
    /// state `failed`, for its logs, and its next start begins with the setup on a fresh disk. Cancelled, it
    /// leaves nothing.
    pub async fn create(
        &self,
        options: &CreateOptions,
        observer: &dyn Observer,
        cancel: &CancellationToken,
    ) -> Result<Created, Error> {
        check_options(&options.workspace)?;
        self.prepare()?;
        let name = &options.name;
        if self.state().workspace(name).path().exists() {
            return Err(Error::NameTaken { name: name.clone() });
        }
        let disks = self.check_disks(&options.workspace.disks, !options.workspace.setup.is_empty())?;
        // What is missing is better said now than at the first start.
        let programs = self.host_programs(options.workspace.network)?;
        // Only setup runs now; every start looks them up anew.
        let secrets = match options.workspace.setup.is_empty() {
            true => Resolved::default(),
            false => self.resolve_secrets(&options.workspace.secrets, cancel).await?,
        };
        let pull = PullOptions { policy: options.workspace.pull, ..PullOptions::default() };
        let mut image =
            self.images().ensure(&options.workspace.image, &pull, &Forward(observer), cancel).await?;
        let service = match &options.service {
            Some(command) => Some(resolve_command(command, &image.config)?),
            None => None,
        };
        let (resources, mut notices) = resolve_resources(&options.workspace, &image);
        for notice in &notices {
            observer.event(Event::Notice(notice.clone()));
        }
        let record = new_record(&options.workspace, name, &image, resources, &disks)?;
        let record = WorkspaceRecord { restart: options.restart, ..record };
        let workload = new_workload(&options.workspace, &image.config, &record.hostname);
        let workload = Workload { service, shell: options.shell.clone(), ..workload };
        check_work(&workload, workload.service.as_ref())?;
        let bundles = self.make_bundles(&disks, cancel).await?;
        notices.extend(self.make_missing_volumes(&disks, observer)?);
        let dir = self.create_from_image(&record, &image, Some(&workload), bundles)?;
        // The record names the disk from here on, which keeps it from being pruned.
        image.release();
        if !workload.setup.is_empty()
            && let Err(error) = self.set_up(&programs, &record, workload, secrets, observer, cancel).await
        {
            if matches!(error, Error::Cancelled) {
                self.remove(name, &dir)?;
            }
            return Err(error);
        }
        Ok(Created { details: self.workspace(name)?, image: (&image).into(), notices })
    }

    /// Starts a resting workspace; returns when its guest answers and its service, if it has one, runs.
    ///
    /// # Errors
    /// Fails when it is not resting, another command has it, or the machine does not come up; then it is in state
    /// `failed`. Cancelled, it is in state `stopped`.
    pub async fn start(
        &self,
        name: &WorkspaceName,
        observer: &dyn Observer,
        cancel: &CancellationToken,
    ) -> Result<Started, Error> {
        self.start_with(name, &StartOptions::default(), observer, cancel).await
    }

    /// Starts a resting workspace as [`Engine::start`] does, as another machine than it is made for. The next start is
    /// not affected; setup steps that are still to be done run before it, on the workspace's own machine.
    ///
    /// # Errors
    /// As [`Engine::start`], and when the size is none for a guest.
    pub async fn start_with(
        &self,
        name: &WorkspaceName,
        options: &StartOptions,
        observer: &dyn Observer,
        cancel: &CancellationToken,
    ) -> Result<Started, Error> {
        self.prepare()?;
        let record = self.observe(name)?;
        let one_start = options.size(&record);
        if let Some(size) = &one_start {
            check_size(size.resources)?;
        }
        let state = record.observed_state();
        if !state.is_resting() {
            return Err(Error::WrongState { name: name.clone(), state, action: "start it" });
        }
        if record.disposable {
            return Err(invalid(
                format!(
                    "workspace `{name}` is what a disposable run left for its logs; it cannot be started"
                ),
                "make one that can: microagent create NAME --image IMAGE, or run --keep",
            ));
        }
        // Before anything is done; the supervisor looks again.
        choose_ports(&record.publish)?;
        let dir = self.state().workspace(name);
        let mut workload = Workload::load(&dir).map_err(|e| self.damaged(name, e))?;
        let programs = self.host_programs(record.network)?;
        let secrets = self.resolve_secrets(&record.secrets, cancel).await?;
        if !workload.setup.is_empty() {
            let secrets = secrets.clone();
            workload = self.set_up(&programs, &record, workload, secrets, observer, cancel).await?;
        }
        let service = workload.service.as_ref().map(|service| main_request(&workload, service));
        let stop_signal = workload.stop_signal.as_deref().and_then(signal_number).unwrap_or(SIGTERM);
        let work = Work::Serve { service, stop_signal, detached: true };
        let base = self.images().disk_path(&record.image.disk);
        let resources = one_start.as_ref().map_or(record.resources, |size| size.resources);
        let request = MachineRequest { resources, ..MachineRequest::of(&record, &dir, &base)? };
        let spec = SupervisorSpec { one_start, ..self.spec(&programs, &request, work)? };
        let spec = secrets.deliver(spec, &workload.user);
        let backend = programs.decision.backend().to_owned();
        observer.event(Event::Booting { workspace: name.to_string(), backend: backend.clone() });
        match self.follow(spec, observer, cancel).await {
            Ok(SupervisorProgress::Serving) => Ok(Started { details: self.workspace(name)?, backend }),
            Ok(SupervisorProgress::Ended(ended)) => Err(start_error(name, backend, *ended)),
            Err(SuperviseError::Vanished { .. }) => Err(vanished(name, backend)),
            Err(error) => Err(error.into()),
        }
    }

    /// Runs the setup steps on a fresh disk, and notes that they need not run again.
    async fn set_up(
        &self,
        programs: &HostPrograms,
        record: &WorkspaceRecord,
        workload: Workload,
        secrets: Resolved,
        observer: &dyn Observer,
        cancel: &CancellationToken,
    ) -> Result<Workload, Error> {
        let name = &record.name;
        let dir = self.state().workspace(name);
        let base = self.images().disk_path(&record.image.disk);
        let disk = {
            let _lock = lock_patiently(name, &dir)?;
            let now = Workload::load(&dir).map_err(|e| self.damaged(name, e))?;
            if now.setup.is_empty() {
                // Another command has done it meanwhile, and the disk is in use.
                return Ok(now);
            }
            renew_disk(&dir, &base, record.resources.disk_bytes())?;
            DiskStamp::of(&dir.disk()).map_err(|source| Error::File {
                action: "read",
                path: dir.disk(),
                source,
            })?
        };
        let work = Work::Prepare { setup: setup_steps(&workload), disk };
        let spec =
            self.spec(programs, &MachineRequest::of(record, &dir, &base)?.first().unpublished(), work)?;
        let spec = secrets.deliver(spec, &workload.user);
        let backend = programs.decision.backend().to_owned();
        observer.event(Event::Booting { workspace: name.to_string(), backend: backend.clone() });
        let ended = match self.follow(spec, observer, cancel).await {
            Ok(SupervisorProgress::Ended(ended)) => *ended,
            Ok(SupervisorProgress::Serving) | Err(SuperviseError::Vanished { .. }) => {
                return Err(vanished(name, backend));
            }
            Err(error) => return Err(error.into()),
        };
        match ended.outcome {
            Outcome::Prepared => {
                let done = Workload { setup: Vec::new(), ..workload };
                let _lock = lock_patiently(name, &dir)?;
                done.save(&dir)?;
                Ok(done)
            }
            Outcome::SetupFailed { step, exit_code, start_error } => {
                let label = workload.setup.get(step).map(microagent_store::SetupStep::label);
                let failure =
                    SetupFailure { step: step + 1, label: label.unwrap_or_default(), exit_code, start_error };
                let path = dir.output();
                let output = OutputReader::open(&path).map_err(|source| Error::File {
                    action: "read",
                    path,
                    source,
                })?;
                Err(Error::SetupFailed { workspace: name.clone(), failure, output: Box::new(output) })
            }
            _ => Err(start_error(name, backend, ended)),
        }
    }

    /// Shuts a running workspace down cleanly, to be started again. One that rests already stays as it is.
    ///
    /// # Errors
    /// Fails when it cannot be reached, is starting, or does not shut down cleanly; then it is in state `failed`.
    pub async fn halt(&self, name: &WorkspaceName) -> Result<WorkspaceDetails, Error> {
        self.end(name, ChangeRequest::Halt, "halt it").await
    }

    /// Asks a running workspace to shut down. One that rests already stays as it is.
    ///
    /// # Errors
    /// As [`Engine::halt`].
    pub async fn stop(&self, name: &WorkspaceName) -> Result<WorkspaceDetails, Error> {
        self.end(name, ChangeRequest::Stop, "stop it").await
    }

    /// Ends a workspace's machine now, whatever state it or its supervisor is in. One that rests already stays as
    /// it is.
    ///
    /// # Errors
    /// Fails when the processes cannot be killed.
    pub async fn kill(&self, name: &WorkspaceName) -> Result<WorkspaceDetails, Error> {
        let dir = self.existing(name)?;
        let record = WorkspaceRecord::load(&dir)?;
        let may_have_one =
            |record: &WorkspaceRecord| record.state.is_live() || record.state == State::Quarantined;
        if !may_have_one(&record) {
            return self.workspace(name);
        }
        if record.has_machine()
            && let Ok(Answer::Done) = change(&dir, ChangeRequest::Kill).await
        {
            return self.wait_until_resting(name).await;
        }
        kill(&record);
        let _lock = lock_patiently(name, &dir)?;
        // Its last word may have come in between.
        let record = WorkspaceRecord::load(&dir)?;
        if may_have_one(&record) {
            let ended = WorkspaceRecord {
                state: State::Stopped,
                changed_at: Timestamp::now(),
                failure: None,
                asked_to_end: true,
                ..record
            };
            ended.save(&dir)?;
            dir.note_event(State::Stopped, Some("killed"));
        }
        self.workspace(name)
    }

    /// Has the guest of a running workspace stand still; its memory is kept.
    ///
    /// # Errors
    /// Fails when it is not running or QEMU does not do it.
    pub async fn pause(&self, name: &WorkspaceName) -> Result<WorkspaceDetails, Error> {
        self.change(name, ChangeRequest::Pause, "pause it").await?;
        self.workspace(name)
    }

    /// Has the guest of a paused workspace go on.
    ///
    /// # Errors
    /// Fails when it is not paused or QEMU does not do it.
    pub async fn resume(&self, name: &WorkspaceName) -> Result<WorkspaceDetails, Error> {
        self.change(name, ChangeRequest::Resume, "resume it").await?;
        self.workspace(name)
    }

    /// Cuts a running workspace off and stops it for good: no network, no commands, not one more instruction of its
    /// guest. Its memory stays as long as its processes do, its disk in any case, to be examined; [`Engine::halt`],
    /// [`Engine::stop`] and [`Engine::kill`] release it, each without letting the guest go on. The reason, of at most
    /// [`REASON_LIMIT`] bytes, goes into its events. One that is quarantined already stays as it is.
    ///
    /// # Errors
    /// Fails when it is not running, cannot be reached, or its memory could not be kept; in the last case it is
    /// quarantined all the same.
    pub async fn quarantine(
        &self,
        name: &WorkspaceName,
        reason: Option<&str>,
    ) -> Result<WorkspaceDetails, Error> {
        if reason.is_some_and(|reason| reason.len() > REASON_LIMIT) {
            return Err(invalid(
                format!("a reason has at most {REASON_LIMIT} bytes"),
                "say it in one line; the place for more is a ticket",
            ));
        }
        let record = self.observe(name)?;
        if record.state != State::Quarantined {
            let dir = self.existing(name)?;
            let state = record.observed_state();
            if !state.is_live() {
                return Err(Error::WrongState { name: name.clone(), state, action: QUARANTINE });
            }
            let answer = change_because(&dir, ChangeRequest::Quarantine, reason.map(str::to_owned)).await;
            self.changed(name, answer, QUARANTINE)?;
        }
        self.workspace(name)
    }

    /// Waits until a workspace rests.
    ///
    /// # Errors
    /// Fails when there is no such workspace, it goes away meanwhile, or `cancel` says so.
    pub async fn wait(
        &self,
        name: &WorkspaceName,
        cancel: &CancellationToken,
    ) -> Result<WorkspaceDetails, Error> {
        loop {
            let details = self.workspace(name)?;
            if !details.state.is_live() {
                return Ok(details);
            }
            tokio::select! {
                () = cancel.cancelled() => return Err(Error::Cancelled),
                () = sleep(WAIT_INTERVAL) => {}
            }
        }
    }

    async fn end(
        &self,
        name: &WorkspaceName,
        ask: ChangeRequest,
        action: &'static str,
    ) -> Result<WorkspaceDetails, Error> {
        let record = self.observe(name)?;
        if record.observed_state().is_resting() {
            return self.workspace(name);
        }
        if record.state == State::Quarantined && !record.has_machine() {
            // Nobody is left to be asked; what is released is the disk.
            return self.kill(name).await;
        }
        self.change(name, ask, action).await?;
        self.wait_until_resting(name).await
    }

    /// A machine that has ended is seen as such at once, but for the moment in which its supervisor dies.
    async fn wait_until_resting(&self, name: &WorkspaceName) -> Result<WorkspaceDetails, Error> {
        let end = Instant::now() + REST_PATIENCE;
        loop {
            let details = self.workspace(name)?;
            if !details.state.is_live() || Instant::now() >= end {
                return Ok(details);
            }
            sleep(WAIT_INTERVAL).await;
        }
    }

    async fn change(
        &self,
        name: &WorkspaceName,
        ask: ChangeRequest,
        action: &'static str,
    ) -> Result<(), Error> {
        let dir = self.existing(name)?;
        let record = self.observe(name)?;
        if !record.has_machine() {
            return Err(Error::WrongState { name: name.clone(), state: record.observed_state(), action });
        }
        let answer = change(&dir, ask).await;
        self.changed(name, answer, action)
    }

    /// What a supervisor said to a change.
    pub(crate) fn changed(
        &self,
        name: &WorkspaceName,
        answer: Result<Answer, ControlError>,
        action: &'static str,
    ) -> Result<(), Error> {
        match answer {
            Ok(Answer::Done) => Ok(()),
            Ok(Answer::Failed(failure)) => {
                Err(Error::ChangeFailed { workspace: name.clone(), action, message: failure.message })
            }
            Ok(Answer::Refused(refusal)) => Err(refused(name, refusal, action)),
            Ok(Answer::Attached) => {
                Err(Error::Unreachable { workspace: name.clone(), source: ControlError::Closed })
            }
            Err(source) => Err(self.unreachable(name, action, source)),
        }
    }

    /// Nobody listens: it may have ended meanwhile, or is a run whose command is its own.
    pub(crate) fn unreachable(
        &self,
        name: &WorkspaceName,
        action: &'static str,
        source: ControlError,
    ) -> Error {
        match self.observe(name).map(|record| record.observed_state()) {
            Ok(state) if !state.is_live() || nobody_listens(&source) => {
                Error::WrongState { name: name.clone(), state, action }
            }
            _ => Error::Unreachable { workspace: name.clone(), source },
        }
    }

    pub(crate) fn damaged(&self, name: &WorkspaceName, source: microagent_store::ReadError) -> Error {
        Error::Record(microagent_store::LoadError::Read { name: name.to_string(), source })
    }
}

/// Whether there is no socket: so it is with a run, whose machine is its command's alone.
fn nobody_listens(error: &ControlError) -> bool {
    matches!(error, ControlError::Connect(source) if source.kind() == std::io::ErrorKind::NotFound)
}

/// A supervisor's refusal as an error.
pub(crate) fn refused(name: &WorkspaceName, refusal: Refusal, action: &'static str) -> Error {
    match refusal {
        Refusal::State(state) => Error::WrongState { name: name.clone(), state, action },
        Refusal::Crowded => Error::Crowded { workspace: name.clone() },
        Refusal::ConsoleTaken => Error::ConsoleTaken { workspace: name.clone() },
        Refusal::OtherBuild => Error::OtherBuild { workspace: name.clone() },
    }
}

/// An empty overlay in place of the disk.
fn renew_disk(dir: &WorkspaceDir, base: &std::path::Path, size_bytes: u64) -> Result<(), Error> {
    let fresh = dir.path().join("disk.new");
    let failed = |source| Error::File { action: "make", path: dir.disk(), source };
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    create_overlay(&fresh, base, size_bytes).map_err(|e| failed(e.source))?;
    std::fs::rename(&fresh, dir.disk()).map_err(failed)
}

fn vanished(name: &WorkspaceName, backend: String) -> Error {
    Error::StartFailed {
        workspace: name.clone(),
        backend,
        kind: FailureKind::SupervisorDied,
        message: "its supervisor was killed".to_owned(),
        console_tail: None,
    }
}

/// Why a machine that was to serve, or to be set up, has ended.
fn start_error(workspace: &WorkspaceName, backend: String, ended: Ended) -> Error {
    let failed = |kind, message, console_tail| Error::StartFailed {
        workspace: workspace.clone(),
        backend,
        kind,
        message,
        console_tail,
    };
    match ended.outcome {
        Outcome::Busy => Error::Busy { name: workspace.clone(), source: None },
        Outcome::DiskBusy { disk, holder } => Error::DiskBusy { disk, holder },
        Outcome::Failed(failure) if failure.kind == FailureKind::Cancelled => Error::Cancelled,
        Outcome::Failed(failure) => {
            let tail = Some(ended.console_tail).filter(|tail| !tail.is_empty());
            failed(failure.kind, failure.message, tail)
        }
        Outcome::ServiceEnded(result) => {
            let why = result.start_error.unwrap_or_else(|| format!("exit code {}", result.exit_code));
            failed(FailureKind::Service, format!("its service could not be started: {why}"), None)
        }
        Outcome::PoweredOff => failed(FailureKind::GuestDied, "the guest turned itself off".to_owned(), None),
        Outcome::Stopped | Outcome::Halted => {
            failed(FailureKind::Cancelled, "another command ended it".to_owned(), None)
        }
        _ => failed(FailureKind::Protocol, "its supervisor did other work than asked".to_owned(), None),
    }
}
