//! `microagent delete`, in JSON.

use microagent::WorkspaceName;
use serde::Serialize;

/// `microagent delete`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct DeleteDocument {
    pub(crate) workspaces: Vec<DeletedWorkspace>,
}

/// A workspace that was named for deletion.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct DeletedWorkspace {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) workspace: WorkspaceName,
    pub(crate) deleted: bool,
    pub(crate) stopped: bool,
    pub(crate) killed: bool,
}
