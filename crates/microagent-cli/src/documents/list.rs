//! `microagent list`, in JSON.

use microagent::WorkspaceSummary;
use serde::Serialize;

/// `microagent list` and `ps`.
#[derive(Debug, Serialize)]
pub(crate) struct WorkspaceListDocument {
    pub(crate) workspaces: Vec<WorkspaceSummary>,
}
