//! The guest's questions who has an address of its own network. There is no table of answers: frames go to the guest's
//! hardware address, whatever it says.

use super::{OUR_MAC, Stack};
use crate::GUEST_ADDRESS_V6;
use crate::address::is_of_guest;
use crate::frame::{Arp, Solicitation};
use crate::sockets::Sockets;

impl<S: Sockets> Stack<S> {
    /// Answers for all addresses of the guest's networks but its own.
    pub(super) fn arp(&mut self, arp: &Arp) {
        let networks = self.egress.memberships();
        let is_guests = networks.is_guests(arp.sender) || arp.sender.is_unspecified();
        let is_inside = is_of_guest(arp.target.into()) || networks.of(arp.target.into()).is_some();
        let is_ours = is_inside && !networks.is_guests(arp.target);
        if arp.request && is_guests && is_ours && arp.sender_mac == self.guest_mac {
            self.outbox.arp(arp.target, OUR_MAC, self.guest_mac, arp.sender);
        }
    }

    /// The same of IPv6. A question without a sender is the guest's own, before it uses an address: nobody has that.
    pub(super) fn solicited(&mut self, solicitation: &Solicitation) {
        let Solicitation { sender, sender_mac, target } = *solicitation;
        let is_guests = sender == GUEST_ADDRESS_V6 || sender.is_unicast_link_local();
        let is_ours = is_of_guest(target.into()) && target != GUEST_ADDRESS_V6;
        if is_guests && is_ours && sender_mac.is_none_or(|mac| mac == self.guest_mac) {
            self.outbox.advertise(target, OUR_MAC, self.guest_mac, sender);
        }
    }
}
