//! `microagent system`, in JSON.

use serde::Serialize;

/// `microagent system df`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct DiskUseDocument {
    pub(crate) images: UseDocument,
    pub(crate) workspaces: UseDocument,
    /// Layers that snapshots have made, and that workspaces share.
    pub(crate) snapshots: UseDocument,
    pub(crate) volumes: UseDocument,
    pub(crate) templates: UseDocument,
}

/// How many there are, and what they take together.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct UseDocument {
    pub(crate) count: usize,
    pub(crate) bytes: u64,
}

/// `microagent system prune`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct SystemPruneDocument {
    /// Names of deleted images.
    pub(crate) images: Vec<String>,
    /// Number of removed templates.
    pub(crate) templates: usize,
    /// Names of deleted volumes.
    pub(crate) volumes: Vec<String>,
    /// Bytes of images, layers, templates and volumes that were freed.
    pub(crate) freed_bytes: u64,
}
