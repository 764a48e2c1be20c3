//! Sockets of the host: none of them blocks, and all are waited for by one epoll.

use std::collections::HashMap;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
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
use crate::dns::resolver::{DnsRequest, DnsRequestId};
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
}

impl HostSockets {
    pub(super) fn new(epoll: OwnedFd, brokers: Option<OwnedFd>) -> HostSockets {
        HostSockets { epoll, upstream: Upstream::default(), ports: HashMap::new(), brokers }
    }

    /// Takes the socket of a published UDP port, for answers.
    pub(super) fn add_port(&mut self, port: PortNumber, socket: OwnedFd) {
        self.ports.insert(port, socket);
    }

    /// Forgets the socket of a published port.
    pub(super) fn remove_port(&mut self, port: PortNumber) {
        self.ports.remove(&port);
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

    fn begin(&self, token: Token, socket: OwnedFd, remote: SocketAddrV4) -> Result<OwnedFd, Errno> {
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

    fn connect(&mut self, token: Token, remote: SocketAddrV4) -> Result<HostStream, Errno> {
        let stream = HostStream::new(socket_with(AddressFamily::INET, SocketType::STREAM, FLAGS, None)?);
        self.begin(token, stream.0, remote).map(HostStream)
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
        Ok(HostStream(ours))
    }

    fn adopt(&mut self, token: Token, stream: HostStream) -> Result<HostStream, Errno> {
        self.watch(&stream.0, token)?;
        Ok(stream)
    }

    fn datagram(&mut self, token: Token, remote: SocketAddrV4) -> Result<HostDatagram, Errno> {
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, FLAGS, None)?;
        self.begin(token, socket, remote).map(HostDatagram)
    }

    fn echo(&mut self, token: Token, remote: Ipv4Addr) -> Result<HostDatagram, Errno> {
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, FLAGS, Some(ipproto::ICMP))?;
        self.begin(token, socket, SocketAddrV4::new(remote, 0)).map(HostDatagram)
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
pub(super) struct HostStream(OwnedFd);

impl HostStream {
    /// A socket that sends at once, and notices in two hours when nobody is there any more.
    pub(super) fn new(socket: OwnedFd) -> HostStream {
        // Refused only for what is no TCP socket.
        let _ = set_tcp_nodelay(&socket, true);
        let _ = set_socket_keepalive(&socket, true);
        HostStream(socket)
    }
}

impl StreamSocket for HostStream {
    fn connected(&self) -> Result<(), Errno> {
        socket_error(&self.0)?
    }

    fn send(&self, bytes: &[u8]) -> Result<usize, Errno> {
        send(&self.0, bytes, SendFlags::NOSIGNAL)
    }

    fn receive(&self, bytes: &mut [u8]) -> Result<usize, Errno> {
        recv(&self.0, bytes, RecvFlags::empty()).map(|(count, _)| count)
    }

    fn shut_down(&self) {
        // Fails when the connection is gone, which shows when it is read.
        let _ = shutdown(&self.0, Shutdown::Write);
    }

    fn reset(&self) {
        // Closing it then is a reset.
        let _ = set_socket_linger(&self.0, Some(Duration::ZERO));
    }
}

/// A socket for datagrams or echoes.
pub(super) struct HostDatagram(OwnedFd);

impl DatagramSocket for HostDatagram {
    fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        send(&self.0, bytes, SendFlags::NOSIGNAL).map(drop)
    }

    fn receive(&self, bytes: &mut [u8]) -> Result<usize, Errno> {
        recv(&self.0, bytes, RecvFlags::empty()).map(|(count, _)| count)
    }
}
