//! Ethernet frames, read in place: what the stack understands of one, and nothing it does not.
//!
//! [`read`] takes bytes apart without copying. It is strict where leniency would let two readers (this one
//! and smoltcp) see two things in the same bytes: no IP options or extension headers, no fragments, no VLAN tags, lengths
//! that agree. What it does not understand is an [`Unreadable`] and goes nowhere.
//!
//! # Source
//! RFC 791 (IPv4), RFC 8200 (IPv6), RFC 9293 (TCP), RFC 768 (UDP), RFC 792 (ICMP), RFC 4443 (ICMPv6), RFC 826 (ARP),
//! RFC 4861 (neighbour discovery).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET_LEN: usize = 14;
/// Bytes of an IPv4 header without options.
pub(crate) const IPV4_LEN: usize = 20;
/// Bytes of an IPv6 header; what follows it is no extension.
pub(crate) const IPV6_LEN: usize = 40;
/// Bytes of a TCP header without options.
pub(crate) const TCP_LEN: usize = 20;
/// Bytes of a UDP or ICMP echo header.
pub(crate) const UDP_LEN: usize = 8;
/// Bytes of an ARP packet for IPv4 on Ethernet.
pub(crate) const ARP_LEN: usize = 28;

/// Longest frame: the longest IPv4 packet with an Ethernet header. A packet of IPv6 is not longer either.
pub const MAX_FRAME_LEN: usize = ETHERNET_LEN + u16::MAX as usize;

pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_ARP: u16 = 0x0806;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;

pub(crate) const PROTOCOL_ICMP: u8 = 1;
pub(crate) const PROTOCOL_TCP: u8 = 6;
pub(crate) const PROTOCOL_UDP: u8 = 17;
pub(crate) const PROTOCOL_ICMPV6: u8 = 58;
pub(crate) const PROTOCOL_FRAGMENT: u8 = 44;

/// Types of ICMP messages.
pub(crate) const ECHO_REPLY: u8 = 0;
pub(crate) const ECHO_REQUEST: u8 = 8;

/// Types of ICMPv6 messages.
pub(crate) const ECHO_REQUEST_V6: u8 = 128;
pub(crate) const ECHO_REPLY_V6: u8 = 129;
pub(crate) const NEIGHBOUR_SOLICITATION: u8 = 135;
pub(crate) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// Bytes of a neighbour solicitation or advertisement without options.
pub(crate) const NEIGHBOUR_LEN: usize = 24;

/// Options of neighbour discovery with a hardware address: the sender's, and that of the target.
const SOURCE_MAC: u8 = 1;
pub(crate) const TARGET_MAC: u8 = 2;

/// What neighbour discovery must have: no router has passed it on.
pub(crate) const HOPS_MAX: u8 = 255;

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// TCP's flags, as the header has them.
pub(crate) mod flags {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const ACK: u8 = 0x10;
}

/// Why a frame is not read further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// Shorter than its headers say, or longer than any.
    Length,
    /// Neither IPv4, IPv6 nor ARP: VLAN tags, anything else.
    Ethertype,
    /// IP options or extension headers: source routes are among them, nobody needs them.
    Options,
    /// A part of a packet: its other parts would go unread.
    Fragment,
    /// Not TCP, UDP or ICMP echo: also what routers tell hosts, and groups that are joined.
    Protocol,
    /// ARP for something else than IPv4 on Ethernet.
    Arp,
    /// A neighbour solicitation that a router has passed on, or that asks for nobody.
    Solicitation,
}

/// A frame that was understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    Arp(Arp),
    Solicitation(Solicitation),
    Ip(Packet<'a>),
}

/// An ARP request or reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arp {
    pub(crate) request: bool,
    pub(crate) sender_mac: Mac,
    pub(crate) sender: Ipv4Addr,
    pub(crate) target: Ipv4Addr,
}

/// The question of IPv6 who has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Solicitation {
    /// Who asks; unspecified while a host looks whether an address is free.
    pub(crate) sender: Ipv6Addr,
    /// The sender's hardware address, if it says one.
    pub(crate) sender_mac: Option<Mac>,
    pub(crate) target: Ipv6Addr,
}

/// A packet that is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet<'a> {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Bytes of header and payload, without padding of the frame.
    pub(crate) len: usize,
    pub(crate) transport: Transport<'a>,
}

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport<'a> {
    Tcp(Segment),
    Udp { source: u16, destination: u16, payload: &'a [u8] },
    Echo { request: bool, id: u16, sequence: u16, payload: &'a [u8] },
}

/// The parts of a TCP header that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) source: u16,
    pub(crate) destination: u16,
    pub(crate) sequence: u32,
    pub(crate) acknowledged: u32,
    pub(crate) flags: u8,
    /// As the header has it, not scaled.
    pub(crate) window: u16,
    /// Bytes after the header.
    pub(crate) data_len: u16,
}

impl Segment {
    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The first segment of a connection.
    pub(crate) fn opens(&self) -> bool {
        self.flags & (flags::SYN | flags::ACK | flags::RST | flags::FIN) == flags::SYN
    }

    /// What the segment takes of the sequence space: its data, and one for each SYN and FIN.
    pub(crate) fn sequence_len(&self) -> u32 {
        u32::from(self.data_len) + u32::from(self.has(flags::SYN)) + u32::from(self.has(flags::FIN))
    }
}

/// Takes a frame apart.
pub(crate) fn read(frame: &[u8]) -> Result<Frame<'_>, Unreadable> {
    if frame.len() > MAX_FRAME_LEN {
        return Err(Unreadable::Length);
    }
    let (ethernet, rest) = frame.split_at_checked(ETHERNET_LEN).ok_or(Unreadable::Length)?;
    match u16_at(ethernet, 12) {
        ETHERTYPE_IPV4 => read_ipv4(rest).map(Frame::Ip),
        ETHERTYPE_IPV6 => read_ipv6(rest),
        ETHERTYPE_ARP => read_arp(rest).map(Frame::Arp),
        _ => Err(Unreadable::Ethertype),
    }
}

fn read_arp(bytes: &[u8]) -> Result<Arp, Unreadable> {
    let bytes = bytes.get(..ARP_LEN).ok_or(Unreadable::Length)?;
    // Hardware type 1 is Ethernet; address lengths 6 and 4.
    if u16_at(bytes, 0) != 1 || u16_at(bytes, 2) != ETHERTYPE_IPV4 || bytes[4..6] != [6, 4] {
        return Err(Unreadable::Arp);
    }
    let request = match u16_at(bytes, 6) {
        1 => true,
        2 => false,
        _ => return Err(Unreadable::Arp),
    };
    let mut sender_mac = Mac::default();
    sender_mac.copy_from_slice(&bytes[8..14]);
    Ok(Arp { request, sender_mac, sender: address_at(bytes, 14), target: address_at(bytes, 24) })
}

fn read_ipv4(bytes: &[u8]) -> Result<Packet<'_>, Unreadable> {
    let header = bytes.get(..IPV4_LEN).ok_or(Unreadable::Length)?;
    match header[0] {
        0x45 => {}
        0x46..=0x4f => return Err(Unreadable::Options),
        _ => return Err(Unreadable::Length),
    }
    let len = usize::from(u16_at(header, 2));
    let body = bytes.get(IPV4_LEN..len).ok_or(Unreadable::Length)?;
    // "More fragments", or an offset; "don't fragment" and the reserved bit say nothing of that.
    if u16_at(header, 6) & 0x3fff != 0 {
        return Err(Unreadable::Fragment);
    }
    let transport = match header[9] {
        PROTOCOL_TCP => Transport::Tcp(read_tcp(body)?),
        PROTOCOL_UDP => read_udp(body)?,
        PROTOCOL_ICMP => read_echo(body, [ECHO_REQUEST, ECHO_REPLY])?,
        _ => return Err(Unreadable::Protocol),
    };
    let (source, destination) = (address_at(header, 12).into(), address_at(header, 16).into());
    Ok(Packet { source, destination, len, transport })
}

fn read_ipv6(bytes: &[u8]) -> Result<Frame<'_>, Unreadable> {
    let header = bytes.get(..IPV6_LEN).ok_or(Unreadable::Length)?;
    if header[0] >> 4 != 6 {
        return Err(Unreadable::Length);
    }
    // A length of zero would be said by an extension (RFC 2675), of which there is none.
    let len = IPV6_LEN + usize::from(u16_at(header, 4));
    let body = bytes.get(IPV6_LEN..len).ok_or(Unreadable::Length)?;
    let (source, destination) = (address_v6_at(header, 8), address_v6_at(header, 24));
    let transport = match header[6] {
        PROTOCOL_TCP => Transport::Tcp(read_tcp(body)?),
        PROTOCOL_UDP => read_udp(body)?,
        PROTOCOL_ICMPV6 if body.first() == Some(&NEIGHBOUR_SOLICITATION) => {
            return match header[7] {
                HOPS_MAX => read_solicitation(source, body).map(Frame::Solicitation),
                _ => Err(Unreadable::Solicitation),
            };
        }
        PROTOCOL_ICMPV6 => read_echo(body, [ECHO_REQUEST_V6, ECHO_REPLY_V6])?,
        PROTOCOL_FRAGMENT => return Err(Unreadable::Fragment),
        // Options of hops and of the destination, and routes. Where one is, others may follow.
        0 | 43 | 60 => return Err(Unreadable::Options),
        _ => return Err(Unreadable::Protocol),
    };
    Ok(Frame::Ip(Packet { source: source.into(), destination: destination.into(), len, transport }))
}

fn read_solicitation(sender: Ipv6Addr, body: &[u8]) -> Result<Solicitation, Unreadable> {
    let (message, mut options) = body.split_at_checked(NEIGHBOUR_LEN).ok_or(Unreadable::Length)?;
    let target = address_v6_at(message, 8);
    if message[1] != 0 || target.is_multicast() {
        return Err(Unreadable::Solicitation);
    }
    let mut sender_mac = None;
    while !options.is_empty() {
        // Lengths count units of eight bytes.
        let len = usize::from(*options.get(1).ok_or(Unreadable::Length)?) * 8;
        let (option, rest) = options.split_at_checked(len).ok_or(Unreadable::Length)?;
        match option.get(..8) {
            Some(&[SOURCE_MAC, 1, a, b, c, d, e, f]) => sender_mac = Some([a, b, c, d, e, f]),
            Some(_) => {}
            None => return Err(Unreadable::Length),
        }
        options = rest;
    }
    Ok(Solicitation { sender, sender_mac, target })
}

/// The segment in an IP packet, if there is one.
pub(crate) fn read_segment(packet: &[u8]) -> Option<Segment> {
    let transport = match header_len(packet) {
        IPV6_LEN => match read_ipv6(packet).ok()? {
            Frame::Ip(packet) => packet.transport,
            Frame::Arp(_) | Frame::Solicitation(_) => return None,
        },
        _ => read_ipv4(packet).ok()?.transport,
    };
    match transport {
        Transport::Tcp(segment) => Some(segment),
        Transport::Udp { .. } | Transport::Echo { .. } => None,
    }
}

/// Bytes of the IP header of a packet that was understood.
pub(crate) fn header_len(packet: &[u8]) -> usize {
    match packet.first() {
        Some(first) if first >> 4 == 6 => IPV6_LEN,
        _ => IPV4_LEN,
    }
}

fn read_tcp(bytes: &[u8]) -> Result<Segment, Unreadable> {
    let header = bytes.get(..TCP_LEN).ok_or(Unreadable::Length)?;
    let header_len = usize::from(header[12] >> 4) * 4;
    if header_len < TCP_LEN || header_len > bytes.len() {
        return Err(Unreadable::Length);
    }
    Ok(Segment {
        source: u16_at(header, 0),
        destination: u16_at(header, 2),
        sequence: u32_at(header, 4),
        acknowledged: u32_at(header, 8),
        flags: header[13],
        window: u16_at(header, 14),
        // A packet has at most 65535 bytes, so the difference fits.
        data_len: (bytes.len() - header_len) as u16,
    })
}

fn read_udp(bytes: &[u8]) -> Result<Transport<'_>, Unreadable> {
    let (header, payload) = bytes.split_at_checked(UDP_LEN).ok_or(Unreadable::Length)?;
    if usize::from(u16_at(header, 4)) != bytes.len() {
        return Err(Unreadable::Length);
    }
    Ok(Transport::Udp { source: u16_at(header, 0), destination: u16_at(header, 2), payload })
}

/// Reads an echo; `kinds` are the types of requests and replies.
fn read_echo(bytes: &[u8], kinds: [u8; 2]) -> Result<Transport<'_>, Unreadable> {
    let (header, payload) = bytes.split_at_checked(UDP_LEN).ok_or(Unreadable::Length)?;
    let request = match header[..2] {
        [kind, 0] if kind == kinds[0] => true,
        [kind, 0] if kind == kinds[1] => false,
        _ => return Err(Unreadable::Protocol),
    };
    Ok(Transport::Echo { request, id: u16_at(header, 4), sequence: u16_at(header, 6), payload })
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn address_at(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32_at(bytes, at))
}

fn address_v6_at(bytes: &[u8], at: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&bytes[at..at + 16]);
    octets.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{self, FAR, FAR_V6};

    #[test]
    fn a_segment_is_read_as_it_was_made() {
        let frame = testing::tcp(FAR, 40_000, 443, flags::SYN, b"");
        let Ok(Frame::Ip(packet)) = read(&frame) else { panic!("not read") };
        assert_eq!(packet.destination, FAR);
        let Transport::Tcp(segment) = packet.transport else { panic!("not TCP") };
        assert!(segment.opens());
        assert_eq!((segment.source, segment.destination, segment.sequence_len()), (40_000, 443, 1));
    }

    #[test]
    fn padding_of_a_short_frame_is_not_data() {
        let mut frame = testing::tcp(FAR, 1, 2, flags::ACK, b"ab");
        frame.extend([0; 40]);
        let Ok(Frame::Ip(Packet { transport: Transport::Tcp(segment), .. })) = read(&frame) else { panic!() };
        assert_eq!(segment.data_len, 2);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_not_read() {
        let whole = testing::udp(FAR, 1000, 53, b"payload");
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = whole.clone();
            change(&mut frame);
            read(&frame).map(|_| ()).unwrap_err()
        };
        for (change, why) in [
            (
                &(|f: &mut Vec<u8>| f[12..14].copy_from_slice(&[0x86, 0xdd])) as &dyn Fn(&mut Vec<u8>),
                Unreadable::Length,
            ),
            (&|f| f[12..14].copy_from_slice(&[0x88, 0xcc]), Unreadable::Ethertype),
            (&|f| f[12..14].copy_from_slice(&[0x81, 0x00]), Unreadable::Ethertype),
            (&|f| f[14] = 0x46, Unreadable::Options),
            (&|f| f[14] = 0x44, Unreadable::Length),
            (&|f| f[14] = 0x65, Unreadable::Length),
            (&|f| f[20] = 0x20, Unreadable::Fragment),
            (&|f| f[21] = 1, Unreadable::Fragment),
            (&|f| f[23] = 47, Unreadable::Protocol),
            (&|f| f[23] = PROTOCOL_TCP, Unreadable::Length),
            (&|f| f[39] += 1, Unreadable::Length),
            (&|f| f[39] -= 1, Unreadable::Length),
            (&|f| f[17] = 19, Unreadable::Length),
            (&|f| f.truncate(41), Unreadable::Length),
            (&|f| f.truncate(13), Unreadable::Length),
            (&|f| f.resize(MAX_FRAME_LEN + 1, 0), Unreadable::Length),
        ] {
            assert_eq!(with(change), why);
        }
        let mut tcp = testing::tcp(FAR, 1, 2, flags::SYN, b"");
        for words in [4_u8, 6] {
            tcp[46] = words << 4;
            assert_eq!(read(&tcp), Err(Unreadable::Length));
        }
        let mut echo = testing::echo(FAR, true, 7);
        echo[34] = 13;
        assert_eq!(read(&echo), Err(Unreadable::Protocol));
    }

    #[test]
    fn packets_of_ipv6_are_read_as_they_were_made() {
        let mut frame = testing::tcp(FAR_V6, 40_000, 443, flags::SYN, b"ab");
        frame.extend([0; 9]);
        let Ok(Frame::Ip(packet)) = read(&frame) else { panic!("not read") };
        assert_eq!((packet.source, packet.destination), (crate::GUEST_ADDRESS_V6.into(), FAR_V6.into()));
        let Transport::Tcp(segment) = packet.transport else { panic!("not TCP") };
        assert_eq!((packet.len, segment.data_len), (IPV6_LEN + TCP_LEN + 2, 2));
        assert_eq!(read_segment(&frame[ETHERNET_LEN..]), Some(segment));
        let Ok(Frame::Solicitation(asked)) = read(&testing::solicitation(FAR_V6, FAR_V6, [7; 6])) else {
            panic!("not read")
        };
        assert_eq!((asked.sender, asked.target, asked.sender_mac), (FAR_V6, FAR_V6, Some([7; 6])));
    }

    #[test]
    fn what_of_ipv6_could_be_read_in_two_ways_is_not_read() {
        let with = |whole: &[u8], change: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = whole.to_vec();
            change(&mut frame);
            read(&frame).map(|_| ()).unwrap_err()
        };
        let udp = testing::udp(FAR_V6, 1000, 53, b"payload");
        let solicitation = testing::solicitation(FAR_V6, FAR_V6, [7; 6]);
        for (whole, change, why) in [
            (
                &udp,
                &(|f: &mut Vec<u8>| f[12..14].copy_from_slice(&[8, 0])) as &dyn Fn(&mut Vec<u8>),
                Unreadable::Length,
            ),
            (&udp, &|f| f[14] = 0x45, Unreadable::Length),
            // Longer and shorter than it says, and a length that an option would say.
            (&udp, &|f| f[19] += 1, Unreadable::Length),
            (&udp, &|f| f[19] -= 1, Unreadable::Length),
            (&udp, &|f| f[18] = 0xff, Unreadable::Length),
            (&udp, &|f| f[18..20].fill(0), Unreadable::Length),
            (&udp, &|f| f.truncate(53), Unreadable::Length),
            (&udp, &|f| f[20] = 6, Unreadable::Length),
            // Extension headers, fragments, tunnels, and nothing at all.
            (&udp, &|f| f[20] = 0, Unreadable::Options),
            (&udp, &|f| f[20] = 43, Unreadable::Options),
            (&udp, &|f| f[20] = 60, Unreadable::Options),
            (&udp, &|f| f[20] = 44, Unreadable::Fragment),
            (&udp, &|f| f[20] = 51, Unreadable::Protocol),
            (&udp, &|f| f[20] = 4, Unreadable::Protocol),
            (&udp, &|f| f[20] = 41, Unreadable::Protocol),
            (&udp, &|f| f[20] = 59, Unreadable::Protocol),
            (&udp, &|f| f[20] = 1, Unreadable::Protocol),
            // Solicitations and advertisements of routers, advertisements, redirects, errors, groups.
            (&solicitation, &|f| f[54] = 133, Unreadable::Protocol),
            (&solicitation, &|f| f[54] = 134, Unreadable::Protocol),
            (&solicitation, &|f| f[54] = 136, Unreadable::Protocol),
            (&solicitation, &|f| f[54] = 137, Unreadable::Protocol),
            (&solicitation, &|f| f[54] = 1, Unreadable::Protocol),
            (&solicitation, &|f| f[54] = 143, Unreadable::Protocol),
            // One that a router has passed on, with a code, for a group, with options that do not end.
            (&solicitation, &|f| f[21] = 254, Unreadable::Solicitation),
            (&solicitation, &|f| f[55] = 1, Unreadable::Solicitation),
            (&solicitation, &|f| f[62] = 0xff, Unreadable::Solicitation),
            (&solicitation, &|f| f[79] = 0, Unreadable::Length),
            (&solicitation, &|f| f[79] = 2, Unreadable::Length),
        ] {
            assert_eq!(with(whole, change), why, "{:?}", &whole[14..22]);
        }
        // The types of ICMP have another meaning in ICMPv6, and the other way round.
        for (far, kind) in [(std::net::IpAddr::from(FAR_V6), 8), (FAR.into(), 128)] {
            let mut echo = testing::echo(far, true, 7);
            let at = echo.len() - 8;
            echo[at] = kind;
            assert_eq!(read(&echo), Err(Unreadable::Protocol));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }

        #[test]
        fn a_changed_frame_is_read_or_not(at in 0_usize..60, byte: u8, cut in 0_usize..80) {
            let mut frame = match cut % 2 {
                0 => testing::tcp(FAR, 40_000, 443, flags::ACK, b"some data"),
                _ => testing::tcp(FAR_V6, 40_000, 443, flags::ACK, b"some data"),
            };
            let at = at % frame.len();
            frame[at] = byte;
            frame.truncate(cut.max(1));
            let _ = read(&frame);
        }
    }
}
