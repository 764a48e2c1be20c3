//! Queries on their way: which guest's query waits for which name servers. Pure: sockets are the caller's, who
//! carries out [`DnsRequest`]s and hands back what came.
//!
//! A server that does not answer is not given up: after a while the next one is asked as well, and whichever answers first
//! counts, as long as a C library waits (5 s in glibc and musl). A server that answers with a failure is passed over at
//! once.
//!
//! Every attempt has a message id of its own and, since the caller gives it a socket of its own, a port of its own.
//! An answer counts if it came from the server that was asked (the socket is connected), with that id, to that
//! question.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::net::SocketAddr;
use std::time::Duration;

use domain::base::iana::Rcode;

use super::message::{Answer, NoAnswer, Query, write_query};

/// Queries that are on their way at once. Each holds a socket per attempt.
pub(crate) const IN_FLIGHT_MAX: usize = 128;
/// Times that a server is asked, over all servers.
const ATTEMPTS: usize = 3;
/// Time after which the next server is asked as well.
const NEXT_AFTER: Duration = Duration::from_millis(1500);
/// Time for all attempts together.
const PATIENCE: Duration = Duration::from_millis(4800);
/// What a C library waits for us.
const GUEST_PATIENCE: Duration = Duration::from_secs(5);
const _: () = assert!(PATIENCE.as_millis() < GUEST_PATIENCE.as_millis());
const _: () = assert!((ATTEMPTS as u128 - 1) * NEXT_AFTER.as_millis() < PATIENCE.as_millis());
/// Messages that are no answer, after which an attempt is given up.
const STRAYS_MAX: u8 = 32;

/// Names one attempt.
pub type DnsRequestId = u64;

/// How a name server is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsTransport {
    /// A datagram.
    Udp,
    /// A connection, with two bytes of length before each message.
    Tcp,
}

/// What the caller has to do for an attempt. Each id has at most one socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsRequest {
    /// Send the message from a new socket, which replaces the one that this id had before.
    Send {
        /// The attempt.
        request_id: DnsRequestId,
        /// The name server.
        server: SocketAddr,
        /// How to send it.
        transport: DnsTransport,
        /// What to send, without a length before it.
        message: Vec<u8>,
    },
    /// Close the socket.
    Cancel(DnsRequestId),
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
    pub(crate) fn transport(self) -> DnsTransport {
        match self {
            Asker::Udp(_) => DnsTransport::Udp,
            Asker::Tcp(..) => DnsTransport::Tcp,
        }
    }
}

/// A query that came to its end.
#[derive(Debug, PartialEq)]
pub(crate) struct Resolved {
    pub(crate) asker: Asker,
    pub(crate) query: Query,
    /// None: no server could be asked, or none answered.
    pub(crate) answer: Option<Answer>,
}

/// One server that was asked and may still answer.
#[derive(Debug)]
struct Attempt {
    request_id: DnsRequestId,
    server: SocketAddr,
    transport: DnsTransport,
    edns: bool,
    id: u16,
    strays: u8,
}

#[derive(Debug)]
struct Pending {
    asker: Asker,
    query: Query,
    /// How often a server was asked; the number of the server goes round with it.
    asked: usize,
    open: Vec<Attempt>,
    /// When the next server is asked as well, if there is another attempt.
    next_at: Duration,
    /// When it ends without an answer.
    ends_at: Duration,
}

impl Pending {
    fn deadline(&self) -> Duration {
        if self.asked < ATTEMPTS { self.next_at.min(self.ends_at) } else { self.ends_at }
    }
}

/// What a message means for the attempt whose socket it came on.
enum Verdict {
    Wait,
    /// The same server is asked again.
    Again(DnsTransport, bool),
    Answered(Answer),
    Failed,
}

impl Attempt {
    fn judge(&mut self, message: &[u8], query: &Query) -> Verdict {
        match Answer::read(message, self.id, &query.question) {
            Err(NoAnswer::Stray) if self.strays < STRAYS_MAX => {
                self.strays += 1;
                Verdict::Wait
            }
            Err(NoAnswer::Truncated) if self.transport == DnsTransport::Udp => {
                Verdict::Again(DnsTransport::Tcp, self.edns)
            }
            // A server that does not know EDNS answers that.
            Ok(Answer { code: Rcode::FORMERR | Rcode::NOTIMP, .. }) if self.edns => {
                Verdict::Again(self.transport, false)
            }
            Ok(answer) if matches!(answer.code, Rcode::NOERROR | Rcode::NXDOMAIN) => {
                Verdict::Answered(answer)
            }
            Ok(_) | Err(_) => Verdict::Failed,
        }
    }
}

/// All queries on their way.
#[derive(Debug)]
pub(crate) struct Resolver {
    servers: Vec<SocketAddr>,
    pending: Vec<Pending>,
    dns_requests: Vec<DnsRequest>,
    last_request_id: DnsRequestId,
    /// A keyed hash of a counter: numbers that nobody outside can foretell.
    numbers: RandomState,
    counter: u64,
}

impl Resolver {
    pub(crate) fn new(servers: Vec<SocketAddr>) -> Resolver {
        Resolver {
            servers,
            pending: Vec::new(),
            dns_requests: Vec::new(),
            last_request_id: 0,
            numbers: RandomState::new(),
            counter: 0,
        }
    }

    /// Asks these servers from now on.
    pub(crate) fn use_servers(&mut self, servers: Vec<SocketAddr>) {
        self.servers = servers;
    }

    /// Takes a guest's query. What is on its way already, or comes when too much is, is dropped: the guest asks again.
    pub(crate) fn ask(&mut self, asker: Asker, query: Query, now: Duration) -> Option<Resolved> {
        let known = |p: &Pending| p.asker == asker && p.query == query;
        if self.pending.len() >= IN_FLIGHT_MAX || self.pending.iter().any(known) {
            return None;
        }
        let pending =
            Pending { asker, query, asked: 0, open: Vec::new(), next_at: now, ends_at: now + PATIENCE };
        self.pending.push(pending);
        self.ask_next(self.pending.len() - 1, now)
    }

    /// Takes what came on the socket of a request.
    pub(crate) fn receive(
        &mut self,
        request_id: DnsRequestId,
        message: &[u8],
        now: Duration,
    ) -> Option<Resolved> {
        let (at, number) = self.find(request_id)?;
        let Pending { open, query, .. } = &mut self.pending[at];
        match open[number].judge(message, query) {
            Verdict::Wait => None,
            Verdict::Again(transport, edns) => {
                let attempt = &mut open[number];
                (attempt.transport, attempt.edns) = (transport, edns);
                self.send(at, number);
                None
            }
            Verdict::Answered(answer) => Some(self.end(at, Some(answer))),
            Verdict::Failed => self.fail(request_id, now),
        }
    }

    /// Takes note that an attempt is of no use: nobody listens, or there is no socket. The next server is asked at once.
    pub(crate) fn fail(&mut self, request_id: DnsRequestId, now: Duration) -> Option<Resolved> {
        let (at, number) = self.find(request_id)?;
        self.pending[at].open.swap_remove(number);
        self.dns_requests.push(DnsRequest::Cancel(request_id));
        self.ask_next(at, now)
    }

    /// Does what is due with one query. To be called until it gives nothing.
    pub(crate) fn expire(&mut self, now: Duration) -> Option<Resolved> {
        while let Some(at) = self.pending.iter().position(|pending| pending.deadline() <= now) {
            let resolved = match self.pending[at].ends_at <= now {
                true => Some(self.end(at, None)),
                false => self.ask_next(at, now),
            };
            if resolved.is_some() {
                return resolved;
            }
        }
        None
    }

    /// When [`Resolver::expire`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.pending.iter().map(Pending::deadline).min()
    }

    /// What the caller is to do.
    pub(crate) fn take_dns_requests(&mut self) -> Vec<DnsRequest> {
        std::mem::take(&mut self.dns_requests)
    }

    pub(crate) fn has_dns_requests(&self) -> bool {
        !self.dns_requests.is_empty()
    }

    fn find(&self, request_id: DnsRequestId) -> Option<(usize, usize)> {
        self.pending.iter().enumerate().find_map(|(at, pending)| {
            let number = pending.open.iter().position(|attempt| attempt.request_id == request_id)?;
            Some((at, number))
        })
    }

    /// Asks the next server; gives up when there is none and no answer can come any more.
    fn ask_next(&mut self, at: usize, now: Duration) -> Option<Resolved> {
        let pending = &mut self.pending[at];
        if pending.asked >= ATTEMPTS || self.servers.is_empty() {
            return pending.open.is_empty().then(|| self.end(at, None));
        }
        self.last_request_id += 1;
        pending.open.push(Attempt {
            request_id: self.last_request_id,
            server: self.servers[pending.asked % self.servers.len()],
            transport: DnsTransport::Udp,
            edns: true,
            id: 0,
            strays: 0,
        });
        pending.asked += 1;
        pending.next_at = now + NEXT_AFTER;
        let number = pending.open.len() - 1;
        self.send(at, number);
        None
    }

    fn send(&mut self, at: usize, number: usize) {
        self.counter += 1;
        let Pending { open, query, .. } = &mut self.pending[at];
        let attempt = &mut open[number];
        attempt.id = self.numbers.hash_one(self.counter) as u16;
        attempt.strays = 0;
        self.dns_requests.push(DnsRequest::Send {
            request_id: attempt.request_id,
            server: attempt.server,
            transport: attempt.transport,
            message: write_query(attempt.id, &query.question, attempt.edns),
        });
    }

    fn end(&mut self, at: usize, answer: Option<Answer>) -> Resolved {
        let Pending { asker, query, open, .. } = self.pending.swap_remove(at);
        self.dns_requests.extend(open.into_iter().map(|attempt| DnsRequest::Cancel(attempt.request_id)));
        Resolved { asker, query, answer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{dns_answer, dns_query};
    use domain::base::Rtype;

    const ASKER: Asker = Asker::Udp(40_000);

    fn server(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 53))
    }

    fn query(id: u16) -> Query {
        Query::read(&dns_query(id, "a.example", Rtype::A.to_int(), None)).unwrap()
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// The only request: its id, server, transport, id of the message.
    fn asked(resolver: &mut Resolver) -> (DnsRequestId, SocketAddr, DnsTransport, u16) {
        let dns_requests = resolver.take_dns_requests();
        let asks: Vec<_> =
            dns_requests.iter().filter(|request| matches!(request, DnsRequest::Send { .. })).collect();
        let [DnsRequest::Send { request_id, server, transport, message }] = &asks[..] else {
            panic!("{dns_requests:?}")
        };
        (*request_id, *server, *transport, u16::from_be_bytes([message[0], message[1]]))
    }

    #[test]
    fn an_answer_with_the_right_id_ends_a_query() {
        let mut resolver = Resolver::new(vec![server(1)]);
        assert_eq!(resolver.ask(ASKER, query(9), ms(0)), None);
        let (request_id, _, _, id) = asked(&mut resolver);
        let wrong = dns_answer(id ^ 1, "a.example", 1, &[[1, 2, 3, 4].into()], 60);
        assert_eq!(resolver.receive(request_id, &wrong, ms(1)), None);
        let right = dns_answer(id, "a.example", 1, &[[1, 2, 3, 4].into()], 60);
        assert_eq!(resolver.receive(request_id + 1, &right, ms(1)), None);
        let resolved = resolver.receive(request_id, &right, ms(1)).unwrap();
        assert_eq!(resolved.query.id, 9);
        assert_eq!(resolved.answer.unwrap().records.len(), 1);
        assert_eq!(resolver.take_dns_requests(), [DnsRequest::Cancel(request_id)]);
        assert_eq!(resolver.deadline(), None);
    }

    #[test]
    fn silent_servers_are_asked_in_turn_and_given_up_before_the_guest_gives_up() {
        let mut resolver = Resolver::new(vec![server(1), server(2)]);
        resolver.ask(ASKER, query(9), ms(0));
        let mut request_ids = Vec::new();
        for number in [1, 2, 1] {
            let (request_id, at, _, _) = asked(&mut resolver);
            assert_eq!(at, server(number));
            request_ids.push(request_id);
            let now = resolver.deadline().unwrap();
            assert!(now < GUEST_PATIENCE);
            let resolved = resolver.expire(now);
            assert_eq!(resolved.is_some(), request_ids.len() == ATTEMPTS);
            assert!(resolved.is_none_or(|resolved| resolved.answer.is_none()));
        }
        assert_eq!(
            resolver.take_dns_requests(),
            request_ids.into_iter().map(DnsRequest::Cancel).collect::<Vec<_>>()
        );
        assert_eq!(resolver.deadline(), None);
    }

    #[test]
    fn a_slow_server_is_waited_for_while_others_are_asked() {
        for servers in [vec![server(1)], vec![server(1), server(2)]] {
            let mut resolver = Resolver::new(servers);
            resolver.ask(ASKER, query(9), ms(0));
            let (first, _, _, id) = asked(&mut resolver);
            for at in [1500, 3000] {
                assert_eq!(resolver.expire(ms(at)), None);
                asked(&mut resolver);
            }
            assert_eq!(resolver.expire(ms(4000)), None);
            let answer = dns_answer(id, "a.example", 1, &[[1, 2, 3, 4].into()], 60);
            let resolved = resolver.receive(first, &answer, ms(4000)).unwrap();
            assert_eq!(resolved.answer.unwrap().records.len(), 1);
            assert_eq!(resolver.take_dns_requests().len(), 3, "all sockets are closed");
        }
    }

    #[test]
    fn a_failure_does_not_end_what_another_server_may_answer() {
        let mut resolver = Resolver::new(vec![server(1), server(2)]);
        resolver.ask(ASKER, query(9), ms(0));
        let (slow, _, _, id) = asked(&mut resolver);
        resolver.expire(ms(1500));
        for _ in 0..2 {
            let (request_id, _, _, _) = asked(&mut resolver);
            assert_eq!(resolver.fail(request_id, ms(1600)), None);
        }
        let answer = dns_answer(id, "a.example", 1, &[[1, 2, 3, 4].into()], 60);
        assert!(resolver.receive(slow, &answer, ms(1700)).unwrap().answer.is_some());
    }

    #[test]
    fn servers_that_change_are_asked_from_then_on() {
        let mut resolver = Resolver::new(vec![server(1)]);
        resolver.ask(ASKER, query(9), ms(0));
        assert_eq!(asked(&mut resolver).1, server(1));
        resolver.use_servers(vec![server(7)]);
        resolver.expire(ms(1500));
        assert_eq!(asked(&mut resolver).1, server(7));
    }

    #[test]
    fn a_failing_server_is_left_at_once() {
        let mut resolver = Resolver::new(vec![server(1), server(2)]);
        resolver.ask(ASKER, query(9), ms(0));
        let (request_id, _, _, _) = asked(&mut resolver);
        assert_eq!(resolver.fail(request_id, ms(0)), None);
        let (request_id, at, _, id) = asked(&mut resolver);
        assert_eq!(at, server(2));
        let mut failure = dns_answer(id, "a.example", 1, &[], 60);
        failure[3] |= 2;
        assert_eq!(resolver.receive(request_id, &failure, ms(0)), None);
        let (request_id, at, _, _) = asked(&mut resolver);
        assert_eq!(at, server(1));
        assert_eq!(resolver.fail(request_id, ms(0)).unwrap().answer, None);
    }

    #[test]
    fn a_truncated_answer_is_asked_for_by_tcp_and_edns_is_left_out_where_it_is_unknown() {
        let mut resolver = Resolver::new(vec![server(1)]);
        resolver.ask(ASKER, query(9), ms(0));
        let (request_id, _, transport, id) = asked(&mut resolver);
        assert_eq!(transport, DnsTransport::Udp);
        let header = [(id >> 8) as u8, id as u8, 0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(resolver.receive(request_id, &header, ms(0)), None);
        let dns_requests = resolver.take_dns_requests();
        let [DnsRequest::Send { message, .. }] = &dns_requests[..] else { panic!("{dns_requests:?}") };
        assert_eq!(message[11], 0, "without EDNS");
        let mut cut = dns_answer(u16::from_be_bytes([message[0], message[1]]), "a.example", 1, &[], 60);
        cut[2] |= 2;
        assert_eq!(resolver.receive(request_id, &cut, ms(0)), None);
        assert_eq!(asked(&mut resolver).2, DnsTransport::Tcp);
    }

    #[test]
    fn a_flood_of_strays_ends_an_attempt() {
        let mut resolver = Resolver::new(vec![server(1), server(2)]);
        resolver.ask(ASKER, query(9), ms(0));
        let (request_id, _, _, _) = asked(&mut resolver);
        for _ in 0..=STRAYS_MAX {
            assert_eq!(resolver.receive(request_id, b"nothing of the sort", ms(0)), None);
        }
        assert_eq!(asked(&mut resolver).1, server(2));
    }

    #[test]
    fn queries_are_bounded_and_not_doubled() {
        let mut resolver = Resolver::new(vec![server(1)]);
        for _ in 0..2 {
            resolver.ask(ASKER, query(9), ms(0));
        }
        assert_eq!(resolver.take_dns_requests().len(), 1);
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
