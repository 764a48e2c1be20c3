//! `microagent list` and `ps`, in JSON.

use jiff::Timestamp;
use microagent::{Labels, NetworkMode, PortForward, RestartPolicy, State, WorkspaceName, WorkspaceSummary};
use serde::Serialize;

/// `microagent list` and `ps`.
#[derive(Debug, Serialize)]
pub(crate) struct WorkspaceListDocument {
    pub(crate) workspaces: Vec<WorkspaceDocument>,
}

/// One workspace.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct WorkspaceDocument {
    pub(crate) name: WorkspaceName,
    /// `null` for a damaged record.
    pub(crate) state: Option<State>,
    pub(crate) backend: Option<String>,
    pub(crate) profile: Option<String>,
    pub(crate) network: Option<NetworkMode>,
    pub(crate) port_forwards: Vec<PortForward>,
    pub(crate) restart: RestartPolicy,
    pub(crate) labels: Labels,
    pub(crate) observed_at: Timestamp,
    pub(crate) problem: Option<String>,
}

impl From<WorkspaceSummary> for WorkspaceDocument {
    fn from(summary: WorkspaceSummary) -> WorkspaceDocument {
        WorkspaceDocument {
            name: summary.name,
            state: summary.state,
            backend: summary.backend,
            profile: summary.profile,
            network: summary.network,
            port_forwards: summary.port_forwards,
            restart: summary.restart,
            labels: summary.labels,
            observed_at: summary.observed_at,
            problem: summary.problem,
        }
    }
}
