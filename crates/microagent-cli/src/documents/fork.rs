//! `microagent fork`, in JSON.

use microagent::{WorkspaceDetails, WorkspaceName};
use serde::Serialize;

use crate::documents::state::StateDocument;
use crate::output::published;

/// `microagent fork`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ForkDocument {
    /// The workspace that was forked.
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) source: WorkspaceName,
    /// The new workspaces, in their order.
    pub(crate) forks: Vec<StateDocument>,
}

impl ForkDocument {
    /// What the library has made.
    pub(crate) fn new(source: WorkspaceName, forks: Vec<WorkspaceDetails>) -> ForkDocument {
        ForkDocument { source, forks: forks.into_iter().map(StateDocument::from).collect() }
    }

    /// The names, one a line.
    pub(crate) fn names(&self) -> String {
        self.forks.iter().map(|fork| format!("{}\n", fork.workspace)).collect()
    }

    /// Names and states, one a line, with the ports that were picked for those that run.
    pub(crate) fn text(&self) -> String {
        let line = |fork: &StateDocument| {
            let ports = fork.port_forwards.iter().filter(|_| fork.state.is_live()).map(published);
            let ports: Vec<_> = ports.collect();
            let ports = if ports.is_empty() { String::new() } else { format!(", {}", ports.join(", ")) };
            format!("{} ({}){ports}\n", fork.workspace, fork.state)
        };
        self.forks.iter().map(line).collect()
    }
}
