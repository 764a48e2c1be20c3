//! Ethernet frames, read in place: what the stack understands of one, and nothing it does not.
//!
//! [`read`] takes bytes apart without copying. It is strict where leniency would let two readers (this one
//! and smoltcp) see two things in the same bytes: no IP options, no fragments, no VLAN tags, lengths that
//! agree. What it does not understand is an [`Unreadable`] and goes nowhere.
//!
//! # Source
//! RFC 791 (IPv4), RFC 9293 (TCP), RFC 768 (UDP), RFC 792 (ICMP), RFC 826 (ARP).

use std::net::Ipv4Addr;

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET_LEN: usize = 14;
/// Bytes of an IPv4 header without options.
pub(crate) const IPV4_LEN: usize = 20;
/// Bytes of a TCP header without options.
pub(crate) const TCP_LEN: usize = 20;
/// Bytes of a UDP or ICMP echo header.
pub(crate) const UDP_LEN: usize = 8;
/// Bytes of an ARP packet for IPv4 on Ethernet.
pub(crate) const ARP_LEN: usize = 28;

/// Longest frame: the longest IPv4 packet with an Ethernet header.
pub const MAX_FRAME_LEN: usize = ETHERNET_LEN + u16::MAX as usize;

pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_ARP: u16 = 0x0806;

pub(crate) const PROTOCOL_ICMP: u8 = 1;
pub(crate) const PROTOCOL_TCP: u8 = 6;
pub(crate) const PROTOCOL_UDP: u8 = 17;

/// Types of ICMP messages.
pub(crate) const ECHO_REPLY: u8 = 0;
pub(crate) const ECHO_REQUEST: u8 = 8;

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
    /// Neither IPv4 nor ARP: IPv6, VLAN tags, anything else.
    Ethertype,
    /// IP options: source routes are among them, nobody needs them.
    Options,
    /// A part of a packet: its other parts would go unread.
    Fragment,
    /// Not TCP, UDP or ICMP echo.
    Protocol,
    /// ARP for something else than IPv4 on Ethernet.
    Arp,
}

/// A frame that was understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    Arp(Arp),
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

/// An IPv4 packet that is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet<'a> {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    /// Header and payload, without padding of the frame.
    pub(crate) len: u16,
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
    let len = u16_at(header, 2);
    let body = bytes.get(IPV4_LEN..usize::from(len)).ok_or(Unreadable::Length)?;
    // "More fragments", or an offset; "don't fragment" and the reserved bit say nothing of that.
    if u16_at(header, 6) & 0x3fff != 0 {
        return Err(Unreadable::Fragment);
    }
    let transport = match header[9] {
        PROTOCOL_TCP => Transport::Tcp(read_tcp(body)?),
        PROTOCOL_UDP => read_udp(body)?,
        PROTOCOL_ICMP => read_icmp(body)?,
        _ => return Err(Unreadable::Protocol),
    };
    Ok(Packet { source: address_at(header, 12), destination: address_at(header, 16), len, transport })
}

/// The segment in an IP packet, if there is one.
pub(crate) fn read_segment(packet: &[u8]) -> Option<Segment> {
    match read_ipv4(packet).ok()?.transport {
        Transport::Tcp(segment) => Some(segment),
        Transport::Udp { .. } | Transport::Echo { .. } => None,
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

fn read_icmp(bytes: &[u8]) -> Result<Transport<'_>, Unreadable> {
    let (header, payload) = bytes.split_at_checked(UDP_LEN).ok_or(Unreadable::Length)?;
    let request = match header[..2] {
        [ECHO_REQUEST, 0] => true,
        [ECHO_REPLY, 0] => false,
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{self, FAR};

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
                Unreadable::Ethertype,
            ),
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

    proptest! {
        #[test]
        fn any_bytes_are_read_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }

        #[test]
        fn a_changed_frame_is_read_or_not(at in 0_usize..60, byte: u8, cut in 0_usize..80) {
            let mut frame = testing::tcp(FAR, 40_000, 443, flags::ACK, b"some data");
            let at = at % frame.len();
            frame[at] = byte;
            frame.truncate(cut.max(1));
            let _ = read(&frame);
        }
    }
}
