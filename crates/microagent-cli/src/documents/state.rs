//! What changes the state of a workspace, in JSON.

use microagent::{PortForward, State, WorkspaceDetails, WorkspaceName};
use serde::Serialize;

/// `microagent start`, `halt`, `stop`, `kill`, `pause`, `resume`, `quarantine`, `clone` and `supervise`.
#[derive(Debug, Serialize)]
pub(crate) struct StateDocument {
    pub(crate) workspace: WorkspaceName,
    pub(crate) state: State,
    pub(crate) port_forwards: Vec<PortForward>,
}

impl From<WorkspaceDetails> for StateDocument {
    fn from(details: WorkspaceDetails) -> StateDocument {
        let WorkspaceDetails { name, state, port_forwards, .. } = details;
        StateDocument { workspace: name, state, port_forwards }
    }
}
