//! Queries on their way: which guest's query waits for which name server. Pure: sockets are the caller's, who
//! carries out [`Errand`]s and hands back what came.
//!
//! Every attempt has a message id of its own and, since the caller gives it a socket of its own, a port of its own.
//! An answer counts if it came from the server that was asked (the socket is connected), with that id, to that
//! question. All attempts together end before a C library's own patience does (5 s in glibc and musl), so
//! that the guest gets an answer in any case.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::net::SocketAddr;
use std::time::Duration;

use super::message::{Answer, Code, NoAnswer, Query, write_query};

/// Queries that are on their way at once. Each holds a socket.
pub(crate) const IN_FLIGHT_MAX: usize = 128;
/// Times that a server is asked, over all servers.
const ATTEMPTS: u8 = 3;
/// Time for one attempt.
const PATIENCE: Duration = Duration::from_millis(1500);
/// What a C library waits for us.
const GUEST_PATIENCE: Duration = Duration::from_secs(5);
const _: () = assert!(ATTEMPTS as u128 * PATIENCE.as_millis() < GUEST_PATIENCE.as_millis());
/// Messages that are no answer, after which a server is given up.
const STRAYS_MAX: u8 = 32;

/// Names one query on its way.
pub type Ticket = u64;

/// How a name server is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// A datagram.
    Udp,
    /// A connection, with two bytes of length before each message.
    Tcp,
}

/// What the caller is to do for a query. There is at most one socket per ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Errand {
    /// Send the message from a fresh socket, in place of what the ticket had before.
    Ask {
        /// The query.
        ticket: Ticket,
        /// The host's name server.
        server: SocketAddr,
        /// How to ask.
        carrier: Carrier,
        /// What to send, without a length before it.
        message: Vec<u8>,
    },
    /// Close the ticket's socket.
    Forget(Ticket),
}

/// Who in the guest waits for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asker {
    /// The program at this UDP port.
    Udp(u16),
    /// The program at this port of a connection, whose questions are numbered.
    Tcp(u16, u64),
}

impl Asker {
    /// How it is answered.
    pub(crate) fn carrier(self) -> Carrier {
        match self {
            Asker::Udp(_) => Carrier::Udp,
            Asker::Tcp(..) => Carrier::Tcp,
        }
    }
}

/// A query that came to its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) asker: Asker,
    pub(crate) query: Query,
    /// None: no server could be asked, or none answered.
    pub(crate) answer: Option<Answer>,
}

#[derive(Debug)]
struct Pending {
    ticket: Ticket,
    asker: Asker,
    query: Query,
    /// How often a server was asked; the number of the server goes round with it.
    attempts: u8,
    carrier: Carrier,
    edns: bool,
    id: u16,
    deadline: Duration,
    strays: u8,
}

/// All queries on their way.
#[derive(Debug)]
pub(crate) struct Resolver {
    servers: Vec<SocketAddr>,
    pending: Vec<Pending>,
    errands: Vec<Errand>,
    last_ticket: Ticket,
    /// A keyed hash of a counter: numbers that nobody outside can foretell.
    numbers: RandomState,
    counter: u64,
}

impl Resolver {
    pub(crate) fn new(servers: Vec<SocketAddr>) -> Resolver {
        Resolver {
            servers,
            pending: Vec::new(),
            errands: Vec::new(),
            last_ticket: 0,
            numbers: RandomState::new(),
            counter: 0,
        }
    }

    /// Takes a guest's query. What is on its way already, or comes when too much is, is dropped: the guest asks again.
    pub(crate) fn ask(&mut self, asker: Asker, query: Query, now: Duration) -> Option<Resolved> {
        let known = |p: &Pending| p.asker == asker && p.query.id == query.id && p.query == query;
        if self.pending.len() >= IN_FLIGHT_MAX || self.pending.iter().any(known) {
            return None;
        }
        self.last_ticket += 1;
        let pending = Pending {
            ticket: self.last_ticket,
            asker,
            query,
            attempts: 0,
            carrier: Carrier::Udp,
            edns: true,
            id: 0,
            deadline: now,
            strays: 0,
        };
        self.pending.push(pending);
        self.attempt(self.pending.len() - 1, now)
    }

    /// Takes what came on a ticket's socket.
    pub(crate) fn receive(&mut self, ticket: Ticket, message: &[u8], now: Duration) -> Option<Resolved> {
        let at = self.pending.iter().position(|p| p.ticket == ticket)?;
        let pending = &mut self.pending[at];
        match Answer::read(message, pending.id, &pending.query.question) {
            Err(NoAnswer::Stray) if pending.strays < STRAYS_MAX => {
                pending.strays += 1;
                None
            }
            Err(NoAnswer::Truncated) if pending.carrier == Carrier::Udp => {
                pending.carrier = Carrier::Tcp;
                self.send(at, now);
                None
            }
            // A server that does not know EDNS answers that.
            Ok(Answer { code: Code::FormatError | Code::NotImplemented, .. }) if pending.edns => {
                pending.edns = false;
                self.send(at, now);
                None
            }
            Ok(answer) if matches!(answer.code, Code::NoError | Code::NoSuchName) => {
                Some(self.end(at, Some(answer)))
            }
            Ok(_) | Err(_) => self.attempt(at, now),
        }
    }

    /// Takes note that a ticket's socket is of no use: nobody listens, or it cannot be had.
    pub(crate) fn fail(&mut self, ticket: Ticket, now: Duration) -> Option<Resolved> {
        let at = self.pending.iter().position(|p| p.ticket == ticket)?;
        self.attempt(at, now)
    }

    /// Ends one attempt whose time is over. To be called until it gives nothing and no deadline has passed.
    pub(crate) fn expire(&mut self, now: Duration) -> Option<Resolved> {
        while let Some(at) = self.pending.iter().position(|p| p.deadline <= now) {
            if let Some(resolved) = self.attempt(at, now) {
                return Some(resolved);
            }
        }
        None
    }

    /// When [`Resolver::expire`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.pending.iter().map(|p| p.deadline).min()
    }

    /// What the caller is to do.
    pub(crate) fn take_errands(&mut self) -> Vec<Errand> {
        std::mem::take(&mut self.errands)
    }

    pub(crate) fn has_errands(&self) -> bool {
        !self.errands.is_empty()
    }

    /// Asks the next server, or gives up.
    fn attempt(&mut self, at: usize, now: Duration) -> Option<Resolved> {
        let pending = &mut self.pending[at];
        if pending.attempts >= ATTEMPTS || self.servers.is_empty() {
            return Some(self.end(at, None));
        }
        pending.attempts += 1;
        pending.carrier = Carrier::Udp;
        pending.edns = true;
        self.send(at, now);
        None
    }

    fn send(&mut self, at: usize, now: Duration) {
        self.counter += 1;
        let pending = &mut self.pending[at];
        pending.id = self.numbers.hash_one(self.counter) as u16;
        pending.deadline = now + PATIENCE;
        pending.strays = 0;
        let errand = Errand::Ask {
            ticket: pending.ticket,
            server: self.servers[usize::from(pending.attempts - 1) % self.servers.len()],
            carrier: pending.carrier,
            message: write_query(pending.id, &pending.query.question, pending.edns),
        };
        self.errands.push(errand);
    }

    fn end(&mut self, at: usize, answer: Option<Answer>) -> Resolved {
        let Pending { ticket, asker, query, .. } = self.pending.swap_remove(at);
        self.errands.push(Errand::Forget(ticket));
        Resolved { asker, query, answer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::message::kind;
    use crate::testing::{dns_answer, dns_query};

    const ASKER: Asker = Asker::Udp(40_000);

    fn server(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 53))
    }

    fn query(id: u16) -> Query {
        Query::read(&dns_query(id, "a.example", kind::A, None)).unwrap()
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// The one thing to be sent: ticket, server, carrier, id.
    fn asked(resolver: &mut Resolver) -> (Ticket, SocketAddr, Carrier, u16) {
        let errands = resolver.take_errands();
        let [Errand::Ask { ticket, server, carrier, message }] = &errands[..] else { panic!("{errands:?}") };
        (*ticket, *server, *carrier, u16::from_be_bytes([message[0], message[1]]))
    }

    #[test]
    fn an_answer_with_the_right_id_ends_a_query() {
        let mut resolver = Resolver::new(vec![server(1)]);
        assert_eq!(resolver.ask(ASKER, query(9), ms(0)), None);
        let (ticket, _, _, id) = asked(&mut resolver);
        let wrong = dns_answer(id ^ 1, "a.example", &[[1, 2, 3, 4]], 60);
        assert_eq!(resolver.receive(ticket, &wrong, ms(1)), None);
        let right = dns_answer(id, "a.example", &[[1, 2, 3, 4]], 60);
        assert_eq!(resolver.receive(ticket + 1, &right, ms(1)), None);
        let resolved = resolver.receive(ticket, &right, ms(1)).unwrap();
        assert_eq!(resolved.query.id, 9);
        assert_eq!(resolved.answer.unwrap().records.len(), 1);
        assert_eq!(resolver.take_errands(), [Errand::Forget(ticket)]);
        assert_eq!(resolver.deadline(), None);
    }

    #[test]
    fn silent_servers_are_asked_in_turn_and_given_up_before_the_guest_gives_up() {
        let mut resolver = Resolver::new(vec![server(1), server(2)]);
        resolver.ask(ASKER, query(9), ms(0));
        let mut now = ms(0);
        for number in [1, 2, 1] {
            assert_eq!(asked(&mut resolver).1, server(number));
            now = resolver.deadline().unwrap();
            if let Some(resolved) = resolver.expire(now) {
                assert_eq!(resolved.answer, None);
                break;
            }
        }
        assert!(now < GUEST_PATIENCE);
        assert_eq!(resolver.deadline(), None);
    }

    #[test]
    fn a_failing_server_is_left_at_once() {
        let mut resolver = Resolver::new(vec![server(1), server(2)]);
        resolver.ask(ASKER, query(9), ms(0));
        let (ticket, _, _, _) = asked(&mut resolver);
        assert_eq!(resolver.fail(ticket, ms(0)), None);
        let (ticket, at, _, id) = asked(&mut resolver);
        assert_eq!(at, server(2));
        let mut failure = dns_answer(id, "a.example", &[], 60);
        failure[3] |= 2;
        assert_eq!(resolver.receive(ticket, &failure, ms(0)), None);
        let (ticket, at, _, _) = asked(&mut resolver);
        assert_eq!(at, server(1));
        assert_eq!(resolver.fail(ticket, ms(0)).unwrap().answer, None);
    }

    #[test]
    fn a_truncated_answer_is_asked_for_by_tcp_and_edns_is_left_out_where_it_is_unknown() {
        let mut resolver = Resolver::new(vec![server(1)]);
        resolver.ask(ASKER, query(9), ms(0));
        let (ticket, _, carrier, id) = asked(&mut resolver);
        assert_eq!(carrier, Carrier::Udp);
        let header = [(id >> 8) as u8, id as u8, 0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(resolver.receive(ticket, &header, ms(0)), None);
        let errands = resolver.take_errands();
        let [Errand::Ask { message, .. }] = &errands[..] else { panic!("{errands:?}") };
        assert_eq!(message[11], 0, "without EDNS");
        let mut cut = dns_answer(u16::from_be_bytes([message[0], message[1]]), "a.example", &[], 60);
        cut[2] |= 2;
        assert_eq!(resolver.receive(ticket, &cut, ms(0)), None);
        assert_eq!(asked(&mut resolver).2, Carrier::Tcp);
    }

    #[test]
    fn a_flood_of_strays_ends_an_attempt() {
        let mut resolver = Resolver::new(vec![server(1), server(2)]);
        resolver.ask(ASKER, query(9), ms(0));
        let (ticket, _, _, _) = asked(&mut resolver);
        for _ in 0..=STRAYS_MAX {
            assert_eq!(resolver.receive(ticket, b"nothing of the sort", ms(0)), None);
        }
        assert_eq!(asked(&mut resolver).1, server(2));
    }

    #[test]
    fn queries_are_bounded_and_not_doubled() {
        let mut resolver = Resolver::new(vec![server(1)]);
        for _ in 0..2 {
            resolver.ask(ASKER, query(9), ms(0));
        }
        assert_eq!(resolver.take_errands().len(), 1);
        for id in 0..1000 {
            resolver.ask(ASKER, query(id), ms(0));
        }
        assert_eq!(resolver.pending.len(), IN_FLIGHT_MAX);
    }

    #[test]
    fn without_servers_there_is_an_answer_at_once() {
        let mut resolver = Resolver::new(Vec::new());
        assert_eq!(resolver.ask(ASKER, query(9), ms(0)).unwrap().answer, None);
    }
}
