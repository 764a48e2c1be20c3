//! `microagent fork`, in JSON.

use microagent::snapshot::{CopiedVolume, Fork};
use microagent::{VolumeName, WorkspaceDetails, WorkspaceName};
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
    pub(crate) forks: Vec<ForkedDocument>,
}

/// A workspace that was made by a fork.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ForkedDocument {
    #[serde(flatten)]
    pub(crate) state: StateDocument,
    /// Volumes that were copied for it.
    pub(crate) copied_volumes: Vec<CopiedVolumeDocument>,
}

document! {
    /// A volume of a fork.
    CopiedVolumeDocument of CopiedVolume {
        /// The volume of the source.
        #[cfg_attr(test, schemars(with = "String"))]
        volume: VolumeName,
        /// The copy that the fork attaches.
        #[cfg_attr(test, schemars(with = "String"))]
        copy: VolumeName,
    }
}

impl ForkDocument {
    /// What the library has made.
    pub(crate) fn new(
        source: WorkspaceName,
        forks: impl Iterator<Item = (Fork, WorkspaceDetails)>,
    ) -> ForkDocument {
        let forked = |(fork, details): (Fork, WorkspaceDetails)| ForkedDocument {
            state: StateDocument { notices: fork.notices, ..StateDocument::from(details) },
            copied_volumes: fork.copied_volumes.into_iter().map(CopiedVolumeDocument::from).collect(),
        };
        ForkDocument { source, forks: forks.map(forked).collect() }
    }

    /// The names, one a line.
    pub(crate) fn names(&self) -> String {
        self.forks.iter().map(|fork| format!("{}\n", fork.state.workspace)).collect()
    }

    /// Names and states, one a line, with the ports that were picked for those that run, and the volumes that were copied.
    pub(crate) fn text(&self) -> String {
        let line = |ForkedDocument { state: fork, copied_volumes, .. }: &ForkedDocument| {
            let ports = fork.port_forwards.iter().filter(|_| fork.state.is_live()).map(published);
            let copies = copied_volumes
                .iter()
                .map(|copied| format!("volume {} (copy of {})", copied.copy, copied.volume));
            let more: String = ports.chain(copies).map(|text| format!(", {text}")).collect();
            format!("{} ({}){more}\n", fork.workspace, fork.state)
        };
        self.forks.iter().map(line).collect()
    }
}
