//! Sockets without a kernel, for tests: they remember what was sent and give what a test puts in.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;

use rustix::io::Errno;

use crate::dns::resolver::{DnsRequest, DnsRequestId};
use crate::membership::MemberPort;
use crate::sockets::{DatagramSocket, PortNumber, Sockets, StreamSocket, Token};
use crate::{BROKER_ADDRESS, BROKER_PORT};

/// One connection of the host.
#[derive(Debug, Default)]
pub(crate) struct FakeStream {
    /// What the remote end sends.
    pub(crate) incoming: VecDeque<u8>,
    pub(crate) has_ended: bool,
    /// What ends the connection when `incoming` is empty.
    pub(crate) error: Option<Errno>,
    /// What the remote end got.
    pub(crate) outgoing: Vec<u8>,
    /// How much more it takes.
    pub(crate) room: usize,
    pub(crate) refused: Option<Errno>,
    pub(crate) is_shut_down: bool,
    pub(crate) is_reset: bool,
    pub(crate) is_closed: bool,
    /// What a member was answered.
    pub(crate) answered: Option<Result<(), Errno>>,
}

/// One socket for datagrams.
#[derive(Debug, Default)]
pub(crate) struct FakeDatagrams {
    pub(crate) incoming: VecDeque<Result<Vec<u8>, Errno>>,
    pub(crate) outgoing: Vec<Vec<u8>>,
    pub(crate) is_closed: bool,
}

/// What was asked of the host.
#[derive(Debug, Default)]
pub(crate) struct FakeHost {
    pub(crate) streams: BTreeMap<Token, (SocketAddr, Rc<RefCell<FakeStream>>)>,
    pub(crate) datagrams: BTreeMap<Token, (SocketAddr, Rc<RefCell<FakeDatagrams>>)>,
    pub(crate) dns_requests: Vec<DnsRequest>,
    /// What the host says when it is asked for a socket.
    pub(crate) exhausted: Option<Errno>,
    /// What was asked of members.
    pub(crate) members: Vec<MemberPort>,
    /// Datagrams to clients of published ports.
    pub(crate) answers: Vec<(PortNumber, SocketAddr, Vec<u8>)>,
}

/// The sockets of a [`FakeHost`].
#[derive(Debug, Clone, Default)]
pub(crate) struct FakeSockets(pub(crate) Rc<RefCell<FakeHost>>);

pub(crate) struct FakeStreamSocket(pub(crate) Rc<RefCell<FakeStream>>);

pub(crate) struct FakeDatagramSocket(pub(crate) Rc<RefCell<FakeDatagrams>>);

impl Drop for FakeStreamSocket {
    fn drop(&mut self) {
        self.0.borrow_mut().is_closed = true;
    }
}

impl Drop for FakeDatagramSocket {
    fn drop(&mut self) {
        self.0.borrow_mut().is_closed = true;
    }
}

impl FakeSockets {
    fn datagrams(&mut self, token: Token, remote: SocketAddr) -> Result<FakeDatagramSocket, Errno> {
        let mut host = self.0.borrow_mut();
        if let Some(error) = host.exhausted {
            return Err(error);
        }
        let datagrams = Rc::default();
        host.datagrams.insert(token, (remote, Rc::clone(&datagrams)));
        Ok(FakeDatagramSocket(datagrams))
    }
}

impl Sockets for FakeSockets {
    type Stream = FakeStreamSocket;
    type Datagram = FakeDatagramSocket;

    fn connect(&mut self, token: Token, remote: SocketAddr) -> Result<FakeStreamSocket, Errno> {
        let mut host = self.0.borrow_mut();
        if let Some(error) = host.exhausted {
            return Err(error);
        }
        let stream = Rc::new(RefCell::new(FakeStream { room: usize::MAX, ..FakeStream::default() }));
        host.streams.insert(token, (remote, Rc::clone(&stream)));
        Ok(FakeStreamSocket(stream))
    }

    fn connect_broker(&mut self, token: Token, number: u8) -> Result<FakeStreamSocket, Errno> {
        self.connect(token, SocketAddr::new(BROKER_ADDRESS.into(), BROKER_PORT + u16::from(number)))
    }

    fn connect_member(&mut self, token: Token, to: MemberPort) -> Result<FakeStreamSocket, Errno> {
        self.0.borrow_mut().members.push(to);
        self.connect(token, SocketAddr::new(to.address.into(), to.port))
    }

    fn member_datagrams(&mut self, token: Token, to: MemberPort) -> Result<FakeDatagramSocket, Errno> {
        self.0.borrow_mut().members.push(to);
        self.datagrams(token, SocketAddr::new(to.address.into(), to.port))
    }

    fn adopt_datagrams(
        &mut self,
        token: Token,
        socket: FakeDatagramSocket,
    ) -> Result<FakeDatagramSocket, Errno> {
        let nowhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        self.0.borrow_mut().datagrams.insert(token, (nowhere, Rc::clone(&socket.0)));
        Ok(socket)
    }

    fn adopt(&mut self, token: Token, stream: FakeStreamSocket) -> Result<FakeStreamSocket, Errno> {
        let nowhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        self.0.borrow_mut().streams.insert(token, (nowhere, Rc::clone(&stream.0)));
        Ok(stream)
    }

    fn datagram(&mut self, token: Token, remote: SocketAddr) -> Result<FakeDatagramSocket, Errno> {
        self.datagrams(token, remote)
    }

    fn echo(&mut self, token: Token, remote: IpAddr) -> Result<FakeDatagramSocket, Errno> {
        self.datagrams(token, SocketAddr::new(remote, 0))
    }

    fn answer(&mut self, port: PortNumber, client: SocketAddr, bytes: &[u8]) -> Result<(), Errno> {
        self.0.borrow_mut().answers.push((port, client, bytes.to_vec()));
        Ok(())
    }

    fn resolve(&mut self, request: DnsRequest) -> Result<(), DnsRequestId> {
        self.0.borrow_mut().dns_requests.push(request);
        Ok(())
    }
}

impl StreamSocket for FakeStreamSocket {
    fn connected(&self) -> Result<(), Errno> {
        self.0.borrow().refused.map_or(Ok(()), Err)
    }

    fn send(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let mut stream = self.0.borrow_mut();
        assert!(!stream.is_shut_down && !stream.is_reset, "sent after the end");
        if let Some(error) = stream.error {
            return Err(error);
        }
        let count = bytes.len().min(stream.room);
        if count == 0 {
            return Err(Errno::AGAIN);
        }
        stream.room -= count;
        stream.outgoing.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn receive(&self, bytes: &mut [u8]) -> Result<usize, Errno> {
        let mut stream = self.0.borrow_mut();
        let count = bytes.len().min(stream.incoming.len());
        if count > 0 {
            let taken: Vec<u8> = stream.incoming.drain(..count).collect();
            bytes[..count].copy_from_slice(&taken);
            return Ok(count);
        }
        match (stream.error, stream.has_ended) {
            // An end that came before the error is received before it.
            (_, true) => Ok(0),
            (Some(error), false) => Err(error),
            (None, false) => Err(Errno::AGAIN),
        }
    }

    fn failure(&self) -> Option<Errno> {
        self.0.borrow().error
    }

    fn shut_down(&self) {
        self.0.borrow_mut().is_shut_down = true;
    }

    fn reset(&self) {
        self.0.borrow_mut().is_reset = true;
    }

    fn answer(&self, outcome: Result<(), Errno>) {
        self.0.borrow_mut().answered = Some(outcome);
    }
}

impl DatagramSocket for FakeDatagramSocket {
    fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        self.0.borrow_mut().outgoing.push(bytes.to_vec());
        Ok(())
    }

    fn receive(&self, bytes: &mut [u8]) -> Result<usize, Errno> {
        let datagram = self.0.borrow_mut().incoming.pop_front().unwrap_or(Err(Errno::AGAIN))?;
        bytes[..datagram.len()].copy_from_slice(&datagram);
        Ok(datagram.len())
    }
}
