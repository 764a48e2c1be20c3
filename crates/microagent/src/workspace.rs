//! The handle of a workspace.

mod apply;
mod artifact;
mod capture;
mod clone;
mod commit;
mod console;
mod copy;
mod diff;
mod egress;
mod exec;
mod files;
mod fork;
mod fork_volumes;
mod from_spec;
mod health;
mod job;
mod layers;
mod lifecycle;
mod listing;
mod logs;
pub(crate) mod memory;
mod network;
mod observe;
mod origin;
pub(crate) mod portable;
mod ports;
mod precheck;
mod processes;
mod rename;
mod snapshot;
mod supervise;
mod sync;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::Timestamp;
use microagent_model::{
    Artifact, Attachment, DnsSettings, EgressPolicy, GuestSettings, HealthState, ImageIdentity, Labels,
    LinkState, NetworkMode, NetworkName, RateLimits, Resources, RestartPolicy, SecretReference, State,
    WorkspaceFailure, WorkspaceName,
};
use microagent_proto::chain;
use microagent_store::{
    LockError, MachineProcesses, ProcessId, SettingsLock, StateDir, WorkspaceDir, WorkspaceRecord,
};
use tokio::time::{Instant, sleep};

pub(crate) use egress::decisions_in;

use crate::blocking::blocking;
use crate::error::Action;
use crate::{BrokerDetails, Engine, Error};

pub(crate) use apply::setup_digest;
pub use apply::{Applied, ApplyMode, Change, ChangeKind};
pub use commit::{CommitOptions, CommitReport};
pub use console::Console;
pub use copy::{CopySource, CopyTarget, SymlinkMode};
pub use diff::{DiskChanges, PathChange, PathChangeKind};
pub(crate) use exec::CommandStream;
pub use exec::{
    Exec, ExecControl, ExecEnded, ExecOptions, ExecOutput, ExecStdin, Execution, StdinMode, Terminal,
};
pub use files::{FileContent, FileRange};
pub use fork::{Fork, ForkOptions};
pub use fork_volumes::{CopiedVolume, ForkVolumes};
pub use health::{HealthReport, HealthResult};
pub(crate) use health::{check_health, health_of_image, unused_health};
pub use job::{Job, JobDetails, JobOutput, JobOutputOptions, JobStdin};
pub(crate) use lifecycle::refused;
pub use lifecycle::{REASON_LIMIT, StartOptions};
pub use listing::{FileEntry, FileKind, FileList, FileListOptions};
pub use logs::{LogOptions, last_lines};
pub use network::{GuestAddresses, HostForward, NetworkDetails, PortForward};
pub use observe::{Inspection, Stats};
pub use portable::SnapshotImport;
pub use processes::{GuestProcess, ProcessList};
pub use snapshot::{Snapshot, SnapshotContents, SnapshotDeleteMode, SnapshotDeletion, Snapshots};
pub use supervise::SuperviseOptions;
pub use sync::{ConflictReason, SyncConflict, SyncOptions, SyncReport, SyncUnreadable};

/// Deadline for the end of a killed supervisor, which has nothing to flush.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// Deadline for a lock whose holder was just killed or is ending.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// Deadline for the lock of the settings: another command that changes them may wait for the answer of a supervisor.
const SETTINGS_PATIENCE: Duration = Duration::from_secs(10);

/// The handle of a workspace: a named machine that is kept, with a disk, settings and logs.
///
/// Made by [`Engine::create`] and [`Engine::workspace`]. A handle is an engine and a name: it is cheap to clone, holds
/// no lock and no process, and the workspace may not exist. Dropping it changes nothing.
///
/// | To | Use |
/// |---|---|
/// | start and end the machine | [`start`], [`halt`], [`stop`], [`kill`], [`pause`], [`resume`], [`wait`] |
/// | run commands | [`exec`] (connected), [`start_job`] (in the background), [`console`] |
/// | move files | [`copy_in`], [`copy_out`], [`copy_out_tar`], [`read_file`], [`write_file`], [`fetch_artifact`] |
/// | observe | [`details`], [`state`], [`inspect`], [`logs`], [`events`], [`stats`], [`network`], [`egress`], [`result`] |
/// | make something of the disk | [`commit`] (an image), [`clone_to`] (a workspace), [`snapshots`] |
/// | change settings | [`apply`], [`publish`], [`unpublish`] |
/// | isolate, restart, remove | [`quarantine`], [`supervise`], [`delete`] |
///
/// A workspace has a machine or is *resting*; [`State`] lists the states and [`State::is_resting`] defines resting.
/// Methods that copy files work in both cases. Other methods name the state that they need, and fail with
/// [`Error::WrongState`] in another one.
///
/// To end a machine, use [`halt`], a clean shutdown. Use [`stop`] if the service must not be killed in any case, and
/// [`kill`] if guest or supervisor do not answer.
///
/// Dropping the future of a method that waits for a supervisor (`start`, `halt`, …) does not undo the request: the
/// machine of a start that was dropped is ended, a halt continues.
///
/// ```no_run
/// # use microagent::{CreateOptions, Engine, ExecOptions, Progress, RunCommand, StartOptions, WorkspaceOptions};
/// # async fn example(engine: &Engine, progress: &Progress) -> Result<(), microagent::Error> {
/// let options = CreateOptions::new("web".parse()?, "nginx:1.27")
///     .workspace(|workspace| workspace.memory_mib(512).publish("8080:80".parse().expect("a valid port")))
///     .service(RunCommand::Image);
/// let web = engine.create(options, progress).await?;
/// web.start(StartOptions::new(), progress).await?;
/// let output = web.exec(ExecOptions::new(["nginx", "-v"])).await?.collect_output(4096).await?;
/// assert_eq!(output.execution.exit_code, 0);
/// web.halt().await?;
/// # Ok(())
/// # }
/// ```
///
/// [`start`]: Workspace::start
/// [`halt`]: Workspace::halt
/// [`stop`]: Workspace::stop
/// [`kill`]: Workspace::kill
/// [`pause`]: Workspace::pause
/// [`resume`]: Workspace::resume
/// [`wait`]: Workspace::wait
/// [`exec`]: Workspace::exec
/// [`start_job`]: Workspace::start_job
/// [`console`]: Workspace::console
/// [`copy_in`]: Workspace::copy_in
/// [`copy_out`]: Workspace::copy_out
/// [`copy_out_tar`]: Workspace::copy_out_tar
/// [`read_file`]: Workspace::read_file
/// [`write_file`]: Workspace::write_file
/// [`fetch_artifact`]: Workspace::fetch_artifact
/// [`details`]: Workspace::details
/// [`state`]: Workspace::state
/// [`inspect`]: Workspace::inspect
/// [`logs`]: Workspace::logs
/// [`events`]: Workspace::events
/// [`stats`]: Workspace::stats
/// [`network`]: Workspace::network
/// [`egress`]: Workspace::egress
/// [`result`]: Workspace::result
/// [`commit`]: Workspace::commit
/// [`clone_to`]: Workspace::clone_to
/// [`snapshots`]: Workspace::snapshots
/// [`apply`]: Workspace::apply
/// [`publish`]: Workspace::publish
/// [`unpublish`]: Workspace::unpublish
/// [`quarantine`]: Workspace::quarantine
/// [`supervise`]: Workspace::supervise
/// [`delete`]: Workspace::delete
#[derive(Debug, Clone)]
pub struct Workspace {
    engine: Engine,
    name: WorkspaceName,
}

/// One line of [`Engine::list`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WorkspaceSummary {
    /// Name.
    pub name: WorkspaceName,
    /// State, checked against its processes; `None` for a damaged record.
    pub state: Option<State>,
    /// Backend of its newest machine.
    pub backend: Option<String>,
    /// Image of its disk, as it was named.
    pub image: Option<String>,
    /// When it was created.
    pub created_at: Option<Timestamp>,
    /// When its machine is halted because its time to live has passed.
    pub expires_at: Option<Timestamp>,
    /// Profile.
    pub profile: Option<String>,
    /// Network mode.
    pub network: Option<NetworkMode>,
    /// Published ports, as [`NetworkDetails`] has them.
    pub port_forwards: Vec<PortForward>,
    /// What its health check says; `None` without a running machine, or without a health check.
    pub health: Option<HealthState>,
    /// Restart policy.
    pub restart: RestartPolicy,
    /// Labels.
    pub labels: Labels,
    /// Whether it has a machine now, in any state.
    pub has_machine: bool,
    /// When this was observed.
    pub observed_at: Timestamp,
    /// Why it failed, or the error of its record.
    pub problem: Option<String>,
}

/// Settings and current state of a workspace, from [`Workspace::details`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WorkspaceDetails {
    /// Name.
    pub name: WorkspaceName,
    /// State, checked against its processes.
    pub state: State,
    /// Why it failed.
    pub failure: Option<WorkspaceFailure>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its state last changed.
    pub changed_at: Timestamp,
    /// The image of its disk.
    pub image: ImageIdentity,
    /// Name of the profile of its machine, or of the next start.
    pub profile: String,
    /// Sizes of its machine, or of the next start.
    pub resources: Resources,
    /// Network mode.
    pub network: NetworkMode,
    /// Whether its network stack runs; `None` without network or machine.
    pub link: Option<LinkState>,
    /// When its machine is halted because its time to live has passed.
    pub expires_at: Option<Timestamp>,
    /// Its published ports. While it has a machine, with the picked ports of the host.
    pub port_forwards: Vec<PortForward>,
    /// Its forwarded ports of `host.microagent.internal`.
    pub host_forwards: Vec<HostForward>,
    /// Private networks that it joins.
    pub networks: Vec<NetworkName>,
    /// Its brokers.
    pub brokers: Vec<BrokerDetails>,
    /// Name servers and names; with network `user`.
    pub dns: DnsSettings,
    /// Host name in the guest.
    pub hostname: String,
    /// When `supervise` restarts it.
    pub restart: RestartPolicy,
    /// Backend of its newest machine: `linux-kvm` or `linux-tcg`.
    pub backend: Option<String>,
    /// Its supervisor, while it has a machine.
    pub supervisor_pid: Option<i32>,
    /// QEMU, while it has a machine.
    pub vmm_pid: Option<i32>,
    /// Its further disks, in the order in which they are mounted.
    pub disks: Vec<Attachment>,
    /// Its labels.
    pub labels: Labels,
    /// Settings of its guest's system.
    pub settings: GuestSettings,
    /// What its guest may reach.
    pub egress: EgressPolicy,
    /// Its declared artifacts.
    pub outputs: Vec<Artifact>,
    /// References of its secrets.
    pub secrets: Vec<SecretReference>,
    /// Whether it belongs to a disposable run: it is removed when the run ends, and kept if the machine failed.
    pub disposable: bool,
    /// Rate limits of disk and network.
    pub limits: RateLimits,
    /// Walls of QEMU's jail that its newest machine started without.
    pub weak_jail: Vec<String>,
    /// Whether its newest machine was ended by a request (halt, stop, kill), not by its service or an error.
    pub ended_on_request: bool,
}

/// How [`Workspace::delete`] treats a workspace that is not [resting](State::is_resting).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeleteMode {
    /// The deletion fails: only a resting workspace is deleted.
    Resting,
    /// The machine is shut down first, as with [`Workspace::halt`]. The deletion fails if it is quarantined.
    Halt,
    /// The workspace is stopped first, as with [`Workspace::stop`]. The deletion fails if it is quarantined.
    Stop,
    /// The machine is killed first, also that of a quarantined workspace.
    Kill,
}

/// The result of [`Workspace::delete`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Deletion {
    /// Whether the workspace existed.
    pub deleted: bool,
    /// Whether its machine was ended.
    pub ended: bool,
}

impl Engine {
    /// Returns the handle of the workspace with this name, which may not exist.
    pub fn workspace(&self, name: &WorkspaceName) -> Workspace {
        Workspace { engine: self.clone(), name: name.clone() }
    }

    /// Lists all workspaces, sorted by name. Changes nothing. A damaged record is an item with a `problem`, not an error.
    ///
    /// # Errors
    /// Fails if the state directory exists and cannot be read.
    pub async fn list(&self) -> Result<Vec<WorkspaceSummary>, Error> {
        let state = self.state().clone();
        blocking(move || summaries(&state)).await
    }
}

fn summaries(state: &StateDir) -> Result<Vec<WorkspaceSummary>, Error> {
    let names = state.workspace_names().map_err(|source| Error::File {
        action: "read",
        path: state.workspaces(),
        source,
    })?;
    Ok(names.into_iter().filter_map(|name| summary(state, name)).collect())
}

impl Workspace {
    /// Returns the name of the workspace.
    pub fn name(&self) -> &WorkspaceName {
        &self.name
    }

    /// Returns the engine of the workspace.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Returns settings and current state of the workspace.
    ///
    /// # Errors
    /// Fails if the workspace does not exist or its record is damaged.
    pub fn details(&self) -> Result<WorkspaceDetails, Error> {
        Ok(WorkspaceDetails::of(self.observe()?))
    }

    /// Returns the current state of the workspace.
    ///
    /// # Errors
    /// As [`Workspace::details`].
    pub fn state(&self) -> Result<State, Error> {
        Ok(self.observe()?.observed_state())
    }

    /// Deletes the workspace: record, disk, logs. Volumes are kept. A missing workspace is not an error.
    ///
    /// # Errors
    /// Fails if the workspace is not [resting](State::is_resting) and `mode` does not end its machine
    /// ([`WrongState`](crate::ErrorKind::WrongState)), its service does not stop in time
    /// ([`RunFailed`](crate::ErrorKind::RunFailed)), another command uses it ([`Busy`](crate::ErrorKind::Busy)), or its
    /// files cannot be removed. Then the files are kept.
    pub async fn delete(&self, mode: DeleteMode) -> Result<Deletion, Error> {
        let dir = self.dir();
        if !dir.path().exists() {
            return Ok(Deletion { deleted: false, ended: false });
        }
        // If the record cannot be read, no processes can be found; only files are removed.
        let observed = WorkspaceRecord::observe(&dir).map(|record| record.observed_state());
        let live = observed.ok().filter(|state| !state.is_resting());
        match (live, mode) {
            (None, _) => {}
            (Some(_), DeleteMode::Kill) => drop(self.kill().await?),
            // A quarantined workspace is kept for examination, so only `Kill` deletes it.
            (Some(state), DeleteMode::Resting) | (Some(state @ State::Quarantined), _) => {
                return Err(self.wrong_state(state, Action::Delete));
            }
            (Some(_), DeleteMode::Halt) => drop(self.halt().await?),
            (Some(_), DeleteMode::Stop) => drop(self.stop().await?),
        }
        let mut removed = self.engine.remove(&self.name, &dir).await;
        // A supervisor whose state says that nothing runs, or nothing that can be read.
        let hidden = match (&removed, mode) {
            (Err(Error::Busy { .. }), DeleteMode::Kill) => ProcessId::supervisor_of(dir.path()),
            _ => None,
        };
        if let Some(supervisor) = &hidden {
            end_processes(&MachineProcesses::of(dir.path(), Some(supervisor), None)).await;
            removed = self.engine.remove(&self.name, &dir).await;
        }
        // Another command may have deleted or renamed it in the meantime.
        Ok(Deletion { deleted: removed?, ended: live.is_some() || hidden.is_some() })
    }

    /// Returns its directory, which may not exist.
    pub(crate) fn dir(&self) -> WorkspaceDir {
        self.engine.state().workspace(&self.name)
    }

    fn existing(&self) -> Result<WorkspaceDir, Error> {
        let dir = self.dir();
        if !dir.path().is_dir() {
            return Err(Error::NoSuchWorkspace { name: self.name.clone() });
        }
        if !dir.machine().exists() {
            // Made by an earlier release: who holds the lock moves what it has to where it is looked for.
            let _ = dir.lock();
        }
        Ok(dir)
    }

    fn load(&self) -> Result<WorkspaceRecord, Error> {
        WorkspaceRecord::load(&self.existing()?).map_err(|error| self.unless_gone(error.into()))
    }

    /// Returns the record with the current state.
    pub(crate) fn observe(&self) -> Result<WorkspaceRecord, Error> {
        WorkspaceRecord::observe(&self.existing()?).map_err(|error| self.unless_gone(error.into()))
    }

    /// The error, unless its reason is that another command has deleted or renamed the workspace.
    pub(crate) fn unless_gone(&self, error: Error) -> Error {
        match error {
            Error::Cancelled => error,
            _ if !self.dir().path().exists() => Error::NoSuchWorkspace { name: self.name.clone() },
            error => error,
        }
    }

    pub(crate) fn wrong_state(&self, state: State, action: Action) -> Error {
        Error::WrongState { name: self.name.clone(), state, action }
    }

    fn damaged(&self, source: microagent_store::ReadError) -> Error {
        Error::Record(microagent_store::LoadError::Read { name: self.name.to_string(), source })
    }
}

impl WorkspaceDetails {
    pub(crate) fn of(record: WorkspaceRecord) -> WorkspaceDetails {
        let has_machine = record.has_machine();
        let pid =
            |process: &Option<ProcessId>| process.as_ref().filter(|_| has_machine).map(|process| process.pid);
        WorkspaceDetails {
            state: record.observed_state(),
            failure: record.observed_failure(),
            created_at: record.created_at,
            changed_at: record.machine.changed_at,
            profile: record.observed_profile().to_owned(),
            resources: record.observed_resources(),
            network: record.network,
            link: record.observed_link(),
            port_forwards: record.observed_publish().iter().map(PortForward::from).collect(),
            host_forwards: record.forwards.iter().map(HostForward::from).collect(),
            networks: record.networks.clone(),
            brokers: BrokerDetails::all(&record.brokers),
            dns: record.dns.clone(),
            restart: record.restart,
            expires_at: record.observed_expiry(),
            supervisor_pid: pid(&record.machine.supervisor),
            vmm_pid: pid(&record.machine.vmm),
            name: record.name,
            image: record.image,
            hostname: record.hostname,
            backend: record.machine.backend,
            disks: record.disks,
            labels: record.labels,
            settings: record.settings,
            egress: record.egress,
            outputs: record.outputs,
            secrets: record.secrets,
            disposable: record.disposable,
            limits: record.limits,
            weak_jail: record.machine.weak_jail,
            ended_on_request: record.machine.asked_to_end,
        }
    }
}

/// `None` when the workspace was deleted meanwhile.
fn summary(state: &StateDir, name: WorkspaceName) -> Option<WorkspaceSummary> {
    let observed_at = Timestamp::now();
    let dir = state.workspace(&name);
    match WorkspaceRecord::observe(&dir) {
        Ok(record) => Some(WorkspaceSummary {
            health: microagent_store::HealthReport::observe(&dir, &record).map(|report| report.state),
            state: Some(record.observed_state()),
            has_machine: record.has_machine(),
            problem: record.observed_failure().map(|failure| failure.message),
            name,
            port_forwards: record.observed_publish().iter().map(PortForward::from).collect(),
            profile: Some(record.observed_profile().to_owned()),
            expires_at: record.observed_expiry(),
            image: Some(record.image.reference),
            created_at: Some(record.created_at),
            backend: record.machine.backend,
            network: Some(record.network),
            restart: record.restart,
            labels: record.labels,
            observed_at,
        }),
        Err(_) if !dir.path().is_dir() => None,
        Err(error) => Some(WorkspaceSummary {
            name,
            state: None,
            has_machine: false,
            backend: None,
            image: None,
            created_at: None,
            profile: None,
            network: None,
            port_forwards: Vec::new(),
            health: None,
            restart: RestartPolicy::default(),
            expires_at: None,
            labels: Labels::new(),
            observed_at,
            problem: Some(chain(&error)),
        }),
    }
}

/// Kills supervisor and VMM.
async fn kill_processes(record: &WorkspaceRecord, dir: &WorkspaceDir) {
    end_processes(&record.processes(dir)).await;
}

async fn end_processes(processes: &MachineProcesses<'_>) {
    processes.kill();
    let deadline = Instant::now() + KILL_PATIENCE;
    while (processes.supervisor().is_some() || processes.vmm().is_some()) && Instant::now() < deadline {
        sleep(Duration::from_millis(2)).await;
    }
}

/// Kills a QEMU that outlived its supervisor. Without the record it could not be found any more.
pub(crate) async fn kill_orphan(record: &WorkspaceRecord, dir: &WorkspaceDir) {
    let processes = record.processes(dir);
    processes.kill_orphan();
    let deadline = Instant::now() + KILL_PATIENCE;
    while processes.orphan().is_some() && Instant::now() < deadline {
        sleep(Duration::from_millis(2)).await;
    }
}

/// Waits for the lock: a supervisor that was just killed releases it a moment later.
pub(crate) async fn lock_patiently(
    name: &WorkspaceName,
    dir: &WorkspaceDir,
) -> Result<microagent_store::Lock, Error> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match dir.lock() {
            Ok(lock) => return Ok(lock),
            Err(LockError::Held { .. }) if Instant::now() < deadline => sleep(Duration::from_millis(5)).await,
            Err(error) => return Err(lock_error(name, error)),
        }
    }
}

/// Waits for the lock of the settings. Who holds the workspace's lock as well has taken that one first.
pub(crate) async fn lock_settings(name: &WorkspaceName, dir: &WorkspaceDir) -> Result<SettingsLock, Error> {
    let deadline = Instant::now() + SETTINGS_PATIENCE;
    loop {
        match dir.lock_settings(Duration::ZERO) {
            Ok(lock) => return Ok(lock),
            Err(LockError::Held { .. }) if Instant::now() < deadline => sleep(Duration::from_millis(5)).await,
            Err(error) => return Err(lock_error(name, error)),
        }
    }
}

/// Distinguishes a lock that another process holds from other errors.
fn lock_error(name: &WorkspaceName, error: LockError) -> Error {
    match error {
        // The file is created where it is missing, so its directory is gone: it was deleted or renamed.
        LockError::Open { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Error::NoSuchWorkspace { name: name.clone() }
        }
        LockError::Open { path, source } => Error::File { action: "lock", path, source },
        held => Error::Busy { name: name.clone(), source: Some(held) },
    }
}
