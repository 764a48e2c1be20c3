//! The class of each error.

use std::io;

use microagent_image::ImageError;
use microagent_image::bundle::BundleError;
use microagent_model::FailureKind;
use microagent_vm::SuperviseError;
use serde::{Deserialize, Serialize};

use super::{Error, InvalidRequest, deepest_io};

/// Class of an [`Error`], stable for programs.
///
/// Any method that boots a machine can fail with [`Host`](ErrorKind::Host) (QEMU is missing), [`Busy`](ErrorKind::Busy),
/// [`HostFull`](ErrorKind::HostFull), [`RunFailed`](ErrorKind::RunFailed) and [`Cancelled`](ErrorKind::Cancelled);
/// any method of a workspace with [`NotFound`](ErrorKind::NotFound) and [`Damaged`](ErrorKind::Damaged). Methods list
/// the other kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request is not valid.
    Invalid,
    /// The workspace, volume, private network, image, job or artifact does not exist, or the path on the host or in the guest.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// Another command uses it, or a limit of what may run at a time is reached; try again.
    Busy,
    /// The state does not allow the operation.
    WrongState,
    /// The image cannot be used.
    Image,
    /// A disk or bundle cannot be used.
    Disk,
    /// The value of a secret cannot be looked up.
    Secret,
    /// The machine failed, cannot be reached, or did not change its state as requested.
    RunFailed,
    /// The guest could not carry out a request: it cannot read or write the path, its disk is full, or a tar stream is
    /// damaged. The machine continues.
    GuestRefused,
    /// The time limit of the run was reached.
    Timeout,
    /// A setup step failed.
    SetupFailed,
    /// Cancelled by the caller.
    Cancelled,
    /// The host has no free disk space or memory.
    HostFull,
    /// A port of the host cannot be published.
    PortUnavailable,
    /// The host lacks a requirement or denies access.
    Host,
    /// A record of the state directory is damaged.
    Damaged,
}

impl Error {
    /// Whether a machine that did not come up was cancelled and has ended, or never begun.
    pub(crate) fn leaves_no_machine(&self) -> bool {
        match self {
            Error::Supervise(SuperviseError::StillEnding) => false,
            _ => matches!(self, Error::Cancelled | Error::Supervise(_)),
        }
    }

    /// Returns the class of the error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Supervise(SuperviseError::Cancelled | SuperviseError::StillEnding) => ErrorKind::Cancelled,
            Error::State(_) | Error::Supervise(_) | Error::Guest(_) => io_kind(deepest_io(self)),
            Error::Image(error) => image_kind(error),
            Error::Bundle(BundleError::Cancelled) | Error::Cancelled | Error::RunCancelled { .. } => {
                ErrorKind::Cancelled
            }
            Error::Bundle(error) if error.is_disk_full() => ErrorKind::HostFull,
            Error::Bundle(_) => ErrorKind::Disk,
            Error::RunFailed { kind, .. } => failure_kind(*kind),
            Error::StartFailed { kind, .. } | Error::TemplateFailed { kind, .. } => match failure_kind(*kind)
            {
                // Another command ended it, or it was too slow: the caller cancelled nothing and set no limit.
                ErrorKind::Cancelled | ErrorKind::Timeout => ErrorKind::RunFailed,
                kind => kind,
            },
            Error::NoSuchWorkspace { .. }
            | Error::NoSuchVolume { .. }
            | Error::NoSuchTemplate { .. }
            | Error::NoSuchArtifact { .. }
            | Error::ArtifactUnreadable { .. }
            | Error::GuestRefused { not_found: true, .. } => ErrorKind::NotFound,
            Error::NameTaken { .. } | Error::VolumeExists { .. } => ErrorKind::AlreadyExists,
            Error::Record(_) | Error::VolumeRecord(_) => ErrorKind::Damaged,
            Error::Busy { .. }
            | Error::DiskBusy { .. }
            | Error::TooManyRunning { .. }
            | Error::Crowded { .. }
            | Error::BaseTaken { .. }
            | Error::ConsoleTaken { .. } => ErrorKind::Busy,
            Error::WrongState { .. }
            | Error::NeedsRest { .. }
            | Error::VolumeNamed { .. }
            | Error::OtherBuild { .. } => ErrorKind::WrongState,
            Error::Invalid(InvalidRequest::CopyToNowhere { .. }) => ErrorKind::NotFound,
            Error::Unchangeable { .. } | Error::Spec(_) | Error::Invalid(_) => ErrorKind::Invalid,
            Error::Secret(_) | Error::SecretFile { .. } => ErrorKind::Secret,
            Error::Port(_) | Error::PortHeld { .. } => ErrorKind::PortUnavailable,
            Error::Kvm(_) | Error::ProcessesHidden => ErrorKind::Host,
            Error::ChangeFailed { .. } | Error::Unreachable { .. } | Error::GuestGone { .. } => {
                ErrorKind::RunFailed
            }
            Error::GuestRefused { .. } => ErrorKind::GuestRefused,
            Error::SetupFailed { .. } => ErrorKind::SetupFailed,
            Error::Job(error) => error.kind(),
            Error::Snapshot(error) => error.kind(),
            Error::Sync(error) => error.kind(),
            Error::Network(error) => error.kind(),
            Error::Write(error) => io_kind(error.io()),
            Error::File { source, .. } if source.kind() == io::ErrorKind::NotFound => ErrorKind::NotFound,
            Error::File { source, .. } | Error::Sink(source) => io_kind(Some(source)),
        }
    }
}

fn image_kind(error: &ImageError) -> ErrorKind {
    match error {
        ImageError::Cancelled => ErrorKind::Cancelled,
        ImageError::Reference { .. } | ImageError::TargetName { .. } | ImageError::IsAFile { .. } => {
            ErrorKind::Invalid
        }
        ImageError::NotCached { .. }
        | ImageError::NoSuchImage { .. }
        | ImageError::UnknownImage { .. }
        | ImageError::NotInDaemon { .. } => ErrorKind::NotFound,
        ImageError::Archive { source, .. } if source.is_not_found() => ErrorKind::NotFound,
        ImageError::DiskFull { .. } => ErrorKind::HostFull,
        ImageError::Busy { .. } => ErrorKind::Busy,
        _ => ErrorKind::Image,
    }
}

pub(super) fn failure_kind(kind: FailureKind) -> ErrorKind {
    match kind {
        FailureKind::Disk => ErrorKind::Disk,
        FailureKind::Timeout => ErrorKind::Timeout,
        FailureKind::HostFull => ErrorKind::HostFull,
        FailureKind::PortUnavailable => ErrorKind::PortUnavailable,
        FailureKind::Cancelled => ErrorKind::Cancelled,
        _ => ErrorKind::RunFailed,
    }
}

pub(super) fn io_kind(error: Option<&io::Error>) -> ErrorKind {
    match error.map(io::Error::kind) {
        Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory) => {
            ErrorKind::HostFull
        }
        _ => ErrorKind::Host,
    }
}
