//! Frames and messages for tests: written out by hand, without the code that is tested.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{GUEST_ADDRESS, GUEST_ADDRESS_V6, HostAddresses};

pub(crate) const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
pub(crate) const GATEWAY_MAC: [u8; 6] = [0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55];

/// A public address.
#[cfg(test)]
pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A public address of IPv6.
#[cfg(test)]
pub(crate) const FAR_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// A host with these addresses and without networks.
pub(crate) fn addresses(own: &[Ipv4Addr], loopback: &[Ipv4Addr]) -> HostAddresses {
    let all = |addresses: &[Ipv4Addr]| addresses.iter().copied().map(Into::into).collect();
    HostAddresses { own: all(own), loopback: all(loopback), ..HostAddresses::default() }
}

/// A segment of the guest: sequence 1000, acknowledging 2000.
pub(crate) fn tcp(far: impl Into<IpAddr>, guest_port: u16, far_port: u16, flags: u8, data: &[u8]) -> Vec<u8> {
    tcp_at(far, guest_port, far_port, flags, 1000, 2000, data)
}

/// A segment of the guest with these numbers.
pub(crate) fn tcp_at(
    far: impl Into<IpAddr>,
    guest_port: u16,
    far_port: u16,
    flags: u8,
    sequence: u32,
    acknowledged: u32,
    data: &[u8],
) -> Vec<u8> {
    let mut body = [&guest_port.to_be_bytes()[..], &far_port.to_be_bytes()].concat();
    body.extend(sequence.to_be_bytes());
    body.extend(acknowledged.to_be_bytes());
    body.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    body.extend(data);
    ip(far.into(), 6, &body)
}

/// A datagram of the guest.
pub(crate) fn udp(far: impl Into<IpAddr>, guest_port: u16, far_port: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = [&guest_port.to_be_bytes()[..], &far_port.to_be_bytes()].concat();
    body.extend((8 + payload.len() as u16).to_be_bytes());
    body.extend([0, 0]);
    body.extend(payload);
    ip(far.into(), 17, &body)
}

/// An echo request or reply of the guest.
pub(crate) fn echo(far: impl Into<IpAddr>, request: bool, id: u16) -> Vec<u8> {
    let far = far.into();
    let kind = match (far, request) {
        (IpAddr::V4(_), true) => 8,
        (IpAddr::V4(_), false) => 0,
        (IpAddr::V6(_), true) => 128,
        (IpAddr::V6(_), false) => 129,
    };
    let mut body = vec![kind, 0, 0, 0];
    body.extend(id.to_be_bytes());
    body.extend([0, 1]);
    ip(far, if far.is_ipv4() { 1 } else { 58 }, &body)
}

/// A packet of IPv6 with these headers and this content.
pub(crate) fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, hops: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = [GATEWAY_MAC, GUEST_MAC].concat();
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend((body.len() as u16).to_be_bytes());
    frame.extend([next, hops]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    frame.extend(body);
    frame
}

/// The guest at `sender` asks who has `target`, as from this hardware address.
pub(crate) fn solicitation(sender: Ipv6Addr, target: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    let mut body = vec![135, 0, 0, 0, 0, 0, 0, 0];
    body.extend(target.octets());
    body.extend([1, 1]);
    body.extend(mac);
    let mut group = "ff02::1:ff00:0".parse::<Ipv6Addr>().expect("an address").octets();
    group[13..].copy_from_slice(&target.octets()[13..]);
    ipv6(sender, group.into(), 58, 255, &body)
}

/// The guest asks who has `target`.
pub(crate) fn arp(target: Ipv4Addr) -> Vec<u8> {
    let mut frame = [0xff; 6].to_vec();
    frame.extend(GUEST_MAC);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(GUEST_MAC);
    frame.extend(GUEST_ADDRESS.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

/// What a segment carries.
#[cfg(test)]
pub(crate) fn tcp_data(frame: &[u8]) -> Vec<u8> {
    let tcp = if frame[14] >> 4 == 6 { 54 } else { 34 };
    frame[tcp + usize::from(frame[tcp + 12] >> 4) * 4..].to_vec()
}

/// A frame of the guest with this packet.
#[cfg(test)]
pub(crate) fn framed(packet: &[u8]) -> Vec<u8> {
    let ethertype = if packet[0] >> 4 == 6 { [0x86, 0xdd] } else { [8, 0] };
    [&GATEWAY_MAC[..], &GUEST_MAC, &ethertype, packet].concat()
}

fn ip(far: IpAddr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let far = match far {
        IpAddr::V4(far) => far,
        IpAddr::V6(far) => return ipv6(GUEST_ADDRESS_V6, far, protocol, 64, body),
    };
    let mut frame = [GATEWAY_MAC, GUEST_MAC].concat();
    frame.extend([8, 0, 0x45, 0]);
    frame.extend((20 + body.len() as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    frame.extend(GUEST_ADDRESS.octets());
    frame.extend(far.octets());
    frame.extend(body);
    frame
}

/// The frames of a stream, which must be whole.
pub(crate) fn frames(mut stream: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some((len, rest)) = stream.split_first_chunk::<4>() {
        let (frame, rest) = rest.split_at(u32::from_be_bytes(*len) as usize);
        frames.push(frame.to_vec());
        stream = rest;
    }
    assert!(stream.is_empty(), "half a length");
    frames
}

/// The same on a stream.
#[cfg(test)]
pub(crate) fn streamed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
}

/// Whether the checksums of a frame are right: summed with themselves they come to nothing.
pub(crate) fn checksums_hold(frame: &[u8]) -> bool {
    let sum = |parts: &[&[u8]]| {
        let mut sum = 0_u64;
        for part in parts {
            for word in part.chunks(2) {
                sum += u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0));
            }
        }
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        sum
    };
    if frame[14] >> 4 == 6 {
        let (header, body) = frame[14..].split_at(40);
        let pseudo = [&header[8..40], &(body.len() as u32).to_be_bytes(), &[0, 0, 0, header[6]]].concat();
        return usize::from(u16::from_be_bytes([header[4], header[5]])) == body.len()
            && sum(&[&pseudo, body]) == 0xffff;
    }
    let (header, body) = frame[14..].split_at(20);
    let pseudo = [&header[12..20], &[0, header[9]], &(body.len() as u16).to_be_bytes()].concat();
    let body_sum = if header[9] == 1 { sum(&[body]) } else { sum(&[&pseudo, body]) };
    sum(&[header]) == 0xffff && body_sum == 0xffff
}

/// A query.
pub(crate) fn dns_query(id: u16, name: &str, kind: u16, edns: Option<u16>) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())]);
    dns_name(&mut message, name);
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    if let Some(size) = edns {
        message.extend([0, 0, 41]);
        message.extend(size.to_be_bytes());
        message.extend([0; 6]);
    }
    message
}

/// The answer to a query for addresses, with jumps to the name. All are of the type that was asked for.
pub(crate) fn dns_answer(id: u16, name: &str, kind: u16, addresses: &[IpAddr], ttl: u32) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([0x81, 0x80, 0, 1]);
    message.extend((addresses.len() as u16).to_be_bytes());
    message.extend([0; 4]);
    dns_name(&mut message, name);
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    for address in addresses {
        let (kind, octets) = match address {
            IpAddr::V4(address) => (1, address.octets().to_vec()),
            IpAddr::V6(address) => (28, address.octets().to_vec()),
        };
        message.extend([0xc0, 12, 0, kind, 0, 1]);
        message.extend(ttl.to_be_bytes());
        message.extend((octets.len() as u16).to_be_bytes());
        message.extend(octets);
    }
    message
}

fn dns_name(message: &mut Vec<u8>, name: &str) {
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.bytes());
    }
    message.push(0);
}

/// What a message answers to a question for addresses: its code, name and addresses with their TTLs.
pub(crate) fn read_dns(message: &[u8]) -> (u8, String, Vec<(IpAddr, u32)>) {
    let code = message[3] & 15;
    if message[5] == 0 {
        return (code, String::new(), Vec::new());
    }
    let mut at = 12;
    let name = skip_name(message, &mut at);
    at += 4;
    let mut addresses = Vec::new();
    for _ in 0..u16::from_be_bytes([message[6], message[7]]) {
        skip_name(message, &mut at);
        let ttl = u32::from_be_bytes(message[at + 4..at + 8].try_into().expect("four bytes"));
        let len = usize::from(u16::from_be_bytes([message[at + 8], message[at + 9]]));
        let data = &message[at + 10..at + 10 + len];
        match message[at..at + 2] {
            [0, 1] => {
                let octets: [u8; 4] = data.try_into().expect("an address has four bytes");
                addresses.push((octets.into(), ttl));
            }
            [0, 28] => {
                let octets: [u8; 16] = data.try_into().expect("an address of IPv6 has sixteen bytes");
                addresses.push((octets.into(), ttl));
            }
            _ => {}
        }
        at += 10 + len;
    }
    (code, name, addresses)
}

fn skip_name(message: &[u8], at: &mut usize) -> String {
    let mut labels = Vec::new();
    let mut here = *at;
    let mut behind = None;
    while message[here] != 0 {
        let len = usize::from(message[here]);
        if len >= 0xc0 {
            let target = (len & 0x3f) << 8 | usize::from(message[here + 1]);
            assert!(target < here, "a jump that leads nowhere");
            behind.get_or_insert(here + 2);
            here = target;
            continue;
        }
        labels.push(String::from_utf8_lossy(&message[here + 1..here + 1 + len]).to_ascii_lowercase());
        here += 1 + len;
    }
    *at = behind.unwrap_or(here + 1);
    labels.join(".")
}
