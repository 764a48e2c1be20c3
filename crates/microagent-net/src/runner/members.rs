//! Sockets to and from the stacks of other members of private networks.
//!
//! A stack connects to nobody: it asks its controller for a connection to a member, and sends sockets over it, one for
//! each flow. What comes from a connection is another stack's, which may have been taken over: a socket of another kind
//! is closed, and no call on one waits, whatever its flags say.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use microagent_model::Subnet;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_linger, socket_domain, socket_type};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, acceptfrom_with, recv, recvmsg, send, sendmsg,
    socketpair,
};

use super::host::{HostDatagram, HostSockets, HostStream};
use crate::membership::{
    CONNECTED, DATAGRAM, MemberPort, MemberProtocol, OPENING_LEN, outcome_byte, outcome_of, read_hello,
};
use crate::sockets::{DatagramSocket, StreamSocket};
use crate::stack::Stack;

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);
const SEND: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

/// Flows that wait for one connection.
const WAITING_MAX: usize = 256;

/// Connections to members that are asked for at once; the controller's socket has room for so many.
const ASKED_MAX: usize = 32;

/// Connections of members at once.
const CONNECTIONS_MAX: usize = 2048;

/// Time in which a connection must say whose it is. Its keeper sends that at once.
const HELLO: Duration = Duration::from_secs(5);

/// Flows that are taken from one connection before others have their turn.
const TAKEN: usize = 64;

/// Most descriptors of one message. All are taken, so that none is closed where closing it could wait.
///
/// # Source
/// Linux `include/net/scm.h`, `SCM_MAX_FD`.
const DESCRIPTORS_MAX: usize = 253;

/// Bytes of the length before a piece.
const LENGTH_LEN: usize = 4;

/// Connections to other members.
#[derive(Default)]
pub(super) struct OutgoingConnections {
    connections: HashMap<(u8, Ipv4Addr), OutgoingConnection>,
    /// Those that the controller was not asked for yet.
    wanted: Vec<(u8, Ipv4Addr)>,
}

enum OutgoingConnection {
    Asked(Vec<WaitingFlow>),
    Open(OwnedFd),
}

/// A flow that waits for its connection.
struct WaitingFlow {
    opening: [u8; OPENING_LEN],
    theirs: OwnedFd,
}

impl OutgoingConnections {
    /// Begins a flow; gives this stack's end of its socket.
    ///
    /// # Errors
    /// Why it cannot be tried.
    pub(super) fn begin(&mut self, to: MemberPort) -> Result<OwnedFd, Errno> {
        let kind = match to.protocol {
            MemberProtocol::Tcp => SocketType::STREAM,
            MemberProtocol::Udp | MemberProtocol::Echo => SocketType::SEQPACKET,
        };
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, FLAGS, None)?;
        let waiting = WaitingFlow { opening: to.opening(), theirs };
        let place = (to.network, to.address);
        let waiting = match self.connections.get(&place) {
            Some(OutgoingConnection::Open(connection)) => match pass(connection, &waiting) {
                // The member's stack was started anew, or its machine has ended.
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::CONNREFUSED) => {
                    self.connections.remove(&place);
                    waiting
                }
                // It does not take what there is, or the host has no more descriptors.
                Err(_) => return Err(Errno::CONNREFUSED),
                Ok(()) => return Ok(ours),
            },
            Some(OutgoingConnection::Asked(_)) | None => waiting,
        };
        match self.connections.get_mut(&place) {
            Some(OutgoingConnection::Asked(all)) if all.len() < WAITING_MAX => {
                all.push(waiting);
                return Ok(ours);
            }
            // Nothing comes: they are refused, and the connection is asked for again.
            Some(OutgoingConnection::Asked(_)) => self.take(to.network, to.address, None),
            Some(OutgoingConnection::Open(_)) | None => {}
        }
        let asked = self
            .connections
            .values()
            .filter(|connection| matches!(connection, OutgoingConnection::Asked(_)))
            .count();
        if asked >= ASKED_MAX {
            return Err(Errno::CONNREFUSED);
        }
        self.connections.insert(place, OutgoingConnection::Asked(vec![waiting]));
        self.wanted.push(place);
        Ok(ours)
    }

    /// Connections that are to be asked for.
    pub(super) fn take_wanted(&mut self) -> Vec<(u8, Ipv4Addr)> {
        std::mem::take(&mut self.wanted)
    }

    /// Takes a connection that was asked for; nothing if nobody listens there.
    pub(super) fn take(&mut self, network: u8, address: Ipv4Addr, connection: Option<OwnedFd>) {
        let place = (network, address);
        let Some(OutgoingConnection::Asked(waiting)) = self.connections.remove(&place) else { return };
        for flow in &waiting {
            if connection.as_ref().is_none_or(|connection| pass(connection, flow).is_err()) {
                // Read by the other end, which is this stack's own.
                let _ = send(&flow.theirs, &[outcome_byte(Err(Errno::CONNREFUSED))], SEND);
            }
        }
        if let Some(connection) = connection {
            self.connections.insert(place, OutgoingConnection::Open(connection));
        }
    }
}

/// Sends a flow over a connection.
fn pass(connection: &OwnedFd, flow: &WaitingFlow) -> Result<(), Errno> {
    let rights = [flow.theirs.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&rights));
    sendmsg(connection, &[IoSlice::new(&flow.opening)], &mut ancillary, SEND).map(drop)
}

/// Where the stacks of other members come in: a listening socket for each private network, and their connections.
pub(super) struct IncomingConnections {
    listeners: Vec<Listener>,
    connections: BTreeMap<u64, IncomingConnection>,
    last_number: u64,
}

struct Listener {
    socket: OwnedFd,
    subnet: Subnet,
    own: Ipv4Addr,
    is_ready: bool,
}

struct IncomingConnection {
    socket: OwnedFd,
    listener: usize,
    /// Who sends there; before it is known, until when it has to be.
    sender: Result<Ipv4Addr, Duration>,
    is_ready: bool,
}

/// What a connection has.
enum Taken {
    Nothing,
    Hello(Ipv4Addr),
    Flow(MemberPort, OwnedFd),
    /// A message that is not understood.
    Nonsense,
    End,
}

impl IncomingConnections {
    /// Waits at the listening sockets. Each has a subnet and the guest's own address in it; events have tokens from `tokens`.
    pub(super) fn new(
        epoll: &OwnedFd,
        tokens: u64,
        listeners: Vec<(OwnedFd, Subnet, Ipv4Addr)>,
    ) -> Result<IncomingConnections, Errno> {
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        let mut connections =
            IncomingConnections { listeners: Vec::new(), connections: BTreeMap::new(), last_number: 0 };
        for (socket, subnet, own) in listeners {
            epoll::add(
                epoll,
                &socket,
                epoll::EventData::new_u64(tokens | connections.listeners.len() as u64),
                edge,
            )?;
            connections.listeners.push(Listener { socket, subnet, own, is_ready: true });
        }
        Ok(connections)
    }

    /// Notes that a member may connect.
    pub(super) fn listener_ready(&mut self, number: u64) {
        if let Some(listener) = usize::try_from(number).ok().and_then(|number| self.listeners.get_mut(number))
        {
            listener.is_ready = true;
        }
    }

    /// Notes that a connection may have something.
    pub(super) fn connection_ready(&mut self, number: u64) {
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.is_ready = true;
        }
    }

    /// When a connection is closed that has not said whose it is.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.connections.values().filter_map(|connection| connection.sender.err()).min()
    }

    /// Whether something is to be taken at once.
    pub(super) fn is_busy(&self) -> bool {
        self.listeners.iter().any(|listener| listener.is_ready)
            || self.connections.values().any(|connection| connection.is_ready)
    }

    /// Takes new connections and new flows, as many as there are or as have their turn.
    pub(super) fn attend(
        &mut self,
        epoll: &OwnedFd,
        tokens: u64,
        now: Duration,
        stack: &mut Stack<HostSockets>,
    ) {
        for number in 0..self.listeners.len() {
            self.accept(number, epoll, tokens, now);
        }
        let numbers: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.is_ready || connection.sender.is_err())
            .map(|(n, _)| *n)
            .collect();
        for number in numbers {
            self.attend_connection(number, now, stack);
        }
    }

    fn accept(&mut self, number: usize, epoll: &OwnedFd, tokens: u64, now: Duration) {
        let listener = &mut self.listeners[number];
        for _ in 0..TAKEN {
            if !listener.is_ready {
                return;
            }
            let socket = match acceptfrom_with(&listener.socket, FLAGS) {
                Ok((socket, _)) => socket,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                // Without descriptors, whoever waits is taken when the next one comes.
                Err(_) => {
                    listener.is_ready = false;
                    return;
                }
            };
            if self.connections.len() >= CONNECTIONS_MAX {
                continue;
            }
            self.last_number += 1;
            let token = epoll::EventData::new_u64(tokens | self.last_number);
            let edge = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
            if epoll::add(epoll, &socket, token, edge).is_ok() {
                let connection =
                    IncomingConnection { socket, listener: number, sender: Err(now + HELLO), is_ready: true };
                self.connections.insert(self.last_number, connection);
            }
        }
    }

    fn attend_connection(&mut self, number: u64, now: Duration, stack: &mut Stack<HostSockets>) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let (mut is_over, mut replaced) = (false, None);
        for _ in 0..TAKEN {
            if !connection.is_ready {
                break;
            }
            let listener = &self.listeners[connection.listener];
            let network = u8::try_from(connection.listener).unwrap_or(u8::MAX);
            match take(&connection.socket, network, connection.sender.ok()) {
                Taken::Nothing => connection.is_ready = false,
                Taken::Hello(address) if listener.subnet.has_member(address) && address != listener.own => {
                    connection.sender = Ok(address);
                    replaced = Some((connection.listener, address));
                }
                Taken::Flow(from, socket) => give(stack, from, socket),
                Taken::Nonsense | Taken::Hello(_) | Taken::End => {
                    is_over = true;
                    break;
                }
            }
        }
        if is_over || connection.sender.is_err_and(|until| until <= now) {
            self.connections.remove(&number);
        }
        if let Some((listener, sender)) = replaced {
            // A member has one connection: another one means that its stack has lost the first.
            let is_first = |other: u64, connection: &IncomingConnection| {
                other != number && connection.listener == listener && connection.sender == Ok(sender)
            };
            self.connections.retain(|other, connection| !is_first(*other, connection));
        }
    }
}

/// Takes a message from a connection.
fn take(connection: &OwnedFd, network: u8, sender: Option<Ipv4Addr>) -> Taken {
    let mut message = [0; 16];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let len = match recvmsg(connection, &mut [IoSliceMut::new(&mut message)], &mut ancillary, flags) {
        Ok(received) => received.bytes,
        Err(Errno::AGAIN) => return Taken::Nothing,
        Err(Errno::INTR) => return Taken::Nothing,
        Err(_) => return Taken::End,
    };
    let sockets = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => rights.collect(),
        _ => Vec::new(),
    });
    let mut sockets: Vec<OwnedFd> = sockets.collect();
    let message = &message[..len];
    let Some(sender) = sender else {
        discard(sockets);
        return read_hello(message).map_or(Taken::Nonsense, Taken::Hello);
    };
    if len == 0 {
        return Taken::End;
    }
    match (MemberPort::read(message, network, sender), sockets.len()) {
        (Some(from), 1) if is_of_kind(&sockets[0], from.protocol) => Taken::Flow(from, sockets.remove(0)),
        _ => {
            discard(sockets);
            Taken::Nonsense
        }
    }
}

/// Closes what a member has sent, without waiting for what it may still have to send.
fn discard(sockets: Vec<OwnedFd>) {
    for socket in &sockets {
        let _ = set_socket_linger(socket, None);
    }
}

fn is_of_kind(socket: &OwnedFd, protocol: MemberProtocol) -> bool {
    let kind = match protocol {
        MemberProtocol::Tcp => SocketType::STREAM,
        MemberProtocol::Udp | MemberProtocol::Echo => SocketType::SEQPACKET,
    };
    socket_domain(socket) == Ok(AddressFamily::UNIX) && socket_type(socket) == Ok(kind)
}

/// Gives the stack a flow of a member.
fn give(stack: &mut Stack<HostSockets>, from: MemberPort, socket: OwnedFd) {
    match from.protocol {
        MemberProtocol::Tcp => stack.accept_member(HostStream::Member(MemberStream::new(socket)), from),
        MemberProtocol::Udp | MemberProtocol::Echo => {
            stack.adopt_member(HostDatagram::Member(MemberDatagrams(socket)), from);
        }
    }
}

/// A connection between two members, as pieces in a stream.
pub(super) struct MemberStream {
    socket: OwnedFd,
    /// Bytes of the last piece that are still to be sent.
    owed: Cell<usize>,
    /// Whether the piece without length is still to be sent.
    owes_end: Cell<bool>,
    /// Bytes of the piece that is received.
    expected: Cell<usize>,
    /// What has come of the next length.
    length: Cell<([u8; LENGTH_LEN], usize)>,
    has_ended: Cell<bool>,
}

impl MemberStream {
    pub(super) fn new(socket: OwnedFd) -> MemberStream {
        MemberStream {
            socket,
            owed: Cell::new(0),
            owes_end: Cell::new(false),
            expected: Cell::new(0),
            length: Cell::new(([0; LENGTH_LEN], 0)),
            has_ended: Cell::new(false),
        }
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Receives the length of the next piece.
    fn receive_length(&self) -> Result<(), Errno> {
        let (mut bytes, mut count) = self.length.get();
        while count < LENGTH_LEN {
            count += self.receive_some(&mut bytes[count..])?;
            self.length.set((bytes, count));
        }
        self.length.set(([0; LENGTH_LEN], 0));
        self.expected.set(u32::from_be_bytes(bytes) as usize);
        self.has_ended.set(self.expected.get() == 0);
        Ok(())
    }

    /// Receives at least one byte: a stream that closes before its end was reset.
    fn receive_some(&self, bytes: &mut [u8]) -> Result<usize, Errno> {
        match recv(&self.socket, bytes, RecvFlags::DONTWAIT)? {
            (0, _) => Err(Errno::CONNRESET),
            (count, _) => Ok(count),
        }
    }
}

impl StreamSocket for MemberStream {
    fn connected(&self) -> Result<(), Errno> {
        let mut outcome = [CONNECTED];
        match recv(&self.socket, &mut outcome[..], RecvFlags::DONTWAIT)? {
            (0, _) => Err(Errno::CONNREFUSED),
            _ => outcome_of(outcome[0]),
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let owed = self.owed.get();
        if owed > 0 {
            let count = send(&self.socket, &bytes[..owed.min(bytes.len())], SEND)?;
            self.owed.set(owed - count);
            return Ok(count);
        }
        let length = u32::try_from(bytes.len()).map_err(|_| Errno::MSGSIZE)?.to_be_bytes();
        let parts = [IoSlice::new(&length), IoSlice::new(bytes)];
        let sent = sendmsg(&self.socket, &parts, &mut SendAncillaryBuffer::default(), SEND)?;
        // The kernel takes some kilobytes at once, or nothing.
        let count = sent.checked_sub(LENGTH_LEN).ok_or(Errno::CONNRESET)?;
        self.owed.set(bytes.len() - count);
        Ok(count)
    }

    fn receive(&self, bytes: &mut [u8]) -> Result<usize, Errno> {
        if self.expected.get() == 0 && !self.has_ended.get() {
            self.receive_length()?;
        }
        if self.has_ended.get() {
            return Ok(0);
        }
        let most = self.expected.get().min(bytes.len());
        let count = self.receive_some(&mut bytes[..most])?;
        self.expected.set(self.expected.get() - count);
        Ok(count)
    }

    /// Both halves end before a member closes its socket.
    fn failure(&self) -> Option<Errno> {
        match recv(&self.socket, &mut [0][..], RecvFlags::DONTWAIT | RecvFlags::PEEK) {
            Ok((0, _)) => Some(Errno::CONNRESET),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => None,
            Err(error) => Some(error),
        }
    }

    fn shut_down(&self) {
        self.owes_end.set(true);
        self.flush();
    }

    /// Closing it without the last piece is a reset.
    fn reset(&self) {}

    fn answer(&self, outcome: Result<(), Errno>) {
        // Nothing else was sent before, so there is room; a member that is gone needs no answer.
        let _ = send(&self.socket, &[outcome_byte(outcome)], SEND);
    }

    fn flush(&self) -> bool {
        if self.owes_end.get() && send(&self.socket, &[0; LENGTH_LEN], SEND) != Err(Errno::AGAIN) {
            self.owes_end.set(false);
        }
        !self.owes_end.get()
    }
}

/// Datagrams between two members.
pub(super) struct MemberDatagrams(pub(super) OwnedFd);

impl DatagramSocket for MemberDatagrams {
    fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        let parts = [IoSlice::new(&[DATAGRAM]), IoSlice::new(bytes)];
        match sendmsg(&self.0, &parts, &mut SendAncillaryBuffer::default(), SEND) {
            Ok(_) => Ok(()),
            Err(error) => Err(gone(error)),
        }
    }

    fn receive(&self, bytes: &mut [u8]) -> Result<usize, Errno> {
        let mut kind = [DATAGRAM];
        let parts = &mut [IoSliceMut::new(&mut kind), IoSliceMut::new(bytes)];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.0, parts, &mut ancillary, flags).map_err(gone)?.bytes;
        match received.checked_sub(1) {
            None => Err(Errno::PIPE),
            Some(len) => outcome_of(kind[0]).map(|()| len),
        }
    }
}

/// The errors of a socket whose other end is closed are one.
fn gone(error: Errno) -> Errno {
    match error {
        Errno::CONNRESET | Errno::CONNREFUSED | Errno::NOTCONN => Errno::PIPE,
        error => error,
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod hostile;

#[cfg(test)]
mod tests;
