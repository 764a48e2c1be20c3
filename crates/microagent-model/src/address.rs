//! What an address is by itself, wherever it is used from: one table for the egress policy and for brokers.
//!
//! A host adds its own addresses and networks to this; they are not known here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What an address is to everybody on the Internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressClass {
    /// Leads to the host itself, to a service of the cloud that the host is in, to a group, or nowhere.
    Never,
    /// In a private or shared range: what it leads to depends on the network.
    Private,
    /// All others. Documentation and benchmark ranges are among them: nothing is there that could be harmed.
    Public,
}

/// Ranges of IPv4 that lead nowhere, or to what belongs to the host.
///
/// # Source
/// IANA's registry of special-purpose addresses; the metadata services are those of the vendors' manuals.
/// Most clouds have theirs at 169.254.169.254, which is link-local.
const NEVER_V4: [(Ipv4Addr, u8); 8] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    // Protocol assignments; Oracle's older cloud has its metadata at 192.0.0.192.
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    // Alibaba's metadata, in the middle of the shared range.
    (Ipv4Addr::new(100, 100, 100, 200), 32),
    // Azure's host: metadata, health, name service.
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    // Reserved, with limited broadcast at its end.
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// Private ranges (RFC 1918) and the shared one (RFC 6598).
pub(crate) const PRIVATE_V4: [(Ipv4Addr, u8); 4] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
];

/// Ranges within the private and public ones of IPv6 that lead nowhere, or to what belongs to the host.
///
/// # Source
/// IANA's registry of special-purpose addresses; RFC 7526 for 6to4. Both tunnels carry packets to an address of IPv4
/// that is a part of theirs. The metadata services are those of the vendors' manuals.
const NEVER_V6: [(Ipv6Addr, u8); 6] = [
    // Protocol assignments, Teredo (2001::/32) first.
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    // 6to4.
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    // Metadata of Amazon, Google, Oracle and Scaleway, which are unique local addresses.
    (Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), 128),
    (Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254), 128),
    (Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe), 128),
    (Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42), 128),
];

/// Unique local addresses (RFC 4193), the site-local ones before them, and translation within a network (RFC 8215).
const PRIVATE_V6: [(Ipv6Addr, u8); 3] = [
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48),
];

/// What is assigned to the Internet so far. What is outside is loopback, link-local, a group, or nothing yet.
const PUBLIC_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// Prefixes before an address of IPv4, which is what they lead to: mapped (RFC 4291), and of a translator (RFC 6052).
const EMBEDDING: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0)];

impl AddressClass {
    /// The class of an address.
    pub fn of(address: IpAddr) -> AddressClass {
        match address {
            IpAddr::V4(address) => of_v4(address),
            IpAddr::V6(address) => embedded_v4(address).map_or_else(|| of_v6(address), of_v4),
        }
    }
}

fn of_v4(address: Ipv4Addr) -> AddressClass {
    let is_in = |ranges: &[(Ipv4Addr, u8)]| {
        ranges.iter().any(|(net, bits)| (net.to_bits() ^ address.to_bits()).leading_zeros() >= (*bits).into())
    };
    match (is_in(&NEVER_V4), is_in(&PRIVATE_V4)) {
        (true, _) => AddressClass::Never,
        (false, true) => AddressClass::Private,
        (false, false) => AddressClass::Public,
    }
}

fn of_v6(address: Ipv6Addr) -> AddressClass {
    let is_in = |ranges: &[(Ipv6Addr, u8)]| {
        ranges.iter().any(|(net, bits)| (net.to_bits() ^ address.to_bits()).leading_zeros() >= (*bits).into())
    };
    match (is_in(&NEVER_V6), is_in(&PRIVATE_V6), is_in(&[PUBLIC_V6])) {
        (true, ..) | (false, false, false) => AddressClass::Never,
        (false, true, _) => AddressClass::Private,
        (false, false, true) => AddressClass::Public,
    }
}

/// The address of IPv4 that an address of IPv6 leads to.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let is_embedding = EMBEDDING.iter().any(|prefix| (prefix.to_bits() ^ address.to_bits()) >> 32 == 0);
    let [.., a, b, c, d] = address.octets();
    is_embedding.then(|| Ipv4Addr::new(a, b, c, d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_ends_where_it_should() {
        use AddressClass::{Never, Private, Public};
        for (address, class) in [
            ("0.0.0.0", Never),
            ("0.255.255.255", Never),
            ("1.0.0.0", Public),
            ("8.8.8.8", Public),
            ("9.255.255.255", Public),
            ("10.0.0.0", Private),
            ("10.255.255.255", Private),
            ("11.0.0.0", Public),
            ("100.63.255.255", Public),
            ("100.64.0.0", Private),
            ("100.100.100.199", Private),
            ("100.100.100.200", Never),
            ("100.100.100.201", Private),
            ("100.127.255.255", Private),
            ("100.128.0.0", Public),
            ("126.255.255.255", Public),
            ("127.0.0.0", Never),
            ("127.255.255.255", Never),
            ("128.0.0.0", Public),
            ("168.63.129.15", Public),
            ("168.63.129.16", Never),
            ("168.63.129.17", Public),
            ("169.253.255.255", Public),
            ("169.254.0.0", Never),
            ("169.254.255.255", Never),
            ("169.255.0.0", Public),
            ("172.15.255.255", Public),
            ("172.16.0.0", Private),
            ("172.31.255.255", Private),
            ("172.32.0.0", Public),
            ("191.255.255.255", Public),
            ("192.0.0.0", Never),
            ("192.0.0.192", Never),
            ("192.0.0.255", Never),
            ("192.0.1.0", Public),
            ("192.0.2.1", Public),
            ("192.167.255.255", Public),
            ("192.168.0.0", Private),
            ("192.168.255.255", Private),
            ("192.169.0.0", Public),
            ("198.18.0.1", Public),
            ("198.51.100.7", Public),
            ("203.0.113.5", Public),
            ("223.255.255.255", Public),
            ("224.0.0.0", Never),
            ("239.255.255.255", Never),
            ("240.0.0.0", Never),
            ("255.255.255.255", Never),
            ("::", Never),
            ("::1", Never),
            ("::a00:1", Never),
            ("::808:808", Never),
            ("::fffe:808:808", Never),
            ("::ffff:10.0.0.1", Private),
            ("::ffff:127.0.0.1", Never),
            ("::ffff:168.63.129.16", Never),
            ("::ffff:8.8.8.8", Public),
            ("::1:0:0:0", Never),
            ("64:ff9a:ffff:ffff:ffff:ffff:ffff:ffff", Never),
            ("64:ff9b::a00:1", Private),
            ("64:ff9b::a9fe:a9fe", Never),
            ("64:ff9b::c000:1", Never),
            ("64:ff9b::808:808", Public),
            ("64:ff9b::1:808:808", Never),
            ("64:ff9b:1::", Private),
            ("64:ff9b:1:ffff:ffff:ffff:ffff:ffff", Private),
            ("64:ff9b:2::", Never),
            ("100::1", Never),
            ("1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Never),
            ("2000::", Public),
            ("2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Public),
            ("2001::", Never),
            ("2001:0:4136:e378:8000:63bf:3fff:fdd2", Never),
            ("2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", Never),
            ("2001:200::", Public),
            ("2001:db8::1", Public),
            ("2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Public),
            ("2002::", Never),
            ("2002:a00:1::1", Never),
            ("2002:808:808::1", Never),
            ("2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Never),
            ("2003::", Public),
            ("2606:4700::1111", Public),
            ("3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Public),
            ("4000::", Never),
            ("5f00::1", Never),
            ("fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Never),
            ("fc00::", Private),
            ("fd00::1", Private),
            ("fd00:ec2::253", Private),
            ("fd00:ec2::254", Never),
            ("fd00:c1::a9fe:a9fe", Never),
            ("fd00:42::42", Never),
            ("fd00:42::43", Private),
            ("fd20:ce::254", Never),
            ("fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Private),
            ("fe00::", Never),
            ("fe80::1", Never),
            ("febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Never),
            ("fec0::1", Private),
            ("feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Private),
            ("ff02::1", Never),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Never),
        ] {
            assert_eq!(AddressClass::of(address.parse().unwrap()), class, "{address}");
        }
    }
}
