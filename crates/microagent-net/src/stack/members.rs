//! Flows that members of private networks begin.

use std::net::{IpAddr, Ipv4Addr};

use rustix::io::Errno;

use super::datagrams::DatagramFlow;
use super::name_service::Peer;
use super::tcp::{Surroundings, TcpFlow};
use super::{Flow, OUR_MAC, Stack};
use crate::flows::{Key, Kind};
use crate::membership::{MemberPort, MemberProtocol};
use crate::sockets::{Sockets, StreamSocket};

/// In the place of a remote port: a member asks the guest for an echo.
pub(super) const ASKED: u16 = 1;

/// What the flow of a guest calls, at a member of a private network.
pub(super) fn port_of((network, address): (u8, Ipv4Addr), protocol: MemberProtocol, key: Key) -> MemberPort {
    let Key { remote_port: port, guest_port: source_port, .. } = key;
    MemberPort { network, address, protocol, port, source_port }
}

impl<S: Sockets> Stack<S> {
    /// Takes a connection that a member began to a port of the guest; `from` has the member's address.
    pub fn accept_member(&mut self, stream: S::Stream, from: MemberPort) {
        let key = Key {
            kind: Kind::Tcp,
            remote: from.address.into(),
            remote_port: from.source_port,
            guest_port: from.port,
        };
        let key = self.free_key(key).filter(|key| self.admits_member(*key));
        let Some(key) = key else { return stream.answer(Err(Errno::CONNREFUSED)) };
        let token = self.token();
        let Ok(stream) = self.sockets.adopt(token, stream) else { return };
        let buffer = self.buffer();
        let mut around = surroundings!(self);
        let flow = TcpFlow::connecting(key, Peer::Host(stream), buffer, &mut around);
        self.insert(key, token, Flow::Tcp(Box::new(flow)), 2 * buffer);
        self.note_begun(key);
    }

    /// Takes a socket for datagrams or echoes that a member began; `from` has the member's address.
    pub fn adopt_member(&mut self, socket: S::Datagram, from: MemberPort) {
        let (remote, now) = (from.address.into(), self.now.running);
        let (shown, key) = match from.protocol {
            MemberProtocol::Echo => {
                let asked =
                    Key { kind: Kind::Echo, remote, remote_port: ASKED, guest_port: from.source_port };
                (asked, asked)
            }
            _ => {
                let shown =
                    Key { kind: Kind::Udp, remote, remote_port: from.source_port, guest_port: from.port };
                let kind = if self.flows.contains_key(&shown) { Kind::Crossed } else { Kind::Udp };
                (shown, Key { kind, ..shown })
            }
        };
        // A newer one takes the place of the one that it repeats.
        self.end(&key);
        if !self.admits_member(key) {
            return;
        }
        let token = self.token();
        let Ok(socket) = self.sockets.adopt_datagrams(token, socket) else { return };
        let flow = DatagramFlow::of_member(shown, socket, now);
        self.insert(key, token, Flow::Datagrams(flow), 0);
        self.note_begun(key);
    }

    /// Whether a member may begin one more flow. One alone does not take every flow from the guest.
    fn admits_member(&mut self, key: Key) -> bool {
        let begun = self.begun.get(&key.remote).copied().unwrap_or(0);
        self.egress.admit_member(key, self.flows.len().max(2 * begun)).is_ok()
    }

    fn note_begun(&mut self, key: Key) {
        if let Some(entry) = self.flows.get_mut(&key) {
            entry.begun_by = Some(key.remote);
            self.count_begun(key.remote, 1);
        }
    }

    pub(super) fn count_begun(&mut self, member: IpAddr, change: isize) {
        let count = self.begun.entry(member).or_default();
        *count = count.saturating_add_signed(change);
        if *count == 0 {
            self.begun.remove(&member);
        }
    }

    /// Ends a connection that no member has answered.
    pub(super) fn give_up(&mut self, key: Key) {
        let Some(entry) = self.take(&key) else { return };
        if let Flow::Opening { syn, .. } = entry.flow {
            self.refuse(key, &syn, Errno::TIMEDOUT);
        }
    }
}
