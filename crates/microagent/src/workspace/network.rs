//! Network settings of a workspace. Reading changes nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use microagent_model::{
    DnsSettings, EgressPolicy, Forward, LinkState, NetworkMode, PortProtocol, Publish, State, WorkspaceName,
};
use microagent_net::{
    GATEWAY, GATEWAY_V6, GUEST_ADDRESS, GUEST_ADDRESS_V6, NAME_SERVER, PREFIX_LEN, PREFIX_LEN_V6,
};

use super::Workspace;
use crate::private_network::JoinedNetwork;
use crate::{BrokerDetails, Error};

/// Network settings and state of a workspace.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NetworkDetails {
    /// The workspace.
    pub workspace: WorkspaceName,
    /// Current state.
    pub state: State,
    /// Network mode.
    pub mode: NetworkMode,
    /// Whether the network stack runs; `None` without network or machine.
    pub link: Option<LinkState>,
    /// Its published ports. While it has a machine, with the picked ports of the host; otherwise 0 is a port that is
    /// picked at each start.
    pub port_forwards: Vec<PortForward>,
    /// Its forwarded ports of `host.microagent.internal`.
    pub host_forwards: Vec<HostForward>,
    /// Its brokers.
    pub brokers: Vec<BrokerDetails>,
    /// The egress policy; with network `user`.
    pub egress: Option<EgressPolicy>,
    /// Name servers and names; with network `user`.
    pub dns: Option<DnsSettings>,
    /// Its addresses, if it has a network device.
    pub addresses: Option<GuestAddresses>,
    /// Private networks that the workspace joins.
    pub networks: Vec<JoinedNetwork>,
    /// Process id of the network stack, while it runs.
    pub stack_pid: Option<i32>,
}

/// Addresses in the network of a guest. They are the same for every guest, because each has a network of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GuestAddresses {
    /// The guest's address.
    pub ip: Ipv4Addr,
    /// Length of the network's prefix in bits.
    pub prefix_len: u8,
    /// The gateway.
    pub gateway: Ipv4Addr,
    /// The guest's address of IPv6.
    pub ipv6: Ipv6Addr,
    /// Length of that network's prefix in bits.
    pub ipv6_prefix_len: u8,
    /// The gateway's address of IPv6.
    pub ipv6_gateway: Ipv6Addr,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PortForward {
    /// `tcp` or `udp`.
    pub protocol: PortProtocol,
    /// The host's address.
    pub host: IpAddr,
    /// The host's port.
    pub host_port: u16,
    /// The guest's port.
    pub guest_port: NonZeroU16,
}

/// A forwarded port.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostForward {
    /// `tcp`.
    pub protocol: &'static str,
    /// The port at `host.microagent.internal` that the guest connects to.
    pub guest_port: NonZeroU16,
    /// The server's address, as the host sees it.
    pub host: Ipv4Addr,
    /// The server's port.
    pub host_port: u16,
}

impl From<&Forward> for HostForward {
    fn from(forward: &Forward) -> HostForward {
        let Forward { guest_port, target } = *forward;
        HostForward { protocol: "tcp", guest_port, host: *target.ip(), host_port: target.port() }
    }
}

impl From<&Publish> for PortForward {
    fn from(publish: &Publish) -> PortForward {
        let Publish { host, host_port, guest_port, protocol } = *publish;
        PortForward { protocol, host, host_port, guest_port }
    }
}

impl Workspace {
    /// Returns settings and state of the network.
    ///
    /// # Errors
    /// Fails if the workspace does not exist or its record is damaged.
    pub fn network(&self) -> Result<NetworkDetails, Error> {
        let record = self.observe()?;
        let link = record.observed_link();
        let stack = record.machine.link.as_ref().filter(|_| link == Some(LinkState::Up));
        let is_connected = record.network == NetworkMode::User;
        let has_device = record.has_network_device();
        Ok(NetworkDetails {
            workspace: record.name.clone(),
            state: record.observed_state(),
            mode: record.network,
            link,
            port_forwards: record.observed_publish().iter().map(PortForward::from).collect(),
            stack_pid: stack.map(|link| link.stack.pid),
            egress: is_connected.then(|| record.egress.clone()),
            dns: is_connected.then(|| record.dns.clone()),
            host_forwards: record.forwards.iter().map(HostForward::from).collect(),
            brokers: BrokerDetails::all(&record.brokers),
            networks: self.engine.joined_networks(&record),
            addresses: has_device.then(|| GuestAddresses {
                ip: GUEST_ADDRESS,
                prefix_len: PREFIX_LEN,
                gateway: GATEWAY,
                ipv6: GUEST_ADDRESS_V6,
                ipv6_prefix_len: PREFIX_LEN_V6,
                ipv6_gateway: GATEWAY_V6,
                dns: vec![NAME_SERVER],
            }),
        })
    }
}
