//! Why something could not be done: a kind for programs, a line and a hint for people.

use std::io;
use std::path::PathBuf;

use microagent_guest::GuestError;
use microagent_image::ImageError;
use microagent_image::bundle::BundleError;
use microagent_store::{
    FailureKind, LoadError, LockError, OpenError, State, VolumeLoadError, VolumeName, WorkspaceName,
    WriteError,
};
use microagent_vm::{ControlError, OutputReader, PortError, SuperviseError};
use serde::Serialize;

use crate::lifecycle::QUARANTINE;
use crate::workspace::DELETE;
use crate::{SecretError, SecretFault, SetupFailure, SpecError};

/// Why an operation failed. `Display` is one line without its cause; causes are in `source()`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] OpenError),
    /// The image could not be had.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// No workspace of this name.
    #[error("no workspace `{name}`")]
    NoSuchWorkspace {
        /// The name asked for.
        name: WorkspaceName,
    },
    /// The name is taken.
    #[error("workspace `{name}` exists already")]
    NameTaken {
        /// The name asked for.
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
        /// The lock that was not had.
        source: Option<LockError>,
    },
    /// The workspace's state does not allow the operation.
    #[error("workspace `{name}` is {state}; cannot {action}")]
    WrongState {
        /// The workspace.
        name: WorkspaceName,
        /// Its state.
        state: State,
        /// What was to be done.
        action: &'static str,
    },
    /// What is to change does not change while the workspace lives. Nothing has changed.
    #[error("workspace `{name}` is {state}, and {} only at rest", changes(keys))]
    NeedsRest {
        /// The workspace.
        name: WorkspaceName,
        /// Its state.
        state: State,
        /// The keys of the spec file.
        keys: Vec<String>,
    },
    /// What is to change cannot change. Nothing has changed.
    #[error("workspace `{name}` cannot become what the file says: {}", differences.join("; "))]
    Unchangeable {
        /// The workspace.
        name: WorkspaceName,
        /// What differs.
        differences: Vec<String>,
    },
    /// No volume of this name.
    #[error("no volume `{name}`")]
    NoSuchVolume {
        /// The name asked for.
        name: VolumeName,
    },
    /// The volume's name is taken.
    #[error("volume `{name}` exists already")]
    VolumeExists {
        /// The name asked for.
        name: VolumeName,
    },
    /// The volume's record is unreadable.
    #[error(transparent)]
    VolumeRecord(#[from] VolumeLoadError),
    /// Another machine or command has a disk.
    #[error("{disk} is in use{}", by(holder.as_deref()))]
    DiskBusy {
        /// The disk.
        disk: String,
        /// The workspace that has it, if that is known.
        holder: Option<String>,
    },
    /// Resting workspaces name the volume.
    #[error("volume `{name}` belongs to {}", listed(workspaces))]
    VolumeNamed {
        /// The volume.
        name: VolumeName,
        /// The workspaces.
        workspaces: Vec<WorkspaceName>,
    },
    /// No disk could be made of a bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The workspace declared no such output.
    #[error("workspace `{workspace}` has no artifact `{artifact}`")]
    NoSuchArtifact {
        /// The workspace.
        workspace: WorkspaceName,
        /// The artifact asked for.
        artifact: String,
        /// The ones that it has.
        declared: Vec<String>,
    },
    /// The guest could not deliver an artifact.
    #[error("cannot read `{path}` in workspace `{workspace}`: {reason}")]
    ArtifactUnreadable {
        /// The workspace.
        workspace: WorkspaceName,
        /// The guest's path.
        path: String,
        /// What the guest said.
        reason: String,
    },
    /// A spec file is not understood.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The request makes no sense.
    #[error("{message}")]
    Invalid {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A secret has no value. Nothing was booted.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A file of secrets could not be read.
    #[error("cannot take secrets from `{}`", path.display())]
    SecretFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SecretFault,
    },
    /// The machine failed before its work was done. The record stays, in state `failed`.
    #[error("run workspace \"{workspace}\" failed (backend={backend}): {message}")]
    RunFailed {
        /// The workspace.
        workspace: WorkspaceName,
        /// `linux-kvm` or `linux-tcg`.
        backend: String,
        /// What kind of failure.
        kind: FailureKind,
        /// One line; `signal: killed` after a timeout.
        message: String,
        /// Last lines of the guest's console, when they tell something.
        console_tail: Option<String>,
    },
    /// A start failed. The record stays, in state `failed`.
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
        /// Last lines of the guest's console, when they tell something.
        console_tail: Option<String>,
    },
    /// The machine could not be brought to another state as was asked.
    #[error("workspace `{workspace}`: cannot {action}: {message}")]
    ChangeFailed {
        /// The workspace.
        workspace: WorkspaceName,
        /// What was to be done.
        action: &'static str,
        /// One line.
        message: String,
    },
    /// The supervisor of a running workspace cannot be spoken to.
    #[error("workspace `{workspace}` cannot be reached")]
    Unreachable {
        /// The workspace.
        workspace: WorkspaceName,
        /// What happened to the conversation.
        source: ControlError,
    },
    /// The running machine was started by another build.
    #[error("workspace `{workspace}` was started by another build of microagent")]
    OtherBuild {
        /// The workspace.
        workspace: WorkspaceName,
    },
    /// As many commands as possible are at work in the guest.
    #[error("too many commands are at work in workspace `{workspace}`")]
    Crowded {
        /// The workspace.
        workspace: WorkspaceName,
    },
    /// Another session has the serial console.
    #[error("another session has the console of workspace `{workspace}`")]
    ConsoleTaken {
        /// The workspace.
        workspace: WorkspaceName,
    },
    /// The conversation with the guest broke off.
    #[error("the guest of workspace `{workspace}` went away in the middle: {message}")]
    GuestGone {
        /// The workspace.
        workspace: WorkspaceName,
        /// One line.
        message: String,
    },
    /// The guest could not do what was asked.
    #[error("the guest of workspace `{workspace}` refused: {message}")]
    GuestRefused {
        /// The workspace.
        workspace: WorkspaceName,
        /// Whether the path does not exist.
        not_found: bool,
        /// What it said.
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
    #[error("setup step {} failed with exit code {}: {}", failure.step, failure.exit_code, failure.label)]
    SetupFailed {
        /// The workspace, left in state `failed`.
        workspace: WorkspaceName,
        /// Which step.
        failure: SetupFailure,
        /// What the steps printed.
        output: Box<OutputReader>,
    },
    /// The caller's token said stop.
    #[error("cancelled")]
    Cancelled,
    /// The machine could not be started or spoken to.
    #[error(transparent)]
    Supervise(#[from] SuperviseError),
    /// A port of the host cannot be published; nothing was done.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The guest's kernel and agent could not be unpacked.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A file of ours could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A file of the user's or of the host could not be used.
    #[error("cannot {action} `{}`", path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Class of an [`Error`], stable for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request itself is wrong.
    Invalid,
    /// There is no such thing.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// Another command holds it; try again.
    Busy,
    /// The state does not allow it.
    WrongState,
    /// The image could not be had.
    Image,
    /// A disk or bundle cannot be used.
    Disk,
    /// The value of a secret could not be had.
    Secret,
    /// The machine failed.
    RunFailed,
    /// `--timeout` ran out.
    Timeout,
    /// A setup step failed.
    SetupFailed,
    /// Stopped on request.
    Cancelled,
    /// The host is out of disk or memory.
    HostFull,
    /// A port of the host that is to be published cannot be listened at.
    PortUnavailable,
    /// The host lacks something or forbids something.
    Host,
    /// A record of ours is damaged.
    Damaged,
}

impl Error {
    /// Class of the error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::State(_) | Error::Supervise(_) | Error::Guest(_) => io_kind(deepest_io(self)),
            Error::Image(ImageError::Cancelled) | Error::Cancelled => ErrorKind::Cancelled,
            Error::Image(ImageError::Reference { .. } | ImageError::TargetName { .. }) => ErrorKind::Invalid,
            Error::Image(
                ImageError::NotCached { .. }
                | ImageError::NoSuchImage { .. }
                | ImageError::UnknownImage { .. },
            ) => ErrorKind::NotFound,
            Error::Image(ImageError::DiskFull { .. }) => ErrorKind::HostFull,
            Error::Image(ImageError::Busy { .. }) => ErrorKind::Busy,
            Error::Image(_) => ErrorKind::Image,
            Error::NoSuchWorkspace { .. }
            | Error::NoSuchArtifact { .. }
            | Error::ArtifactUnreadable { .. } => ErrorKind::NotFound,
            Error::NameTaken { .. } => ErrorKind::AlreadyExists,
            Error::Record(_) | Error::VolumeRecord(_) => ErrorKind::Damaged,
            Error::NoSuchVolume { .. } => ErrorKind::NotFound,
            Error::VolumeExists { .. } => ErrorKind::AlreadyExists,
            Error::VolumeNamed { .. } => ErrorKind::WrongState,
            Error::Bundle(BundleError::Cancelled) => ErrorKind::Cancelled,
            Error::Bundle(e) if e.is_disk_full() => ErrorKind::HostFull,
            Error::Bundle(_)
            | Error::RunFailed { kind: FailureKind::Disk, .. }
            | Error::StartFailed { kind: FailureKind::Disk, .. } => ErrorKind::Disk,
            Error::Busy { .. } | Error::DiskBusy { .. } => ErrorKind::Busy,
            Error::WrongState { .. } | Error::NeedsRest { .. } => ErrorKind::WrongState,
            Error::Unchangeable { .. } => ErrorKind::Invalid,
            Error::Spec(_) | Error::Invalid { .. } => ErrorKind::Invalid,
            Error::Secret(_) | Error::SecretFile { .. } => ErrorKind::Secret,
            Error::RunFailed { kind: FailureKind::Timeout, .. } => ErrorKind::Timeout,
            Error::Crowded { .. } | Error::ConsoleTaken { .. } => ErrorKind::Busy,
            Error::OtherBuild { .. } => ErrorKind::WrongState,
            Error::GuestRefused { not_found: true, .. } => ErrorKind::NotFound,
            Error::RunFailed { kind: FailureKind::HostFull, .. }
            | Error::StartFailed { kind: FailureKind::HostFull, .. }
            | Error::TemplateFailed { kind: FailureKind::HostFull, .. } => ErrorKind::HostFull,
            Error::Port(_)
            | Error::RunFailed { kind: FailureKind::PortUnavailable, .. }
            | Error::StartFailed { kind: FailureKind::PortUnavailable, .. } => ErrorKind::PortUnavailable,
            Error::RunFailed { kind: FailureKind::Cancelled, .. } => ErrorKind::Cancelled,
            Error::RunFailed { .. } | Error::TemplateFailed { .. } => ErrorKind::RunFailed,
            Error::StartFailed { .. }
            | Error::ChangeFailed { .. }
            | Error::Unreachable { .. }
            | Error::GuestGone { .. }
            | Error::GuestRefused { .. } => ErrorKind::RunFailed,
            Error::SetupFailed { .. } => ErrorKind::SetupFailed,
            Error::Write(e) => io_kind(e.io()),
            Error::File { source, .. } => io_kind(Some(source)),
        }
    }

    /// Whether the same call can succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Image(e) => e.is_retryable(),
            _ => matches!(self.kind(), ErrorKind::Busy | ErrorKind::HostFull),
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Image(e) => e.hint(),
            Error::Supervise(e) => e.hint(),
            Error::Spec(e) => Some(e.hint()),
            Error::Secret(e) => Some(e.hint()),
            Error::SecretFile { source, .. } => source.hint(),
            Error::Invalid { hint, .. } => hint.clone(),
            Error::Port(e) => Some(e.hint()),
            Error::StartFailed { kind: FailureKind::PortUnavailable, .. } => {
                Some("another program was quicker; free the port and try again".to_owned())
            }
            Error::RunFailed { kind: FailureKind::PortUnavailable, workspace, .. } => Some(format!(
                "another program was quicker; free the port or choose another one, or 0 for any; \
                 microagent delete {workspace} --yes removes what is left"
            )),
            Error::State(_) => {
                Some("choose another directory with --state-dir or MICROAGENT_STATE_DIR".to_owned())
            }
            Error::NoSuchWorkspace { .. } => Some("`microagent list` shows the saved workspaces".to_owned()),
            Error::NoSuchVolume { name } => {
                Some(format!("`microagent volume list` shows those that exist; make it: microagent volume create {name}"))
            }
            Error::VolumeExists { name } => {
                Some(format!("use it, or remove it with everything on it: microagent volume delete {name}"))
            }
            Error::VolumeRecord(_) => {
                Some("its disk, disk.ext4 beside the record, is not touched; `microagent volume delete NAME` removes both".to_owned())
            }
            Error::DiskBusy { holder: Some(holder), .. } => {
                Some(format!("one machine has it at a time; end that one first: microagent halt {holder}"))
            }
            Error::DiskBusy { holder: None, .. } => Some("try again when nobody uses it".to_owned()),
            Error::VolumeNamed { workspaces, .. } => {
                let names: Vec<_> = workspaces.iter().map(WorkspaceName::as_str).collect();
                Some(format!(
                    "delete them first: microagent delete {}; or add --force, after which they do not start",
                    names.join(" ")
                ))
            }
            Error::Bundle(BundleError::Damaged { .. } | BundleError::Compression { .. }) => {
                Some("pack it anew: tar -C DIR -cf files.tar . (or .tar.gz, .tar.zst)".to_owned())
            }
            Error::RunFailed { kind: FailureKind::Disk, .. }
            | Error::StartFailed { kind: FailureKind::Disk, .. } => Some(
                "one that was not unmounted cleanly is right after one start without :ro; a damaged one can be repaired: \
                 e2fsck -f on its file, which for a volume `microagent volume status NAME` shows"
                    .to_owned(),
            ),
            Error::NameTaken { name } => {
                Some(format!("choose another --name, or remove it: microagent delete {name} --yes"))
            }
            Error::Record(_) => Some("`microagent delete NAME --yes` removes a damaged workspace".to_owned()),
            Error::NeedsRest { name, .. } => Some(format!(
                "microagent halt {name}, then apply the file and start it again; nothing was changed"
            )),
            Error::Unchangeable { .. } => Some(
                "nothing was changed; have the file say what is there, or make another workspace of it: \
                 microagent create NAME --file SPEC"
                    .to_owned(),
            ),
            Error::Busy { .. } => Some("try again when the other command has ended".to_owned()),
            Error::NoSuchArtifact { declared, .. } if declared.is_empty() => {
                Some("declare artifacts when it is made: --output NAME=/guest/path".to_owned())
            }
            Error::NoSuchArtifact { declared, .. } => Some(format!("it declares: {}", declared.join(", "))),
            Error::RunFailed { kind: FailureKind::HostFull, workspace, .. } => Some(format!(
                "free some space: microagent delete {workspace} --yes, microagent image prune; \
                 microagent logs {workspace} shows how far it came"
            )),
            Error::WrongState { name, state, action } => match state {
                State::Quarantined if *action == DELETE => {
                    Some(format!("with all that is kept of it: microagent delete --force {name}"))
                }
                State::Quarantined => {
                    Some(format!("release it first, without its memory: microagent halt {name}"))
                }
                state if *action == QUARANTINE && state.is_resting() => {
                    Some("nothing of it acts while it rests".to_owned())
                }
                State::Running if *action == QUARANTINE => {
                    Some(format!("it is its command's alone; end it: microagent kill {name}"))
                }
                State::Paused => Some(format!("let it go on first: microagent resume {name}")),
                state if state.is_resting() => Some(format!("start it first: microagent start {name}")),
                State::Running if *action == "start it" => {
                    Some(format!("use it: microagent exec {name} -- COMMAND"))
                }
                State::Starting | State::Stopping => Some("wait a moment and try again".to_owned()),
                _ => Some(format!("end it first: microagent halt {name}")),
            },
            Error::Unreachable { workspace, .. } | Error::OtherBuild { workspace } => Some(format!(
                "microagent status {workspace} shows what is true; microagent kill {workspace} ends it"
            )),
            Error::ChangeFailed { workspace, .. } => {
                Some(format!("microagent logs {workspace} may say why; microagent kill {workspace} ends it"))
            }
            Error::Crowded { .. } => Some("try again when one of them has ended".to_owned()),
            Error::ConsoleTaken { workspace } => {
                Some(format!("microagent logs -f {workspace} shows it all the same"))
            }
            Error::StartFailed { kind: FailureKind::HostFull, .. } => {
                Some("free some space (microagent image prune), then try again".to_owned())
            }
            Error::StartFailed { workspace, .. } => {
                Some(format!("microagent logs {workspace} shows how far it came"))
            }
            Error::RunFailed { workspace, .. } | Error::SetupFailed { workspace, .. } => Some(format!(
                "microagent logs {workspace} shows why; microagent delete {workspace} --yes removes it"
            )),
            _ if self.kind() == ErrorKind::HostFull => {
                Some("free some space (`microagent image prune`) or use another --state-dir".to_owned())
            }
            _ => None,
        }
    }
}

/// `a changes` or `a, b change`.
fn changes(keys: &[String]) -> String {
    format!("{} {}", keys.join(", "), if keys.len() == 1 { "changes" } else { "change" })
}

impl Error {
    /// A volume that is not there is not damaged.
    pub(crate) fn from_volume(name: &VolumeName, error: VolumeLoadError) -> Error {
        if error.is_not_found() { Error::NoSuchVolume { name: name.clone() } } else { error.into() }
    }
}

fn by(holder: Option<&str>) -> String {
    holder.map(|holder| format!(" by workspace `{holder}`")).unwrap_or_default()
}

fn listed(workspaces: &[WorkspaceName]) -> String {
    let names: Vec<_> = workspaces.iter().map(|name| format!("`{name}`")).collect();
    format!("workspace{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", "))
}

/// An error and what caused it, in one line.
pub(crate) fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// What the system said, if it said something.
pub(crate) fn deepest_io<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a io::Error> {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.filter_map(|cause| cause.downcast_ref()).last()
}

fn io_kind(error: Option<&io::Error>) -> ErrorKind {
    match error.map(io::Error::kind) {
        Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory) => {
            ErrorKind::HostFull
        }
        _ => ErrorKind::Host,
    }
}
