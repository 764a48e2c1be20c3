//! A second opinion on the stack: a simple model that looks at every socket that the host is asked for and every frame that
//! the guest gets, and says whether it may have been. Any bytes drive it, so that property tests and the fuzzer share it.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use jiff::Timestamp;
use microagent_model::egress::{EgressMode, EgressPolicy};
use rustix::io::Errno;

use crate::dns::names::ADDRESSES_MAX;
use crate::dns::resolver::{DnsRequest, DnsTransport, IN_FLIGHT_MAX};
use crate::egress::Now;
use crate::fake::{FakeDatagramSocket, FakeDatagrams, FakeHost, FakeSockets, FakeStream, FakeStreamSocket};
use crate::membership::{MemberPort, MemberProtocol, Membership};
use crate::sockets::{Readiness, Token};
use crate::stack::{NameOptions, Stack, StackOptions};
use crate::{GATEWAY, GUEST_ADDRESS, NAME_SERVER, testing};

/// Flows that the policy allows at once.
const CONNECTIONS: usize = 6;

const PUBLISHED: [u16; 2] = [80, 8080];
const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
/// An address on the host's loopback interface.
const LO: Ipv4Addr = Ipv4Addr::new(198, 18, 7, 7);
const PORTS: [u16; 6] = [80, 443, 53, 8080, 40_000, 40_001];
/// A port of the gateway that leads to a server of the host, and that server.
const FORWARD: &str = "8080=127.0.0.1:9999";
const FORWARDED: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9999);
const RULES: [&str; 3] = [".example.org", "exact.test", "172.20.0.0/16:443"];

/// Addresses, with what a person would say of them.
const ADDRESSES: [(Ipv4Addr, Class); 18] = [
    (Ipv4Addr::new(192, 0, 2, 1), Class::Public),
    (Ipv4Addr::new(203, 0, 113, 5), Class::Public),
    (Ipv4Addr::new(8, 8, 8, 8), Class::Public),
    (HOST, Class::Inside),
    (LO, Class::Never),
    (Ipv4Addr::new(10, 1, 2, 3), Class::Inside),
    (Ipv4Addr::new(192, 168, 7, 7), Class::Inside),
    (Ipv4Addr::new(100, 64, 0, 1), Class::Inside),
    (Ipv4Addr::new(172, 20, 0, 5), Class::Inside),
    (Ipv4Addr::new(127, 0, 0, 1), Class::Never),
    (Ipv4Addr::new(169, 254, 169, 254), Class::Never),
    (Ipv4Addr::new(224, 0, 0, 251), Class::Never),
    (Ipv4Addr::new(10, 0, 2, 2), Class::Own),
    (NAME_SERVER, Class::Own),
    (Ipv4Addr::new(10, 0, 2, 77), Class::Own),
    (Ipv4Addr::new(10, 77, 0, 9), Class::Member),
    (PRIVATE, Class::Own),
    (Ipv4Addr::new(10, 77, 0, 255), Class::Own),
];

/// The guest's address in a private network, and the network.
const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const SUBNET: &str = "10.77.0.0/24";

const NAMES: [&str; 5] = ["example.org", "www.Example.org", "exact.test", "notexample.org", "bad.test"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Public,
    Inside,
    Own,
    /// In the private network, and not the guest's.
    Member,
    Never,
}

struct Model {
    stack: Stack<FakeSockets>,
    host: Rc<RefCell<FakeHost>>,
    policy: EgressPolicy,
    now: Duration,
    /// Addresses that the guest was told for names that a rule covers.
    open: HashMap<Ipv4Addr, Duration>,
    /// Sockets that were looked at when they were new.
    seen: HashSet<Token>,
    /// Addresses that packets to the guest may come from: those that it wrote to, and clients.
    sources: HashSet<Ipv4Addr>,
    /// When the guest last used the datagrams of a socket, and how many had been sent then.
    used: HashMap<Token, (Duration, usize)>,
    /// Request ids, with what was asked.
    asked: HashMap<u64, (u16, String)>,
    /// Data segments for the guest, to be acknowledged.
    last: Option<Vec<u8>>,
}

/// Where bytes become choices. What is missing is zero.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.byte()) % all.len()]
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }
}

/// Drives a stack by any bytes and checks all that comes out of it.
///
/// # Panics
///
/// When something was done, or grew, that must not.
pub fn drive(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let mode = choices.of(&[EgressMode::Public, EgressMode::Allowlist, EgressMode::Open]);
    let policy = RULES
        .iter()
        .fold(EgressPolicy::new(mode), |policy, rule| policy.allow(rule.parse().expect("a rule")))
        .max_connections(CONNECTIONS as u32)
        .max_bytes(choices.of(&[1 << 40, 1 << 40, 500]));
    let options = StackOptions {
        policy: policy.clone(),
        guest_mac: testing::GUEST_MAC,
        mtu: choices.of(&[1500, 576, 65_520]),
        host_addresses: testing::addresses(&[HOST], &[LO]),
        name_servers: vec![SocketAddr::from(([192, 0, 2, 53], 53)), SocketAddr::from(([192, 0, 2, 54], 53))],
        names: NameOptions::default(),
        forwards: vec![FORWARD.parse().expect("a forwarded port")],
        brokers: 0,
        memberships: vec![Membership {
            network: "backend".to_owned(),
            subnet: SUBNET.parse().expect("a subnet"),
            address: PRIVATE,
            members: vec![("db".to_owned(), Ipv4Addr::new(10, 77, 0, 9))],
        }],
        moved_bytes: 0,
    };
    let now = Now { running: Duration::ZERO, day: Timestamp::UNIX_EPOCH };
    let sockets = FakeSockets::default();
    let host = Rc::clone(&sockets.0);
    let mut model = Model {
        stack: Stack::new(options, sockets, now),
        host,
        policy,
        now: Duration::ZERO,
        open: HashMap::new(),
        seen: HashSet::new(),
        sources: HashSet::from([GATEWAY, NAME_SERVER]),
        used: HashMap::new(),
        asked: HashMap::new(),
        last: None,
    };
    while !choices.0.is_empty() {
        model.step(&mut choices);
        model.check();
    }
}

impl Model {
    fn step(&mut self, choices: &mut Choices<'_>) {
        match choices.byte() % 17 {
            0 => {
                let count = usize::from(choices.byte()) % 80;
                let bytes = choices.bytes(count);
                self.frame(&bytes);
            }
            1..=5 => {
                let mut frame = made(choices);
                if choices.byte().is_multiple_of(8) {
                    // Mostly where the headers are.
                    let at = choices.of(&[12, 13, 14, 17, 20, 21, 23, 26, 30, 33, 36, 47, choices.0.len()]);
                    let at = at % frame.len();
                    frame[at] = choices.byte();
                }
                self.frame(&frame);
            }
            6 | 7 => self.follow_up(choices),
            8 | 9 => {
                let name = choices.of(&NAMES);
                let kind = choices.of(&[1, 1, 1, 28, 65, 16, 255]);
                let edns = choices.of(&[None, Some(1232), Some(100)]);
                let query = testing::dns_query(choices.byte().into(), name, kind, edns);
                self.frame(&testing::udp(NAME_SERVER, choices.of(&PORTS), 53, &query));
            }
            10 | 11 => self.answer(choices),
            12 => self.remote(choices),
            13 => {
                let stream = Rc::new(RefCell::new(FakeStream {
                    room: choices.byte().into(),
                    ..FakeStream::default()
                }));
                let client = SocketAddrV4::new(choices.of(&ADDRESSES).0, choices.of(&PORTS));
                if client.ip().is_unspecified() || client.ip().is_multicast() {
                    return;
                }
                self.sources.insert(*client.ip());
                let guest_port = choices.of(&PUBLISHED);
                if choices.byte().is_multiple_of(2) {
                    self.stack.accept(FakeStreamSocket(stream), client.into(), guest_port);
                } else {
                    self.stack.receive_published(0, client.into(), guest_port, b"datagram");
                }
            }
            15 => self.member_begins(choices),
            14 => {
                let millis = choices.of(&[1, 100, 400, 1500, 61_000, 200_000, 4_000_000]);
                self.now += Duration::from_millis(millis);
                self.stack.set_time(Now { running: self.now, day: Timestamp::UNIX_EPOCH + self.now });
            }
            _ => {
                if choices.byte() == 7 {
                    self.host.borrow_mut().exhausted = choices.of(&[None, Some(Errno::MFILE)]);
                } else if let Some(request_id) = self.asked.keys().min().copied() {
                    self.stack.resolved(request_id, None);
                }
            }
        }
    }

    /// A member of the private network begins a flow.
    fn member_begins(&mut self, choices: &mut Choices<'_>) {
        let address = Ipv4Addr::new(10, 77, 0, 9);
        self.sources.insert(address);
        let protocol = choices.of(&[MemberProtocol::Tcp, MemberProtocol::Udp, MemberProtocol::Echo]);
        let (port, source_port) = (choices.of(&PORTS), choices.of(&PORTS));
        let from = MemberPort { network: 0, address, protocol, port, source_port };
        if protocol == MemberProtocol::Tcp {
            let stream = FakeStream { room: choices.byte().into(), ..FakeStream::default() };
            self.stack.accept_member(FakeStreamSocket(Rc::new(RefCell::new(stream))), from);
        } else {
            let messages = [Ok(b"datagram".to_vec()), Ok(vec![8, 0, 0, 0, 0, 1, 0, 1]), Err(Errno::PIPE)];
            let incoming = messages.into_iter().take(choices.byte().into()).collect();
            let datagrams = FakeDatagrams { incoming, ..FakeDatagrams::default() };
            self.stack.adopt_member(FakeDatagramSocket(Rc::new(RefCell::new(datagrams))), from);
        }
    }

    /// A segment that continues the connection of the last one that the guest got.
    fn follow_up(&mut self, choices: &mut Choices<'_>) {
        let Some(last) = &self.last else { return };
        let number = |at: usize| u32::from_be_bytes(last[at..at + 4].try_into().expect("four bytes"));
        let port = |at: usize| u16::from_be_bytes([last[at], last[at + 1]]);
        let remote = Ipv4Addr::new(last[26], last[27], last[28], last[29]);
        let flags = choices.of(&[0x10, 0x10, 0x12, 0x18, 0x11, 0x14]);
        let skip = choices.of(&[0, 1, 1, 2, 100, u32::MAX]);
        let (sequence, acknowledged) = (number(42), number(38).wrapping_add(skip));
        let data = vec![choices.byte(); choices.of(&[0, 0, 5, 300, 1400])];
        let mut frame = testing::tcp_at(remote, port(36), port(34), flags, sequence, acknowledged, &data);
        let window = choices.of(&[0xffff_u16, 0xffff, 0, 1, 100]);
        frame[48..50].copy_from_slice(&window.to_be_bytes());
        self.frame(&frame);
    }

    /// Something happens at a socket of the host.
    fn remote(&mut self, choices: &mut Choices<'_>) {
        let host = self.host.borrow();
        let tokens: Vec<Token> = host.streams.keys().chain(host.datagrams.keys()).copied().collect();
        if tokens.is_empty() {
            return;
        }
        let token = choices.of(&tokens);
        if let Some((_, stream)) = host.streams.get(&token) {
            let mut stream = stream.borrow_mut();
            match choices.byte() % 6 {
                0 => stream.refused = choices.of(&[None, Some(Errno::CONNREFUSED), Some(Errno::HOSTUNREACH)]),
                1 | 2 => stream.incoming.extend(vec![7; choices.of(&[1, 100, 1400, 70_000])]),
                3 => stream.has_ended = true,
                4 => stream.error = Some(Errno::CONNRESET),
                _ => stream.room = choices.of(&[0, 1, 100, usize::MAX]),
            }
        } else if let Some((_, datagrams)) = host.datagrams.get(&token) {
            let datagram = match choices.byte() % 4 {
                0 => Err(choices.of(&[Errno::CONNREFUSED, Errno::HOSTUNREACH, Errno::NOTCONN])),
                _ => Ok(vec![0; choices.of(&[0, 8, 100, 3000, 65_507])]),
            };
            datagrams.borrow_mut().incoming.push_back(datagram);
        }
        drop(host);
        let mut is_ready = || choices.byte().is_multiple_of(2);
        let readiness = Readiness { is_readable: is_ready(), is_writable: is_ready() };
        self.stack.ready(token, readiness);
    }

    fn answer(&mut self, choices: &mut Choices<'_>) {
        let mut request_ids: Vec<u64> = self.asked.keys().copied().collect();
        request_ids.sort_unstable();
        if request_ids.is_empty() {
            return;
        }
        let request_id = choices.of(&request_ids);
        let (id, name) = self.asked[&request_id].clone();
        let count = usize::from(choices.byte()) % 4;
        let addresses: Vec<[u8; 4]> = (0..count).map(|_| choices.of(&ADDRESSES).0.octets()).collect();
        let mut message =
            testing::dns_answer(id, &name, &addresses, choices.of(&[0, 60, 600, 100_000, u32::MAX]));
        if choices.byte().is_multiple_of(4) {
            let at = usize::from(choices.byte()) % message.len();
            message[at] = choices.byte();
        }
        self.stack.resolved(request_id, Some(&message));
    }

    fn frame(&mut self, frame: &[u8]) {
        if let Some(destination) = frame.get(30..34).filter(|_| frame[12..14] == [8, 0]) {
            self.sources.insert(Ipv4Addr::new(
                destination[0],
                destination[1],
                destination[2],
                destination[3],
            ));
        }
        let is_private = frame.get(30..33) == Some(&[10, 77, 0]);
        let own = if is_private { PRIVATE } else { GUEST_ADDRESS };
        let from_guest = frame.get(26..30) == Some(&own.octets());
        let before = self.asked_for();
        self.stack.receive(frame);
        assert!(from_guest || self.asked_for() == before, "a forged source began something");
    }

    /// How much the host was asked for.
    fn asked_for(&self) -> usize {
        let host = self.host.borrow();
        host.streams.len() + host.datagrams.len() + host.dns_requests.len()
    }

    fn allows(&self, address: Ipv4Addr, port: Option<u16>) -> bool {
        let class = ADDRESSES.iter().find(|(known, _)| *known == address).map(|(_, class)| *class);
        // A byte was changed: only the ends of the address are sure to be what they were.
        let class = class.unwrap_or_else(|| rough_class(address));
        let ruled = address.octets()[..2] == [172, 20] && port == Some(443);
        let named = self.open.get(&address).is_some_and(|until| self.now < *until);
        match class {
            Class::Never | Class::Own => false,
            Class::Member => true,
            Class::Inside => self.policy.mode == EgressMode::Open || ruled,
            Class::Public => self.policy.mode != EgressMode::Allowlist || ruled || named,
        }
    }

    /// Checks what the host was asked for, what the guest gets, and all that is kept against its bounds.
    fn check(&mut self) {
        // What the frames of this step began is judged by what the guest was told before.
        self.check_sockets();
        for _ in 0..1000 {
            let more = self.stack.advance();
            self.read();
            if !more {
                break;
            }
        }
        self.check_sockets();
        self.check_dns_requests();
        assert!(self.stack.take_decisions().len() <= 1001);
        let [flows, timers, names, refusals] = self.stack.sizes();
        assert!(flows <= CONNECTIONS && timers <= 2 * CONNECTIONS + 1024 && names <= ADDRESSES_MAX);
        assert!(refusals <= 1024);
    }

    fn check_sockets(&mut self) {
        let host = self.host.borrow();
        let (mut moved, mut open) = (0, 0);
        for (token, (remote, stream)) in &host.streams {
            let stream = stream.borrow();
            let is_clients = remote.ip().is_unspecified();
            if self.seen.insert(*token) && !is_clients {
                let allowed = *remote == FORWARDED || self.allows(*remote.ip(), Some(remote.port()));
                assert!(allowed, "{remote} under {:?}", self.policy);
            }
            moved += stream.outgoing.len();
            open += usize::from(!stream.is_closed);
        }
        for (token, (remote, datagrams)) in &host.datagrams {
            let datagrams = datagrams.borrow();
            if self.seen.insert(*token) {
                let port = (remote.port() != 0).then_some(remote.port());
                let is_members = remote.ip().is_unspecified();
                assert!(is_members || self.allows(*remote.ip(), port), "{remote} under {:?}", self.policy);
            }
            let used = self.used.entry(*token).or_insert((self.now, 0));
            if datagrams.outgoing.len() > used.1 {
                *used = (self.now, datagrams.outgoing.len());
            }
            moved += datagrams.outgoing.iter().map(Vec::len).sum::<usize>();
            open += usize::from(!datagrams.is_closed);
        }
        assert!(moved as u64 <= self.policy.max_bytes, "more bytes than may be");
        assert!(open <= CONNECTIONS, "more sockets than may be");
    }

    fn check_dns_requests(&mut self) {
        for request in std::mem::take(&mut self.host.borrow_mut().dns_requests) {
            match request {
                DnsRequest::Send {
                    request_id,
                    message,
                    transport: DnsTransport::Udp | DnsTransport::Tcp,
                    ..
                } => {
                    let id = u16::from_be_bytes([message[0], message[1]]);
                    let (_, name, _) = testing::read_dns(&message);
                    assert!(self.policy.mode != EgressMode::Allowlist || covered(&name), "asked for {name}");
                    self.asked.insert(request_id, (id, name));
                }
                DnsRequest::Cancel(request_id) => {
                    self.asked.remove(&request_id);
                }
            }
        }
        assert!(self.asked.len() <= IN_FLIGHT_MAX);
    }

    /// Reads what the guest gets.
    fn read(&mut self) {
        let stream = self.stack.outbox().pending().to_vec();
        assert!(stream.len() <= 512 * 1024);
        self.stack.outbox().advance(stream.len());
        for frame in testing::frames(&stream) {
            if frame[12..14] == [8, 6] {
                continue;
            }
            assert_eq!(frame[12..15], [8, 0, 0x45], "neither ARP nor plain IPv4");
            let source = Ipv4Addr::new(frame[26], frame[27], frame[28], frame[29]);
            let own = if frame[26..29] == [10, 77, 0] { PRIVATE } else { GUEST_ADDRESS };
            assert_eq!(frame[30..34], own.octets());
            assert!(self.sources.contains(&source), "from {source}, of whom nobody knows");
            if u16::from_be_bytes([frame[20], frame[21]]) & 0x3fff != 0 {
                continue;
            }
            assert!(testing::checksums_hold(&frame));
            match frame[23] {
                17 if source == NAME_SERVER => self.told(&frame[42..]),
                6 => self.last = Some(frame),
                _ => {}
            }
        }
    }

    /// Notes what the guest was told of a name.
    fn told(&mut self, message: &[u8]) {
        let (_, name, addresses) = testing::read_dns(message);
        for (address, ttl) in addresses {
            let is_told = !matches!(rough_class(address), Class::Never | Class::Own | Class::Member);
            assert!(is_told, "told of {address}");
            assert!(ttl <= 3600);
            if covered(&name) {
                let until = self.now + Duration::from_secs(u64::from(ttl).max(60));
                let known = self.open.entry(address).or_insert(until);
                *known = until.max(*known);
            }
        }
    }
}

/// A frame that is well made.
fn made(choices: &mut Choices<'_>) -> Vec<u8> {
    let far = choices.of(&ADDRESSES).0;
    let (guest_port, far_port) = (choices.of(&PORTS), choices.of(&PORTS));
    let mut frame = match choices.byte() % 8 {
        0..=3 => {
            let flags = choices.of(&[0x02, 0x02, 0x12, 0x10, 0x11, 0x04, 0x14, 0x03, 0x06]);
            testing::tcp(far, guest_port, far_port, flags, b"data")
        }
        4 | 5 => testing::udp(far, guest_port, far_port, b"data"),
        6 => testing::echo(far, choices.byte().is_multiple_of(2), guest_port),
        _ => return testing::arp(far),
    };
    if matches!(far.octets(), [10, 77, 0, _]) && !choices.byte().is_multiple_of(8) {
        frame[26..30].copy_from_slice(&PRIVATE.octets());
    }
    frame
}

fn covered(name: &str) -> bool {
    name == "exact.test" || name == "example.org" || name.ends_with(".example.org")
}

fn rough_class(address: Ipv4Addr) -> Class {
    match address.octets() {
        [10, 0, 2, _] | [10, 77, 0, 0 | 2 | 255] => Class::Own,
        [10, 77, 0, _] => Class::Member,
        [0 | 127 | 224.., ..]
        | [169, 254, ..]
        | [192, 0, 0, _]
        | [100, 100, 100, 200]
        | [168, 63, 129, 16] => Class::Never,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Class::Inside,
        _ if address == HOST => Class::Inside,
        _ if address == LO => Class::Never,
        _ => Class::Public,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig {
            // More by PROPTEST_CASES.
            cases: ProptestConfig::default().cases.max(2000),
            max_shrink_iters: 20_000,
            ..ProptestConfig::default()
        })]

        #[test]
        fn whatever_happens_only_what_may_pass_passes(bytes in proptest::collection::vec(any::<u8>(), 0..1500)) {
            drive(&bytes);
        }
    }

    #[test]
    fn the_model_and_the_engine_agree_on_what_addresses_are() {
        for (address, class) in ADDRESSES {
            assert_eq!(rough_class(address), class, "{address}");
        }
    }
}
