//! Questions by TCP: a connection that ends in the stack itself, at the name server's address.

use std::cell::RefCell;
use std::collections::VecDeque;

use rustix::io::Errno;

use super::tcp::{Surroundings, TcpFlow};
use super::{DNS_PORT, Entry, Flow, OUR_MAC, SMALL_BUFFER, Stack, link};
use crate::NAME_SERVER;
use crate::dns::resolver::Asker;
use crate::egress::DnsAnswer;
use crate::flows::{Key, Kind};
use crate::frame::Segment;
use crate::sockets::{Readiness, Sockets, StreamSocket};

/// Bytes of the length before each message.
const LENGTH_LEN: usize = 2;

/// Longest question in bytes.
const QUESTION_MAX: usize = 4096;

/// Questions of one connection that wait for their answers at once.
const WAITING_MAX: usize = 16;

/// Bytes of answers that wait for the guest; while there are more, nothing is asked.
const ANSWERS_MAX: usize = 128 * 1024;

/// Where a connection of the guest leads.
pub(super) enum Peer<S> {
    /// To a socket of the host.
    Host(S),
    /// To the stack's name service.
    Names(NameService),
}

/// One connection to the name service.
#[derive(Default)]
pub(super) struct NameService(RefCell<Exchange>);

#[derive(Default)]
struct Exchange {
    /// What came of questions that were not asked yet.
    incoming: Vec<u8>,
    outgoing: VecDeque<u8>,
    waiting: usize,
    has_ended: bool,
}

impl Exchange {
    /// The first question, if it is whole.
    fn question(&self) -> Option<&[u8]> {
        let length = usize::from(u16::from_be_bytes(*self.incoming.first_chunk::<LENGTH_LEN>()?));
        self.incoming.get(LENGTH_LEN..LENGTH_LEN + length)
    }
}

impl NameService {
    /// The next question that can be asked.
    pub(super) fn next_question(&self) -> Option<Vec<u8>> {
        let mut exchange = self.0.borrow_mut();
        if exchange.waiting >= WAITING_MAX || exchange.outgoing.len() > ANSWERS_MAX {
            return None;
        }
        let question = exchange.question()?.to_vec();
        exchange.incoming.drain(..LENGTH_LEN + question.len());
        exchange.waiting += 1;
        Some(question)
    }

    /// Gives the guest an answer.
    pub(super) fn answer(&self, message: &[u8]) {
        let mut exchange = self.0.borrow_mut();
        exchange.waiting = exchange.waiting.saturating_sub(1);
        // Answers are bounded far below.
        let Ok(length) = u16::try_from(message.len()) else { return };
        exchange.outgoing.extend(length.to_be_bytes());
        exchange.outgoing.extend(message);
    }
}

impl StreamSocket for NameService {
    fn connected(&self) -> Result<(), Errno> {
        Ok(())
    }

    fn send(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let mut exchange = self.0.borrow_mut();
        let room = (LENGTH_LEN + QUESTION_MAX).saturating_sub(exchange.incoming.len());
        let count = room.min(bytes.len());
        exchange.incoming.extend_from_slice(&bytes[..count]);
        match exchange.incoming.first_chunk::<LENGTH_LEN>() {
            Some(length) if usize::from(u16::from_be_bytes(*length)) > QUESTION_MAX => Err(Errno::CONNRESET),
            _ if count == 0 => Err(Errno::AGAIN),
            _ => Ok(count),
        }
    }

    fn receive(&self, bytes: &mut [u8]) -> Result<usize, Errno> {
        let mut exchange = self.0.borrow_mut();
        if exchange.outgoing.is_empty() {
            let is_done = exchange.has_ended && exchange.waiting == 0 && exchange.question().is_none();
            return if is_done { Ok(0) } else { Err(Errno::AGAIN) };
        }
        let count = bytes.len().min(exchange.outgoing.len());
        for (place, byte) in bytes.iter_mut().zip(exchange.outgoing.drain(..count)) {
            *place = byte;
        }
        Ok(count)
    }

    fn failure(&self) -> Option<Errno> {
        None
    }

    fn shut_down(&self) {
        self.0.borrow_mut().has_ended = true;
    }

    fn reset(&self) {}
}

impl<S: StreamSocket> StreamSocket for Peer<S> {
    fn connected(&self) -> Result<(), Errno> {
        match self {
            Peer::Host(socket) => socket.connected(),
            Peer::Names(service) => service.connected(),
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<usize, Errno> {
        match self {
            Peer::Host(socket) => socket.send(bytes),
            Peer::Names(service) => service.send(bytes),
        }
    }

    fn receive(&self, bytes: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Peer::Host(socket) => socket.receive(bytes),
            Peer::Names(service) => service.receive(bytes),
        }
    }

    fn failure(&self) -> Option<Errno> {
        match self {
            Peer::Host(socket) => socket.failure(),
            Peer::Names(service) => service.failure(),
        }
    }

    fn shut_down(&self) {
        match self {
            Peer::Host(socket) => socket.shut_down(),
            Peer::Names(service) => service.shut_down(),
        }
    }

    fn reset(&self) {
        match self {
            Peer::Host(socket) => socket.reset(),
            Peer::Names(service) => service.reset(),
        }
    }

    fn answer(&self, outcome: Result<(), Errno>) {
        if let Peer::Host(socket) = self {
            socket.answer(outcome);
        }
    }

    fn flush(&self) -> bool {
        match self {
            Peer::Host(socket) => socket.flush(),
            Peer::Names(service) => service.flush(),
        }
    }
}

impl<S: Sockets> Stack<S> {
    /// Answers a connection to the name server.
    pub(super) fn serve_names(&mut self, key: Key, syn: &[u8], segment: &Segment) {
        if key.guest_port == 0 || !self.egress.has_place(self.flows.len()) {
            return self.outbox.reset(link(self.guest_mac, &self.egress, key.remote), segment);
        }
        let token = self.token();
        let peer = Peer::Names(NameService::default());
        let mut around = surroundings!(self);
        let flow = TcpFlow::answering(key, peer, syn, SMALL_BUFFER, &mut around);
        self.insert(key, token, Flow::Tcp(Box::new(flow)), 2 * SMALL_BUFFER);
    }

    /// Asks what came by a connection to the name server.
    pub(super) fn ask(&mut self, key: &Key) {
        while let Some(Entry { flow: Flow::Tcp(flow), token, .. }) = self.flows.get_mut(key)
            && let Peer::Names(service) = flow.peer()
            && let Some(question) = service.next_question()
        {
            let asker = Asker::Tcp(key.guest_port, *token);
            flow.ready(Readiness::BOTH);
            self.egress.query(asker, &question);
            self.enqueue(*key);
        }
    }

    /// Gives the guest an answer of the name server.
    pub(super) fn give_answer(&mut self, DnsAnswer { asker, message }: DnsAnswer) {
        let (port, token) = match asker {
            Asker::Udp(port) => {
                let back = link(self.guest_mac, &self.egress, NAME_SERVER.into());
                return self.outbox.datagram(back, (DNS_PORT, port), &message, self.mtu);
            }
            Asker::Tcp(port, token) => (port, token),
        };
        let key =
            Key { kind: Kind::Tcp, remote: NAME_SERVER.into(), remote_port: DNS_PORT, guest_port: port };
        if let Some(Entry { flow: Flow::Tcp(flow), token: current, .. }) = self.flows.get_mut(&key)
            && *current == token
            && let Peer::Names(service) = flow.peer()
        {
            service.answer(&message);
            flow.ready(Readiness::BOTH);
            self.enqueue(key);
        }
    }
}
