//! Sockets of the host, as the stack uses them. A trait, so that the stack runs without any.

use std::net::{IpAddr, SocketAddr};

use rustix::io::Errno;

use crate::dns::resolver::{DnsRequest, DnsRequestId};
use crate::membership::MemberPort;

/// Names one socket of a flow until the stack ends.
pub type Token = u64;

/// What a socket became ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    /// Data or the end of the stream can be read, or an error is pending.
    pub is_readable: bool,
    /// Data can be written, or an error is pending.
    pub is_writable: bool,
}

impl Readiness {
    /// Ready for reading only.
    pub const READABLE: Readiness = Readiness { is_readable: true, is_writable: false };

    /// Ready for writing only.
    pub const WRITABLE: Readiness = Readiness { is_readable: false, is_writable: true };

    /// Ready for reading and writing.
    pub const BOTH: Readiness = Readiness { is_readable: true, is_writable: true };
}

/// Names one published port until the stack ends.
pub type PortNumber = u64;

/// What sockets of the host are asked for. None of them blocks; each tells of readiness under its token, once per change.
pub trait Sockets {
    /// A connection.
    type Stream: StreamSocket;
    /// A socket for datagrams or echoes of one remote address.
    type Datagram: DatagramSocket;

    /// Begins to connect. The socket is writable when that has come to an end.
    ///
    /// # Errors
    /// Why it cannot be tried.
    fn connect(&mut self, token: Token, remote: SocketAddr) -> Result<Self::Stream, Errno>;

    /// Connects to a broker.
    ///
    /// # Errors
    /// `CONNREFUSED` when no process serves brokers, else why it cannot be tried.
    fn connect_broker(&mut self, token: Token, number: u8) -> Result<Self::Stream, Errno>;

    /// Begins a connection to a member of a private network. The socket is readable when that has come to an end.
    ///
    /// # Errors
    /// Why it cannot be tried.
    fn connect_member(&mut self, token: Token, to: MemberPort) -> Result<Self::Stream, Errno>;

    /// A socket that exchanges datagrams or echoes with a member of a private network.
    ///
    /// # Errors
    /// Why there is no socket.
    fn member_datagrams(&mut self, token: Token, to: MemberPort) -> Result<Self::Datagram, Errno>;

    /// Takes a socket for datagrams of a member under a token.
    ///
    /// # Errors
    /// When it cannot be watched.
    fn adopt_datagrams(&mut self, token: Token, socket: Self::Datagram) -> Result<Self::Datagram, Errno>;

    /// Takes a connection that a listener accepted under a token.
    ///
    /// # Errors
    /// When it cannot be watched.
    fn adopt(&mut self, token: Token, stream: Self::Stream) -> Result<Self::Stream, Errno>;

    /// A socket that exchanges UDP datagrams with one remote port.
    ///
    /// # Errors
    /// Why there is no socket.
    fn datagram(&mut self, token: Token, remote: SocketAddr) -> Result<Self::Datagram, Errno>;

    /// A socket that sends echo requests to one address. Messages begin with the ICMP header.
    ///
    /// # Errors
    /// Why there is no socket.
    fn echo(&mut self, token: Token, remote: IpAddr) -> Result<Self::Datagram, Errno>;

    /// Sends a datagram to a client of a published port, from that port.
    ///
    /// # Errors
    /// What is wrong, with this one or an earlier one.
    fn answer(&mut self, port: PortNumber, client: SocketAddr, bytes: &[u8]) -> Result<(), Errno>;

    /// Asks a name server, or forgets a question.
    ///
    /// # Errors
    /// The request whose server cannot be reached.
    fn resolve(&mut self, request: DnsRequest) -> Result<(), DnsRequestId>;
}

/// A connection of the host.
pub trait StreamSocket {
    /// What came of connecting.
    ///
    /// # Errors
    /// Why there is no connection; `AGAIN` when that is not known yet.
    fn connected(&self) -> Result<(), Errno>;

    /// Sends; gives how much was taken.
    ///
    /// # Errors
    /// `AGAIN` when nothing is taken now; anything else ends the connection.
    fn send(&self, bytes: &[u8]) -> Result<usize, Errno>;

    /// Receives; 0 when the remote end sends no more.
    ///
    /// # Errors
    /// `AGAIN` when nothing is there now; anything else ends the connection.
    fn receive(&self, bytes: &mut [u8]) -> Result<usize, Errno>;

    /// Why the connection has failed, after the end of what it receives: a reset is not received any more then.
    fn failure(&self) -> Option<Errno>;

    /// Tells the remote end that nothing more will be sent.
    fn shut_down(&self);

    /// Closes so that the remote end sees a reset.
    fn reset(&self);

    /// Says what came of a connection to the guest. Whoever connects to a published port has an answer already; a member
    /// waits for it.
    fn answer(&self, _outcome: Result<(), Errno>) {}

    /// Whether the remote end was told all that it has to be told; does what can be done for that now.
    fn flush(&self) -> bool {
        true
    }
}

/// A socket for datagrams or echoes.
pub trait DatagramSocket {
    /// Sends one.
    ///
    /// # Errors
    /// What is wrong, with this one or an earlier one; `PIPE` when nobody takes any more.
    fn send(&self, bytes: &[u8]) -> Result<(), Errno>;

    /// Receives one.
    ///
    /// # Errors
    /// `AGAIN` when nothing is there, `PIPE` when nothing will come any more; else what became of one that was sent.
    fn receive(&self, bytes: &mut [u8]) -> Result<usize, Errno>;
}
