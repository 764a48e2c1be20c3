//! The library's error type: a kind for programs, a line and a hint for people.
//!
//! The types that are fields of [`Error`] are re-exported here.

mod action;
mod connection;
mod convert;
mod job;
mod kind;
mod network;
mod snapshot;
mod sync;

use std::io;
use std::path::PathBuf;

pub use microagent_guest::GuestError as GuestFilesError;
pub use microagent_image::ImageError;
pub use microagent_image::bundle::BundleError;
use microagent_model::{FailureKind, Publish, State, VolumeName, WorkspaceName};
pub use microagent_proto::FrameError;
pub use microagent_store::{
    FreeError, HoldError, LeaseError, LoadError, LockError, NetworkLoadError, OpenError, ReadError,
    VolumeLoadError, WriteError,
};
use microagent_vm::OutputReader;
pub use microagent_vm::{ControlError, KvmUnusable, PortError, SuperviseError};
use rustix::io::Errno;

pub use self::action::Action;
pub use self::connection::ConnectionFault;
pub use self::job::JobError;
pub use self::kind::ErrorKind;
pub use self::network::NetworkError;
pub use self::snapshot::SnapshotError;
pub use self::sync::SyncError;
pub use crate::invalid::InvalidRequest;
use crate::{Hint, SecretError, SecretFault, SetupFailure, SpecError};

/// Why an operation failed.
///
/// `Display` is one line without its cause; [`chain`](crate::chain) shows it with its causes. [`Error::kind`] is a class
/// for programs, [`Error::hint`] says what a user can do, [`Error::is_retryable`] whether the same call can succeed
/// later.
///
/// ```
/// # use microagent::Error;
/// fn show(error: &Error) {
///     eprintln!("Error: {}", microagent::chain(error));
///     if let Some(hint) = error.hint() {
///         eprintln!("Hint: {hint}");
///     }
/// }
/// ```
///
/// A program decides by the kind, because several variants can have one meaning. That an image does not exist is
/// [`NotFound`](ErrorKind::NotFound) in [`Error::Image`], whether the cache, a registry, an archive or Docker was asked:
///
/// ```
/// use microagent::{Engine, Error, ErrorKind, Progress, RunOptions};
///
/// # async fn example(engine: &Engine, options: RunOptions, progress: &Progress) {
/// match engine.run(options, progress).await {
///     Ok(report) => println!("exited with {}", report.result.exit_code),
///     Err(error @ Error::Image(_)) if error.kind() == ErrorKind::NotFound => println!("no such image"),
///     Err(error) => match error.kind() {
///         ErrorKind::Timeout => println!("the time limit was reached"),
///         ErrorKind::Cancelled => println!("cancelled"),
///         _ if error.is_retryable() => println!("try again later: {error}"),
///         _ => eprintln!("{}", microagent::chain(&error)),
///     },
/// }
/// # }
/// ```
///
/// The failure of a machine is [`RunFailed`](Error::RunFailed) from [`Engine::run`](crate::Engine::run) and
/// [`AttachedRun::wait`](crate::AttachedRun::wait), [`TemplateFailed`](Error::TemplateFailed) from
/// [`Templates::create`](crate::Templates::create), and [`StartFailed`](Error::StartFailed) from every other method that
/// boots a machine: [`Engine::create`](crate::Engine::create) with setup steps, [`Workspace::start`](crate::Workspace::start),
/// and methods that read the disk of a resting workspace. [`ChangeFailed`](Error::ChangeFailed) is from methods that
/// change the state of a running machine, such as [`Workspace::halt`](crate::Workspace::halt) and
/// [`Workspace::pause`](crate::Workspace::pause).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] OpenError),
    /// The image cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// No workspace of this name.
    #[error("no workspace `{name}`")]
    NoSuchWorkspace {
        /// The requested name.
        name: WorkspaceName,
    },
    /// A workspace of this name exists.
    #[error("workspace `{name}` exists already")]
    NameTaken {
        /// The requested name.
        name: WorkspaceName,
    },
    /// The workspace's record is unreadable.
    #[error(transparent)]
    Record(#[from] LoadError),
    /// Another command works on the workspace.
    #[error("workspace `{name}` is in use by another command")]
    Busy {
        /// The workspace.
        name: WorkspaceName,
        /// The lock that another process holds.
        source: Option<LockError>,
    },
    /// The workspace's state does not allow the operation.
    #[error("workspace `{name}` is {state}; cannot {action}")]
    WrongState {
        /// The workspace.
        name: WorkspaceName,
        /// Its state.
        state: State,
        /// The refused operation.
        action: Action,
    },
    /// The requested changes need a resting workspace. Nothing has changed.
    #[error("workspace `{name}` is {state}, and {} only at rest", changes(keys))]
    NeedsRest {
        /// The workspace.
        name: WorkspaceName,
        /// Its state.
        state: State,
        /// The keys of the spec file.
        keys: Vec<String>,
    },
    /// The requested changes are impossible. Nothing has changed.
    #[error("workspace `{name}` cannot be changed to match the file: {}", differences.join("; "))]
    Unchangeable {
        /// The workspace.
        name: WorkspaceName,
        /// What differs.
        differences: Vec<String>,
    },
    /// No volume of this name.
    #[error("no volume `{name}`")]
    NoSuchVolume {
        /// The requested name.
        name: VolumeName,
    },
    /// The volume's name is taken.
    #[error("volume `{name}` exists already")]
    VolumeExists {
        /// The requested name.
        name: VolumeName,
    },
    /// The volume's record is unreadable.
    #[error(transparent)]
    VolumeRecord(#[from] VolumeLoadError),
    /// Another machine or command uses a disk.
    #[error("{disk} is in use{}", by(holder.as_deref()))]
    DiskBusy {
        /// The disk.
        disk: String,
        /// The workspace that uses it, if known.
        holder: Option<String>,
    },
    /// As many machines run as [`EngineOptions::max_running`](crate::EngineOptions::max_running) allows. The call can be
    /// repeated when one of them has ended.
    #[error("the limit for running machines ({max}) is reached")]
    TooManyRunning {
        /// The maximum.
        max: u32,
    },
    /// Resting workspaces name the volume.
    #[error("volume `{name}` belongs to {}", listed(workspaces))]
    VolumeNamed {
        /// The volume.
        name: VolumeName,
        /// The workspaces.
        workspaces: Vec<WorkspaceName>,
    },
    /// No template of this key.
    #[error("no template `{key}`")]
    NoSuchTemplate {
        /// The requested key.
        key: String,
    },
    /// A bundle could not be converted to a disk.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The workspace has no artifact of this name.
    #[error("workspace `{workspace}` has no artifact `{artifact}`")]
    NoSuchArtifact {
        /// The workspace.
        workspace: WorkspaceName,
        /// The requested artifact.
        artifact: String,
        /// Its artifacts.
        declared: Vec<String>,
    },
    /// The guest could not deliver an artifact.
    #[error("cannot read `{path}` in workspace `{workspace}`: {reason}")]
    ArtifactUnreadable {
        /// The workspace.
        workspace: WorkspaceName,
        /// The guest's path.
        path: String,
        /// The guest's message.
        reason: String,
    },
    /// A spec file is not valid.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The request is not valid.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// The value of a secret could not be looked up. Nothing was booted.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A file of secrets could not be read.
    #[error("cannot read secrets from `{}`", path.display())]
    SecretFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SecretFault,
    },
    /// The machine of a run failed before the command ended, or the time limit was reached. The workspace is kept in state
    /// `failed`, also that of a disposable run, so that its logs can be read; delete it with
    /// [`Workspace::delete`](crate::Workspace::delete).
    #[error("run workspace \"{workspace}\" failed (backend={backend}): {message}")]
    RunFailed {
        /// The workspace.
        workspace: WorkspaceName,
        /// `linux-kvm` or `linux-tcg`.
        backend: String,
        /// What kind of failure.
        kind: FailureKind,
        /// One line; `signal: killed` if the time limit was reached.
        message: String,
        /// Last lines of the guest's console, if they are useful.
        console_tail: Option<String>,
        /// Output of setup steps and command, if it was recorded.
        output: Option<Box<OutputReader>>,
    },
    /// The caller's token was cancelled while the machine of a run existed. A disposable run is removed.
    #[error("cancelled")]
    RunCancelled {
        /// The workspace.
        workspace: WorkspaceName,
        /// Output of setup steps and command, if it was recorded.
        output: Option<Box<OutputReader>>,
    },
    /// A machine that was started for a workspace failed before the start was complete. The workspace is kept in state
    /// `failed`.
    #[error("workspace `{workspace}` did not start (backend={backend}): {message}")]
    StartFailed {
        /// The workspace.
        workspace: WorkspaceName,
        /// `linux-kvm` or `linux-tcg`.
        backend: String,
        /// What kind of failure.
        kind: FailureKind,
        /// One line.
        message: String,
        /// Last lines of the guest's console, if they are useful.
        console_tail: Option<String>,
    },
    /// The requested change of the machine's state failed.
    #[error("workspace `{workspace}`: cannot {action}: {message}")]
    ChangeFailed {
        /// The workspace.
        workspace: WorkspaceName,
        /// The requested change.
        action: Action,
        /// One line.
        message: String,
    },
    /// The supervisor of a running workspace cannot be reached.
    #[error("workspace `{workspace}` cannot be reached")]
    Unreachable {
        /// The workspace.
        workspace: WorkspaceName,
        /// What happened to the connection.
        source: ControlError,
    },
    /// The running machine was started by another version of microagent.
    #[error("workspace `{workspace}` was started by another build of microagent")]
    OtherBuild {
        /// The workspace.
        workspace: WorkspaceName,
    },
    /// The guest has the maximum number of commands and other requests of clients, which is 56.
    #[error("too many commands run in workspace `{workspace}`")]
    Crowded {
        /// The workspace.
        workspace: WorkspaceName,
    },
    /// Another session uses the serial console.
    #[error("another session has the console of workspace `{workspace}`")]
    ConsoleTaken {
        /// The workspace.
        workspace: WorkspaceName,
    },
    /// Another command compares the root disk of the running guest with its base disk.
    #[error("another command compares the disk of workspace `{workspace}` with its image")]
    BaseTaken {
        /// The workspace.
        workspace: WorkspaceName,
    },
    /// A job cannot be started or reached.
    #[error(transparent)]
    Job(#[from] JobError),
    /// A snapshot cannot be made or used.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A directory cannot be synced.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// A private network cannot be made or used.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The connection to the guest was lost.
    #[error("lost the connection to the guest of workspace `{workspace}`")]
    GuestGone {
        /// The workspace.
        workspace: WorkspaceName,
        /// How it was lost.
        source: ConnectionFault,
    },
    /// The guest could not carry out a request, such as writing a file. The machine continues.
    #[error("the guest of workspace `{workspace}` refused: {message}")]
    GuestRefused {
        /// The workspace.
        workspace: WorkspaceName,
        /// Whether the path does not exist.
        not_found: bool,
        /// The guest's message.
        message: String,
    },
    /// No template could be made.
    #[error("the template was not made: {message}")]
    TemplateFailed {
        /// What kind of failure.
        kind: FailureKind,
        /// One line.
        message: String,
    },
    /// A setup step failed, so the command was not run.
    #[error("{failure}")]
    SetupFailed {
        /// The workspace, left in state `failed`.
        workspace: WorkspaceName,
        /// Which step.
        failure: SetupFailure,
        /// Output of the steps.
        output: Box<OutputReader>,
    },
    /// The caller's token was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The machine could not be started, or its supervisor was lost.
    #[error(transparent)]
    Supervise(#[from] SuperviseError),
    /// KVM was requested and cannot be used; nothing was started.
    #[error(transparent)]
    Kvm(#[from] KvmUnusable),
    /// The host hides processes, so that no command could find the machine again; nothing was started.
    #[error("this host hides processes: `/proc` is mounted with `hidepid`")]
    ProcessesHidden,
    /// A port of the host cannot be published. Nothing was changed.
    #[error(transparent)]
    Port(#[from] PortError),
    /// A port of the host is published by another workspace. Nothing was changed.
    #[error("cannot publish {publish}: workspace `{holder}` publishes that port of the host")]
    PortHeld {
        /// The port.
        publish: Publish,
        /// The workspace.
        holder: WorkspaceName,
    },
    /// The guest's kernel and agent could not be unpacked.
    #[error(transparent)]
    Guest(#[from] GuestFilesError),
    /// A file of the state directory could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A writer that the caller has passed in failed.
    #[error("cannot write the output")]
    Sink(#[source] io::Error),
    /// A file of the user or of the host could not be used.
    #[error("cannot {action} `{}`", path.display())]
    File {
        /// The attempted operation.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl Error {
    /// Whether the same call can succeed later without a change by the user: another command used the workspace, the limit
    /// of running machines or commands was reached, a registry could not be reached, or the host had no free space.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Image(e) => e.is_retryable(),
            _ => matches!(self.kind(), ErrorKind::Busy | ErrorKind::HostFull),
        }
    }

    /// Returns a hint: what the user can do.
    pub fn hint(&self) -> Option<Hint> {
        let hint = match self {
            Error::Image(e) => e.hint().map(Hint::Image),
            Error::Supervise(SuperviseError::MissingProgram { package, .. }) => {
                Some(Hint::InstallPackage { package })
            }
            Error::Supervise(SuperviseError::WeakJail { .. }) => Some(Hint::AllowWeakJail),
            Error::Supervise(SuperviseError::NotASupervisor { .. } | SuperviseError::Start { .. }) => {
                Some(Hint::advice(
                    "the supervisor is the `microagent` command of this build, or a program that calls `supervise` \
                     before it does anything else; give its path",
                ))
            }
            Error::Supervise(SuperviseError::StillEnding) => Some(Hint::ListWorkspaces),
            Error::Kvm(unusable) => Some(unusable.remedy.clone().map_or(Hint::UseEmulation, Hint::Advice)),
            Error::ProcessesHidden => Some(Hint::advice(
                "mount `/proc` without `hidepid`, or with `gid=` of a group that this user is in",
            )),
            Error::Spec(e) => Some(e.hint()),
            Error::Secret(e) => Some(e.hint()),
            Error::SecretFile { source, .. } => source.hint().map(Hint::Advice),
            Error::Invalid(invalid) => Some(invalid.hint()),
            Error::Port(e) => Some(Hint::Advice(e.hint())),
            Error::PortHeld { .. } => Some(Hint::advice(
                "halt that workspace, or choose another port of the host, or 0 for any free one",
            )),
            Error::Job(e) => e.hint(),
            Error::Snapshot(e) => e.hint(),
            Error::Sync(e) => e.hint(),
            Error::Network(e) => e.hint(),
            Error::State(_) => Some(Hint::ChooseStateDir),
            Error::Bundle(BundleError::Damaged { .. } | BundleError::Compression { .. }) => {
                Some(Hint::advice("pack it again: tar -C DIR -cf files.tar . (or .tar.gz, .tar.zst)"))
            }
            _ => self.machine_hint().or_else(|| self.workspace_hint()).or_else(|| self.volume_hint()),
        };
        hint.or_else(|| self.host_hint())
    }

    /// Hints about what the host did not give, whatever it was needed for.
    fn host_hint(&self) -> Option<Hint> {
        if self.kind() == ErrorKind::HostFull {
            return Some(Hint::FreeSpace { leftover: None });
        }
        match deepest_io(self).and_then(Errno::from_io_error)? {
            // Its file system has no locks, as some network file systems.
            Errno::NOLCK => Some(Hint::ChooseStateDir),
            Errno::MFILE | Errno::NFILE => Some(Hint::advice("raise the limit of open files (`ulimit -n`)")),
            Errno::FBIG => Some(Hint::advice("raise the limit of the size of a file (`ulimit -f`)")),
            _ => None,
        }
    }

    /// Hints about machines that failed.
    fn machine_hint(&self) -> Option<Hint> {
        Some(match self {
            Error::RunFailed { kind: FailureKind::Disk, .. }
            | Error::StartFailed { kind: FailureKind::Disk, .. } => Hint::RepairDisk,
            Error::StartFailed { kind: FailureKind::PortUnavailable, .. } => {
                Hint::FreePort { leftover: None }
            }
            Error::RunFailed { kind: FailureKind::PortUnavailable, workspace, .. } => {
                Hint::FreePort { leftover: Some(workspace.clone()) }
            }
            Error::StartFailed { kind: FailureKind::HostFull, .. } => Hint::FreeSpace { leftover: None },
            Error::RunFailed { kind: FailureKind::HostFull, workspace, .. } => {
                Hint::FreeSpace { leftover: Some(workspace.clone()) }
            }
            // Whoever has ended it knows why, and a run that is not kept is gone.
            Error::RunFailed { kind: FailureKind::Cancelled, .. } => return None,
            Error::RunFailed { kind: FailureKind::Timeout, workspace, .. } => {
                Hint::TimeLimit { name: workspace.clone() }
            }
            Error::StartFailed { workspace, .. } => Hint::ShowLogs { name: workspace.clone() },
            Error::RunFailed { workspace, .. } | Error::SetupFailed { workspace, .. } => {
                Hint::LogsOrDelete { name: workspace.clone() }
            }
            // The machine of a capture that failed continues.
            Error::ChangeFailed { workspace, action: Action::Snapshot, .. } => {
                Hint::RepeatOrRestart { name: workspace.clone() }
            }
            Error::ChangeFailed { workspace, .. } => Hint::LogsOrKill { name: workspace.clone() },
            Error::Unreachable { workspace, .. } | Error::OtherBuild { workspace } => {
                Hint::StatusOrKill { name: workspace.clone() }
            }
            Error::Crowded { .. } => Hint::advice("try again when one of them has ended"),
            Error::BaseTaken { .. } => Hint::advice("try again when it has ended"),
            Error::ConsoleTaken { workspace } => Hint::FollowLogs { name: workspace.clone() },
            _ => return None,
        })
    }

    /// Hints about workspaces as they are recorded.
    fn workspace_hint(&self) -> Option<Hint> {
        Some(match self {
            Error::NoSuchWorkspace { .. } => Hint::ListWorkspaces,
            Error::NameTaken { name } => Hint::ChooseNameOrDelete { name: name.clone() },
            Error::Record(_) => Hint::DeleteDamagedWorkspace,
            Error::NeedsRest { name, .. } => Hint::HaltAndApply { name: name.clone() },
            Error::Unchangeable { .. } => Hint::CreateFromSpec,
            Error::Busy { .. } => Hint::advice("try again when the other command has ended"),
            Error::NoSuchArtifact { declared, .. } if declared.is_empty() => Hint::DeclareArtifact,
            Error::NoSuchArtifact { declared, .. } => {
                Hint::Advice(format!("it declares: {}", declared.join(", ")))
            }
            Error::WrongState { name, state, action } => state_hint(name, *state, *action),
            Error::GuestRefused { not_found: true, .. } => {
                Hint::advice("check the path: it begins at `/` of the guest, and its directory must exist")
            }
            Error::File { .. } if self.kind() == ErrorKind::NotFound => Hint::advice("check the path"),
            _ => return None,
        })
    }

    /// Hints about volumes and other disks.
    fn volume_hint(&self) -> Option<Hint> {
        Some(match self {
            Error::NoSuchTemplate { .. } => Hint::ListTemplates,
            Error::NoSuchVolume { name } => Hint::CreateVolume { name: name.clone() },
            Error::VolumeExists { name } => Hint::DeleteVolume { name: name.clone() },
            Error::VolumeRecord(_) => Hint::DeleteDamagedVolume,
            Error::DiskBusy { holder: Some(holder), .. } => Hint::HaltHolder { name: holder.clone() },
            Error::TooManyRunning { .. } => Hint::EndOthers,
            Error::DiskBusy { holder: None, .. } => Hint::advice("try again when nobody uses it"),
            Error::VolumeNamed { workspaces, .. } => Hint::DeleteUsers { names: workspaces.clone() },
            _ => return None,
        })
    }

    /// Converts the error of a volume's record. A missing record means that there is no volume.
    pub(crate) fn from_volume(name: &VolumeName, error: VolumeLoadError) -> Error {
        if error.is_not_found() { Error::NoSuchVolume { name: name.clone() } } else { error.into() }
    }
}

/// Returns the hint for an operation that the state does not allow.
fn state_hint(name: &WorkspaceName, state: State, action: Action) -> Hint {
    let name = name.clone();
    match state {
        State::Quarantined if action == Action::Delete => Hint::DeleteQuarantined { name },
        State::Quarantined => Hint::ReleaseFirst { name },
        state if action == Action::Quarantine && state.is_resting() => {
            Hint::advice("it has no machine, so nothing in it is running")
        }
        State::Running if action == Action::Quarantine => Hint::KillRun { name },
        State::Paused => Hint::ResumeFirst { name },
        state if state.is_resting() => Hint::StartFirst { name },
        State::Running if action == Action::Start => Hint::Exec { name },
        State::Running if action == Action::Resume => {
            Hint::advice("it is running already; nothing has to be done")
        }
        State::Starting | State::Stopping => Hint::advice("wait a moment and try again"),
        _ => Hint::HaltFirst { name },
    }
}

/// `a changes` or `a, b change`.
fn changes(keys: &[String]) -> String {
    format!("{} {}", keys.join(", "), if keys.len() == 1 { "changes" } else { "change" })
}

fn by(holder: Option<&str>) -> String {
    holder.map(|holder| format!(" by workspace `{holder}`")).unwrap_or_default()
}

fn listed(workspaces: &[WorkspaceName]) -> String {
    let names: Vec<_> = workspaces.iter().map(|name| format!("`{name}`")).collect();
    format!("workspace{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", "))
}

/// What the system said, if it said something.
pub(crate) fn deepest_io<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a io::Error> {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.filter_map(|cause| cause.downcast_ref()).last()
}
