//! What changes the state of a workspace, in JSON.

use jiff::Timestamp;
use microagent::{State, WorkspaceDetails, WorkspaceName};
use serde::Serialize;

#[cfg(test)]
use crate::documents::schema::Words;
use crate::documents::shared::PortForwardDocument;

/// `microagent start`, `touch`, `halt`, `stop`, `kill`, `pause`, `resume`, `quarantine`, `clone`, `rename`, `supervise` and `port`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct StateDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) workspace: WorkspaceName,
    #[cfg_attr(test, schemars(with = "Words<microagent::State>"))]
    pub(crate) state: State,
    pub(crate) port_forwards: Vec<PortForwardDocument>,
    /// When the machine is halted because its time to live has passed; `null` without one.
    pub(crate) expires_at: Option<Timestamp>,
    /// What there is to know of a start, such as hooks of a snapshot's guest that failed.
    pub(crate) notices: Vec<String>,
}

impl From<WorkspaceDetails> for StateDocument {
    fn from(details: WorkspaceDetails) -> StateDocument {
        let WorkspaceDetails { name, state, port_forwards, expires_at, .. } = details;
        let port_forwards = port_forwards.into_iter().map(PortForwardDocument::from).collect();
        StateDocument { workspace: name, state, port_forwards, expires_at, notices: Vec::new() }
    }
}
