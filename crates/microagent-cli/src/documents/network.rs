//! `microagent network`, in JSON.

use microagent::egress::EgressPolicy;
use microagent::{GuestAddresses, LinkState, NetworkDetails, NetworkMode, PortForward, State, WorkspaceName};
use serde::Serialize;

/// `microagent network`.
#[derive(Debug, Serialize)]
pub(crate) struct NetworkDocument {
    pub(crate) workspace: WorkspaceName,
    pub(crate) state: State,
    pub(crate) network: ConnectionDocument,
    /// What the guest finds; null without network.
    pub(crate) runtime: Option<GuestAddresses>,
}

/// How a workspace is connected.
#[derive(Debug, Serialize)]
pub(crate) struct ConnectionDocument {
    pub(crate) mode: NetworkMode,
    pub(crate) link: Option<LinkState>,
    pub(crate) stack_pid: Option<i32>,
    pub(crate) port_forwards: Vec<PortForward>,
    pub(crate) egress: Option<EgressPolicy>,
}

impl From<NetworkDetails> for NetworkDocument {
    fn from(details: NetworkDetails) -> NetworkDocument {
        let NetworkDetails { workspace, state, mode, link, port_forwards, egress, addresses, stack_pid } =
            details;
        let network = ConnectionDocument { mode, link, stack_pid, port_forwards, egress };
        NetworkDocument { workspace, state, network, runtime: addresses }
    }
}
