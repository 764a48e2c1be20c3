//! `microagent artifact`, in JSON.

use std::path::PathBuf;

use microagent::{Artifact, WorkspaceName};
use serde::Serialize;

/// `microagent artifact NAME`.
#[derive(Debug, Serialize)]
pub(crate) struct ArtifactListDocument {
    pub(crate) workspace: WorkspaceName,
    pub(crate) artifacts: Artifacts,
}

/// Files that went in, files that come out.
#[derive(Debug, Serialize)]
pub(crate) struct Artifacts {
    pub(crate) ingress: [Artifact; 0],
    pub(crate) egress: Vec<Artifact>,
}

/// `microagent artifact get`.
#[derive(Debug, Serialize)]
pub(crate) struct ArtifactGetDocument {
    pub(crate) workspace: WorkspaceName,
    pub(crate) artifact: String,
    pub(crate) path: PathBuf,
}
