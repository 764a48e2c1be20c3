//! What the filter decides: for each frame, whether it goes on, and what is answered in its place.
//!
//! Pure: no clock, no socket, no thread. [`Engine::set_time`] says what time it is, frames are judged where they lie,
//! and all that is to happen comes out as frames ([`Engine::outbox`]), errands ([`Engine::take_errands`]) and decisions
//! ([`Engine::take_decisions`]), each bounded.
//!
//! # What goes through
//! From the guest: ARP, and TCP, UDP and ICMP echo from its own address. The first packet of a flow is judged by
//! where it goes; the rest goes through because the flow is there. A segment that begins nothing and belongs
//! to nothing is reset, so a connection that was refused cannot be had from its middle. A query to the name server is
//! taken out and answered ([`crate::dns`]). Towards the guest: ARP, what belongs to a flow, and the first segment to
//! a published port. All else is dropped.
//!
//! # What is judged
//! Addresses, never what the guest says about them: a Host header or a TLS server name that names an allowed
//! host opens nothing. The other side of this: an address that many sites share (a content delivery network) is open for
//! all of them as soon as it is open for one.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::address::{Scope, contains};
use crate::decision::Journal;
use crate::dns::message::{self, Code, NoQuery, Query, kind};
use crate::dns::names::Names;
use crate::dns::resolver::{Asker, Errand, Resolved, Resolver, Ticket};
use crate::flows::{Flows, Key, Kind, Side, Stage};
use crate::frame::{self, Arp, ETHERNET_LEN, Frame, Mac, Packet, Segment, Transport, flags};
use crate::reply::{Link, Outbox, Unreachable};
use crate::{
    Decision, EgressMode, EgressPolicy, GATEWAY, GUEST_ADDRESS, NAME_SERVER, PREFIX_LEN, Protocol, Reason,
    Record,
};

/// Hardware address of gateway and name server where passt does not say one.
const OUR_MAC: Mac = [0x52, 0x55, 10, 0, 2, 2];

/// Port of name servers.
const DNS_PORT: u16 = 53;

/// Everything that the filter must know.
#[derive(Debug, Clone)]
pub struct FilterOptions {
    /// What the guest may reach.
    pub policy: EgressPolicy,
    /// Ports of the guest that passt may open connections to.
    pub published: Vec<u16>,
    /// The host's own addresses: they are inside, like the networks around it.
    pub host_addresses: Vec<Ipv4Addr>,
    /// The host's name servers, in their order.
    pub name_servers: Vec<SocketAddr>,
}

/// What time it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Since some moment that stays the same; never goes back.
    pub running: Duration,
    /// The time of day, for the log.
    pub day: Timestamp,
}

/// What is to be done with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on as it is.
    Forward,
    /// It goes nowhere.
    Drop,
}

/// All that the filter decides from.
#[derive(Debug)]
pub struct Engine {
    policy: EgressPolicy,
    published: Vec<u16>,
    host_addresses: Vec<Ipv4Addr>,
    now: Now,
    flows: Flows,
    names: Names,
    resolver: Resolver,
    journal: Journal,
    outbox: Outbox,
    /// The guest's hardware address, and that of passt, as far as they are known.
    guest_mac: Mac,
    far_mac: Mac,
    moved_bytes: u64,
    state: State,
}

/// Whether anything goes through at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Up,
    /// As many bytes were moved as may be.
    Spent,
    /// There is no passt.
    Down,
}

impl Engine {
    /// An engine at its beginning.
    pub fn new(mut options: FilterOptions, now: Now) -> Engine {
        options.host_addresses.sort_unstable();
        options.published.sort_unstable();
        Engine {
            flows: Flows::new(options.policy.max_connections),
            policy: options.policy,
            published: options.published,
            host_addresses: options.host_addresses,
            now,
            names: Names::default(),
            resolver: Resolver::new(options.name_servers),
            journal: Journal::default(),
            outbox: Outbox::default(),
            guest_mac: [0xff; 6],
            far_mac: OUR_MAC,
            moved_bytes: 0,
            state: State::Up,
        }
    }

    /// Says what time it is, before frames and answers of that time.
    pub fn set_time(&mut self, now: Now) {
        self.now = now;
    }

    /// Does what the time asks for. To be called when [`Engine::deadline`] has come, and now and then.
    pub fn tick(&mut self) {
        while let Some(resolved) = self.resolver.expire(self.now.running) {
            self.finish(resolved);
        }
        self.journal.tick(self.now.running, self.now.day);
    }

    /// When [`Engine::tick`] is to be called at the latest.
    pub fn deadline(&self) -> Option<Duration> {
        let soon = self.journal.has_suppressed().then(|| self.now.running + Duration::from_secs(1));
        [self.resolver.deadline(), soon].into_iter().flatten().min()
    }

    /// Frames of our own for the guest.
    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// What is to be asked of name servers, in order.
    pub fn take_errands(&mut self) -> Vec<Errand> {
        match self.resolver.has_errands() {
            true => self.resolver.take_errands(),
            false => Vec::new(),
        }
    }

    /// What is to be logged.
    pub fn take_decisions(&mut self) -> Vec<Decision> {
        match self.journal.is_empty() {
            true => Vec::new(),
            false => self.journal.take(),
        }
    }

    /// Takes what came on the socket of a ticket.
    pub fn receive_answer(&mut self, ticket: Ticket, message: &[u8]) {
        if let Some(resolved) = self.resolver.receive(ticket, message, self.now.running) {
            self.finish(resolved);
        }
    }

    /// Takes note that nothing will come on the socket of a ticket.
    pub fn fail_answer(&mut self, ticket: Ticket) {
        if let Some(resolved) = self.resolver.fail(ticket, self.now.running) {
            self.finish(resolved);
        }
    }

    /// Takes note that passt is gone. Connections are reset, and everything is refused from here on.
    pub fn network_down(&mut self) {
        if self.state != State::Down {
            self.shut(State::Down, Reason::Down);
        }
    }

    /// Judges a frame of the guest.
    pub fn from_guest(&mut self, bytes: &[u8]) -> Verdict {
        let Ok(read) = frame::read(bytes) else { return Verdict::Drop };
        if let Some(mac) = frame::source_mac(bytes) {
            self.guest_mac = mac;
        }
        match read {
            Frame::Arp(arp) => self.arp_of_guest(&arp),
            Frame::Ip(packet) if packet.source != GUEST_ADDRESS => Verdict::Drop,
            Frame::Ip(packet) => self.packet_of_guest(bytes, &packet),
        }
    }

    /// Judges a frame of passt.
    pub fn from_passt(&mut self, bytes: &[u8]) -> Verdict {
        let Ok(read) = frame::read(bytes) else { return Verdict::Drop };
        match read {
            Frame::Arp(arp) if arp.sender != GUEST_ADDRESS => {
                self.far_mac = arp.sender_mac;
                Verdict::Forward
            }
            Frame::Arp(_) => Verdict::Drop,
            Frame::Ip(packet) if packet.destination != GUEST_ADDRESS => Verdict::Drop,
            Frame::Ip(packet) => self.packet_of_passt(&packet),
        }
    }

    fn arp_of_guest(&mut self, arp: &Arp) -> Verdict {
        let is_guest = arp.sender_mac == self.guest_mac
            && (arp.sender == GUEST_ADDRESS || arp.sender.is_unspecified())
            && contains(GATEWAY, PREFIX_LEN, arp.target);
        if !is_guest {
            return Verdict::Drop;
        }
        // passt answers for everybody and learns the guest's hardware address by it. Once it is gone, we do: a guest
        // that cannot resolve its gateway would wait where it could be refused.
        if self.state != State::Down {
            return Verdict::Forward;
        }
        if arp.request && [GATEWAY, NAME_SERVER].contains(&arp.target) {
            self.outbox.arp(arp.target, self.far_mac, self.guest_mac, arp.sender);
        }
        Verdict::Drop
    }

    fn packet_of_guest(&mut self, bytes: &[u8], packet: &Packet<'_>) -> Verdict {
        let far = packet.destination;
        let verdict = match packet.transport {
            Transport::Udp { source, destination: DNS_PORT, payload } if far == NAME_SERVER => {
                self.query(source, payload);
                return Verdict::Drop;
            }
            Transport::Tcp(segment) => self.segment_of_guest(far, &segment),
            Transport::Udp { source, destination, .. } => {
                let key = Key { kind: Kind::Udp, far, far_port: destination, guest_port: source };
                self.datagram_of_guest(key, bytes)
            }
            Transport::Echo { request: true, id } => {
                let key = Key { kind: Kind::Echo, far, far_port: 0, guest_port: id };
                self.datagram_of_guest(key, bytes)
            }
            // Nothing asks the guest.
            Transport::Echo { request: false, .. } => Verdict::Drop,
        };
        match verdict {
            Verdict::Forward if !self.spend(packet.len.into()) => {
                match packet.transport {
                    Transport::Tcp(segment) => self.outbox.reset(self.link(far), &segment),
                    _ => self.unreachable(bytes),
                }
                Verdict::Drop
            }
            verdict => verdict,
        }
    }

    fn segment_of_guest(&mut self, far: Ipv4Addr, segment: &Segment) -> Verdict {
        let key = Key { kind: Kind::Tcp, far, far_port: segment.destination, guest_port: segment.source };
        let now = self.now.running;
        // passt takes any SYN without ACK for a new connection, so each is judged as one, unless it repeats the first.
        let begins = segment.has(flags::SYN) && !segment.has(flags::ACK);
        if let Some(flow) = self.flows.get(&key, now) {
            let repeats = segment.opens() && flow.stage == Stage::Opening && flow.begun_by == Side::Guest;
            if !begins || repeats {
                let is_answer = segment.answers() && flow.begun_by == Side::Passt;
                if !flow.follow(Side::Guest, segment, now) {
                    self.flows.end(&key);
                }
                if is_answer {
                    // passt of 2023-03 (Debian 12) acknowledges only when the client has sent something: a server that
                    // speaks first would wait for ever. A second acknowledgement does no harm.
                    self.outbox.acknowledge(self.link(far), segment);
                }
                return Verdict::Forward;
            }
        }
        if segment.opens() && self.admit(key) {
            return Verdict::Forward;
        }
        self.outbox.reset(self.link(far), segment);
        Verdict::Drop
    }

    fn datagram_of_guest(&mut self, key: Key, bytes: &[u8]) -> Verdict {
        if let Some(flow) = self.flows.get(&key, self.now.running) {
            flow.touch(Side::Guest, self.now.running);
            return Verdict::Forward;
        }
        if self.admit(key) {
            return Verdict::Forward;
        }
        self.unreachable(bytes);
        Verdict::Drop
    }

    fn packet_of_passt(&mut self, packet: &Packet<'_>) -> Verdict {
        let far = packet.source;
        let now = self.now.running;
        let passes = match packet.transport {
            Transport::Tcp(segment) => self.segment_of_passt(far, &segment),
            Transport::Udp { source, destination, .. } => {
                let key = Key { kind: Kind::Udp, far, far_port: source, guest_port: destination };
                self.flows.get(&key, now).is_some()
            }
            Transport::Echo { request: false, id } => {
                let key = Key { kind: Kind::Echo, far, far_port: 0, guest_port: id };
                self.flows.get(&key, now).is_some()
            }
            Transport::Echo { request: true, .. } => false,
        };
        match passes && self.spend(packet.len.into()) {
            true => Verdict::Forward,
            false => Verdict::Drop,
        }
    }

    fn segment_of_passt(&mut self, far: Ipv4Addr, segment: &Segment) -> bool {
        let key = Key { kind: Kind::Tcp, far, far_port: segment.source, guest_port: segment.destination };
        let now = self.now.running;
        let begins = segment.has(flags::SYN) && !segment.has(flags::ACK);
        if let Some(flow) = self.flows.get(&key, now) {
            let repeats = segment.opens() && flow.stage == Stage::Opening && flow.begun_by == Side::Passt;
            if !begins || repeats {
                if !flow.follow(Side::Passt, segment, now) {
                    self.flows.end(&key);
                }
                return true;
            }
            // A connection of the guest's is not replaced from outside.
            if flow.begun_by == Side::Guest {
                return false;
            }
        }
        segment.opens() && self.admit_published(key)
    }

    /// Decides on a new flow of the guest, and says so in the log.
    fn admit(&mut self, key: Key) -> bool {
        let port = (key.kind != Kind::Echo).then_some(key.far_port);
        let mut judged = self.judge(key.far, port);
        if judged.is_ok() && !self.flows.begin(key, Side::Guest, self.now.running) {
            judged = Err(Reason::Connections);
        }
        if judged.is_err() {
            // A flow may be in its place that was allowed when it began.
            self.flows.end(&key);
        }
        let reason = judged.unwrap_or_else(|reason| reason);
        let allowed = judged.is_ok();
        let (kind, far) = (key.kind, key.far);
        if allowed || self.journal.is_new((kind, far, port, reason), self.now.running) {
            let name = self.names.name_of(far, self.now.running);
            self.record(Decision {
                protocol: Some(protocol(kind)),
                name: name.map(|name| name.to_string()),
                address: Some(far),
                port,
                ..self.decision(Record::Connection, allowed, reason)
            });
        }
        allowed
    }

    /// Whether the guest may reach an address, and why.
    fn judge(&self, far: Ipv4Addr, port: Option<u16>) -> Result<Reason, Reason> {
        match self.state {
            State::Up => {}
            State::Spent => return Err(Reason::Bytes),
            State::Down => return Err(Reason::Down),
        }
        let scope = Scope::of(far, &self.host_addresses);
        match scope {
            Scope::Never => return Err(Reason::Forbidden),
            Scope::Own => return Err(Reason::OwnNetwork),
            Scope::Inside | Scope::Public => {}
        }
        if self.policy.allow.iter().any(|rule| rule.covers_address(far, port)) {
            return Ok(Reason::Rule);
        }
        if self.names.is_open(far, self.now.running) {
            return Ok(Reason::Name);
        }
        match (self.policy.mode, scope) {
            (EgressMode::Open, _) | (EgressMode::Public, Scope::Public) => Ok(Reason::Mode),
            (EgressMode::Allowlist, Scope::Public) => Err(Reason::NotListed),
            (EgressMode::Public | EgressMode::Allowlist, _) => Err(Reason::Inside),
        }
    }

    /// Decides on a connection that passt opens to the guest.
    fn admit_published(&mut self, key: Key) -> bool {
        let is_published = self.published.binary_search(&key.guest_port).is_ok();
        // The gateway stands for the host; others come under their own address.
        let comes_from_somewhere = match Scope::of(key.far, &[]) {
            Scope::Never => false,
            Scope::Own => key.far == GATEWAY,
            Scope::Inside | Scope::Public => true,
        };
        if !is_published || !comes_from_somewhere {
            return false;
        }
        let fits = self.flows.begin(key, Side::Passt, self.now.running);
        let reason = if fits { Reason::Published } else { Reason::Connections };
        if fits || self.journal.is_new((Record::Published, key.guest_port), self.now.running) {
            self.record(Decision {
                protocol: Some(Protocol::Tcp),
                address: Some(key.far),
                port: Some(key.guest_port),
                ..self.decision(Record::Published, fits, reason)
            });
        }
        fits
    }

    /// Takes a query of the guest.
    fn query(&mut self, port: u16, payload: &[u8]) {
        self.spend(payload.len());
        let asker = Asker { guest_mac: self.guest_mac, our_mac: self.far_mac, port };
        let query = match Query::read(payload) {
            Ok(query) => query,
            Err(NoQuery::Nothing) => return,
            Err(NoQuery::Answer { id, code }) => {
                if self.journal.is_new((Record::Name, code as u8), self.now.running) {
                    self.record(self.name_decision(None, false, Reason::Unserved));
                }
                return self.answer(asker, &message::refusal(id, code));
            }
        };
        let name = &query.question.name;
        let refused = match (self.state, self.covers(&query), self.policy.mode) {
            (State::Spent, _, _) => Some(Reason::Bytes),
            (State::Down, _, _) => Some(Reason::Down),
            (State::Up, false, EgressMode::Allowlist) => Some(Reason::NotListed),
            (State::Up, _, _) => None,
        };
        if let Some(reason) = refused {
            if self.journal.is_new((Record::Name, name.to_string(), reason), self.now.running) {
                self.record(self.name_decision(Some(name.to_string()), false, reason));
            }
            // With the network gone, the name may well be there another time.
            let code = if reason == Reason::Down { Code::ServerFailure } else { Code::NoSuchName };
            return self.answer(asker, &query.empty_answer(code, true));
        }
        if matches!(query.question.kind, kind::AAAA | kind::HTTPS | kind::SVCB) {
            return self.answer(asker, &query.empty_answer(Code::NoError, false));
        }
        if let Some(resolved) = self.resolver.ask(asker, query, self.now.running) {
            self.finish(resolved);
        }
    }

    /// Whether a rule covers the name that is asked for.
    fn covers(&self, query: &Query) -> bool {
        let covers = |name: String| self.policy.allow.iter().any(|rule| rule.covers_name(&name));
        query.question.name.as_host().is_some_and(covers)
    }

    /// Gives the guest what came of its query; from here on the addresses belong to the name.
    fn finish(&mut self, resolved: Resolved) {
        let Resolved { asker, query, answer } = resolved;
        let text = query.question.name.to_string();
        let Some(mut answer) = answer else {
            if self.journal.is_new((Record::Name, &text, Reason::NoAnswer), self.now.running) {
                self.record(self.name_decision(Some(text), false, Reason::NoAnswer));
            }
            return self.answer(asker, &query.empty_answer(Code::ServerFailure, false));
        };
        let covered = self.covers(&query);
        let name: Arc<str> = text.as_str().into();
        let mut first = None;
        let before = answer.records.len();
        answer.records.retain(|record| {
            let Some(address) = record.address() else { return true };
            if matches!(Scope::of(address, &[]), Scope::Never | Scope::Own) {
                return false;
            }
            self.names.learn(address, &name, record.ttl_secs, covered, self.now.running);
            first.get_or_insert(address);
            true
        });
        let nowhere = answer.records.len() < before && first.is_none();
        let reason = match (nowhere, covered) {
            (true, _) => Reason::Forbidden,
            (false, true) => Reason::Rule,
            (false, false) => Reason::Mode,
        };
        if self.journal.is_new((Record::Name, &text, reason), self.now.running) {
            let decision = self.name_decision(Some(text), !nowhere, reason);
            self.record(Decision { address: first, ..decision });
        }
        let message = match query.answer(&answer, nowhere) {
            message if self.spend(message.len()) => message,
            _ => query.empty_answer(Code::NoSuchName, true),
        };
        self.answer(asker, &message);
    }

    fn answer(&mut self, asker: Asker, message: &[u8]) {
        let link = Link {
            source_mac: asker.our_mac,
            destination_mac: asker.guest_mac,
            source: NAME_SERVER,
            destination: GUEST_ADDRESS,
        };
        self.outbox.datagram(link, DNS_PORT, asker.port, message);
    }

    /// Counts the bytes of a packet that goes through. False: there are none left for it.
    fn spend(&mut self, len: usize) -> bool {
        if self.state != State::Up {
            return false;
        }
        let moved_bytes = self.moved_bytes + len as u64;
        if moved_bytes > self.policy.max_bytes {
            self.shut(State::Spent, Reason::Bytes);
            return false;
        }
        self.moved_bytes = moved_bytes;
        true
    }

    /// Ends everything. A guest that only waits for data would not notice otherwise, so its connections are reset.
    fn shut(&mut self, state: State, reason: Reason) {
        self.state = state;
        let (guest_mac, far_mac) = (self.guest_mac, self.far_mac);
        for (key, flow) in self.flows.drain() {
            if key.kind == Kind::Tcp && flow.stage != Stage::Opening {
                let link = Link {
                    source_mac: far_mac,
                    destination_mac: guest_mac,
                    source: key.far,
                    destination: GUEST_ADDRESS,
                };
                self.outbox.abort(link, key.far_port, key.guest_port, flow.guest_acknowledged);
            }
        }
        self.record(self.decision(Record::Network, false, reason));
    }

    /// Tells the guest that a packet of its goes nowhere, as a router does: under the gateway's address.
    fn unreachable(&mut self, bytes: &[u8]) {
        let code = if self.state == State::Down { Unreachable::Net } else { Unreachable::Prohibited };
        self.outbox.unreachable(self.link(GATEWAY), code, &bytes[ETHERNET_LEN..]);
    }

    /// The way of an answer to the guest that seems to come from `far`.
    fn link(&self, far: Ipv4Addr) -> Link {
        Link {
            source_mac: self.far_mac,
            destination_mac: self.guest_mac,
            source: far,
            destination: GUEST_ADDRESS,
        }
    }

    fn decision(&self, record: Record, allowed: bool, reason: Reason) -> Decision {
        Decision {
            at: self.now.day,
            record,
            protocol: None,
            name: None,
            address: None,
            port: None,
            allowed,
            reason,
            count: None,
        }
    }

    fn name_decision(&self, name: Option<String>, allowed: bool, reason: Reason) -> Decision {
        Decision { protocol: Some(Protocol::Dns), name, ..self.decision(Record::Name, allowed, reason) }
    }

    fn record(&mut self, decision: Decision) {
        self.journal.record(decision, self.now.running);
    }

    /// Sizes of all that grows: flows, addresses, refusals that are remembered.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn sizes(&self) -> [usize; 3] {
        [self.flows.len(), self.names.len(), self.journal.remembered()]
    }
}

fn protocol(kind: Kind) -> Protocol {
    match kind {
        Kind::Tcp => Protocol::Tcp,
        Kind::Udp => Protocol::Udp,
        Kind::Echo => Protocol::Icmp,
    }
}

#[cfg(test)]
mod tests;
