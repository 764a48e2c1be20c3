//! Flows of datagrams and echoes: a socket of the host that is connected to one remote address.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::io::Errno;

use super::link;
use super::tcp::{Progress, Surroundings};
use crate::flows::{DATAGRAMS, ECHO, Key, Kind, UNANSWERED};
use crate::frame::{IPV4_LEN, UDP_LEN, u16_at};
use crate::outbox::Unreachable;
use crate::sockets::{DatagramSocket, PortNumber, Readiness, Sockets};

/// Datagrams that are taken before others have their turn.
const BURST: usize = 64;

/// Bytes of a packet of the guest that an error message quotes.
const QUOTED: usize = IPV4_LEN + UDP_LEN;

/// Datagrams between a port of the guest and a remote one, or echoes.
pub(super) struct DatagramFlow<D> {
    key: Key,
    socket: D,
    /// When the guest sent last: only that keeps a flow, nobody outside can.
    used: Duration,
    is_readable: bool,
    /// The beginning of a packet of the guest.
    quoted: [u8; QUOTED],
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

/// A socket that takes no more loses what comes, as any network does; too long is the guest's own fault.
fn harmless(sent: Result<(), Errno>) -> Result<(), Errno> {
    match sent {
        Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS | Errno::MSGSIZE | Errno::INVAL) => Ok(()),
        sent => sent,
    }
}

impl<D: DatagramSocket> DatagramFlow<D> {
    /// A flow that begins with `packet`, which has at least the headers.
    pub(super) fn new(key: Key, socket: D, packet: &[u8], now: Duration) -> DatagramFlow<D> {
        let mut quoted = [0; QUOTED];
        quoted.copy_from_slice(&packet[..QUOTED]);
        DatagramFlow { key, socket, used: now, is_readable: true, quoted }
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
        self.used = now;
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
        let until = self.used + if self.key.kind == Kind::Echo { ECHO } else { DATAGRAMS };
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
                Err(error) => self.tell(error, around),
            }
        }
        (Progress::More, Some(until))
    }

    fn give(&self, message: &[u8], around: &mut Surroundings<'_>) {
        let back = link(around.guest_mac, self.key.remote);
        if !around.egress.spend(IPV4_LEN + UDP_LEN + message.len()) {
            return;
        }
        match self.key.kind {
            Kind::Echo => {
                // Only answers: type 0. The kernel has put an id of its own in the place of the guest's.
                if message.len() >= UDP_LEN && message[..2] == [0, 0] {
                    let (id, sequence) = (self.key.guest_port, u16_at(message, 6));
                    around.outbox.echo_reply(back, id, sequence, &message[UDP_LEN..], around.mtu);
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
        around.outbox.unreachable(link(around.guest_mac, self.key.remote), code, &self.quoted);
    }
}
