//! Network `user`: the network stack in which the connections of a guest end, and what the guest may reach.
//!
//! [`run_stack`] runs a stack on QEMU's socket: TCP, UDP and ICMP echo of the guest end in it and continue as ordinary
//! sockets of the host's user; connections to published ports come the other way. [`Stack`] is the same without clock
//! and sockets. What an [`EgressPolicy`](microagent_model::EgressPolicy) does not allow is refused.
//!
//! This crate starts no process and reads no file.

#![forbid(unsafe_code)]

mod address;
mod decision;
mod dns;
mod egress;
#[cfg(any(test, feature = "fuzzing"))]
mod fake;
mod flows;
mod frame;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod host;
mod hosts_file;
mod membership;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod model;
mod outbox;
mod resolv_conf;
mod runner;
mod sockets;
mod stack;
#[cfg(any(test, feature = "fuzzing"))]
mod testing;
mod upstream;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use address::Scope;
pub use decision::{BURST, PER_SECOND};
pub use dns::local::HostEntry;
pub use dns::resolver::{DnsRequest, DnsRequestId, DnsTransport};
pub use egress::Now;
pub use frame::MAX_FRAME_LEN;
pub use host::{HostAddresses, HostWatch, Network, Route, RouteKind};
pub use hosts_file::host_entries;
pub use membership::{MEMBER_PROTOCOL, MemberPort, MemberProtocol, Membership, hello};
pub use outbox::{LENGTH_LEN, Outbox};
pub use resolv_conf::{HostResolver, host_resolver};
pub use runner::{Channels, Controller, Listener, Order, run_stack};
pub use sockets::{DatagramSocket, PortNumber, Readiness, Sockets, StreamSocket, Token};
pub use stack::{HostChange, NameOptions, Stack, StackOptions};

/// The guest's address. Every guest has the same: each has a stack of its own.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// Bits of the network prefix.
pub const PREFIX_LEN: u8 = 24;

/// The guest's default route.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// The guest's address of IPv6, in a network that nobody else has: its number was drawn once, as RFC 4193 asks.
pub const GUEST_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd5c, 0x8b21, 0x46e7, 0, 0, 0, 0, 0x15);

/// Bits of the network prefix of IPv6.
pub const PREFIX_LEN_V6: u8 = 64;

/// The guest's default route of IPv6.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd5c, 0x8b21, 0x46e7, 0, 0, 0, 0, 2);

/// Where the guest finds brokers, each at a port of its own.
pub const BROKER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 4);

/// The first broker's port at [`BROKER_ADDRESS`]; the others follow.
pub const BROKER_PORT: u16 = 8001;

/// The name server that the guest sees; the stack asks the host's.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// The name of the host in its guests; it resolves to the gateway's addresses, which have the forwarded ports.
pub const HOST_NAME: &str = "host.microagent.internal";

/// The gateway's address of the same family.
fn gateway(family: IpAddr) -> IpAddr {
    if family.is_ipv4() { GATEWAY.into() } else { GATEWAY_V6.into() }
}
