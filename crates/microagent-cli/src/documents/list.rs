//! `microagent list` and `ps`, in JSON.

use jiff::Timestamp;
use microagent::{HealthState, Labels, NetworkMode, RestartPolicy, State, WorkspaceName, WorkspaceSummary};
use serde::Serialize;

#[cfg(test)]
use crate::documents::schema::Words;
use crate::documents::shared::PortForwardDocument;

/// `microagent list` and `ps`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct WorkspaceListDocument {
    pub(crate) workspaces: Vec<WorkspaceDocument>,
}

/// One workspace.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct WorkspaceDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) name: WorkspaceName,
    /// `null` for a damaged record.
    #[cfg_attr(test, schemars(with = "Option<Words<microagent::State>>"))]
    pub(crate) state: Option<State>,
    pub(crate) backend: Option<String>,
    /// As it was named.
    pub(crate) image: Option<String>,
    pub(crate) created_at: Option<Timestamp>,
    /// When the machine is halted because its time to live has passed; `null` without one.
    pub(crate) expires_at: Option<Timestamp>,
    pub(crate) profile: Option<String>,
    #[cfg_attr(test, schemars(with = "Option<Words<microagent::NetworkMode>>"))]
    pub(crate) network: Option<NetworkMode>,
    pub(crate) port_forwards: Vec<PortForwardDocument>,
    /// `starting`, `healthy` or `unhealthy`; `null` without a machine that runs, or without a health check.
    #[cfg_attr(test, schemars(with = "Option<Words<microagent::HealthState>>"))]
    pub(crate) health: Option<HealthState>,
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) restart: RestartPolicy,
    #[cfg_attr(test, schemars(with = "std::collections::BTreeMap<String, String>"))]
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
            image: summary.image,
            created_at: summary.created_at,
            expires_at: summary.expires_at,
            profile: summary.profile,
            network: summary.network,
            port_forwards: summary.port_forwards.into_iter().map(PortForwardDocument::from).collect(),
            health: summary.health,
            restart: summary.restart,
            labels: summary.labels,
            observed_at: summary.observed_at,
            problem: summary.problem,
        }
    }
}
