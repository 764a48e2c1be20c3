//! `microagent volume`, in JSON.

use std::path::PathBuf;

use jiff::Timestamp;
use microagent::volume::{PrunedVolumes, Volume, VolumeDeletion};
use microagent::{VolumeName, WorkspaceName};
use serde::Serialize;

/// `microagent volume list`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct VolumeListDocument {
    pub(crate) volumes: Vec<VolumeDocument>,
}

/// `microagent volume delete`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct VolumeDeleteDocument {
    pub(crate) volumes: Vec<DeletedVolume>,
}

document! {
    /// A volume: `microagent volume create`, `status` and `resize`.
    VolumeDocument of Volume {
        #[cfg_attr(test, schemars(with = "String"))]
        name: VolumeName,
        /// `null` for a damaged record, as `created_at`.
        size_mib: Option<u64>,
        created_at: Option<Timestamp>,
        /// The workspace whose machine has it; the first of `readers` if machines only read it.
        attached_to: Option<String>,
        /// The workspaces whose machines have it read-only.
        readers: Vec<String>,
        bytes: u64,
        path: PathBuf,
        problem: Option<String>,
    }
}

/// `microagent volume prune`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct VolumePruneDocument {
    /// Names of what was deleted.
    pub(crate) volumes: Vec<String>,
    pub(crate) freed_bytes: u64,
}

impl From<PrunedVolumes> for VolumePruneDocument {
    fn from(pruned: PrunedVolumes) -> VolumePruneDocument {
        let PrunedVolumes { volumes, freed_bytes, .. } = pruned;
        VolumePruneDocument { volumes: volumes.iter().map(ToString::to_string).collect(), freed_bytes }
    }
}

/// A volume that was named for deletion.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct DeletedVolume {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) name: VolumeName,
    pub(crate) deleted: bool,
    /// The workspace that was killed for it.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub(crate) killed: Option<WorkspaceName>,
    /// Others that were killed: all of them only read it.
    #[cfg_attr(test, schemars(with = "Vec<String>"))]
    pub(crate) also_killed: Vec<WorkspaceName>,
    /// Workspaces that name it and cannot be started without it.
    #[cfg_attr(test, schemars(with = "Vec<String>"))]
    pub(crate) missed_by: Vec<WorkspaceName>,
}

impl DeletedVolume {
    /// What the library did to this volume.
    pub(crate) fn new(name: VolumeName, deletion: VolumeDeletion) -> DeletedVolume {
        let VolumeDeletion { deleted, killed, missed_by, .. } = deletion;
        let mut killed = killed.into_iter();
        DeletedVolume { name, deleted, killed: killed.next(), also_killed: killed.collect(), missed_by }
    }
}
