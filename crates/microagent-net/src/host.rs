//! The host's own addresses and networks, as its routing table says.
//!
//! An interface's addresses are not enough: the kernel delivers to the host itself whatever a route of type `local`
//! covers, with or without an interface that has the address (`ip route add local`, the whole network of an address on
//! `lo`). [`HostAddresses::of`] decides from routes and is pure; [`HostAddresses::now`] asks the kernel for them.

mod kernel;
mod message;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::address::{contains, contains_v6, is_global_v6};
pub use kernel::HostWatch;

/// Number of the loopback interface in every network namespace.
///
/// # Source
/// Linux `include/net/flow.h`, `LOOPBACK_IFINDEX`.
const LOOPBACK: u32 = 1;

/// The routing tables that count without a rule of the host's: `default`, `main` and `local`. Others are for marked
/// packets, interfaces and sources (`ip rule`), where a route of type `local` for everything is usual.
///
/// # Source
/// Linux `include/uapi/linux/rtnetlink.h`, `enum rt_class_t`.
const TABLES: std::ops::RangeInclusive<u32> = 253..=255;

/// Shortest prefix of a network that the host is in. What covers more is a way to the Internet: a default route
/// without a router, or half of one.
const SHORTEST_PREFIX: u8 = 8;

/// The same of IPv6, where no link has more.
const SHORTEST_PREFIX_V6: u8 = 16;

/// Networks of IPv6 that are kept of those to which the host has a route. With more it counts as a route to everything.
const REACHED_MAX: usize = 256;

/// A network, or one address if all bits are its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network {
    base: IpAddr,
    bits: u8,
}

impl Network {
    /// The network of `bits` prefix bits that `base` is in; `None` if there are more bits than an address has.
    pub fn new(base: IpAddr, bits: u8) -> Option<Network> {
        let longest = if base.is_ipv4() { 32 } else { 128 };
        (bits <= longest).then_some(Network { base, bits })
    }

    /// An address in it.
    pub fn base(self) -> IpAddr {
        self.base
    }

    /// Length of the prefix in bits.
    pub fn prefix_len(self) -> u8 {
        self.bits
    }

    /// Whether it contains an address.
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => contains(base, self.bits, address),
            (IpAddr::V6(base), IpAddr::V6(address)) => contains_v6(base, self.bits, address),
            _ => false,
        }
    }

    /// Whether it is small enough for a network of neighbours.
    fn is_of_link(self) -> bool {
        self.bits >= if self.base.is_ipv4() { SHORTEST_PREFIX } else { SHORTEST_PREFIX_V6 }
    }
}

impl From<IpAddr> for Network {
    fn from(base: IpAddr) -> Network {
        Network { base, bits: if base.is_ipv4() { 32 } else { 128 } }
    }
}

impl From<Ipv4Addr> for Network {
    fn from(base: Ipv4Addr) -> Network {
        IpAddr::from(base).into()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Network, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parts = text.split_once('/');
        let network =
            parts.and_then(|(base, bits)| Network::new(IpAddr::from_str(base).ok()?, bits.parse().ok()?));
        network.ok_or_else(|| serde::de::Error::custom("a network is ADDRESS/BITS"))
    }
}

/// The addresses that are the host, and those of its networks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostAddresses {
    /// What the kernel delivers to the host itself, by interfaces that lead out of the host.
    pub own: BTreeSet<Network>,
    /// The same by the loopback interface, also outside of 127.0.0.0/8.
    pub loopback: BTreeSet<Network>,
    /// Networks that the host reaches without a router.
    pub neighbours: BTreeSet<Network>,
    /// Networks of IPv6 to which the host has a route.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub reached: BTreeSet<Network>,
}

/// A route of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Number of its table.
    pub table: u32,
    /// What it covers.
    pub destination: Network,
    /// What happens to a packet that it covers.
    pub kind: RouteKind,
    /// Number of its interface; `None` if it has none or several.
    pub interface: Option<u32>,
    /// Whether the destination is reached without a router.
    pub is_on_link: bool,
    /// Whether the kernel made it, for an address of an interface.
    pub is_of_address: bool,
}

/// What happens to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteKind {
    /// The host itself gets it: types `local`, `broadcast` and `anycast`.
    Delivered,
    /// It is sent through an interface.
    Sent,
    /// Another type: no packet arrives anywhere.
    Other,
}

impl HostAddresses {
    /// The addresses at this moment.
    ///
    /// # Errors
    /// When the kernel does not tell, or has more routes of this kind than a host has.
    pub fn now() -> io::Result<HostAddresses> {
        kernel::host_addresses()
    }

    /// The addresses of a host with these routes. `point_to_point` says which interfaces have one peer and no network.
    pub fn of(
        routes: impl IntoIterator<Item = Route>,
        point_to_point: impl Fn(u32) -> bool,
    ) -> HostAddresses {
        let mut addresses = HostAddresses::default();
        for route in routes {
            addresses.add(&route, &point_to_point);
        }
        addresses
    }

    fn add(&mut self, route: &Route, point_to_point: &impl Fn(u32) -> bool) {
        if route.kind == RouteKind::Sent {
            self.add_reached(route.destination);
        }
        if !TABLES.contains(&route.table) {
            return;
        }
        // A tunnel carries what the user sends through it, which may be most of the Internet.
        let is_network = |interface| route.is_of_address || !point_to_point(interface);
        match (route.kind, route.interface) {
            (RouteKind::Delivered, Some(LOOPBACK)) => self.loopback.insert(route.destination),
            (RouteKind::Delivered, _) => self.own.insert(route.destination),
            (RouteKind::Sent, Some(interface))
                if route.is_on_link && route.destination.is_of_link() && is_network(interface) =>
            {
                self.neighbours.insert(route.destination)
            }
            (RouteKind::Sent | RouteKind::Other, _) => false,
        };
    }

    /// Notes a route of IPv6, unless another one covers it.
    fn add_reached(&mut self, network: Network) {
        let (IpAddr::V6(base), reached) = (network.base, &mut self.reached) else { return };
        let is_within = |one: &Network, other: &Network| other.bits <= one.bits && other.contains(one.base);
        if base.is_unicast_link_local()
            || base.is_multicast()
            || reached.iter().any(|one| is_within(&network, one))
        {
            return;
        }
        reached.retain(|one| !is_within(one, &network));
        reached.insert(network);
        if reached.len() > REACHED_MAX {
            *reached = BTreeSet::from([Network { base: Ipv6Addr::UNSPECIFIED.into(), bits: 0 }]);
        }
    }

    /// Whether the host has a global address of IPv6. Without one, programs do better with IPv4.
    pub fn has_ipv6(&self) -> bool {
        let is_global = |own: &Network| matches!(own.base, IpAddr::V6(base) if is_global_v6(base));
        self.own.iter().chain(&self.loopback).any(is_global)
    }

    /// Whether programs of the host reach an address, as far as its routes say: of IPv4 always.
    pub fn reaches(&self, address: IpAddr) -> bool {
        let has_route = |address| self.reached.iter().any(|network| network.contains(address));
        address.is_ipv4() || (self.has_ipv6() && (has_route(address) || self.is_own(address)))
    }

    /// Whether the kernel delivers packets to an address to the host itself, by an interface that leads out of it.
    pub fn is_own(&self, address: IpAddr) -> bool {
        longest(&self.own, address).is_some_and(|own| Some(own) >= longest(&self.loopback, address))
    }

    /// Whether an address is one of the host's loopback interface and can only be reached from the host.
    pub fn is_loopback(&self, address: IpAddr) -> bool {
        longest(&self.loopback, address).is_some() && !self.is_own(address)
    }

    /// Whether an address is in a network that the host is in, or is the host's.
    pub fn is_inside(&self, address: IpAddr) -> bool {
        self.is_own(address) || self.neighbours.iter().any(|network| network.contains(address))
    }
}

/// The longest prefix that covers an address: the kernel takes its route.
fn longest(networks: &BTreeSet<Network>, address: IpAddr) -> Option<u8> {
    networks.iter().filter(|network| network.contains(address)).map(|network| network.bits).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETHERNET: u32 = 2;
    const TUNNEL: u32 = 3;

    fn network(text: &str) -> Network {
        serde_json::from_value(text.into()).unwrap()
    }

    fn route(table: u32, destination: &str, kind: RouteKind, interface: u32) -> Route {
        Route {
            table,
            destination: network(destination),
            kind,
            interface: Some(interface),
            is_on_link: true,
            is_of_address: false,
        }
    }

    fn addresses(routes: &[Route]) -> HostAddresses {
        HostAddresses::of(routes.iter().copied(), |interface| interface == TUNNEL)
    }

    #[test]
    fn whatever_the_kernel_delivers_to_the_host_is_the_host() {
        let host = addresses(&[
            route(255, "198.51.100.7/32", RouteKind::Delivered, ETHERNET),
            route(255, "198.51.100.255/32", RouteKind::Delivered, ETHERNET),
            route(255, "198.18.7.0/24", RouteKind::Delivered, LOOPBACK),
            // The more specific route decides.
            route(255, "198.18.7.9/32", RouteKind::Delivered, ETHERNET),
            route(254, "192.0.2.0/28", RouteKind::Delivered, LOOPBACK),
            // On both: it can be reached from outside.
            route(255, "203.0.113.9/32", RouteKind::Delivered, LOOPBACK),
            route(255, "203.0.113.9/32", RouteKind::Delivered, ETHERNET),
            // A transparent proxy's, for marked packets.
            route(100, "0.0.0.0/0", RouteKind::Delivered, LOOPBACK),
            route(254, "203.0.113.64/26", RouteKind::Other, ETHERNET),
        ]);
        for (address, is_own, is_loopback) in [
            ("198.51.100.7", true, false),
            ("198.51.100.255", true, false),
            ("198.51.100.8", false, false),
            ("198.18.7.1", false, true),
            ("198.18.7.255", false, true),
            ("198.18.8.0", false, false),
            ("198.18.7.9", true, false),
            ("192.0.2.15", false, true),
            ("192.0.2.16", false, false),
            ("203.0.113.9", true, false),
            ("203.0.113.65", false, false),
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!((host.is_own(address), host.is_loopback(address)), (is_own, is_loopback), "{address}");
            assert_eq!(host.is_inside(address), is_own, "{address}");
        }
    }

    #[test]
    fn a_network_without_a_router_is_the_hosts_and_a_way_to_the_internet_is_not() {
        let sent = |destination, interface| route(254, destination, RouteKind::Sent, interface);
        let host = addresses(&[
            sent("198.51.100.0/24", ETHERNET),
            Route { is_on_link: false, ..sent("192.0.2.0/24", ETHERNET) },
            Route { interface: None, ..sent("192.0.2.0/24", ETHERNET) },
            // The default route of a container, and what tunnels carry.
            sent("0.0.0.0/0", ETHERNET),
            sent("128.0.0.0/1", ETHERNET),
            sent("8.8.0.0/16", TUNNEL),
            Route { is_of_address: true, ..sent("203.0.113.2/32", TUNNEL) },
            Route { table: 100, ..sent("8.8.0.0/16", ETHERNET) },
        ]);
        for (address, is_inside) in [
            ("198.51.100.1", true),
            ("198.51.101.1", false),
            ("192.0.2.1", false),
            ("203.0.113.2", true),
            ("203.0.113.3", false),
            ("8.8.8.8", false),
            ("200.0.0.1", false),
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(host.is_inside(address), is_inside, "{address}");
            assert!(!host.is_own(address) && !host.is_loopback(address), "{address}");
        }
    }

    #[test]
    fn routes_of_ipv6_count_where_the_host_has_a_global_address() {
        let sent = |destination: &str| Route {
            is_on_link: false,
            ..route(254, destination, RouteKind::Sent, ETHERNET)
        };
        let own = |address: &str| route(255, address, RouteKind::Delivered, ETHERNET);
        let reaches = |routes: &[Route], address: &str| addresses(routes).reaches(address.parse().unwrap());
        let home =
            [own("2001:db8:1::5/128"), sent("2001:db8:2::/48"), sent("2001:db8::/32"), sent("fe80::/64")];
        let host = addresses(&home);
        assert_eq!(host.reached, [network("2001:db8::/32")].into(), "what is within another one is not kept");
        for (address, is_reached) in [
            ("2001:db8:2::1", true),
            ("2001:db8:1::5", true),
            ("2001:db9::1", false),
            ("fe80::1", false),
            ("192.0.2.1", true),
        ] {
            assert_eq!(reaches(&home, address), is_reached, "{address}");
        }
        // Private addresses alone do not lead out of the site.
        for alone in ["fd00::2/128", "fe80::2/128", "192.0.2.1/32"] {
            assert!(!reaches(&[own(alone), sent("::/0")], "2001:db8::1"), "{alone}");
        }
        assert!(reaches(&[own("2001:db8:1::5/128"), sent("::/0")], "2606:4700::1111"));
        assert!(!reaches(&[own("2001:db8:1::5/128")], "2606:4700::1111"));
        let many: Vec<Route> = (0..300).map(|n| sent(&format!("2001:db8:{n:x}::/48"))).collect();
        assert_eq!(addresses(&many).reached, [network("::/0")].into());
    }

    #[test]
    fn networks_of_ipv6_are_inside_and_tunnels_are_not() {
        let sent = |destination, interface| route(254, destination, RouteKind::Sent, interface);
        let host = addresses(&[
            sent("2001:db8:1::/64", ETHERNET),
            sent("2000::/3", ETHERNET),
            sent("2001:db8:3::/48", TUNNEL),
            route(255, "2001:db8:1::5/128", RouteKind::Delivered, ETHERNET),
            route(255, "::1/128", RouteKind::Delivered, LOOPBACK),
        ]);
        for (address, is_inside, is_loopback) in [
            ("2001:db8:1::9", true, false),
            ("2001:db8:1::5", true, false),
            ("2001:db8:3::1", false, false),
            ("2606:4700::1111", false, false),
            ("::1", false, true),
            ("0.0.0.1", false, false),
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(
                (host.is_inside(address), host.is_loopback(address)),
                (is_inside, is_loopback),
                "{address}"
            );
        }
    }

    #[test]
    fn a_host_knows_its_loopback() {
        let addresses = HostAddresses::now().unwrap();
        for address in ["127.0.0.1", "127.99.0.1", "::1"] {
            let address: IpAddr = address.parse().unwrap();
            if address.is_ipv6() && !addresses.loopback.iter().any(|one| one.base.is_ipv6()) {
                // This host has no IPv6.
                continue;
            }
            assert!(addresses.is_loopback(address) && !addresses.is_own(address), "{address}");
        }
    }

    #[test]
    fn networks_are_told_as_text_and_nothing_else_is_one() {
        let text = r#"{"own":["192.0.2.1/32"],"loopback":[],"neighbours":["192.0.2.0/24"]}"#;
        let host: HostAddresses = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&host).unwrap(), text);
        let text = r#"{"own":["2001:db8::1/128"],"loopback":[],"neighbours":[],"reached":["::/0"]}"#;
        let host: HostAddresses = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&host).unwrap(), text);
        for text in ["192.0.2.0/33", "192.0.2.0", "192.0.2/24", "2001:db8::/129", "2001:db8::", "/", ""] {
            assert!(serde_json::from_value::<Network>(text.into()).is_err(), "{text}");
        }
    }
}
