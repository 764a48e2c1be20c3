//! Sockets of the host: none of them blocks, and all are waited for by one epoll.

use std::collections::HashMap;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_keepalive, set_socket_linger, set_tcp_nodelay, socket_error};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketFlags,
    SocketType, connect, ipproto, recv, send, sendmsg, sendto, shutdown, socket_with, socketpair,
};

use super::RESOLVER;
use super::members::{MemberDatagrams, MemberStream, OutgoingConnections};
use crate::dns::resolver::{DnsRequest, DnsRequestId};
use crate::membership::MemberPort;
use crate::sockets::{DatagramSocket, PortNumber, Sockets, StreamSocket, Token};
use crate::stack::Stack;
use crate::upstream::{Arrival, Upstream};

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// The host's sockets.
pub(super) struct HostSockets {
    epoll: OwnedFd,
    upstream: Upstream,
    /// Sockets of published UDP ports.
    ports: HashMap<PortNumber, OwnedFd>,
    /// Where the process of the brokers takes connections, if there is one.
    brokers: Option<OwnedFd>,
    /// Ways to members of private networks.
    outgoing: OutgoingConnections,
}

impl HostSockets {
    pub(super) fn new(epoll: OwnedFd, brokers: Option<OwnedFd>) -> HostSockets {
        let (upstream, outgoing) = (Upstream::default(), OutgoingConnections::default());
        HostSockets { epoll, upstream, ports: HashMap::new(), brokers, outgoing }
    }

    /// Takes the socket of a published UDP port, for answers.
    pub(super) fn add_port(&mut self, port: PortNumber, socket: OwnedFd) {
        self.ports.insert(port, socket);
    }

    /// Forgets the socket of a published port.
    pub(super) fn remove_port(&mut self, port: PortNumber) {
        self.ports.remove(&port);
    }

    /// The connections to other members.
    pub(super) fn outgoing(&mut self) -> &mut OutgoingConnections {
        &mut self.outgoing
    }

    /// Attends to the socket of a question to a name server.
    pub(super) fn attend(stack: &mut Stack<HostSockets>, request_id: DnsRequestId) {
        let mut arrived = Vec::new();
        stack.sockets().upstream.attend(request_id, |arrival| {
            arrived.push(match arrival {
                Arrival::Message(message) => Some(message.to_vec()),
                Arrival::Failure => None,
            });
        });
        for message in arrived {
            stack.resolved(request_id, message.as_deref());
        }
    }

    fn watch(&self, socket: &OwnedFd, token: Token) -> Result<(), Errno> {
        let flags =
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.epoll, socket, epoll::EventData::new_u64(token), flags)
    }

    fn begin(&self, token: Token, socket: OwnedFd, remote: SocketAddr) -> Result<OwnedFd, Errno> {
        match connect(&socket, &remote) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error),
        }
        self.watch(&socket, token)?;
        Ok(socket)
    }
}

impl Sockets for HostSockets {
    type Stream = HostStream;
    type Datagram = HostDatagram;

    fn connect(&mut self, token: Token, remote: SocketAddr) -> Result<HostStream, Errno> {
        let socket = socket_with(family(remote.ip()), SocketType::STREAM, FLAGS, None)?;
        make_prompt(&socket);
        self.begin(token, socket, remote).map(HostStream::Plain)
    }

    fn connect_broker(&mut self, token: Token, number: u8) -> Result<HostStream, Errno> {
        let brokers = self.brokers.as_ref().ok_or(Errno::CONNREFUSED)?;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?;
        let rights = [theirs.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&rights));
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(brokers, &[IoSlice::new(&[number])], &mut ancillary, flags) {
            Ok(_) => {}
            // It is gone for good, or takes no more now.
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::AGAIN) => {
                return Err(Errno::CONNREFUSED);
            }
            Err(error) => return Err(error),
        }
        self.watch(&ours, token)?;
        Ok(HostStream::Plain(ours))
    }

    fn connect_member(&mut self, token: Token, to: MemberPort) -> Result<HostStream, Errno> {
        let stream = MemberStream::new(self.outgoing.begin(to)?);
        self.watch(stream.socket(), token)?;
        Ok(HostStream::Member(stream))
    }

    fn member_datagrams(&mut self, token: Token, to: MemberPort) -> Result<HostDatagram, Errno> {
        let socket = HostDatagram::Member(MemberDatagrams(self.outgoing.begin(to)?));
        self.adopt_datagrams(token, socket)
    }

    fn adopt_datagrams(&mut self, token: Token, socket: HostDatagram) -> Result<HostDatagram, Errno> {
        let (HostDatagram::Plain(inner) | HostDatagram::Member(MemberDatagrams(inner))) = &socket;
        self.watch(inner, token)?;
        Ok(socket)
    }

    fn adopt(&mut self, token: Token, stream: HostStream) -> Result<HostStream, Errno> {
        match &stream {
            HostStream::Plain(socket) => self.watch(socket, token)?,
            HostStream::Member(stream) => self.watch(stream.socket(), token)?,
        }
        Ok(stream)
    }

    fn datagram(&mut self, token: Token, remote: SocketAddr) -> Result<HostDatagram, Errno> {
        let socket = socket_with(family(remote.ip()), SocketType::DGRAM, FLAGS, None)?;
        self.begin(token, socket, remote).map(HostDatagram::Plain)
    }

    fn echo(&mut self, token: Token, remote: IpAddr) -> Result<HostDatagram, Errno> {
        let protocol = if remote.is_ipv4() { ipproto::ICMP } else { ipproto::ICMPV6 };
        let socket = socket_with(family(remote), SocketType::DGRAM, FLAGS, Some(protocol))?;
        self.begin(token, socket, SocketAddr::new(remote, 0)).map(HostDatagram::Plain)
    }

    fn answer(&mut self, port: PortNumber, client: SocketAddr, bytes: &[u8]) -> Result<(), Errno> {
        let socket = self.ports.get(&port).ok_or(Errno::CONNREFUSED)?;
        sendto(socket, bytes, SendFlags::NOSIGNAL, &client).map(drop)
    }

    fn resolve(&mut self, request: DnsRequest) -> Result<(), DnsRequestId> {
        let epoll = &self.epoll;
        self.upstream.carry_out(request, |socket, request_id| {
            let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
            epoll::add(epoll, socket, epoll::EventData::new_u64(RESOLVER | request_id), flags)
        })
    }
}

/// A connection.
pub(super) enum HostStream {
    /// Of the host, or to a broker.
    Plain(OwnedFd),
    /// With a member of a private network.
    Member(MemberStream),
}

impl HostStream {
    /// A connection that a listener has accepted.
    pub(super) fn accepted(socket: OwnedFd) -> HostStream {
        make_prompt(&socket);
        HostStream::Plain(socket)
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

/// Has a socket send at once, and notice in two hours when nobody is there any more.
fn make_prompt(socket: &OwnedFd) {
    // Refused only for what is no TCP socket.
    let _ = set_tcp_nodelay(socket, true);
    let _ = set_socket_keepalive(socket, true);
}

impl StreamSocket for HostStream {
    fn connected(&self) -> Result<(), Errno> {
        match self {
            HostStream::Plain(socket) => socket_error(socket)?,
            HostStream::Member(stream) => stream.connected(),
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<usize, Errno> {
        match self {
            HostStream::Plain(socket) => send(socket, bytes, SendFlags::NOSIGNAL),
            HostStream::Member(stream) => stream.send(bytes),
        }
    }

    fn receive(&self, bytes: &mut [u8]) -> Result<usize, Errno> {
        match self {
            HostStream::Plain(socket) => recv(socket, bytes, RecvFlags::empty()).map(|(count, _)| count),
            HostStream::Member(stream) => stream.receive(bytes),
        }
    }

    fn failure(&self) -> Option<Errno> {
        match self {
            HostStream::Plain(socket) => socket_error(socket).and_then(|error| error).err(),
            HostStream::Member(stream) => stream.failure(),
        }
    }

    fn shut_down(&self) {
        match self {
            // Fails when the connection is gone, which shows when it is read.
            HostStream::Plain(socket) => drop(shutdown(socket, Shutdown::Write)),
            HostStream::Member(stream) => stream.shut_down(),
        }
    }

    fn reset(&self) {
        match self {
            // Closing it then is a reset.
            HostStream::Plain(socket) => drop(set_socket_linger(socket, Some(Duration::ZERO))),
            HostStream::Member(stream) => stream.reset(),
        }
    }

    fn answer(&self, outcome: Result<(), Errno>) {
        if let HostStream::Member(stream) = self {
            stream.answer(outcome);
        }
    }

    fn flush(&self) -> bool {
        match self {
            HostStream::Plain(_) => true,
            HostStream::Member(stream) => stream.flush(),
        }
    }
}

/// A socket for datagrams or echoes.
pub(super) enum HostDatagram {
    /// Of the host.
    Plain(OwnedFd),
    /// With a member of a private network.
    Member(MemberDatagrams),
}

impl DatagramSocket for HostDatagram {
    fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        match self {
            HostDatagram::Plain(socket) => send(socket, bytes, SendFlags::NOSIGNAL).map(drop),
            HostDatagram::Member(socket) => socket.send(bytes),
        }
    }

    fn receive(&self, bytes: &mut [u8]) -> Result<usize, Errno> {
        match self {
            HostDatagram::Plain(socket) => recv(socket, bytes, RecvFlags::empty()).map(|(count, _)| count),
            HostDatagram::Member(socket) => socket.receive(bytes),
        }
    }
}
