//! The egress filter: which flows of the guest may begin, and what it is told of names.
//!
//! Pure: no clock, no socket, no thread. [`EgressFilter::set_time`] sets the time; what is to be done comes out as requests
//! to name servers ([`EgressFilter::take_dns_requests`]), answers to the guest ([`EgressFilter::take_answers`]) and decisions
//! ([`EgressFilter::take_decisions`]), each bounded.
//!
//! # What is judged
//! The first packet of a flow, by its address, and each name that is looked up. What a guest sends in a flow is never
//! read: a Host header or a TLS server name that names an allowed host opens nothing. On the other hand, an address that
//! many sites share (a content delivery network) is open for all of them as soon as it is open for one.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use domain::base::Rtype;
use domain::base::iana::Rcode;
use jiff::Timestamp;
use microagent_model::Forward;
use microagent_model::decisions;
use microagent_model::egress::{Decision, EgressMode, EgressPolicy, Protocol, Reason, Subject};

use crate::address::{Scope, meant};
use crate::decision::Journal;
use crate::dns::local::{HostEntry, LocalAnswer, LocalNames};
use crate::dns::message::{self, NoQuery, Query, as_host, as_text};
use crate::dns::names::Names;
use crate::dns::resolver::{Asker, DnsRequest, DnsRequestId, Resolved, Resolver};
use crate::flows::{FLOWS_MAX, Key, Kind};
use crate::host::HostAddresses;
use crate::membership::{Membership, Memberships};
use crate::{BROKER_ADDRESS, BROKER_PORT, GATEWAY, GATEWAY_V6};

/// What the filter must know.
#[derive(Debug)]
pub(crate) struct FilterOptions {
    /// What the guest may reach.
    pub(crate) policy: EgressPolicy,
    /// The host's own addresses: they are inside, like the networks around it.
    pub(crate) host_addresses: HostAddresses,
    /// Name servers, in their order.
    pub(crate) name_servers: Vec<SocketAddr>,
    /// Names that the stack answers itself.
    pub(crate) local: LocalNames,
    /// Servers of the host that ports of the gateway lead to.
    pub(crate) forwards: Vec<Forward>,
    /// How many brokers there are.
    pub(crate) brokers: u8,
    /// The private networks that the guest has joined.
    pub(crate) memberships: Vec<Membership>,
    /// Bytes that count as moved already.
    pub(crate) moved_bytes: u64,
}

/// The time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Since a fixed moment; never goes back.
    pub running: Duration,
    /// The time of day, for the log.
    pub day: Timestamp,
}

/// An answer to a query of the guest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DnsAnswer {
    pub(crate) asker: Asker,
    pub(crate) message: Vec<u8>,
}

/// Answers that wait at most: more are dropped, as a full link does, and the guest asks again.
const ANSWERS_MAX: usize = 1024;

/// All that the filter decides from.
#[derive(Debug)]
pub(crate) struct EgressFilter {
    policy: EgressPolicy,
    host_addresses: HostAddresses,
    now: Now,
    names: Names,
    local: LocalNames,
    forwards: HashMap<u16, SocketAddrV4>,
    brokers: u8,
    memberships: Memberships,
    resolver: Resolver,
    journal: Journal,
    answers: Vec<DnsAnswer>,
    moved_bytes: u64,
    /// Whether as many bytes were moved as may be.
    is_spent: bool,
}

impl EgressFilter {
    pub(crate) fn new(options: FilterOptions, now: Now) -> EgressFilter {
        let moved_bytes = options.moved_bytes.min(options.policy.max_bytes);
        EgressFilter {
            policy: options.policy,
            host_addresses: options.host_addresses,
            now,
            names: Names::default(),
            local: options.local,
            forwards: options.forwards.iter().map(|one| (one.guest_port.get(), one.target)).collect(),
            brokers: options.brokers,
            memberships: Memberships::new(options.memberships),
            resolver: Resolver::new(options.name_servers),
            journal: Journal::default(),
            answers: Vec::new(),
            moved_bytes,
            is_spent: false,
        }
    }

    /// Says what time it is, before frames and answers of that time.
    pub(crate) fn set_time(&mut self, now: Now) {
        self.now = now;
    }

    /// Does what the time asks for. To be called when [`Engine::deadline`] has come, and now and then.
    pub(crate) fn tick(&mut self) {
        while let Some(resolved) = self.resolver.expire(self.now.running) {
            self.finish(resolved);
        }
        self.journal.tick(self.now.running, self.now.day);
    }

    /// When [`Engine::tick`] is to be called at the latest.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        let soon = self.journal.has_suppressed().then(|| self.now.running + Duration::from_secs(1));
        [self.resolver.deadline(), soon].into_iter().flatten().min()
    }

    /// Whether as many bytes were moved as may be: nothing passes any more.
    pub(crate) fn is_spent(&self) -> bool {
        self.is_spent
    }

    /// Bytes that count as moved.
    pub(crate) fn moved_bytes(&self) -> u64 {
        self.moved_bytes
    }

    /// Answers for the guest.
    pub(crate) fn take_answers(&mut self) -> Vec<DnsAnswer> {
        std::mem::take(&mut self.answers)
    }

    /// What is to be asked of name servers, in order.
    pub(crate) fn take_dns_requests(&mut self) -> Vec<DnsRequest> {
        match self.resolver.has_dns_requests() {
            true => self.resolver.take_dns_requests(),
            false => Vec::new(),
        }
    }

    /// What is to be logged.
    pub(crate) fn take_decisions(&mut self) -> Vec<Decision> {
        match self.journal.is_empty() {
            true => Vec::new(),
            false => self.journal.take(),
        }
    }

    /// Takes what came on the socket of a request.
    pub(crate) fn receive_answer(&mut self, request_id: DnsRequestId, message: &[u8]) {
        if let Some(resolved) = self.resolver.receive(request_id, message, self.now.running) {
            self.finish(resolved);
        }
    }

    /// Takes note that nothing will come on the socket of a request.
    pub(crate) fn fail_answer(&mut self, request_id: DnsRequestId) {
        if let Some(resolved) = self.resolver.fail(request_id, self.now.running) {
            self.finish(resolved);
        }
    }

    /// Decides on a new flow of the guest, and records the decision. `open` is how many flows there are.
    pub(crate) fn admit(&mut self, key: Key, open: usize) -> Result<(), Reason> {
        let port = (key.kind != Kind::Echo).then_some(key.remote_port);
        let judged = match (self.broker(key), self.forwarded(key)) {
            (Some(_), _) if !self.is_spent => Ok(Reason::Broker),
            (_, Some(_)) if !self.is_spent => Ok(Reason::Forwarded),
            _ => self.judge(key.remote, port),
        };
        let judged = judged.and_then(|reason| self.place(open).map(|()| reason));
        let reason = judged.unwrap_or_else(|reason| reason);
        self.record_flow(key, judged.is_ok(), reason);
        judged.map(drop)
    }

    /// The server that a connection of the guest leads to if its port is forwarded.
    pub(crate) fn forwarded(&self, key: Key) -> Option<SocketAddrV4> {
        let is_gateway = key.remote == GATEWAY || key.remote == GATEWAY_V6;
        let is_forwarded = key.kind == Kind::Tcp && is_gateway;
        is_forwarded.then(|| self.forwards.get(&key.remote_port).copied()).flatten()
    }

    /// The broker that a connection of the guest leads to, by its number.
    pub(crate) fn broker(&self, key: Key) -> Option<u8> {
        if key.kind != Kind::Tcp || key.remote != BROKER_ADDRESS {
            return None;
        }
        let number = u8::try_from(key.remote_port.checked_sub(BROKER_PORT)?).ok()?;
        (number < self.brokers).then_some(number)
    }

    /// The private network that a flow of the guest stays in, by its number, and the other member's address there.
    pub(crate) fn member(&self, key: Key) -> Option<(u8, Ipv4Addr)> {
        let IpAddr::V4(address) = key.remote else { return None };
        self.memberships.of(key.remote).map(|(number, _)| (number, address))
    }

    /// The private networks of the guest.
    pub(crate) fn memberships(&self) -> &Memberships {
        &self.memberships
    }

    /// Takes the members of all private networks, in place of those before.
    pub(crate) fn use_members(&mut self, all: Vec<Vec<HostEntry>>) {
        self.memberships.use_members(all);
    }

    /// Takes the host's addresses, in place of those before. What is open stays open.
    pub(crate) fn use_host_addresses(&mut self, addresses: HostAddresses) {
        self.host_addresses = addresses;
    }

    /// Takes the name servers, in place of those before.
    pub(crate) fn use_name_servers(&mut self, servers: Vec<SocketAddr>) {
        self.resolver.use_servers(servers);
    }

    /// Takes the entries of the host's `/etc/hosts`, in place of those before.
    pub(crate) fn use_host_file(&mut self, entries: Vec<HostEntry>) {
        self.local.use_host_file(entries, &self.policy.allow);
    }

    /// Records that a flow was allowed and the host has no socket for it.
    pub(crate) fn note_exhausted(&mut self, key: Key) {
        self.record_flow(key, false, Reason::Connections);
    }

    fn record_flow(&mut self, key: Key, allowed: bool, reason: Reason) {
        let (kind, remote) = (key.kind, key.remote);
        let port = (kind != Kind::Echo).then_some(key.remote_port);
        if allowed || self.journal.is_new((kind, remote, port, reason), self.now.running) {
            let name = self.names.name_of(remote, self.now.running);
            self.record(Decision {
                protocol: Some(protocol(kind)),
                name: name.map(|name| name.to_string()).or_else(|| self.memberships.name_of(remote)),
                address: Some(remote),
                port,
                target: self.forwarded(key),
                ..self.decision(Subject::Connection, allowed, reason)
            });
        }
    }

    /// The host's own addresses.
    pub(crate) fn host_addresses(&self) -> &HostAddresses {
        &self.host_addresses
    }

    /// Whether there is a place for one more flow.
    pub(crate) fn has_place(&self, open: usize) -> bool {
        self.place(open).is_ok()
    }

    fn place(&self, open: usize) -> Result<(), Reason> {
        let max = usize::try_from(self.policy.max_connections).unwrap_or(usize::MAX);
        if open < max.min(FLOWS_MAX) { Ok(()) } else { Err(Reason::Connections) }
    }

    /// Whether the guest may reach an address, and why.
    fn judge(&self, remote: IpAddr, port: Option<u16>) -> Result<Reason, Reason> {
        if self.is_spent {
            return Err(Reason::Bytes);
        }
        if let Some((_, membership)) = self.memberships.of(remote) {
            let is_member = |address| membership.subnet.has_member(address) && address != membership.address;
            let is_others = matches!(remote, IpAddr::V4(address) if is_member(address));
            return if is_others { Ok(Reason::Member) } else { Err(Reason::OwnNetwork) };
        }
        let scope = Scope::of(remote, &self.host_addresses);
        match scope {
            Scope::Never => return Err(Reason::Forbidden),
            Scope::Own => return Err(Reason::OwnNetwork),
            Scope::Inside | Scope::Public => {}
        }
        // A rule for what is behind a translator names the address of IPv4.
        let meant = meant(remote);
        if self.policy.allow.iter().any(|rule| rule.covers_address(meant, port)) {
            return Ok(Reason::Rule);
        }
        // Whoever controls a name controls where it leads: inside, a name alone opens nothing.
        let is_named = scope == Scope::Public && self.names.is_open(remote, self.now.running);
        // An entry is the user's word for both, name and address.
        if is_named || self.local.opens(remote) {
            return Ok(Reason::Name);
        }
        match (self.policy.mode, scope) {
            (EgressMode::Open, _) | (EgressMode::Public, Scope::Public) => Ok(Reason::Mode),
            (EgressMode::Allowlist, Scope::Public) => Err(Reason::NotListed),
            (EgressMode::Public | EgressMode::Allowlist, _) => Err(Reason::Inside),
        }
    }

    /// Decides on a connection to a published port. `open` is how many flows there are.
    pub(crate) fn admit_published(&mut self, key: Key, open: usize) -> Result<(), Reason> {
        self.admit_client(key, open, Reason::Published)
    }

    /// Decides on a flow of another member. `open` is how many flows there are.
    pub(crate) fn admit_member(&mut self, key: Key, open: usize) -> Result<(), Reason> {
        self.admit_client(key, open, Reason::Member)
    }

    fn admit_client(&mut self, key: Key, open: usize, allowed: Reason) -> Result<(), Reason> {
        let judged = match self.is_spent {
            true => Err(Reason::Bytes),
            false => self.place(open),
        };
        let reason = judged.err().unwrap_or(allowed);
        if judged.is_ok()
            || self.journal.is_new((Subject::Published, key.guest_port, reason), self.now.running)
        {
            self.record(Decision {
                protocol: Some(protocol(key.kind)),
                name: self.memberships.name_of(key.remote),
                address: Some(key.remote),
                port: (key.kind != Kind::Echo).then_some(key.guest_port),
                ..self.decision(Subject::Published, judged.is_ok(), reason)
            });
        }
        judged
    }

    /// Takes a query of the guest.
    pub(crate) fn query(&mut self, asker: Asker, payload: &[u8]) {
        self.spend(payload.len());
        let query = match Query::read(payload) {
            Ok(query) => query,
            Err(NoQuery::Nothing) => return,
            Err(NoQuery::Answer { id, code }) => {
                if self.journal.is_new((Subject::Name, code.to_int()), self.now.running) {
                    self.record(self.name_decision(None, false, Reason::Unserved));
                }
                return self.answer(asker, message::refusal(id, code));
            }
        };
        if !self.is_spent
            && let Some(local) = self.local.answer(&query, &self.memberships)
        {
            return self.answer_locally(asker, &query, &local);
        }
        let name = as_text(query.name());
        let refused = match (self.is_spent, self.covers(&query), self.policy.mode) {
            (true, _, _) => Some(Reason::Bytes),
            (false, false, EgressMode::Allowlist) => Some(Reason::NotListed),
            (false, _, _) => None,
        };
        if let Some(reason) = refused {
            if self.journal.is_new((Subject::Name, name.as_str(), reason), self.now.running) {
                self.record(self.name_decision(Some(name), false, reason));
            }
            return self.answer(asker, query.empty_answer(Rcode::NXDOMAIN, true));
        }
        // Without IPv6 on the host, a program need not find out that no address answers. Other records lead to addresses
        // that the stack does not look at.
        let has_none = match query.question.qtype() {
            Rtype::AAAA => !self.host_addresses.has_ipv6(),
            kind => matches!(kind, Rtype::HTTPS | Rtype::SVCB),
        };
        if has_none {
            return self.answer(asker, query.empty_answer(Rcode::NOERROR, false));
        }
        if let Some(resolved) = self.resolver.ask(asker, query, self.now.running) {
            self.finish(resolved);
        }
    }

    /// Gives the guest an answer of the stack's own.
    fn answer_locally(&mut self, asker: Asker, query: &Query, local: &LocalAnswer) {
        let name = as_text(query.name());
        let addresses: Vec<IpAddr> = local.answer.records.iter().filter_map(message::address).collect();
        for address in &addresses {
            let ttl_secs = local.answer.records.first().map_or(0, |record| record.ttl().as_secs());
            self.names.learn(*address, &name.as_str().into(), ttl_secs, false, self.now.running);
        }
        if local.is_added && self.journal.is_new((Subject::Name, &name, Reason::Local), self.now.running) {
            let decision = self.name_decision(Some(name), true, Reason::Local);
            self.record(Decision { address: addresses.first().copied(), ..decision });
        }
        let message = query.answer(&local.answer, false, asker.transport());
        if self.spend(message.len()) {
            self.answer(asker, message);
        }
    }

    /// Whether a rule covers the name that is asked for.
    fn covers(&self, query: &Query) -> bool {
        let covers = |name: String| self.policy.allow.iter().any(|rule| rule.covers_name(&name));
        as_host(query.name()).is_some_and(covers)
    }

    /// Gives the guest what came of its query; from here on the addresses belong to the name.
    fn finish(&mut self, resolved: Resolved) {
        let Resolved { asker, query, answer } = resolved;
        let text = as_text(query.name());
        let Some(mut answer) = answer else {
            if self.journal.is_new((Subject::Name, &text, Reason::NoAnswer), self.now.running) {
                self.record(self.name_decision(Some(text), false, Reason::NoAnswer));
            }
            return self.answer(asker, query.empty_answer(Rcode::SERVFAIL, false));
        };
        let covered = self.covers(&query);
        let name: Arc<str> = text.as_str().into();
        let mut first = None;
        let is_reached = |address| self.host_addresses.reaches(address);
        answer.records.retain(|record| message::address(record).is_none_or(is_reached));
        let before = answer.records.len();
        answer.records.retain(|record| {
            let Some(address) = message::address(record) else { return true };
            let scope = Scope::of(address, &self.host_addresses);
            // Which names lead to members is known here: nobody outside says it.
            if matches!(scope, Scope::Never | Scope::Own) || self.memberships.of(address).is_some() {
                return false;
            }
            self.names.learn(address, &name, record.ttl().as_secs(), covered, self.now.running);
            first.get_or_insert(address);
            true
        });
        let nowhere = answer.records.len() < before && first.is_none();
        let reason = match (nowhere, covered) {
            (true, _) => Reason::Forbidden,
            (false, true) => Reason::Rule,
            (false, false) => Reason::Mode,
        };
        // That a name has no address of IPv6 is not worth a line: the same program asks for those of IPv4.
        let says_nothing = query.question.qtype() == Rtype::AAAA && first.is_none() && !nowhere;
        if !says_nothing && self.journal.is_new((Subject::Name, &text, reason), self.now.running) {
            let decision = self.name_decision(Some(text), !nowhere, reason);
            self.record(Decision { address: first, ..decision });
        }
        let message = match query.answer(&answer, nowhere, asker.transport()) {
            message if self.spend(message.len()) => message,
            _ => query.empty_answer(Rcode::NXDOMAIN, true),
        };
        self.answer(asker, message);
    }

    fn answer(&mut self, asker: Asker, message: Vec<u8>) {
        if self.answers.len() < ANSWERS_MAX {
            self.answers.push(DnsAnswer { asker, message });
        }
    }

    /// Counts bytes that pass. False: no more may pass.
    pub(crate) fn spend(&mut self, len: usize) -> bool {
        if self.is_spent {
            return false;
        }
        let moved_bytes = self.moved_bytes + len as u64;
        if moved_bytes > self.policy.max_bytes {
            self.is_spent = true;
            self.record(self.decision(Subject::Network, false, Reason::Bytes));
            return false;
        }
        self.moved_bytes = moved_bytes;
        true
    }

    /// How many of `wanted` bytes may still pass.
    pub(crate) fn allowance(&self, wanted: usize) -> usize {
        let left = if self.is_spent { 0 } else { self.policy.max_bytes - self.moved_bytes };
        wanted.min(usize::try_from(left).unwrap_or(usize::MAX))
    }

    fn decision(&self, record: Subject, allowed: bool, reason: Reason) -> Decision {
        decisions::new(self.now.day, record, allowed, reason)
    }

    fn name_decision(&self, name: Option<String>, allowed: bool, reason: Reason) -> Decision {
        Decision { protocol: Some(Protocol::Dns), name, ..self.decision(Subject::Name, allowed, reason) }
    }

    fn record(&mut self, decision: Decision) {
        self.journal.record(decision, self.now.running);
    }

    /// Sizes of what grows: addresses with names, refusals that are remembered.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn sizes(&self) -> [usize; 2] {
        [self.names.len(), self.journal.remembered()]
    }
}

fn protocol(kind: Kind) -> Protocol {
    match kind {
        Kind::Tcp => Protocol::Tcp,
        Kind::Udp | Kind::Crossed => Protocol::Udp,
        Kind::Echo => Protocol::Icmp,
    }
}
