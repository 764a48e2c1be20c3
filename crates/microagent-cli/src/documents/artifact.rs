//! `microagent artifact`, in JSON.

use std::path::PathBuf;

use microagent::WorkspaceName;
use serde::Serialize;

use crate::documents::shared::ArtifactDocument;

/// `microagent artifact NAME`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ArtifactListDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) workspace: WorkspaceName,
    pub(crate) artifacts: Artifacts,
}

/// Files that went in, files that come out.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Artifacts {
    pub(crate) ingress: [ArtifactDocument; 0],
    pub(crate) egress: Vec<ArtifactDocument>,
}

/// `microagent artifact get`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ArtifactGetDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) workspace: WorkspaceName,
    pub(crate) artifact: String,
    pub(crate) path: PathBuf,
}
