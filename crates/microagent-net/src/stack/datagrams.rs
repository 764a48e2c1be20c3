//! Flows of datagrams and echoes: a socket of the host that is connected to one remote address.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::io::Errno;

use super::tcp::{Progress, Surroundings};
use super::{Flow, Stack, link, members};
use crate::flows::{DATAGRAMS, ECHO, Key, Kind, UNANSWERED};
use crate::frame::{
    ECHO_REPLY, ECHO_REPLY_V6, ECHO_REQUEST, IPV4_LEN, IPV6_LEN, UDP_LEN, header_len, u16_at,
};
use crate::gateway;
use crate::membership::MemberProtocol;
use crate::outbox::Unreachable;
use crate::sockets::{DatagramSocket, PortNumber, Readiness, Sockets};

/// Datagrams that are taken before others have their turn.
const BURST: usize = 64;

/// Bytes of a packet of the guest that an error message quotes, at most.
const QUOTED: usize = IPV6_LEN + UDP_LEN;

/// Datagrams between a port of the guest and a remote one, or echoes.
pub(super) struct DatagramFlow<D> {
    key: Key,
    socket: D,
    /// When it ends, if the guest sends nothing: nobody outside can keep a flow.
    until: Duration,
    is_readable: bool,
    /// The beginning of a packet of the guest; none if a member has begun the flow.
    quoted: Option<[u8; QUOTED]>,
}

/// Bytes of a packet with the headers of IP and UDP that moves so much of the guest's.
fn packet_len(key: &Key, payload: &[u8]) -> usize {
    let ip_len = if key.remote.is_ipv4() { IPV4_LEN } else { IPV6_LEN };
    ip_len + UDP_LEN + payload.len()
}

/// Datagrams between a client of a published port and the guest. The socket is the port's.
pub(super) struct ClientFlow {
    port: PortNumber,
    client: SocketAddr,
    /// When it ends, if the guest sends nothing: nobody outside can keep a flow.
    until: Duration,
}

impl ClientFlow {
    pub(super) fn new(port: PortNumber, client: SocketAddr, now: Duration) -> ClientFlow {
        ClientFlow { port, client, until: now + UNANSWERED }
    }

    /// What names it.
    pub(super) fn client(&self) -> (PortNumber, SocketAddr) {
        (self.port, self.client)
    }

    /// Sends what the guest sent.
    ///
    /// # Errors
    /// What the guest is to be told.
    pub(super) fn answer<S: Sockets>(
        &mut self,
        sockets: &mut S,
        payload: &[u8],
        now: Duration,
    ) -> Result<(), Errno> {
        self.until = now + DATAGRAMS;
        harmless(sockets.answer(self.port, self.client, payload))
    }

    pub(super) fn advance(&self, now: Duration) -> (Progress, Option<Duration>) {
        match now < self.until {
            true => (Progress::Waiting, Some(self.until)),
            false => (Progress::Ended, None),
        }
    }
}

/// Time after the guest's last message in which a flow stays open.
fn lifetime(kind: Kind) -> Duration {
    if kind == Kind::Echo { ECHO } else { DATAGRAMS }
}

/// A socket that takes no more loses what comes, as any network does; too long is the guest's own fault.
fn harmless(sent: Result<(), Errno>) -> Result<(), Errno> {
    match sent {
        Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS | Errno::MSGSIZE | Errno::INVAL) => Ok(()),
        sent => sent,
    }
}

impl<D: DatagramSocket> DatagramFlow<D> {
    /// A flow of the guest that begins with `packet`, which has at least the headers.
    pub(super) fn new(key: Key, socket: D, packet: &[u8], now: Duration) -> DatagramFlow<D> {
        let mut quoted = [0; QUOTED];
        let len = packet.len().min(header_len(packet) + UDP_LEN);
        quoted[..len].copy_from_slice(&packet[..len]);
        DatagramFlow { key, socket, until: now + lifetime(key.kind), is_readable: true, quoted: Some(quoted) }
    }

    /// A flow that a member of a private network has begun. `key` has the ports that the guest sees.
    pub(super) fn of_member(key: Key, socket: D, now: Duration) -> DatagramFlow<D> {
        DatagramFlow { key, socket, until: now + UNANSWERED, is_readable: true, quoted: None }
    }

    /// Notes what the host's socket is ready for.
    pub(super) fn ready(&mut self, readiness: Readiness) {
        self.is_readable |= readiness.is_readable;
    }

    /// Sends what the guest sent.
    ///
    /// # Errors
    /// What the guest is to be told.
    pub(super) fn send(&mut self, payload: &[u8], now: Duration) -> Result<(), Errno> {
        self.until = now + lifetime(self.key.kind);
        let sent = match self.socket.send(payload) {
            // What became of an earlier one; this one was not sent.
            Err(Errno::CONNREFUSED) => self.socket.send(payload),
            sent => sent,
        };
        harmless(sent)
    }

    /// Gives the guest what came.
    pub(super) fn advance(
        &mut self,
        around: &mut Surroundings<'_>,
        scratch: &mut [u8],
    ) -> (Progress, Option<Duration>) {
        let until = self.until;
        if around.now >= until {
            return (Progress::Ended, None);
        }
        for _ in 0..BURST {
            if !self.is_readable {
                return (Progress::Waiting, Some(until));
            }
            if !around.outbox.has_room() {
                break;
            }
            match self.socket.receive(scratch) {
                Ok(len) => self.give(&scratch[..len], around),
                Err(Errno::AGAIN) => self.is_readable = false,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE) => return (Progress::Ended, None),
                Err(error) => self.tell(error, around),
            }
        }
        (Progress::More, Some(until))
    }

    fn give(&self, message: &[u8], around: &mut Surroundings<'_>) {
        let back = link(around.guest_mac, around.egress, self.key.remote);
        if !around.egress.spend(packet_len(&self.key, message)) {
            return;
        }
        match self.key.kind {
            Kind::Echo => {
                // Only answers to the guest, and only requests of a member. The kernel has put an id of its own in the
                // place of the guest's.
                let request = self.quoted.is_none();
                let kind = match (request, self.key.remote.is_ipv4()) {
                    (true, _) => ECHO_REQUEST,
                    (false, true) => ECHO_REPLY,
                    (false, false) => ECHO_REPLY_V6,
                };
                if message.len() >= UDP_LEN && message[..2] == [kind, 0] {
                    let numbers = (self.key.guest_port, u16_at(message, 6));
                    around.outbox.echo(back, request, numbers, &message[UDP_LEN..], around.mtu);
                }
            }
            _ => {
                let ports = (self.key.remote_port, self.key.guest_port);
                around.outbox.datagram(back, ports, message, around.mtu);
            }
        }
    }

    /// Tells the guest what became of what it sent.
    fn tell(&mut self, error: Errno, around: &mut Surroundings<'_>) {
        let Some(quoted) = &self.quoted else {
            self.is_readable = false;
            return;
        };
        let code = match error {
            Errno::CONNREFUSED => Unreachable::Port,
            Errno::HOSTUNREACH => Unreachable::Host,
            Errno::NETUNREACH => Unreachable::Net,
            Errno::ACCESS | Errno::PERM => Unreachable::Prohibited,
            _ => {
                self.is_readable = false;
                return;
            }
        };
        around.outbox.unreachable(link(around.guest_mac, around.egress, self.key.remote), code, quoted);
    }
}

impl<S: Sockets> Stack<S> {
    /// Sends a datagram or an echo of the guest, by its flow or by one that begins, if it may.
    pub(super) fn datagram(&mut self, key: Key, ip: &[u8], payload: &[u8]) {
        if !self.flows.contains_key(&key) {
            if self.egress.admit(key, self.flows.len()).is_err() {
                let gateway = link(self.guest_mac, &self.egress, gateway(key.remote));
                return self.outbox.unreachable(gateway, Unreachable::Prohibited, ip);
            }
            let token = self.token();
            let socket = match (self.egress.member(key), key.kind) {
                (Some(member), Kind::Echo) => {
                    self.sockets.member_datagrams(token, members::port_of(member, MemberProtocol::Echo, key))
                }
                (Some(member), _) => {
                    self.sockets.member_datagrams(token, members::port_of(member, MemberProtocol::Udp, key))
                }
                (None, Kind::Echo) => self.sockets.echo(token, key.remote),
                (None, _) => self.sockets.datagram(token, SocketAddr::new(key.remote, key.remote_port)),
            };
            match socket {
                Ok(socket) => {
                    let flow = Flow::Datagrams(DatagramFlow::new(key, socket, ip, self.now.running));
                    self.insert(key, token, flow, 0);
                }
                Err(error) => return self.refuse(key, ip, error),
            }
        }
        if !self.egress.spend(ip.len()) {
            let gateway = link(self.guest_mac, &self.egress, gateway(key.remote));
            return self.outbox.unreachable(gateway, Unreachable::Prohibited, ip);
        }
        let sent = match self.flows.get_mut(&key).map(|entry| &mut entry.flow) {
            Some(Flow::Datagrams(flow)) => flow.send(payload, self.now.running),
            Some(Flow::Client(flow)) => flow.answer(&mut self.sockets, payload, self.now.running),
            _ => return,
        };
        match sent {
            Ok(()) => {}
            // The member's stack has ended the flow: the next datagram begins another one.
            Err(Errno::PIPE) => return self.end(&key),
            Err(error) => self.refuse(key, ip, error),
        }
        self.enqueue(key);
    }
}
