//! Why a directory cannot be synced.

use std::io;
use std::path::PathBuf;

use microagent_model::WorkspaceName;

use super::ErrorKind;
use super::kind::io_kind;
use crate::Hint;

/// Why a directory cannot be synced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyncError {
    /// A pattern of excluded paths is not valid.
    #[error("the pattern `{}` is not valid", pattern.escape_debug())]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The path of the guest is the root directory, or has `..` in it.
    #[error("`{}` cannot be synced", path.escape_debug())]
    GuestPath {
        /// The path.
        path: String,
    },
    /// The directory of the host is in the state directory.
    #[error("`{}` is in microagent's own state", path.display())]
    OwnState {
        /// The directory.
        path: PathBuf,
    },
    /// One side has more files than can be compared.
    #[error("there are more than {max} files, or their names are too long together")]
    TooManyFiles {
        /// The limit.
        max: usize,
    },
    /// The directory of the host was removed or replaced during the sync.
    #[error("the directory `{}` was removed or replaced", path.display())]
    Replaced {
        /// The directory.
        path: PathBuf,
    },
    /// Another sync of the same two directories is in progress.
    #[error("another sync of `{}` with workspace `{workspace}` is in progress", path.display())]
    Busy {
        /// The workspace.
        workspace: WorkspaceName,
        /// The directory of the host.
        path: PathBuf,
    },
    /// The host does not let the user watch more directories.
    #[error("no more directories of the host can be watched")]
    WatchLimit {
        /// The system's error.
        source: io::Error,
    },
    /// What the last sync left cannot be read or written.
    #[error("cannot {action} the record of the last sync, `{}`", path.display())]
    Base {
        /// The attempted operation.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl SyncError {
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            SyncError::Pattern { .. }
            | SyncError::GuestPath { .. }
            | SyncError::OwnState { .. }
            | SyncError::TooManyFiles { .. } => ErrorKind::Invalid,
            SyncError::Replaced { .. } => ErrorKind::NotFound,
            SyncError::Busy { .. } => ErrorKind::Busy,
            SyncError::WatchLimit { .. } => ErrorKind::Host,
            SyncError::Base { source, .. } => io_kind(Some(source)),
        }
    }

    pub(super) fn hint(&self) -> Option<Hint> {
        Some(Hint::advice(match self {
            SyncError::Pattern { .. } => "write it as in a .gitignore file, such as `*.log` or `/build/`",
            SyncError::GuestPath { .. } => "name a directory below `/`, without `..`, such as /srv/app",
            SyncError::OwnState { .. } => "name another directory",
            SyncError::TooManyFiles { .. } => {
                "exclude directories that need not be the same, or name one below"
            }
            SyncError::Replaced { .. } => "start the sync again when it exists",
            SyncError::Busy { .. } => "try again when the other sync has ended",
            SyncError::WatchLimit { .. } => {
                "exclude directories, or raise fs.inotify.max_user_watches and max_user_instances"
            }
            SyncError::Base { source, .. } if io_kind(Some(source)) == ErrorKind::HostFull => {
                return Some(Hint::FreeSpace { leftover: None });
            }
            SyncError::Base { .. } => return None,
        }))
    }
}
