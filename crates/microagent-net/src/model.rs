//! A second opinion on the stack: a simple model that looks at every socket that the host is asked for and every frame that
//! the guest gets, and says whether it may have been. Any bytes drive it, so that property tests and the fuzzer share it.

mod addresses;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use jiff::Timestamp;
use microagent_model::egress::{EgressMode, EgressPolicy};
use rustix::io::Errno;

use crate::dns::names::ADDRESSES_MAX;
use crate::dns::resolver::{DnsRequest, DnsTransport, IN_FLIGHT_MAX};
use crate::egress::Now;
use crate::fake::{FakeDatagramSocket, FakeDatagrams, FakeHost, FakeSockets, FakeStream, FakeStreamSocket};
use crate::host::Network;
use crate::membership::{MemberPort, MemberProtocol, Membership};
use crate::sockets::{Readiness, Token};
use crate::stack::{NameOptions, Stack, StackOptions};
use crate::{GATEWAY, GATEWAY_V6, GUEST_ADDRESS, GUEST_ADDRESS_V6, HostAddresses, NAME_SERVER, testing};
use addresses::{ADDRESSES, Class, HOST, HOST_V6, LO, LO_V6, PRIVATE, SUBNET, rough_class, v4};

/// Flows that the policy allows at once.
const CONNECTIONS: usize = 6;

const PUBLISHED: [u16; 2] = [80, 8080];
const PORTS: [u16; 6] = [80, 443, 53, 8080, 40_000, 40_001];
/// A port of the gateway that leads to a server of the host, and that server.
const FORWARD: &str = "8080=127.0.0.1:9999";
const FORWARDED: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9999);
const RULES: [&str; 4] = [".example.org", "exact.test", "172.20.0.0/16:443", "[fd00:20::]/32:443"];

/// The host that the stack runs on.
fn host_addresses() -> HostAddresses {
    let mut host = testing::addresses(&[HOST], &[LO]);
    host.own.insert(IpAddr::from(HOST_V6).into());
    host.loopback.insert(IpAddr::from(LO_V6).into());
    host.reached.extend(Network::new(Ipv6Addr::UNSPECIFIED.into(), 0));
    host
}

const NAMES: [&str; 5] = ["example.org", "www.Example.org", "exact.test", "notexample.org", "bad.test"];

struct Model {
    stack: Stack<FakeSockets>,
    host: Rc<RefCell<FakeHost>>,
    policy: EgressPolicy,
    now: Duration,
    /// Addresses that the guest was told for names that a rule covers.
    open: HashMap<IpAddr, Duration>,
    /// Sockets that were looked at when they were new.
    seen: HashSet<Token>,
    /// Addresses that packets to the guest may come from: those that it wrote to, and clients.
    sources: HashSet<IpAddr>,
    /// When the guest last used the datagrams of a socket, and how many had been sent then.
    used: HashMap<Token, (Duration, usize)>,
    /// Request ids, with what was asked.
    asked: HashMap<u64, (u16, String, u16)>,
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
        host_addresses: host_addresses(),
        name_servers: vec![SocketAddr::from(([192, 0, 2, 53], 53)), SocketAddr::from(([192, 0, 2, 54], 53))],
        names: NameOptions::default(),
        forwards: vec![FORWARD.parse().expect("a forwarded port")],
        brokers: 0,
        memberships: vec![Membership {
            network: "backend".to_owned(),
            subnet: SUBNET.parse().expect("a subnet"),
            address: PRIVATE,
            members: vec![("db".to_owned(), v4(10, 77, 0, 9))],
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
        sources: HashSet::from([GATEWAY.into(), GATEWAY_V6.into(), NAME_SERVER.into()]),
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
                let kind = choices.of(&[1, 1, 1, 28, 65, 16, 255, 28]);
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
                let client = SocketAddr::new(choices.of(&ADDRESSES).0, choices.of(&PORTS));
                if client.ip().is_unspecified() || client.ip().is_multicast() {
                    return;
                }
                if client.is_ipv4() {
                    self.sources.insert(client.ip());
                }
                let guest_port = choices.of(&PUBLISHED);
                if choices.byte().is_multiple_of(2) {
                    self.stack.accept(FakeStreamSocket(stream), client, guest_port);
                } else {
                    self.stack.receive_published(0, client, guest_port, b"datagram");
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
        self.sources.insert(address.into());
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
        let Some((remote, _, tcp)) = addresses_of(last) else { return };
        let number = |at: usize| u32::from_be_bytes(last[tcp + at..][..4].try_into().expect("four bytes"));
        let port = |at: usize| u16::from_be_bytes([last[tcp + at], last[tcp + at + 1]]);
        let flags = choices.of(&[0x10, 0x10, 0x12, 0x18, 0x11, 0x14]);
        let skip = choices.of(&[0, 1, 1, 2, 100, u32::MAX]);
        let (sequence, acknowledged) = (number(8), number(4).wrapping_add(skip));
        let data = vec![choices.byte(); choices.of(&[0, 0, 5, 300, 1400])];
        let mut frame = testing::tcp_at(remote, port(2), port(0), flags, sequence, acknowledged, &data);
        let window = choices.of(&[0xffff_u16, 0xffff, 0, 1, 100]);
        frame[tcp + 14..][..2].copy_from_slice(&window.to_be_bytes());
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
        let (id, name, kind) = self.asked[&request_id].clone();
        let count = usize::from(choices.byte()) % 4;
        let addresses: Vec<IpAddr> = (0..count).map(|_| choices.of(&ADDRESSES).0).collect();
        let ttl = choices.of(&[0, 60, 600, 100_000, u32::MAX]);
        let mut message = testing::dns_answer(id, &name, kind, &addresses, ttl);
        if choices.byte().is_multiple_of(4) {
            let at = usize::from(choices.byte()) % message.len();
            message[at] = choices.byte();
        }
        self.stack.resolved(request_id, Some(&message));
    }

    fn frame(&mut self, frame: &[u8]) {
        let addresses = addresses_of(frame);
        self.sources.extend(addresses.map(|(_, destination, _)| destination));
        let from_guest = addresses.is_some_and(|(source, destination, _)| source == own(destination));
        let before = self.asked_for();
        self.stack.receive(frame);
        assert!(from_guest || self.asked_for() == before, "a forged source began something");
    }

    /// How much the host was asked for.
    fn asked_for(&self) -> usize {
        let host = self.host.borrow();
        host.streams.len() + host.datagrams.len() + host.dns_requests.len()
    }

    fn allows(&self, address: IpAddr, port: Option<u16>) -> bool {
        let class = ADDRESSES.iter().find(|(known, _)| *known == address).map(|(_, class)| *class);
        // A byte was changed: only the ends of the address are sure to be what they were.
        let class = class.unwrap_or_else(|| rough_class(address));
        let is_ruled = match address {
            IpAddr::V4(address) => address.octets()[..2] == [172, 20],
            IpAddr::V6(address) => {
                matches!(address.segments(), [0x64, 0xff9b, 0, 0, 0, 0, 0xac14, _] | [0xfd00, 0x20, ..])
            }
        };
        let ruled = is_ruled && port == Some(443);
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
                let allowed = *remote == FORWARDED.into() || self.allows(remote.ip(), Some(remote.port()));
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
                assert!(is_members || self.allows(remote.ip(), port), "{remote} under {:?}", self.policy);
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
                    let kind = &message[12 + name.len() + 2..];
                    let kind = u16::from_be_bytes([kind[0], kind[1]]);
                    self.asked.insert(request_id, (id, name, kind));
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
            let Some((source, destination, body)) = addresses_of(&frame) else {
                panic!("neither ARP nor plain IP: {frame:?}")
            };
            let protocol = if source.is_ipv4() { frame[23] } else { frame[20] };
            if (protocol, frame.get(body)) == (58, Some(&136)) {
                assert!(testing::checksums_hold(&frame) && rough_class(source) == Class::Own);
                continue;
            }
            assert_eq!(destination, own(source));
            assert!(self.sources.contains(&source), "from {source}, of whom nobody knows");
            let is_fragment = match source {
                IpAddr::V4(_) => u16::from_be_bytes([frame[20], frame[21]]) & 0x3fff != 0,
                IpAddr::V6(_) => protocol == 44,
            };
            if is_fragment {
                continue;
            }
            assert!(testing::checksums_hold(&frame));
            match protocol {
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
        _ => {
            return match far {
                IpAddr::V4(far) => testing::arp(far),
                IpAddr::V6(far) => testing::solicitation(GUEST_ADDRESS_V6, far, testing::GUEST_MAC),
            };
        }
    };
    if own(far) == PRIVATE && !choices.byte().is_multiple_of(8) {
        frame[26..30].copy_from_slice(&PRIVATE.octets());
    }
    frame
}

fn covered(name: &str) -> bool {
    name == "exact.test" || name == "example.org" || name.ends_with(".example.org")
}

/// The guest's address towards another one.
fn own(other: IpAddr) -> IpAddr {
    match other {
        IpAddr::V4(other) if other.octets()[..3] == [10, 77, 0] => PRIVATE.into(),
        IpAddr::V4(_) => GUEST_ADDRESS.into(),
        IpAddr::V6(_) => GUEST_ADDRESS_V6.into(),
    }
}

/// Source and destination of a frame, and where the transport's header begins.
fn addresses_of(frame: &[u8]) -> Option<(IpAddr, IpAddr, usize)> {
    match *frame.get(12..15)? {
        [8, 0, 0x45] => {
            let at = |start: usize| Some(IpAddr::from(*frame.get(start..)?.first_chunk::<4>()?));
            Some((at(26)?, at(30)?, 34))
        }
        [0x86, 0xdd, 0x60..=0x6f] => {
            let at = |start: usize| Some(IpAddr::from(*frame.get(start..)?.first_chunk::<16>()?));
            Some((at(22)?, at(38)?, 54))
        }
        _ => None,
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
