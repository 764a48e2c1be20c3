//! What an address is to a guest: out of bounds, part of its own little network, inside, or public.
//!
//! The table of addresses that brokers use, too, and what the host adds to it. Which of the scopes may be reached is
//! decided elsewhere ([`crate::egress`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use microagent_model::AddressClass;

use crate::{GATEWAY, GATEWAY_V6, HostAddresses, PREFIX_LEN, PREFIX_LEN_V6};

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

/// Addresses that IPv4 is translated to: the last four bytes are the address that is meant.
///
/// # Source
/// RFC 6052.
const TRANSLATED: (Ipv6Addr, u8) = (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

/// Global addresses of IPv6, as far as they are given out.
///
/// # Source
/// IANA's registry of IPv6 address space.
const GLOBAL: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

impl Scope {
    /// The class of an address on a host that has these addresses.
    pub fn of(address: IpAddr, host: &HostAddresses) -> Scope {
        let meant = meant(address);
        let class = match address {
            // No network carries these: a socket would take them for addresses of IPv4.
            IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => AddressClass::Never,
            _ => AddressClass::of(meant),
        };
        let is_any = |is: fn(&HostAddresses, IpAddr) -> bool| is(host, address) || is(host, meant);
        if class == AddressClass::Never || is_any(HostAddresses::is_loopback) {
            Scope::Never
        } else if is_of_guest(meant) {
            Scope::Own
        } else if class == AddressClass::Private || is_any(HostAddresses::is_inside) {
            Scope::Inside
        } else {
            Scope::Public
        }
    }
}

/// Whether an address is in the guest's own network.
pub(crate) fn is_of_guest(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => contains(GATEWAY, PREFIX_LEN, address),
        IpAddr::V6(address) => contains_v6(GATEWAY_V6, PREFIX_LEN_V6, address),
    }
}

/// The address that is reached by way of this one: that of IPv4 behind a translator, otherwise the address itself.
pub(crate) fn meant(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) if contains_v6(TRANSLATED.0, TRANSLATED.1, v6) => {
            let [.., a, b, c, d] = v6.octets();
            Ipv4Addr::new(a, b, c, d).into()
        }
        _ => address,
    }
}

/// Whether an address lies in the network of `bits` prefix bits (at most 32) that `net` is of.
pub(crate) fn contains(net: Ipv4Addr, bits: u8, address: Ipv4Addr) -> bool {
    let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
    (net.to_bits() ^ address.to_bits()) & mask == 0
}

/// The same of IPv6; `bits` is at most 128.
pub(crate) fn contains_v6(net: Ipv6Addr, bits: u8, address: Ipv6Addr) -> bool {
    let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
    (net.to_bits() ^ address.to_bits()) & mask == 0
}

/// Whether an address of IPv6 is a global one.
pub(crate) fn is_global_v6(address: Ipv6Addr) -> bool {
    contains_v6(GLOBAL.0, GLOBAL.1, address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Network;

    fn network(text: &str) -> Network {
        serde_json::from_value(text.into()).unwrap()
    }

    fn own(text: &str) -> Network {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn classes_end_where_they_should() {
        let host = HostAddresses {
            own: ["8.8.4.4", "2001:db8:1::5"].map(own).into(),
            loopback: ["198.18.7.7", "10.7.7.7", "2001:db8:7::7"].map(own).into(),
            neighbours: ["203.0.114.0/24", "2001:db8:1::/64"].map(network).into(),
            ..HostAddresses::default()
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
            ("::", Scope::Never),
            ("::1", Scope::Never),
            ("::10.0.0.1", Scope::Never),
            ("::ffff:192.0.2.1", Scope::Never),
            ("::ffff:0:192.0.2.1", Scope::Never),
            ("64:ff9b::192.0.2.1", Scope::Public),
            ("64:ff9b::10.0.0.1", Scope::Inside),
            ("64:ff9b::10.0.2.2", Scope::Own),
            ("64:ff9b::127.0.0.1", Scope::Never),
            ("64:ff9b::169.254.169.254", Scope::Never),
            ("64:ff9b::8.8.4.4", Scope::Inside),
            ("64:ff9b::1:0:0", Scope::Never),
            ("64:ff9b:1::192.0.2.1", Scope::Inside),
            ("64:ff9b:2::1", Scope::Never),
            ("100::1", Scope::Never),
            ("1fff:ffff::", Scope::Never),
            ("2000::", Scope::Public),
            ("2001:0:102:304::1", Scope::Never),
            ("2001:1::1", Scope::Never),
            ("2001:db8::1", Scope::Public),
            ("2001:db8:1::5", Scope::Inside),
            ("2001:db8:1::6", Scope::Inside),
            ("2001:db8:2::6", Scope::Public),
            ("2001:db8:7::7", Scope::Never),
            ("2002:0a00:0001::1", Scope::Never),
            ("2002:7f00:0001::1", Scope::Never),
            ("2002:c000:0201::1", Scope::Never),
            ("2606:4700::1111", Scope::Public),
            ("3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Scope::Public),
            ("4000::", Scope::Never),
            ("fbff:ffff::", Scope::Never),
            ("fc00::1", Scope::Inside),
            ("fd00:ec2::254", Scope::Never),
            ("fd00:ec2::253", Scope::Inside),
            ("fd20:ce::254", Scope::Never),
            ("fd20:ce::255", Scope::Inside),
            ("fd5c:8b21:46e6:ffff:ffff:ffff:ffff:ffff", Scope::Inside),
            ("fd5c:8b21:46e7::", Scope::Own),
            ("fd5c:8b21:46e7::15", Scope::Own),
            ("fd5c:8b21:46e7:0:ffff:ffff:ffff:ffff", Scope::Own),
            ("fd5c:8b21:46e7:1::", Scope::Inside),
            ("fdff:ffff::1", Scope::Inside),
            ("fe00::1", Scope::Never),
            ("fe80::1", Scope::Never),
            ("fe80::a9fe:a9fe", Scope::Never),
            ("fec0::1", Scope::Inside),
            ("ff02::1", Scope::Never),
            ("ff0e::1", Scope::Never),
        ] {
            assert_eq!(Scope::of(address.parse().unwrap(), &host), scope, "{address}");
        }
    }

    #[test]
    fn a_prefix_of_nothing_holds_everything() {
        assert!(contains(Ipv4Addr::UNSPECIFIED, 0, Ipv4Addr::BROADCAST));
        assert!(!contains(Ipv4Addr::UNSPECIFIED, 32, Ipv4Addr::new(0, 0, 0, 1)));
        assert!(contains_v6(Ipv6Addr::UNSPECIFIED, 0, Ipv6Addr::from_bits(u128::MAX)));
        assert!(!contains_v6(Ipv6Addr::UNSPECIFIED, 128, Ipv6Addr::LOCALHOST));
    }
}
