//! `microagent snapshot`, in JSON.

use std::path::PathBuf;

use jiff::Timestamp;
use microagent::snapshot::{Snapshot, SnapshotDeletion};
use microagent::{SnapshotTag, WorkspaceName};
use serde::Serialize;

use crate::documents::shared::ResourcesDocument;

/// A snapshot: `microagent snapshot create` and `snapshot import`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct SnapshotDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) workspace: WorkspaceName,
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) tag: SnapshotTag,
    /// `memory` (with the disk), `disk` or `forensic` (evidence, with both); `null` for a damaged snapshot.
    pub(crate) kind: Option<&'static str>,
    /// `null` for a damaged snapshot, as `image` and `resources`.
    pub(crate) created_at: Option<Timestamp>,
    /// Full reference of the image of its disk.
    pub(crate) image: Option<String>,
    pub(crate) resources: Option<ResourcesDocument>,
    /// Bytes on disk of its newest layer, its memory and its bundles.
    pub(crate) bytes: u64,
    /// Bytes on disk of its memory; `null` for a snapshot of the disk.
    pub(crate) memory_bytes: Option<u64>,
    /// How long the machine was stopped for it, in microseconds; `null` unless it was just made of a running workspace.
    pub(crate) standstill_us: Option<u64>,
    /// Named volumes that the workspace attached, which are not part of the snapshot.
    pub(crate) volumes: Vec<String>,
    pub(crate) problem: Option<String>,
}

/// `microagent snapshot export`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct SnapshotExportDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) workspace: WorkspaceName,
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) tag: SnapshotTag,
    pub(crate) file: PathBuf,
    /// Size of the file.
    pub(crate) bytes: u64,
}

/// `microagent snapshot list`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct SnapshotListDocument {
    pub(crate) snapshots: Vec<SnapshotDocument>,
}

/// `microagent snapshot delete`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct SnapshotDeleteDocument {
    pub(crate) snapshots: Vec<DeletedSnapshot>,
}

/// A snapshot that was named for deletion.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct DeletedSnapshot {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) tag: SnapshotTag,
    pub(crate) deleted: bool,
    /// Bytes on disk of layers that nothing else needed.
    pub(crate) freed_bytes: u64,
}

impl From<Snapshot> for SnapshotDocument {
    fn from(snapshot: Snapshot) -> SnapshotDocument {
        let Snapshot {
            workspace,
            tag,
            created_at,
            image,
            resources,
            bytes,
            memory_bytes,
            standstill,
            volumes,
            problem,
            forensic,
            ..
        } = snapshot;
        let kind = match (forensic, memory_bytes) {
            (true, _) => "forensic",
            (false, Some(_)) => "memory",
            (false, None) => "disk",
        };
        SnapshotDocument {
            workspace,
            tag,
            kind: problem.is_none().then_some(kind),
            created_at,
            image: image.map(|image| image.resolved_reference),
            resources: resources.map(ResourcesDocument::from),
            bytes,
            memory_bytes,
            standstill_us: standstill.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
            volumes,
            problem,
        }
    }
}

impl DeletedSnapshot {
    /// What the library did to this snapshot.
    pub(crate) fn new(tag: SnapshotTag, deletion: SnapshotDeletion) -> DeletedSnapshot {
        DeletedSnapshot { tag, deleted: deletion.deleted, freed_bytes: deletion.freed_bytes }
    }
}
