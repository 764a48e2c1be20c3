//! What an IPv4 address is to a guest: out of bounds, part of its own little network, inside, or public.
//!
//! The table of addresses that brokers use, too, and what the host adds to it. Which of the scopes may be reached is
//! decided elsewhere ([`crate::egress`]).

use std::net::Ipv4Addr;

use microagent_model::AddressClass;

use crate::{GATEWAY, HostAddresses, PREFIX_LEN};

/// What an address is to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Never reachable, whatever the policy says: loopback, link-local, metadata services, multicast, reserved.
    Never,
    /// The guest's own network: gateway, name server, and nobody else.
    Own,
    /// The host's surroundings: private and shared ranges, the host's own addresses, and the networks that it is in.
    Inside,
    /// Everything else. Documentation and benchmark ranges are among it: nothing is there that could be harmed.
    Public,
}

impl Scope {
    /// The class of an address on a host that has these addresses.
    pub fn of(address: Ipv4Addr, host: &HostAddresses) -> Scope {
        let class = AddressClass::of(address.into());
        if class == AddressClass::Never || host.is_loopback(address) {
            Scope::Never
        } else if contains(GATEWAY, PREFIX_LEN, address) {
            Scope::Own
        } else if class == AddressClass::Private || host.is_inside(address) {
            Scope::Inside
        } else {
            Scope::Public
        }
    }
}

/// Whether an address lies in the network of `bits` prefix bits (at most 32) that `net` is of.
pub(crate) fn contains(net: Ipv4Addr, bits: u8, address: Ipv4Addr) -> bool {
    let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
    (net.to_bits() ^ address.to_bits()) & mask == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Network;

    #[test]
    fn classes_end_where_they_should() {
        let host = HostAddresses {
            own: [Ipv4Addr::new(8, 8, 4, 4).into()].into(),
            loopback: [Ipv4Addr::new(198, 18, 7, 7).into(), Ipv4Addr::new(10, 7, 7, 7).into()].into(),
            neighbours: Network::new(Ipv4Addr::new(203, 0, 114, 0), 24).into_iter().collect(),
        };
        for (address, scope) in [
            ("0.0.0.0", Scope::Never),
            ("0.255.255.255", Scope::Never),
            ("1.0.0.0", Scope::Public),
            ("9.255.255.255", Scope::Public),
            ("10.0.0.0", Scope::Inside),
            ("10.0.1.255", Scope::Inside),
            ("10.0.2.0", Scope::Own),
            ("10.0.2.2", Scope::Own),
            ("10.0.2.3", Scope::Own),
            ("10.0.2.255", Scope::Own),
            ("10.0.3.0", Scope::Inside),
            ("10.255.255.255", Scope::Inside),
            ("11.0.0.0", Scope::Public),
            ("100.63.255.255", Scope::Public),
            ("100.64.0.0", Scope::Inside),
            ("100.100.100.199", Scope::Inside),
            ("100.100.100.200", Scope::Never),
            ("100.127.255.255", Scope::Inside),
            ("100.128.0.0", Scope::Public),
            ("126.255.255.255", Scope::Public),
            ("127.0.0.1", Scope::Never),
            ("127.255.255.255", Scope::Never),
            ("128.0.0.0", Scope::Public),
            ("168.63.129.15", Scope::Public),
            ("168.63.129.16", Scope::Never),
            ("169.253.255.255", Scope::Public),
            ("169.254.0.0", Scope::Never),
            ("169.254.169.254", Scope::Never),
            ("169.255.0.0", Scope::Public),
            ("172.15.255.255", Scope::Public),
            ("172.16.0.0", Scope::Inside),
            ("172.31.255.255", Scope::Inside),
            ("172.32.0.0", Scope::Public),
            ("192.0.0.192", Scope::Never),
            ("192.0.1.0", Scope::Public),
            ("192.0.2.1", Scope::Public),
            ("192.168.0.0", Scope::Inside),
            ("192.168.255.255", Scope::Inside),
            ("192.169.0.0", Scope::Public),
            ("198.18.0.1", Scope::Public),
            ("198.51.100.7", Scope::Public),
            ("203.0.113.5", Scope::Public),
            ("223.255.255.255", Scope::Public),
            ("224.0.0.0", Scope::Never),
            ("239.255.255.255", Scope::Never),
            ("240.0.0.0", Scope::Never),
            ("255.255.255.255", Scope::Never),
            ("8.8.8.8", Scope::Public),
            ("8.8.4.4", Scope::Inside),
            ("198.18.7.7", Scope::Never),
            ("10.7.7.7", Scope::Never),
            ("203.0.114.255", Scope::Inside),
            ("203.0.115.0", Scope::Public),
        ] {
            assert_eq!(Scope::of(address.parse().unwrap(), &host), scope, "{address}");
        }
    }

    #[test]
    fn a_prefix_of_nothing_holds_everything() {
        assert!(contains(Ipv4Addr::UNSPECIFIED, 0, Ipv4Addr::BROADCAST));
        assert!(!contains(Ipv4Addr::UNSPECIFIED, 32, Ipv4Addr::new(0, 0, 0, 1)));
    }
}
