//! What a stack is told: at its start, and when the host changes.

use std::net::SocketAddr;

use microagent_model::Forward;
use microagent_model::egress::EgressPolicy;
use serde::{Deserialize, Serialize};

use crate::dns::local::HostEntry;
use crate::host::HostAddresses;
use crate::membership::Membership;

/// What the stack must know.
#[derive(Debug, Clone)]
pub struct StackOptions {
    /// What the guest may reach.
    pub policy: EgressPolicy,
    /// The guest's hardware address.
    pub guest_mac: [u8; 6],
    /// Largest packet of the link in bytes.
    pub mtu: u16,
    /// The host's own addresses.
    pub host_addresses: HostAddresses,
    /// The name servers that are asked, in their order.
    pub name_servers: Vec<SocketAddr>,
    /// Names that the stack answers itself.
    pub names: NameOptions,
    /// Servers that ports of [`HOST_NAME`](crate::HOST_NAME) lead to.
    pub forwards: Vec<Forward>,
    /// How many brokers the guest finds at [`BROKER_ADDRESS`](crate::BROKER_ADDRESS).
    pub brokers: u8,
    /// The private networks that the guest has joined.
    pub memberships: Vec<Membership>,
    /// Bytes that other stacks of this guest have moved before.
    pub moved_bytes: u64,
}

/// Names that a stack answers itself.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct NameOptions {
    /// The guest's own name.
    pub hostname: String,
    /// The user's names with their addresses.
    pub added: Vec<HostEntry>,
    /// Those of the host's `/etc/hosts`.
    pub of_host: Vec<HostEntry>,
}

/// What has changed on the host while a stack runs; what is not there has not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostChange {
    /// Its own addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<HostAddresses>,
    /// Its name servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_servers: Option<Vec<SocketAddr>>,
    /// The entries of its `/etc/hosts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<HostEntry>>,
    /// The members of all private networks that the guest has joined, in their order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<Vec<Vec<HostEntry>>>,
}
