//! Between smoltcp and the frames of the link: one packet in, packets out.

use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::frame::{
    ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV6_LEN, Mac, TCP_LEN, header_len, u16_at, u32_at,
};
use crate::outbox::Outbox;

/// The last segment that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sent {
    /// The number behind its data.
    pub(super) end: u32,
    /// What it acknowledges.
    pub(super) acknowledged: u32,
    /// Bytes of its data.
    pub(super) data_len: usize,
}

/// smoltcp's device for one call. It never says that it is full: who polls looks for room before.
pub(super) struct Wire<'a> {
    /// The packet to be taken, from its IP header on.
    pub(super) packet: Option<&'a [u8]>,
    pub(super) outbox: &'a mut Outbox,
    pub(super) guest_mac: Mac,
    pub(super) our_mac: Mac,
    pub(super) mtu: usize,
    pub(super) sent: Option<Sent>,
}

/// What smoltcp is told of the link.
pub(super) fn capabilities(mtu: usize) -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = mtu;
    // The link is a socket of this host: nothing is damaged on it.
    let mut checksum = ChecksumCapabilities::default();
    checksum.ipv4 = Checksum::Tx;
    checksum.tcp = Checksum::Tx;
    capabilities.checksum = checksum;
    capabilities
}

impl Device for Wire<'_> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Sending<'b>
    where
        Self: 'b;

    fn receive(&mut self, _timestamp: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        let packet = self.packet.take()?;
        let Wire { outbox, guest_mac, our_mac, sent, .. } = self;
        Some((Received(packet), Sending { outbox, guest_mac: *guest_mac, our_mac: *our_mac, sent }))
    }

    fn transmit(&mut self, _timestamp: Instant) -> Option<Sending<'_>> {
        let Wire { outbox, guest_mac, our_mac, sent, .. } = self;
        Some(Sending { outbox, guest_mac: *guest_mac, our_mac: *our_mac, sent })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.mtu)
    }
}

pub(super) struct Received<'b>(&'b [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

pub(super) struct Sending<'b> {
    outbox: &'b mut Outbox,
    guest_mac: Mac,
    our_mac: Mac,
    sent: &'b mut Option<Sent>,
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        // smoltcp writes all of a packet.
        let Some(frame) = self.outbox.stale_frame(ETHERNET_LEN + len) else {
            // Answers have filled what is kept free for them: this one is lost, and sent again.
            return write(&mut vec![0; len]);
        };
        frame[0..6].copy_from_slice(&self.guest_mac);
        frame[6..12].copy_from_slice(&self.our_mac);
        let (ethernet, packet) = frame.split_at_mut(ETHERNET_LEN);
        let done = write(packet);
        let ethertype = if header_len(packet) == IPV6_LEN { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
        ethernet[12..14].copy_from_slice(&ethertype.to_be_bytes());
        *self.sent = read_sent(packet);
        done
    }
}

fn read_sent(packet: &[u8]) -> Option<Sent> {
    let ip_len = header_len(packet);
    let tcp = packet.get(ip_len..).filter(|tcp| tcp.len() >= TCP_LEN)?;
    let tcp_len = usize::from(tcp[12] >> 4) * 4;
    let body_len = match ip_len {
        IPV6_LEN => usize::from(u16_at(packet, 4)),
        _ => usize::from(u16_at(packet, 2)).checked_sub(ip_len)?,
    };
    let data_len = body_len.checked_sub(tcp_len)?;
    // A packet has at most 64 KiB.
    let end = u32_at(tcp, 4).wrapping_add(data_len as u32);
    Some(Sent { end, acknowledged: u32_at(tcp, 8), data_len })
}
