//! `microagent network create`, `list`, `inspect` and `delete`, in JSON.

use std::net::Ipv4Addr;

use jiff::Timestamp;
use microagent::private_network::{JoinedNetwork, NetworkDeletion, NetworkMember, PrivateNetwork};
use microagent::{NetworkName, State, WorkspaceName};
use serde::Serialize;

#[cfg(test)]
use crate::documents::schema::Words;

/// `microagent network list`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct PrivateNetworkListDocument {
    pub(crate) networks: Vec<PrivateNetworkDocument>,
}

/// `microagent network delete`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct PrivateNetworkDeleteDocument {
    pub(crate) networks: Vec<DeletedNetwork>,
}

/// A private network: `microagent network create` and `inspect`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct PrivateNetworkDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) name: NetworkName,
    /// `null` for a damaged record, as `created_at`.
    pub(crate) subnet: Option<String>,
    pub(crate) created_at: Option<Timestamp>,
    /// The workspaces that join it, whether they run or not.
    pub(crate) members: Vec<NetworkMemberDocument>,
    pub(crate) problem: Option<String>,
}

impl From<PrivateNetwork> for PrivateNetworkDocument {
    fn from(network: PrivateNetwork) -> PrivateNetworkDocument {
        let PrivateNetwork { name, subnet, created_at, members, problem, .. } = network;
        PrivateNetworkDocument {
            name,
            subnet: subnet.map(|subnet| subnet.to_string()),
            created_at,
            members: members.into_iter().map(NetworkMemberDocument::from).collect(),
            problem,
        }
    }
}

document! {
    /// A workspace that joins a private network.
    NetworkMemberDocument of NetworkMember {
        #[cfg_attr(test, schemars(with = "String"))]
        workspace: WorkspaceName,
        /// `null` before its first start, if it joined the network later than it was created.
        address: Option<Ipv4Addr>,
        #[cfg_attr(test, schemars(with = "Words<microagent::State>"))]
        state: State,
    }
}

/// A private network that a workspace joins.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct JoinedNetworkDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) name: NetworkName,
    /// `null` if the network was deleted.
    pub(crate) subnet: Option<String>,
    pub(crate) address: Option<Ipv4Addr>,
}

impl From<JoinedNetwork> for JoinedNetworkDocument {
    fn from(joined: JoinedNetwork) -> JoinedNetworkDocument {
        let JoinedNetwork { name, subnet, address, .. } = joined;
        JoinedNetworkDocument { name, subnet: subnet.map(|subnet| subnet.to_string()), address }
    }
}

/// A private network that was named for deletion.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct DeletedNetwork {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) name: NetworkName,
    pub(crate) deleted: bool,
    /// Workspaces that join it and cannot be started without it.
    #[cfg_attr(test, schemars(with = "Vec<String>"))]
    pub(crate) missed_by: Vec<WorkspaceName>,
}

impl DeletedNetwork {
    /// What the library did to this network.
    pub(crate) fn new(name: NetworkName, deletion: NetworkDeletion) -> DeletedNetwork {
        let NetworkDeletion { deleted, missed_by, .. } = deletion;
        DeletedNetwork { name, deleted, missed_by }
    }
}
