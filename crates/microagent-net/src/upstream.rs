//! Sockets to the host's name servers, one per query on its way. None of them blocks.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
};

use crate::dns::message::MESSAGE_MAX;
use crate::dns::resolver::{DnsRequest, DnsRequestId, DnsTransport};

/// Bytes of the length before a message on a connection.
const LENGTH_LEN: usize = 2;
/// Datagrams that are taken from one socket in a turn.
const DATAGRAMS_MAX: usize = 8;

/// What came of a socket.
pub(crate) enum Arrival<'a> {
    /// A message.
    Message(&'a [u8]),
    /// Nothing will come.
    Failure,
}

struct Conversation {
    request_id: DnsRequestId,
    socket: OwnedFd,
    transport: DnsTransport,
    /// What is still to be sent.
    unsent: Vec<u8>,
    /// What came so far, on a connection.
    came: Vec<u8>,
}

/// All queries' sockets.
pub(crate) struct Upstream {
    conversations: Vec<Conversation>,
    scratch: Box<[u8]>,
}

impl Default for Upstream {
    fn default() -> Upstream {
        Upstream { conversations: Vec::new(), scratch: vec![0; MESSAGE_MAX].into_boxed_slice() }
    }
}

impl Upstream {
    /// Carries out a request; `watch` gets each new socket with its request id.
    ///
    /// # Errors
    ///
    /// The request for which there is no socket or whose server is out of reach.
    pub(crate) fn carry_out(
        &mut self,
        request: DnsRequest,
        watch: impl Fn(BorrowedFd<'_>, DnsRequestId) -> Result<(), Errno>,
    ) -> Result<(), DnsRequestId> {
        match request {
            DnsRequest::Cancel(request_id) => self.forget(request_id),
            DnsRequest::Send { request_id, server, transport, message } => {
                self.forget(request_id);
                let conversation =
                    Conversation::begin(request_id, server, transport, &message).map_err(|_| request_id)?;
                watch(conversation.socket.as_fd(), request_id).map_err(|_| request_id)?;
                self.conversations.push(conversation);
            }
        }
        Ok(())
    }

    /// Handles the socket of a request, for which something happened.
    pub(crate) fn attend(&mut self, request_id: DnsRequestId, mut arrive: impl FnMut(Arrival<'_>)) {
        let conversation =
            self.conversations.iter_mut().find(|conversation| conversation.request_id == request_id);
        if let Some(conversation) = conversation {
            conversation.attend(&mut self.scratch, &mut arrive);
        }
    }

    fn forget(&mut self, request_id: DnsRequestId) {
        self.conversations.retain(|conversation| conversation.request_id != request_id);
    }
}

impl Conversation {
    fn begin(
        request_id: DnsRequestId,
        server: SocketAddr,
        transport: DnsTransport,
        message: &[u8],
    ) -> io::Result<Conversation> {
        let family = if server.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let kind = if transport == DnsTransport::Udp { SocketType::DGRAM } else { SocketType::STREAM };
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
        // Connected, so that datagrams of others do not arrive, and without a port of our choice.
        match connect(&socket, &server) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let mut unsent = Vec::new();
        match transport {
            DnsTransport::Udp => {
                send(&socket, message, SendFlags::NOSIGNAL)?;
            }
            DnsTransport::Tcp => {
                // Our own queries have some hundred bytes.
                unsent.extend_from_slice(&(message.len() as u16).to_be_bytes());
                unsent.extend_from_slice(message);
            }
        }
        Ok(Conversation { request_id, socket, transport, unsent, came: Vec::new() })
    }

    fn attend(&mut self, scratch: &mut [u8], arrive: &mut impl FnMut(Arrival<'_>)) {
        match self.transport {
            DnsTransport::Udp => self.take_datagrams(scratch, arrive),
            DnsTransport::Tcp => loop {
                match self.converse(scratch) {
                    Ok(true) => return arrive(Arrival::Message(&self.came[LENGTH_LEN..])),
                    Ok(false) | Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => return,
                    Err(_) => return arrive(Arrival::Failure),
                }
            },
        }
    }

    fn take_datagrams(&mut self, scratch: &mut [u8], arrive: &mut impl FnMut(Arrival<'_>)) {
        // A server that sends more is not the one that was asked.
        for _ in 0..DATAGRAMS_MAX {
            match recv(&self.socket, &mut *scratch, RecvFlags::empty()) {
                Ok((count, _)) => arrive(Arrival::Message(&scratch[..count])),
                Err(Errno::AGAIN | Errno::INTR) => return,
                Err(_) => return arrive(Arrival::Failure),
            }
        }
    }

    /// Sends the query, takes the answer. True: it is whole.
    fn converse(&mut self, scratch: &mut [u8]) -> Result<bool, Errno> {
        if !self.unsent.is_empty() {
            let count = send(&self.socket, &self.unsent, SendFlags::NOSIGNAL)?;
            self.unsent.drain(..count);
            return Ok(false);
        }
        let (count, _) = recv(&self.socket, &mut *scratch, RecvFlags::empty())?;
        if count == 0 {
            return Err(Errno::CONNRESET);
        }
        self.came.extend_from_slice(&scratch[..count]);
        let Some(len) = self.came.first_chunk::<LENGTH_LEN>() else { return Ok(false) };
        let len = usize::from(u16::from_be_bytes(*len));
        if len > MESSAGE_MAX || self.came.len() > LENGTH_LEN + len {
            return Err(Errno::MSGSIZE);
        }
        Ok(self.came.len() == LENGTH_LEN + len)
    }
}
