//! Why a snapshot cannot be made or used.

use std::io;

use microagent_model::{SnapshotTag, WorkspaceName};
use microagent_store::{FreeError, LoadError};

use super::ErrorKind;
use super::kind::io_kind;
use crate::Hint;

/// Why a snapshot cannot be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// No snapshot with this tag.
    #[error("workspace `{workspace}` has no snapshot `{tag}`")]
    NoSuch {
        /// The workspace.
        workspace: WorkspaceName,
        /// The requested tag.
        tag: SnapshotTag,
    },
    /// The tag is taken.
    #[error("workspace `{workspace}` has a snapshot `{tag}` already")]
    Exists {
        /// The workspace.
        workspace: WorkspaceName,
        /// The requested tag.
        tag: SnapshotTag,
    },
    /// The workspace's setup has not been completed.
    #[error("the setup of workspace `{workspace}` has not run yet; cannot make a snapshot")]
    SetupPending {
        /// The workspace.
        workspace: WorkspaceName,
    },
    /// The snapshot's files are damaged or missing. Nothing was changed.
    #[error("snapshot `{workspace}:{tag}` is damaged: {reason}")]
    Damaged {
        /// The workspace.
        workspace: WorkspaceName,
        /// The snapshot.
        tag: SnapshotTag,
        /// What is damaged.
        reason: String,
    },
    /// The snapshot's record is unreadable.
    #[error("cannot read snapshot `{workspace}:{tag}`")]
    Record {
        /// The workspace.
        workspace: WorkspaceName,
        /// The snapshot.
        tag: SnapshotTag,
        /// What is wrong with the record.
        source: LoadError,
    },
    /// Layers that nothing needs could not be removed.
    #[error(transparent)]
    Free(#[from] FreeError),
}

impl SnapshotError {
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            SnapshotError::NoSuch { .. } => ErrorKind::NotFound,
            SnapshotError::Exists { .. } => ErrorKind::AlreadyExists,
            SnapshotError::SetupPending { .. } => ErrorKind::WrongState,
            SnapshotError::Damaged { .. }
            | SnapshotError::Record { .. }
            | SnapshotError::Free(FreeError::Unknown { .. }) => ErrorKind::Damaged,
            SnapshotError::Free(error) => io_kind(
                std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>()),
            ),
        }
    }

    pub(super) fn hint(&self) -> Option<Hint> {
        Some(match self {
            SnapshotError::NoSuch { workspace, .. } => Hint::ListSnapshots { name: workspace.clone() },
            SnapshotError::Exists { workspace, tag } => {
                Hint::DeleteSnapshot { name: workspace.clone(), tag: tag.clone() }
            }
            SnapshotError::SetupPending { workspace } => Hint::StartFirst { name: workspace.clone() },
            SnapshotError::Damaged { workspace, tag, .. } | SnapshotError::Record { workspace, tag, .. } => {
                Hint::DeleteDamagedSnapshot { name: workspace.clone(), tag: tag.clone() }
            }
            SnapshotError::Free(FreeError::Unknown { .. }) => {
                Hint::advice("delete the damaged workspace or snapshot")
            }
            SnapshotError::Free(_) => return None,
        })
    }
}
