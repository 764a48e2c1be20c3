//! Frames for the guest: what the stack sends, and how it is written.
//!
//! Frames are appended to an [`Outbox`], which is bounded. TCP is asked for more only while there is room; anything
//! else that does not fit is dropped, as a full link does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::frame::{
    ARP_LEN, ECHO_REPLY, ECHO_REPLY_V6, ECHO_REQUEST, ECHO_REQUEST_V6, ETHERNET_LEN, ETHERTYPE_ARP,
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, HOPS_MAX, IPV4_LEN, IPV6_LEN, MAX_FRAME_LEN, Mac,
    NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_LEN, PROTOCOL_FRAGMENT, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP,
    PROTOCOL_UDP, Segment, TARGET_MAC, TCP_LEN, UDP_LEN, flags, header_len,
};

/// Bytes of the length before each frame on a stream.
pub const LENGTH_LEN: usize = 4;

/// Bytes that wait for the guest at most.
const OUTBOX_BOUND: usize = 512 * 1024;

/// Bytes up to which flows add to what waits. The rest is for answers that cannot wait.
const FLOWS_BOUND: usize = 256 * 1024;

const _: () = assert!(FLOWS_BOUND + 2 * (LENGTH_LEN + MAX_FRAME_LEN) <= OUTBOX_BOUND);

/// Bytes that were taken and are kept in front of those that wait; then these are moved to the front.
const TAKEN_MAX: usize = 128 * 1024;

/// Room for all of that. It takes memory as far as it was used.
const ROOM: usize = OUTBOX_BOUND + TAKEN_MAX;

/// What ICMP's "destination unreachable" says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreachable {
    /// The host has no route.
    Net,
    /// Nobody answers at the address.
    Host,
    /// Nobody receives at the port.
    Port,
    /// Refused by policy. Linux reports it to the program at once.
    Prohibited,
}

impl Unreachable {
    /// Type and code of the message.
    ///
    /// # Source
    /// RFC 792, RFC 1812 5.2.7.1; RFC 4443 3.1.
    fn message(self, is_ipv6: bool) -> [u8; 2] {
        match (self, is_ipv6) {
            (Unreachable::Net, false) => [3, 0],
            (Unreachable::Host, false) => [3, 1],
            (Unreachable::Port, false) => [3, 3],
            (Unreachable::Prohibited, false) => [3, 13],
            (Unreachable::Net, true) => [1, 0],
            (Unreachable::Host, true) => [1, 3],
            (Unreachable::Port, true) => [1, 4],
            (Unreachable::Prohibited, true) => [1, 1],
        }
    }
}

/// Bytes of the header that fragments of IPv6 have.
const FRAGMENT_LEN: usize = 8;

/// Frames that wait for the guest, each with its length before it, as the stream has them.
#[derive(Debug)]
pub struct Outbox {
    bytes: Box<[u8]>,
    /// Where those that wait begin and end.
    sent: usize,
    end: usize,
    /// Bytes still to be taken of a frame of which some were taken.
    begun: usize,
    fragment_id: u32,
}

impl Default for Outbox {
    fn default() -> Outbox {
        Outbox { bytes: vec![0; ROOM].into_boxed_slice(), sent: 0, end: 0, begun: 0, fragment_id: 0 }
    }
}

impl Outbox {
    /// What was not taken yet.
    pub fn pending(&self) -> &[u8] {
        &self.bytes[self.sent..self.end]
    }

    /// How many pending bytes are whole frames of together at most `max` bytes; at least one frame if there is one.
    pub(crate) fn batch(&self, max: usize) -> usize {
        let pending = self.pending();
        let mut end = self.begun;
        while let Some(length) = frame_len(&pending[end..])
            && (end == 0 || end + length <= max)
        {
            end += length;
        }
        end
    }

    /// Notes that the first `count` pending bytes were taken.
    pub fn advance(&mut self, count: usize) {
        let count = count.min(self.pending().len());
        let mut end = self.begun;
        while end < count
            && let Some(length) = frame_len(&self.pending()[end..])
        {
            end += length;
        }
        self.begun = end.saturating_sub(count);
        self.sent += count;
        if self.sent == self.end || self.sent > TAKEN_MAX {
            self.bytes.copy_within(self.sent..self.end, 0);
            self.end -= self.sent;
            self.sent = 0;
        }
    }

    /// Whether flows may add more.
    pub(crate) fn has_room(&self) -> bool {
        self.end - self.sent < FLOWS_BOUND
    }

    /// Appends a frame of `len` bytes that are zero, for the caller to fill.
    pub(crate) fn frame(&mut self, len: usize) -> Option<&mut [u8]> {
        let frame = self.stale_frame(len)?;
        frame.fill(0);
        Some(frame)
    }

    /// Appends a frame of `len` bytes that are whatever they were, for a caller who writes all of them.
    pub(crate) fn stale_frame(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.end - self.sent + LENGTH_LEN + len > OUTBOX_BOUND {
            return None;
        }
        let begin = self.end + LENGTH_LEN;
        self.bytes[self.end..begin].copy_from_slice(&(len as u32).to_be_bytes());
        self.end = begin + len;
        Some(&mut self.bytes[begin..self.end])
    }

    /// Answers a segment as a host does on which nobody listens.
    ///
    /// # Source
    /// RFC 9293 3.10.7.1.
    pub(crate) fn reset(&mut self, link: Link, segment: &Segment) {
        if segment.has(flags::RST) {
            return;
        }
        let (sequence, acknowledged, set) = match segment.has(flags::ACK) {
            true => (segment.acknowledged, 0, flags::RST),
            false => (0, segment.sequence.wrapping_add(segment.sequence_len()), flags::RST | flags::ACK),
        };
        let ports = (segment.destination, segment.source);
        self.segment(link, ports, sequence, acknowledged, set);
    }

    /// Answers a segment with these numbers and nothing else.
    pub(crate) fn acknowledge(&mut self, link: Link, segment: &Segment, sequence: u32, acknowledged: u32) {
        self.segment(link, (segment.destination, segment.source), sequence, acknowledged, flags::ACK);
    }

    fn segment(&mut self, link: Link, ports: (u16, u16), sequence: u32, acknowledged: u32, set: u8) {
        let Some(frame) = self.frame(ETHERNET_LEN + link.header_len() + TCP_LEN) else { return };
        let tcp = write_ip(frame, link, PROTOCOL_TCP);
        tcp[0..2].copy_from_slice(&ports.0.to_be_bytes());
        tcp[2..4].copy_from_slice(&ports.1.to_be_bytes());
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        tcp[8..12].copy_from_slice(&acknowledged.to_be_bytes());
        tcp[12] = (TCP_LEN as u8 / 4) << 4;
        tcp[13] = set;
        let sum = transport_checksum(tcp, link, PROTOCOL_TCP);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    }

    /// Answers a packet of the guest: its destination is out of reach. `packet` begins with the IP header.
    pub(crate) fn unreachable(&mut self, link: Link, code: Unreachable, packet: &[u8]) {
        // As much of the packet as names the flow: its header and eight bytes.
        let quoted = packet.len().min(header_len(packet) + 8);
        let Some(frame) = self.frame(ETHERNET_LEN + link.header_len() + 8 + quoted) else { return };
        let icmp = write_ip(frame, link, link.icmp());
        icmp[..2].copy_from_slice(&code.message(link.is_ipv6()));
        icmp[8..].copy_from_slice(&packet[..quoted]);
        let sum = icmp_checksum(icmp, link);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    }

    /// Sends a datagram to the guest, in pieces where it is longer than the link's packets.
    pub(crate) fn datagram(&mut self, link: Link, ports: (u16, u16), payload: &[u8], mtu: usize) {
        let mut udp = vec![0; UDP_LEN + payload.len()];
        udp[0..2].copy_from_slice(&ports.0.to_be_bytes());
        udp[2..4].copy_from_slice(&ports.1.to_be_bytes());
        let len = udp.len() as u16;
        udp[4..6].copy_from_slice(&len.to_be_bytes());
        udp[8..].copy_from_slice(payload);
        // Zero would mean "no checksum".
        let sum = match transport_checksum(&udp, link, PROTOCOL_UDP) {
            0 => u16::MAX,
            sum => sum,
        };
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        self.packet(link, PROTOCOL_UDP, &udp, mtu);
    }

    /// Sends an echo request, or the answer to one of the guest.
    pub(crate) fn echo(
        &mut self,
        link: Link,
        request: bool,
        (id, sequence): (u16, u16),
        payload: &[u8],
        mtu: usize,
    ) {
        let mut icmp = vec![0; UDP_LEN];
        icmp[0] = link.echo(request);
        icmp[4..6].copy_from_slice(&id.to_be_bytes());
        icmp[6..8].copy_from_slice(&sequence.to_be_bytes());
        icmp.extend_from_slice(payload);
        let sum = icmp_checksum(&icmp, link);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        self.packet(link, link.icmp(), &icmp, mtu);
    }

    /// Sends a packet, as one frame or as fragments. All of it fits or none is sent.
    fn packet(&mut self, link: Link, protocol: u8, body: &[u8], mtu: usize) {
        let header_len = link.header_len() + if link.is_ipv6() { FRAGMENT_LEN } else { 0 };
        // Offsets of fragments count units of eight bytes.
        let piece = (mtu - header_len) / 8 * 8;
        let whole = body.len() + (body.len() / piece + 1) * (LENGTH_LEN + ETHERNET_LEN + header_len);
        let longest = usize::from(u16::MAX) - if link.is_ipv6() { 0 } else { IPV4_LEN };
        if body.len() > longest || self.end - self.sent + whole > OUTBOX_BOUND {
            return;
        }
        if link.header_len() + body.len() <= mtu {
            let Some(frame) = self.frame(ETHERNET_LEN + link.header_len() + body.len()) else { return };
            write_ip(frame, link, protocol).copy_from_slice(body);
            return;
        }
        self.fragment_id = self.fragment_id.wrapping_add(1);
        let id = self.fragment_id;
        for (number, part) in body.chunks(piece).enumerate() {
            // A body has at most 64 KiB, so its units fit 13 bits.
            let offset = (number * piece / 8) as u16;
            let fragment = Fragment { id, offset, is_last: (number + 1) * piece >= body.len(), protocol };
            let Some(frame) = self.frame(ETHERNET_LEN + header_len + part.len()) else { return };
            match link.is_ipv6() {
                true => fragment.write_v6(frame, link, part),
                false => fragment.write_v4(frame, link, part),
            }
        }
    }

    /// Answers the guest's question who has `address`: the one who answers for everybody.
    pub(crate) fn arp(&mut self, address: Ipv4Addr, answering: Mac, guest: Mac, guest_address: Ipv4Addr) {
        let Some(frame) = self.frame(ETHERNET_LEN + ARP_LEN) else { return };
        frame[0..6].copy_from_slice(&guest);
        frame[6..12].copy_from_slice(&answering);
        frame[12..14].copy_from_slice(&ETHERTYPE_ARP.to_be_bytes());
        let arp = &mut frame[ETHERNET_LEN..];
        arp[0..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
        arp[8..14].copy_from_slice(&answering);
        arp[14..18].copy_from_slice(&address.octets());
        arp[18..24].copy_from_slice(&guest);
        arp[24..28].copy_from_slice(&guest_address.octets());
    }

    /// Answers the guest's question of IPv6 who has `address`: the one who answers for everybody.
    pub(crate) fn advertise(&mut self, address: Ipv6Addr, answering: Mac, guest: Mac, asker: Ipv6Addr) {
        let link = Link {
            source_mac: answering,
            destination_mac: guest,
            source: address.into(),
            destination: asker.into(),
        };
        let Some(frame) = self.frame(ETHERNET_LEN + IPV6_LEN + NEIGHBOUR_LEN + 8) else { return };
        let icmp = write_ip(frame, link, PROTOCOL_ICMPV6);
        icmp[0] = NEIGHBOUR_ADVERTISEMENT;
        // From a router, because it was asked, and in place of what is known.
        icmp[4] = 0xe0;
        icmp[8..24].copy_from_slice(&address.octets());
        icmp[24..26].copy_from_slice(&[TARGET_MAC, 1]);
        icmp[26..32].copy_from_slice(&answering);
        let sum = icmp_checksum(icmp, link);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        frame[ETHERNET_LEN + 7] = HOPS_MAX;
    }
}

/// A piece of a packet.
struct Fragment {
    id: u32,
    /// In units of eight bytes.
    offset: u16,
    is_last: bool,
    protocol: u8,
}

impl Fragment {
    fn write_v4(&self, frame: &mut [u8], link: Link, part: &[u8]) {
        write_ip(frame, link, self.protocol).copy_from_slice(part);
        let ip = &mut frame[ETHERNET_LEN..][..IPV4_LEN];
        ip[4..6].copy_from_slice(&(self.id as u16).to_be_bytes());
        let more = if self.is_last { 0 } else { 0x2000 };
        ip[6..8].copy_from_slice(&(self.offset | more).to_be_bytes());
        ip[10..12].fill(0);
        let sum = !fold(sum_of(ip));
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
    }

    fn write_v6(&self, frame: &mut [u8], link: Link, part: &[u8]) {
        let (header, body) = write_ip(frame, link, PROTOCOL_FRAGMENT).split_at_mut(FRAGMENT_LEN);
        header[0] = self.protocol;
        header[2..4].copy_from_slice(&(self.offset << 3 | u16::from(!self.is_last)).to_be_bytes());
        header[4..8].copy_from_slice(&self.id.to_be_bytes());
        body.copy_from_slice(part);
    }
}

/// Bytes of the first frame with the length before it; `None` if there is no frame.
fn frame_len(pending: &[u8]) -> Option<usize> {
    let length = pending.first_chunk::<LENGTH_LEN>()?;
    Some(LENGTH_LEN + u32::from_be_bytes(*length) as usize)
}

/// Between whom a frame of the stack goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) source_mac: Mac,
    pub(crate) destination_mac: Mac,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
}

impl Link {
    fn is_ipv6(self) -> bool {
        self.source.is_ipv6()
    }

    /// Bytes of a packet's header.
    fn header_len(self) -> usize {
        if self.is_ipv6() { IPV6_LEN } else { IPV4_LEN }
    }

    /// The protocol of echoes and errors.
    fn icmp(self) -> u8 {
        if self.is_ipv6() { PROTOCOL_ICMPV6 } else { PROTOCOL_ICMP }
    }

    /// The type of an echo.
    fn echo(self, request: bool) -> u8 {
        match (self.is_ipv6(), request) {
            (false, true) => ECHO_REQUEST,
            (false, false) => ECHO_REPLY,
            (true, true) => ECHO_REQUEST_V6,
            (true, false) => ECHO_REPLY_V6,
        }
    }
}

/// Writes Ethernet's and IP's headers; gives the rest of the frame.
fn write_ip(frame: &mut [u8], link: Link, protocol: u8) -> &mut [u8] {
    frame[0..6].copy_from_slice(&link.destination_mac);
    frame[6..12].copy_from_slice(&link.source_mac);
    let ethertype = if link.is_ipv6() { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
    frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
    write_packet(&mut frame[ETHERNET_LEN..], link.source, link.destination, protocol)
}

/// Writes IP's header; gives the rest of the packet. Both addresses are of one family.
pub(crate) fn write_packet(
    packet: &mut [u8],
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
) -> &mut [u8] {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => write_ipv4(packet, source, destination, protocol),
        (source, destination) => write_ipv6(packet, in_ipv6(source), in_ipv6(destination), protocol),
    }
}

/// The address in 16 bytes.
fn in_ipv6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

fn write_ipv6(packet: &mut [u8], source: Ipv6Addr, destination: Ipv6Addr, protocol: u8) -> &mut [u8] {
    let (ip, rest) = packet.split_at_mut(IPV6_LEN);
    ip[0] = 0x60;
    ip[4..6].copy_from_slice(&(rest.len() as u16).to_be_bytes());
    ip[6] = protocol;
    ip[7] = 64;
    ip[8..24].copy_from_slice(&source.octets());
    ip[24..40].copy_from_slice(&destination.octets());
    rest
}

fn write_ipv4(packet: &mut [u8], source: Ipv4Addr, destination: Ipv4Addr, protocol: u8) -> &mut [u8] {
    let (ip, rest) = packet.split_at_mut(IPV4_LEN);
    ip[0] = 0x45;
    let len = (IPV4_LEN + rest.len()) as u16;
    ip[2..4].copy_from_slice(&len.to_be_bytes());
    // "Don't fragment": so that the identification may stay zero (RFC 6864).
    ip[6] = 0x40;
    ip[8] = 64;
    ip[9] = protocol;
    ip[12..16].copy_from_slice(&source.octets());
    ip[16..20].copy_from_slice(&destination.octets());
    let sum = !fold(sum_of(ip));
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    rest
}

/// The Internet checksum of a segment or datagram with its pseudo header.
pub(crate) fn transport_checksum(bytes: &[u8], link: Link, protocol: u8) -> u16 {
    let sum_of_address = |address| match address {
        IpAddr::V4(address) => sum_of(&Ipv4Addr::octets(&address)),
        IpAddr::V6(address) => sum_of(&Ipv6Addr::octets(&address)),
    };
    let addresses = sum_of_address(link.source) + sum_of_address(link.destination);
    !fold(addresses + u32::from(protocol) + bytes.len() as u32 + sum_of(bytes))
}

/// The checksum of an ICMP message; that of IPv6 has a pseudo header.
fn icmp_checksum(message: &[u8], link: Link) -> u16 {
    match link.is_ipv6() {
        true => transport_checksum(message, link, PROTOCOL_ICMPV6),
        false => !fold(sum_of(message)),
    }
}

/// Sum of the 16-bit words. At most 64 KiB are summed, so 32 bits hold it.
pub(crate) fn sum_of(bytes: &[u8]) -> u32 {
    let mut words = bytes.chunks_exact(2);
    let sum: u32 = words.by_ref().map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    sum + words.remainder().first().map_or(0, |last| u32::from(*last) << 8)
}

/// One's complement: the carries go round.
pub(crate) fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Frame, Packet, Transport, read};
    use crate::testing::{self, FAR, FAR_V6, GATEWAY_MAC, GUEST_MAC};
    use crate::{GUEST_ADDRESS, GUEST_ADDRESS_V6, NAME_SERVER};

    fn link(source: Ipv4Addr) -> Link {
        let (source, destination) = (source.into(), GUEST_ADDRESS.into());
        Link { source_mac: GATEWAY_MAC, destination_mac: GUEST_MAC, source, destination }
    }

    fn segment_of(frame: &[u8]) -> Segment {
        match read(frame) {
            Ok(Frame::Ip(Packet { transport: Transport::Tcp(segment), .. })) => segment,
            other => panic!("not a segment: {other:?}"),
        }
    }

    #[test]
    fn a_refused_connection_is_reset_as_the_guest_expects() {
        let syn =
            Segment { sequence: u32::MAX, ..segment_of(&testing::tcp(FAR, 40_000, 443, flags::SYN, b"")) };
        let mut outbox = Outbox::default();
        outbox.reset(link(FAR), &syn);
        let frame = testing::frames(outbox.pending()).remove(0);
        assert!(testing::checksums_hold(&frame));
        let reset = segment_of(&frame);
        assert_eq!((reset.source, reset.destination), (443, 40_000));
        assert_eq!(reset.flags, flags::RST | flags::ACK);
        assert_eq!((reset.sequence, reset.acknowledged), (0, 0), "the number after the SYN, round the end");
    }

    #[test]
    fn a_segment_from_nowhere_is_reset_at_its_own_number_and_a_reset_is_not_answered() {
        let data = Segment { acknowledged: 77, ..segment_of(&testing::tcp(FAR, 1, 2, flags::ACK, b"abc")) };
        let mut outbox = Outbox::default();
        outbox.reset(link(FAR), &data);
        let reset = segment_of(&testing::frames(outbox.pending()).remove(0));
        assert_eq!((reset.flags, reset.sequence), (flags::RST, 77));
        let before = outbox.pending().len();
        outbox.reset(link(FAR), &Segment { flags: flags::RST, ..data });
        assert_eq!(outbox.pending().len(), before);
    }

    #[test]
    fn a_refused_datagram_is_quoted() {
        let refused = testing::udp(FAR, 5000, 53, b"a long payload");
        let mut outbox = Outbox::default();
        outbox.unreachable(link(FAR), Unreachable::Prohibited, &refused[ETHERNET_LEN..]);
        let frame = testing::frames(outbox.pending()).remove(0);
        assert!(testing::checksums_hold(&frame));
        assert_eq!(frame[34..36], [3, 13]);
        assert_eq!(frame[42..], refused[14..42]);
    }

    #[test]
    fn datagrams_have_checksums_whatever_their_length() {
        for len in 0..40 {
            let mut outbox = Outbox::default();
            outbox.datagram(link(NAME_SERVER), (53, 40_000), &vec![0xa5; len], 1500);
            let frame = testing::frames(outbox.pending()).remove(0);
            assert!(testing::checksums_hold(&frame), "{len}");
        }
    }

    #[test]
    fn a_long_datagram_comes_in_fragments_that_make_it_up() {
        let payload: Vec<u8> = (0..5000_u32).map(|n| n as u8).collect();
        let mut outbox = Outbox::default();
        outbox.datagram(link(FAR), (53, 40_000), &payload, 1500);
        let frames = testing::frames(outbox.pending());
        assert_eq!(frames.len(), 4);
        let mut body = Vec::new();
        for (number, frame) in frames.iter().enumerate() {
            assert!(frame.len() <= ETHERNET_LEN + 1500);
            assert_eq!(fold(sum_of(&frame[ETHERNET_LEN..][..IPV4_LEN])), 0xffff);
            let field = u16::from_be_bytes([frame[20], frame[21]]);
            assert_eq!(usize::from(field & 0x1fff) * 8, body.len());
            assert_eq!(field & 0x2000 != 0, number + 1 < frames.len());
            assert_eq!(frame[18..20], frames[0][18..20]);
            body.extend_from_slice(&frame[ETHERNET_LEN + IPV4_LEN..]);
        }
        assert_eq!(body[8..], payload);
        outbox.advance(usize::MAX / 2);
        outbox.datagram(link(FAR), (53, 40_000), &vec![1; 65_507], 1500);
        assert_eq!(testing::frames(outbox.pending()).len(), 45);
        outbox.advance(usize::MAX / 2);
        outbox.datagram(link(FAR), (53, 40_000), &vec![1; 65_508], 1500);
        assert!(outbox.pending().is_empty(), "longer than a packet can be");
    }

    #[test]
    fn answers_of_ipv6_are_as_rfc_4443_and_rfc_8200_have_them() {
        let link = Link { source: FAR_V6.into(), destination: GUEST_ADDRESS_V6.into(), ..link(FAR) };
        let mut outbox = Outbox::default();
        outbox.reset(link, &segment_of(&testing::tcp(FAR_V6, 40_000, 443, flags::SYN, b"")));
        let refused = testing::udp(FAR_V6, 5000, 99, b"a long payload");
        for code in [Unreachable::Net, Unreachable::Prohibited, Unreachable::Host, Unreachable::Port] {
            outbox.unreachable(link, code, &refused[ETHERNET_LEN..]);
        }
        outbox.echo(link, false, (7, 9), b"odd", 1500);
        outbox.advertise(FAR_V6, GATEWAY_MAC, GUEST_MAC, GUEST_ADDRESS_V6);
        let frames = testing::frames(outbox.pending());
        assert!(frames.iter().all(|frame| testing::checksums_hold(frame)));
        assert_eq!(segment_of(&frames[0]).flags, flags::RST | flags::ACK);
        for (frame, code) in frames[1..].iter().zip([0, 1, 3, 4]) {
            assert_eq!(frame[54..56], [1, code]);
            assert_eq!(frame[62..], refused[14..62]);
        }
        let Ok(Frame::Ip(Packet { transport, .. })) = read(&frames[5]) else { panic!() };
        assert_eq!(transport, Transport::Echo { request: false, id: 7, sequence: 9, payload: b"odd" });
        assert_eq!((frames[6][20], frames[6][21], frames[6][54]), (58, 255, 136));
        assert_eq!(frames[6][62..78], FAR_V6.octets());
        assert_eq!(frames[6][80..], GATEWAY_MAC);

        outbox.advance(usize::MAX / 2);
        let payload: Vec<u8> = (0..5000_u32).map(|n| n as u8).collect();
        outbox.datagram(link, (53, 40_000), &payload, 1280);
        let frames = testing::frames(outbox.pending());
        let mut body = Vec::new();
        for (number, frame) in frames.iter().enumerate() {
            assert!(frame.len() <= ETHERNET_LEN + 1280);
            assert_eq!((frame[20], frame[54]), (44, 17));
            let field = u16::from_be_bytes([frame[56], frame[57]]);
            assert_eq!(usize::from(field >> 3) * 8, body.len());
            assert_eq!(field & 1 != 0, number + 1 < frames.len());
            assert_eq!(frame[58..62], frames[0][58..62]);
            body.extend_from_slice(&frame[62..]);
        }
        assert_eq!(body[8..], payload);
        assert_eq!(transport_checksum(&body, link, PROTOCOL_UDP), 0);
    }

    #[test]
    fn frames_are_taken_in_order_whatever_was_taken_before() {
        let mut outbox = Outbox::default();
        let (mut written, mut taken) = (Vec::new(), Vec::new());
        for number in 0..3000_usize {
            let len = 1 + number * 7919 % 60_000;
            if let Some(frame) = outbox.frame(len) {
                assert!(frame.iter().all(|byte| *byte == 0), "nothing of an earlier frame is left");
                frame.fill(number as u8);
                written.push((len, number as u8));
            }
            let count = (number * 104_729 % 90_000).min(outbox.pending().len());
            taken.extend_from_slice(&outbox.pending()[..count]);
            outbox.advance(count);
        }
        taken.extend_from_slice(outbox.pending());
        let frames = testing::frames(&taken);
        let read: Vec<(usize, u8)> = frames.iter().map(|frame| (frame.len(), frame[0])).collect();
        assert!(read == written && frames.iter().all(|frame| frame.iter().all(|byte| *byte == frame[0])));
    }

    #[test]
    fn a_full_outbox_takes_no_more_and_recovers() {
        let segment = segment_of(&testing::tcp(FAR, 1, 2, flags::ACK, b""));
        let mut outbox = Outbox::default();
        for _ in 0..20_000 {
            outbox.reset(link(FAR), &segment);
        }
        assert!(outbox.pending().len() <= OUTBOX_BOUND && !outbox.has_room());
        let frames = testing::frames(outbox.pending());
        assert!(frames.iter().all(|frame| read(frame).is_ok()));
        outbox.advance(10);
        assert_eq!(outbox.pending().len() % 58, 48);
        outbox.advance(TAKEN_MAX);
        let before = outbox.pending().len();
        outbox.reset(link(FAR), &segment);
        assert_eq!(outbox.pending().len(), before + 58, "what was taken makes room");
        outbox.advance(usize::MAX / 2);
        outbox.reset(link(FAR), &segment);
        assert_eq!(outbox.pending().len(), 58);
    }
}
