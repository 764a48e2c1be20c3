//! How a guest is connected.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::MacAddress;

/// Settings of the one network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Hardware address.
    pub mac: MacAddress,
    /// Own address.
    pub address: Ipv4Addr,
    /// Length of the network prefix in bits.
    pub prefix_len: u8,
    /// Default route.
    pub gateway: Ipv4Addr,
    /// The same of IPv6.
    pub ipv6: NetworkV6,
    /// Own addresses in private networks, whose other addresses are reached without the gateway.
    pub private: Vec<PrivateAddress>,
    /// Name servers for `/etc/resolv.conf`.
    pub dns: Vec<IpAddr>,
    /// Search domains for `/etc/resolv.conf`, in their order.
    pub search: Vec<String>,
    /// Options for `/etc/resolv.conf`, such as `ndots:5`.
    pub options: Vec<String>,
}

/// Addresses of IPv6 of the one network device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkV6 {
    /// Own address.
    pub address: Ipv6Addr,
    /// Length of the network prefix in bits.
    pub prefix_len: u8,
    /// Default route.
    pub gateway: Ipv6Addr,
}

/// An address in a private network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivateAddress {
    /// The address.
    pub address: Ipv4Addr,
    /// Length of the network prefix in bits.
    pub prefix_len: u8,
}
