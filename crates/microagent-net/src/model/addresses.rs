//! Addresses that the model uses, and what they are to a guest.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{GATEWAY_V6, NAME_SERVER};

pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
/// An address on the host's loopback interface.
pub(super) const LO: Ipv4Addr = Ipv4Addr::new(198, 18, 7, 7);
pub(super) const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 5);
pub(super) const LO_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 7);

/// The guest's address in a private network, and the network.
pub(super) const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
pub(super) const SUBNET: &str = "10.77.0.0/24";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Public,
    Inside,
    Own,
    /// In the private network, and not the guest's.
    Member,
    Never,
}

/// Addresses, with what a person would say of them.
pub(super) const ADDRESSES: [(IpAddr, Class); 34] = [
    (v4(192, 0, 2, 1), Class::Public),
    (v4(203, 0, 113, 5), Class::Public),
    (v4(8, 8, 8, 8), Class::Public),
    (IpAddr::V4(HOST), Class::Inside),
    (IpAddr::V4(LO), Class::Never),
    (v4(10, 1, 2, 3), Class::Inside),
    (v4(192, 168, 7, 7), Class::Inside),
    (v4(100, 64, 0, 1), Class::Inside),
    (v4(172, 20, 0, 5), Class::Inside),
    (v4(127, 0, 0, 1), Class::Never),
    (v4(169, 254, 169, 254), Class::Never),
    (v4(224, 0, 0, 251), Class::Never),
    (v4(10, 0, 2, 2), Class::Own),
    (IpAddr::V4(NAME_SERVER), Class::Own),
    (v4(10, 0, 2, 77), Class::Own),
    (v4(10, 77, 0, 9), Class::Member),
    (IpAddr::V4(PRIVATE), Class::Own),
    (v4(10, 77, 0, 255), Class::Own),
    (v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]), Class::Public),
    (v6([0x2606, 0x4700, 0, 0, 0, 0, 0, 0x1111]), Class::Public),
    (IpAddr::V6(HOST_V6), Class::Inside),
    (IpAddr::V6(LO_V6), Class::Never),
    (v6([0xfd00, 1, 0, 0, 0, 0, 0, 1]), Class::Inside),
    (v6([0xfd00, 0x20, 0, 0, 0, 0, 0, 1]), Class::Inside),
    (v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]), Class::Never),
    (v6([0, 0, 0, 0, 0, 0, 0, 1]), Class::Never),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 1]), Class::Never),
    (v6([0xff02, 0, 0, 0, 0, 0, 0, 0xfb]), Class::Never),
    (v6([0, 0, 0, 0, 0, 0xffff, 0xc000, 0x201]), Class::Never),
    (v6([0x64, 0xff9b, 0, 0, 0, 0, 0xc000, 0x201]), Class::Public),
    (v6([0x64, 0xff9b, 0, 0, 0, 0, 0xac14, 5]), Class::Inside),
    (v6([0x64, 0xff9b, 0, 0, 0, 0, 0xa9fe, 0xa9fe]), Class::Never),
    (IpAddr::V6(GATEWAY_V6), Class::Own),
    (v6([0xfd5c, 0x8b21, 0x46e7, 0, 0, 0, 0, 0x77]), Class::Own),
];

pub(super) const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

pub(super) const fn v6([a, b, c, d, e, f, g, h]: [u16; 8]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h))
}

pub(super) fn rough_class(address: IpAddr) -> Class {
    match address {
        IpAddr::V4(address) => rough_class_v4(address),
        IpAddr::V6(address) => rough_class_v6(address),
    }
}

pub(super) fn rough_class_v6(address: Ipv6Addr) -> Class {
    let behind = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        match (a, b, c) {
            // Nobody is a member by way of the host.
            (10, 77, 0) => Class::Inside,
            _ => rough_class_v4(Ipv4Addr::new(a, b, c, d)),
        }
    };
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => behind(high, low),
        [0x64, 0xff9b, 1, ..] => Class::Inside,
        [0x2001, ..=0x1ff, ..] | [0x2002, ..] => Class::Never,
        [0xfd5c, 0x8b21, 0x46e7, 0, ..] => Class::Own,
        [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]
        | [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]
        | [0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe]
        | [0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42] => Class::Never,
        [0xfc00..=0xfdff | 0xfec0..=0xfeff, ..] => Class::Inside,
        _ if address == HOST_V6 => Class::Inside,
        _ if address == LO_V6 => Class::Never,
        [0x2000..=0x3fff, ..] => Class::Public,
        _ => Class::Never,
    }
}

pub(super) fn rough_class_v4(address: Ipv4Addr) -> Class {
    match address.octets() {
        [10, 0, 2, _] | [10, 77, 0, 0 | 2 | 255] => Class::Own,
        [10, 77, 0, _] => Class::Member,
        [0 | 127 | 224.., ..]
        | [169, 254, ..]
        | [192, 0, 0, _]
        | [100, 100, 100, 200]
        | [168, 63, 129, 16] => Class::Never,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Class::Inside,
        _ if address == HOST => Class::Inside,
        _ if address == LO => Class::Never,
        _ => Class::Public,
    }
}
