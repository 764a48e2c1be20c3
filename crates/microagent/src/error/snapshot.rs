//! Why a snapshot cannot be made or used.

use std::io;

use microagent_model::{SnapshotTag, VolumeName, WorkspaceName};
use microagent_store::{FreeError, LoadError};

use super::kind::io_kind;
use super::{Action, Error, ErrorKind};
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
    /// The running workspace has bundles, whose disks are copied at rest only.
    #[error("workspace `{workspace}` has bundles that it can write to and is running; cannot {action}")]
    Bundles {
        /// The workspace.
        workspace: WorkspaceName,
        /// What cannot be done: [`Action::Snapshot`] or [`Action::Fork`].
        action: Action,
    },
    /// The workspace has secrets, whose values are in its memory.
    #[error(
        "the memory of workspace `{workspace}` has values of secrets, which must not be in a snapshot or fork; cannot {action}"
    )]
    MemoryWithSecrets {
        /// The workspace.
        workspace: WorkspaceName,
        /// What cannot be done: [`Action::Snapshot`] or [`Action::Fork`].
        action: Action,
    },
    /// The workspace can write to a disk that is not part of a snapshot.
    #[error(
        "workspace `{workspace}` can write to the disk at `{mount_point}`, which is not in a snapshot and would not fit its memory; cannot {action}"
    )]
    MemoryWithDisk {
        /// The workspace.
        workspace: WorkspaceName,
        /// What cannot be done: [`Action::Snapshot`] or [`Action::Fork`].
        action: Action,
        /// Where the disk is mounted.
        mount_point: String,
        /// Whether it is an image file of the host, which is not copied for forks either.
        is_image: bool,
    },
    /// The workspace can write to an image file of the host, of which no copies are made. Nothing was created.
    #[error(
        "workspace `{workspace}` can write to the image file at `{mount_point}`; only volumes and bundles are copied for forks"
    )]
    CopiedImage {
        /// The workspace.
        workspace: WorkspaceName,
        /// Where the image is mounted.
        mount_point: String,
    },
    /// The name of a copy of a volume would be too long. Nothing was created.
    #[error("the names `{volume}` and `{fork}` together are too long for the fork's copy of the volume")]
    LongCopyName {
        /// The volume.
        volume: VolumeName,
        /// The fork.
        fork: WorkspaceName,
    },
    /// The memory of the snapshot does not fit this host or the workspace's settings. Nothing was changed.
    #[error("the memory of snapshot `{snapshot}` cannot be restored here: the {what} is different")]
    OtherMachine {
        /// The snapshot, as `WORKSPACE:TAG`.
        snapshot: String,
        /// What differs between the host or workspace and the memory: `processor`, `QEMU` and so on.
        what: &'static str,
    },
    /// The workspace runs, and the snapshot has no memory that it could continue with. Nothing was changed.
    #[error(
        "snapshot `{workspace}:{tag}` has the disk only, and the workspace is running; {}",
        shown_tags(.with_memory)
    )]
    NoMemory {
        /// The workspace.
        workspace: WorkspaceName,
        /// The snapshot.
        tag: SnapshotTag,
        /// Those of its snapshots that have memory.
        with_memory: Vec<SnapshotTag>,
    },
    /// The start was cancelled when the disk had been restored.
    #[error("cancelled; workspace `{workspace}` is stopped and has the disk of snapshot `{tag}`")]
    OnlyRestored {
        /// The workspace.
        workspace: WorkspaceName,
        /// The snapshot.
        tag: SnapshotTag,
    },
    /// One of several forks was not made; those before it were.
    #[error("fork `{failed}` was not started; started before: {}", named(.made))]
    ForksIncomplete {
        /// The forks that were made, and run if their source did.
        made: Vec<WorkspaceName>,
        /// The first one that was not.
        failed: WorkspaceName,
        /// Why.
        source: Box<Error>,
    },
    /// The snapshot is evidence of a quarantined workspace.
    #[error("snapshot `{workspace}:{tag}` is evidence: nothing starts, restores or exports it")]
    Forensic {
        /// The workspace.
        workspace: WorkspaceName,
        /// The snapshot.
        tag: SnapshotTag,
    },
    /// The snapshot is evidence, and was not deleted.
    #[error("snapshot `{workspace}:{tag}` is evidence of a quarantined workspace")]
    KeptEvidence {
        /// The workspace.
        workspace: WorkspaceName,
        /// The snapshot.
        tag: SnapshotTag,
    },
    /// The memory of the quarantined machine was captured before, which works once. Nothing was changed.
    #[error("the memory of workspace `{workspace}` was captured as evidence before, in snapshot `{tag}`")]
    HasEvidence {
        /// The workspace.
        workspace: WorkspaceName,
        /// The snapshot that has it.
        tag: SnapshotTag,
    },
    /// The memory of the quarantined machine could not be captured.
    #[error("workspace `{workspace}`: cannot capture it as evidence: {message}")]
    NoEvidence {
        /// The workspace.
        workspace: WorkspaceName,
        /// One line.
        message: String,
    },
    /// The memory has disks mounted that an export does not contain.
    #[error(
        "the memory of snapshot `{snapshot}` has disks mounted that are not part of it; cannot export it"
    )]
    MemoryOfDisks {
        /// The snapshot, as `WORKSPACE:TAG`.
        snapshot: String,
    },
    /// The memory in a file does not fit this host. Nothing was created.
    #[error("the memory in the file cannot be restored here: the {what} is different")]
    ImportedMachine {
        /// What is different.
        what: &'static str,
    },
    /// The file is not as an export writes it. Nothing was created.
    #[error("the file is not a usable snapshot: {reason}")]
    Archive {
        /// What is wrong.
        reason: String,
    },
    /// A newer release has written the file. Nothing was created.
    #[error(
        "the file has format {format}, written by release {release} of microagent; this one reads formats up to {newest}"
    )]
    NewerFile {
        /// The format of the file.
        format: u32,
        /// The newest that this release reads.
        newest: u32,
        /// The release that has written the file, as it says.
        release: String,
    },
    /// The workspace's name is too long for that of a fork.
    #[error("the name `{workspace}` is too long to add a number for a fork")]
    NoForkName {
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
            SnapshotError::SetupPending { .. }
            | SnapshotError::Bundles { .. }
            | SnapshotError::MemoryWithSecrets { .. }
            | SnapshotError::NoMemory { .. }
            | SnapshotError::MemoryOfDisks { .. }
            | SnapshotError::Forensic { .. }
            | SnapshotError::KeptEvidence { .. }
            | SnapshotError::HasEvidence { .. }
            | SnapshotError::CopiedImage { .. }
            | SnapshotError::MemoryWithDisk { .. } => ErrorKind::WrongState,
            SnapshotError::OnlyRestored { .. } => ErrorKind::Cancelled,
            SnapshotError::NoEvidence { .. } => ErrorKind::RunFailed,
            SnapshotError::ForksIncomplete { source, .. } => source.kind(),
            SnapshotError::OtherMachine { .. } | SnapshotError::ImportedMachine { .. } => ErrorKind::Host,
            SnapshotError::NoForkName { .. } | SnapshotError::LongCopyName { .. } => ErrorKind::Invalid,
            SnapshotError::Damaged { .. }
            | SnapshotError::Archive { .. }
            | SnapshotError::NewerFile { .. }
            | SnapshotError::Record { .. }
            | SnapshotError::Free(FreeError::Unknown { .. }) => ErrorKind::Damaged,
            SnapshotError::Free(error) => io_kind(
                std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>()),
            ),
        }
    }

    pub(super) fn hint(&self) -> Option<Hint> {
        Some(match self {
            SnapshotError::NoSuch { workspace, .. }
            | SnapshotError::HasEvidence { workspace, .. }
            | SnapshotError::NoEvidence { workspace, .. } => Hint::ListSnapshots { name: workspace.clone() },
            SnapshotError::Exists { workspace, tag } => {
                Hint::DeleteSnapshot { name: workspace.clone(), tag: tag.clone() }
            }
            SnapshotError::Bundles { workspace, action: Action::Fork }
            | SnapshotError::MemoryWithDisk { workspace, action: Action::Fork, is_image: false, .. } => {
                Hint::CopyVolumes { name: workspace.clone() }
            }
            SnapshotError::Bundles { workspace, .. } => Hint::HaltFirst { name: workspace.clone() },
            SnapshotError::CopiedImage { workspace, .. } => Hint::ForkDisk { name: workspace.clone() },
            SnapshotError::LongCopyName { .. } => Hint::advice("choose a shorter name for the fork"),
            SnapshotError::MemoryWithSecrets { workspace, action }
            | SnapshotError::MemoryWithDisk { workspace, action, .. } => match action {
                Action::Fork => Hint::ForkDisk { name: workspace.clone() },
                _ => Hint::DiskOnlySnapshot { name: workspace.clone() },
            },
            SnapshotError::NoMemory { workspace, .. } => Hint::HaltFirst { name: workspace.clone() },
            SnapshotError::ForksIncomplete { source, .. } => return source.hint(),
            SnapshotError::OtherMachine { snapshot, .. } => {
                Hint::UseDiskOfSnapshot { snapshot: snapshot.clone() }
            }
            SnapshotError::MemoryOfDisks { .. } | SnapshotError::ImportedMachine { .. } => Hint::DiskOnly,
            SnapshotError::Forensic { .. } => {
                Hint::advice("examine its files in the state directory, in `snapshots` of the workspace")
            }
            SnapshotError::KeptEvidence { workspace, tag } => {
                Hint::DeleteEvidence { name: workspace.clone(), tag: tag.clone() }
            }
            SnapshotError::Archive { .. } => Hint::advice("write it again, and copy all of it"),
            SnapshotError::NewerFile { .. }
            | SnapshotError::Record { source: LoadError::TooNew { .. }, .. } => {
                Hint::advice("use that release of microagent, or a newer one")
            }
            SnapshotError::NoForkName { .. } => Hint::advice("give the names of the forks"),
            SnapshotError::SetupPending { workspace } | SnapshotError::OnlyRestored { workspace, .. } => {
                Hint::StartFirst { name: workspace.clone() }
            }
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

fn shown_tags(tags: &[SnapshotTag]) -> String {
    let tags: Vec<_> = tags.iter().map(|tag| format!("`{tag}`")).collect();
    match tags.as_slice() {
        [] => "it has no snapshot with memory".to_owned(),
        tags => format!("with memory: {}", tags.join(", ")),
    }
}

fn named(names: &[WorkspaceName]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
