//! `microagent network`, in JSON.

use std::net::{Ipv4Addr, Ipv6Addr};

use microagent::egress::{EgressMode, EgressPolicy};
use microagent::{GuestAddresses, LinkState, NetworkDetails, NetworkMode, State, WorkspaceName};
use serde::Serialize;

use crate::documents::private_network::JoinedNetworkDocument;
#[cfg(test)]
use crate::documents::schema::Words;
use crate::documents::shared::{
    BrokerDocument, DnsSettingsDocument, HostForwardDocument, PortForwardDocument,
};

/// `microagent network`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct NetworkDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) workspace: WorkspaceName,
    #[cfg_attr(test, schemars(with = "Words<microagent::State>"))]
    pub(crate) state: State,
    pub(crate) network: ConnectionDocument,
    /// What the guest finds; null without network.
    pub(crate) runtime: Option<GuestAddressesDocument>,
}

/// How a workspace is connected.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ConnectionDocument {
    #[cfg_attr(test, schemars(with = "Words<microagent::NetworkMode>"))]
    pub(crate) mode: NetworkMode,
    #[cfg_attr(test, schemars(with = "Option<Words<microagent::LinkState>>"))]
    pub(crate) link: Option<LinkState>,
    pub(crate) stack_pid: Option<i32>,
    pub(crate) port_forwards: Vec<PortForwardDocument>,
    pub(crate) host_forwards: Vec<HostForwardDocument>,
    pub(crate) brokers: Vec<BrokerDocument>,
    /// Private networks that it joins.
    pub(crate) joined: Vec<JoinedNetworkDocument>,
    pub(crate) egress: Option<EgressPolicyDocument>,
    pub(crate) dns: Option<DnsSettingsDocument>,
}

impl From<NetworkDetails> for NetworkDocument {
    fn from(details: NetworkDetails) -> NetworkDocument {
        let NetworkDetails {
            workspace,
            state,
            mode,
            link,
            port_forwards,
            host_forwards,
            brokers,
            networks,
            egress,
            dns,
            addresses,
            stack_pid,
            ..
        } = details;
        let port_forwards = port_forwards.into_iter().map(PortForwardDocument::from).collect();
        let host_forwards = host_forwards.into_iter().map(HostForwardDocument::from).collect();
        let brokers = brokers.into_iter().map(BrokerDocument::from).collect();
        let joined = networks.into_iter().map(JoinedNetworkDocument::from).collect();
        let dns = dns.map(DnsSettingsDocument::from);
        let egress = egress.map(EgressPolicyDocument::from);
        let network = ConnectionDocument {
            mode,
            link,
            stack_pid,
            port_forwards,
            host_forwards,
            brokers,
            joined,
            egress,
            dns,
        };
        NetworkDocument { workspace, state, network, runtime: addresses.map(GuestAddressesDocument::from) }
    }
}

document! {
    /// What a guest finds in its network.
    GuestAddressesDocument of GuestAddresses {
        ip: Ipv4Addr,
        prefix_len: u8,
        gateway: Ipv4Addr,
        ipv6: Ipv6Addr,
        ipv6_prefix_len: u8,
        ipv6_gateway: Ipv6Addr,
        dns: Vec<Ipv4Addr>,
    }
}

/// What a guest may reach.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct EgressPolicyDocument {
    #[cfg_attr(test, schemars(with = "Words<microagent::egress::EgressMode>"))]
    pub(crate) mode: EgressMode,
    /// Rules, as `--allow` takes them.
    pub(crate) allow: Vec<String>,
    pub(crate) max_connections: u32,
    pub(crate) max_bytes: u64,
}

impl From<EgressPolicy> for EgressPolicyDocument {
    fn from(policy: EgressPolicy) -> EgressPolicyDocument {
        EgressPolicyDocument {
            mode: policy.mode,
            allow: policy.allow.iter().map(ToString::to_string).collect(),
            max_connections: policy.max_connections,
            max_bytes: policy.max_bytes,
        }
    }
}
