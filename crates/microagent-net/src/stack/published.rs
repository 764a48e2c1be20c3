//! Clients of published ports.

use std::net::SocketAddr;

use super::datagrams::ClientFlow;
use super::name_service::Peer;
use super::tcp::{Surroundings, TcpFlow};
use super::{Flow, OUR_MAC, Stack, link};
use crate::GATEWAY;
use crate::address::Scope;
use crate::flows::{Key, Kind};
use crate::frame::{IPV4_LEN, UDP_LEN};
use crate::sockets::{PortNumber, Sockets, StreamSocket};

impl<S: Sockets> Stack<S> {
    /// Takes a connection that a client opened to a published port of the guest.
    pub fn accept(&mut self, stream: S::Stream, client: SocketAddr, guest_port: u16) {
        let Some(key) = self.published_key(Kind::Tcp, client, guest_port) else { return stream.reset() };
        if self.egress.admit_published(key, self.flows.len()).is_err() {
            return stream.reset();
        }
        let token = self.token();
        let Ok(stream) = self.sockets.adopt(token, stream) else { return };
        let buffer = self.buffer();
        let mut around = surroundings!(self);
        let flow = TcpFlow::connecting(key, Peer::Host(stream), buffer, &mut around);
        self.insert(key, token, Flow::Tcp(Box::new(flow)), 2 * buffer);
    }

    /// Takes a datagram that a client sent to a published port of the guest.
    pub fn receive_published(
        &mut self,
        port: PortNumber,
        client: SocketAddr,
        guest_port: u16,
        payload: &[u8],
    ) {
        let key = match self.clients.get(&(port, client)) {
            Some(key) => *key,
            None => {
                let Some(key) = self.published_key(Kind::Udp, client, guest_port) else { return };
                // Whoever sends under many addresses does not take every flow from the guest.
                let others = self.flows.len().max(2 * self.clients.len());
                if self.egress.admit_published(key, others).is_err() {
                    return;
                }
                let token = self.token();
                self.insert(key, token, Flow::Client(ClientFlow::new(port, client, self.now.running)), 0);
                self.clients.insert((port, client), key);
                key
            }
        };
        if self.egress.spend(IPV4_LEN + UDP_LEN + payload.len()) {
            let ports = (key.remote_port, guest_port);
            self.outbox.datagram(link(self.guest_mac, &self.egress, key.remote), ports, payload, self.mtu);
        }
    }

    /// Ends the flows of datagrams of a published port that is closed.
    pub fn close_published(&mut self, port: PortNumber) {
        let of_port = |(client, key): (&(PortNumber, SocketAddr), &Key)| (client.0 == port).then_some(*key);
        let ended: Vec<Key> = self.clients.iter().filter_map(of_port).collect();
        for key in ended {
            self.end(&key);
        }
    }

    /// Under which address and port the guest sees a client: others as they are, this host and clients of IPv6 as the
    /// gateway.
    fn published_key(&self, kind: Kind, client: SocketAddr, guest_port: u16) -> Option<Key> {
        let host = self.egress.host_addresses();
        let address = client.ip();
        let is_shown = address.is_ipv4()
            && !matches!(Scope::of(address, host), Scope::Never | Scope::Own)
            && !host.is_own(address)
            // Nobody outside is taken for a member.
            && self.egress.memberships().of(address).is_none();
        let remote = if is_shown { address } else { GATEWAY.into() };
        // Clients at several addresses of this host may have one port.
        self.free_key(Key { kind, remote, remote_port: client.port(), guest_port })
    }

    /// The key, with the next port of the far end if there is such a flow.
    pub(super) fn free_key(&self, key: Key) -> Option<Key> {
        let next = |port: &u16| Some(port.wrapping_add(1).max(1024));
        let ports = std::iter::successors(Some(key.remote_port), next);
        let mut keys = ports.take(1 << 16).map(|remote_port| Key { remote_port, ..key });
        keys.find(|key| !self.flows.contains_key(key))
    }
}
