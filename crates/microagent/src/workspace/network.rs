//! How a workspace is connected: its mode, its addresses, its published ports, what it may reach. Reading changes nothing.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;

use microagent_model::{
    DnsSettings, EgressPolicy, Forward, LinkState, NetworkMode, PortProtocol, Publish, State, WorkspaceName,
};
use microagent_net::{GATEWAY, GUEST_ADDRESS, NAME_SERVER, PREFIX_LEN};

use super::Workspace;
use crate::Error;

/// How a workspace is connected.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NetworkDetails {
    /// The workspace.
    pub workspace: WorkspaceName,
    /// State that is true now.
    pub state: State,
    /// How its guest reaches the network.
    pub mode: NetworkMode,
    /// Whether the network works; `None` for one without, or that does not live.
    pub link: Option<LinkState>,
    /// Its published ports. While it lives, the ports of the host are those that are listened at; else 0 stands for one
    /// that is picked at each start.
    pub port_forwards: Vec<PortForward>,
    /// Servers that it reaches by ports of `host.microagent.internal`.
    pub host_forwards: Vec<HostForward>,
    /// What it may reach; with network `user`.
    pub egress: Option<EgressPolicy>,
    /// How it looks names up; with network `user`.
    pub dns: Option<DnsSettings>,
    /// Its addresses, if it has a network device.
    pub addresses: Option<GuestAddresses>,
    /// The process of the network stack, while it serves the workspace.
    pub stack_pid: Option<i32>,
}

/// What a guest finds in its network. The same for every guest: each has a network of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GuestAddresses {
    /// Its own address.
    pub ip: Ipv4Addr,
    /// Bits of the network's prefix.
    pub prefix_len: u8,
    /// The way out.
    pub gateway: Ipv4Addr,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
}

/// A published port as documents show it.
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

/// A forwarded port as documents show it.
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
    /// Looks at the network of a workspace.
    ///
    /// # Errors
    /// Fails when there is no such workspace or its record is damaged.
    pub fn network(&self) -> Result<NetworkDetails, Error> {
        let record = self.observe()?;
        let link = record.observed_link();
        let stack = record.link.as_ref().filter(|_| link == Some(LinkState::Up));
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
            addresses: has_device.then(|| GuestAddresses {
                ip: GUEST_ADDRESS,
                prefix_len: PREFIX_LEN,
                gateway: GATEWAY,
                dns: vec![NAME_SERVER],
            }),
        })
    }
}
