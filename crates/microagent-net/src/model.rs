//! A second opinion on the engine: a simple model that reads every frame that was let through for itself and says whether
//! it may have been. Any bytes drive it, so that property tests and the fuzzer share it.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use jiff::Timestamp;

use crate::dns::names::ADDRESSES_MAX;
use crate::dns::resolver::{Carrier, Errand, IN_FLIGHT_MAX};
use crate::engine::{Engine, FilterOptions, Now, Verdict};
use crate::{EgressMode, EgressPolicy, GUEST_ADDRESS, NAME_SERVER, testing};

const PUBLISHED: [u16; 2] = [80, 8080];
const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
const PORTS: [u16; 6] = [80, 443, 53, 8080, 40_000, 40_001];
const RULES: [&str; 3] = [".example.org", "exact.test", "172.20.0.0/16:443"];

/// Addresses, with what a person would say of them.
const ADDRESSES: [(Ipv4Addr, Class); 14] = [
    (Ipv4Addr::new(192, 0, 2, 1), Class::Public),
    (Ipv4Addr::new(203, 0, 113, 5), Class::Public),
    (Ipv4Addr::new(8, 8, 8, 8), Class::Public),
    (HOST, Class::Inside),
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
];

const NAMES: [&str; 5] = ["example.org", "www.Example.org", "exact.test", "notexample.org", "bad.test"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Public,
    Inside,
    Own,
    Never,
}

/// A frame as the model reads it.
#[derive(Debug, Clone, Copy)]
struct Facts {
    protocol: u8,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    source_port: u16,
    destination_port: u16,
    flags: u8,
}

impl Facts {
    /// Reads a frame that was let through: it must be as plain as this.
    fn read(frame: &[u8]) -> Option<Facts> {
        if frame[12..14] == [8, 6] {
            return None;
        }
        assert_eq!(frame[12..15], [8, 0, 0x45], "neither ARP nor plain IPv4");
        assert_eq!([frame[20] & 0x3f, frame[21]], [0, 0], "a fragment");
        let address = |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
        let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let protocol = frame[23];
        let (source_port, destination_port) = match protocol {
            1 => (port(38), port(38)),
            6 | 17 => (port(34), port(36)),
            other => panic!("protocol {other}"),
        };
        let flags = if protocol == 6 { frame[47] } else { 0 };
        let (source, destination) = (address(26), address(30));
        Some(Facts { protocol, source, destination, source_port, destination_port, flags })
    }

    fn begins(&self) -> bool {
        self.flags & 0x12 == 0x02
    }

    fn resets(&self) -> bool {
        self.flags & 0x04 != 0
    }
}

/// Protocol, far address, far port, guest's port. An echo has its id as both ports.
type Key = (u8, Ipv4Addr, u16, u16);

struct Model {
    engine: Engine,
    policy: EgressPolicy,
    now: Duration,
    /// Addresses that the guest was told for names that a rule covers.
    open: HashMap<Ipv4Addr, Duration>,
    /// Flows that were let through, since when, or when the guest used them last; and whether it began them.
    begun: HashMap<Key, (Duration, bool)>,
    /// Tickets, with what was asked.
    asked: HashMap<u64, (u16, String)>,
    moved: u64,
    down: bool,
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

/// Drives an engine by any bytes and checks all that comes out of it.
///
/// # Panics
///
/// When something was let through, or grew, that must not.
pub fn drive(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let policy = EgressPolicy {
        mode: choices.of(&[EgressMode::Public, EgressMode::Allowlist, EgressMode::Open]),
        allow: RULES.iter().map(|rule| rule.parse().expect("a rule")).collect(),
        max_connections: 6,
        max_bytes: choices.of(&[1 << 40, 1 << 40, 500]),
    };
    let options = FilterOptions {
        policy: policy.clone(),
        published: PUBLISHED.to_vec(),
        host_addresses: vec![HOST],
        name_servers: vec![SocketAddr::from(([192, 0, 2, 53], 53)), SocketAddr::from(([192, 0, 2, 54], 53))],
    };
    let now = Now { running: Duration::ZERO, day: Timestamp::UNIX_EPOCH };
    let mut model = Model {
        engine: Engine::new(options, now),
        policy,
        now: Duration::ZERO,
        open: HashMap::new(),
        begun: HashMap::new(),
        asked: HashMap::new(),
        moved: 0,
        down: false,
    };
    while !choices.0.is_empty() {
        model.step(&mut choices);
        model.look();
    }
}

impl Model {
    fn step(&mut self, choices: &mut Choices<'_>) {
        match choices.byte() % 16 {
            0 => {
                let count = usize::from(choices.byte()) % 80;
                let bytes = choices.bytes(count);
                let from_guest = choices.byte().is_multiple_of(2);
                self.frame(from_guest, &bytes);
            }
            1..=7 => {
                let (from_guest, mut frame) = made(choices);
                if choices.byte().is_multiple_of(8) {
                    // Mostly where the headers are.
                    let at = choices.of(&[12, 13, 14, 17, 20, 21, 23, 26, 30, 33, 36, 47, choices.0.len()]);
                    let at = at % frame.len();
                    frame[at] = choices.byte();
                }
                self.frame(from_guest, &frame);
            }
            8..=10 => {
                let name = choices.of(&NAMES);
                let kind = choices.of(&[1, 1, 1, 28, 65, 16, 255]);
                let edns = choices.of(&[None, Some(1232), Some(100)]);
                let query = testing::dns_query(choices.byte().into(), name, kind, edns);
                self.frame(true, &testing::udp(NAME_SERVER, choices.of(&PORTS), 53, &query));
            }
            11..=13 => self.answer(choices),
            14 => {
                let millis = choices.of(&[1, 100, 1500, 61_000, 200_000, 4_000_000]);
                self.now += Duration::from_millis(millis);
                self.set_time();
                self.engine.tick();
            }
            _ => {
                if choices.byte() == 7 {
                    self.down = true;
                    self.engine.network_down();
                } else if let Some(ticket) = self.asked.keys().min().copied() {
                    self.engine.fail_answer(ticket);
                }
            }
        }
    }

    fn set_time(&mut self) {
        let day = Timestamp::UNIX_EPOCH + self.now;
        self.engine.set_time(Now { running: self.now, day });
    }

    fn answer(&mut self, choices: &mut Choices<'_>) {
        let mut tickets: Vec<u64> = self.asked.keys().copied().collect();
        tickets.sort_unstable();
        if tickets.is_empty() {
            return;
        }
        let ticket = choices.of(&tickets);
        let (id, name) = self.asked[&ticket].clone();
        let addresses: Vec<[u8; 4]> =
            (0..choices.byte() % 4).map(|_| choices.of(&ADDRESSES).0.octets()).collect();
        let mut message = testing::dns_answer(id, &name, &addresses, choices.of(&[0, 60, 600, u32::MAX]));
        if choices.byte().is_multiple_of(4) {
            let at = usize::from(choices.byte()) % message.len();
            message[at] = choices.byte();
        }
        self.engine.receive_answer(ticket, &message);
    }

    fn frame(&mut self, from_guest: bool, frame: &[u8]) {
        let verdict = match from_guest {
            true => self.engine.from_guest(frame),
            false => self.engine.from_passt(frame),
        };
        if verdict == Verdict::Forward {
            let Some(facts) = Facts::read(frame) else { return };
            self.moved += u64::from(u16::from_be_bytes([frame[16], frame[17]]));
            assert!(self.moved <= self.policy.max_bytes, "more bytes than may be");
            assert!(!self.down, "passt is gone");
            match from_guest {
                true => self.went_out(&facts),
                false => self.came_in(&facts),
            }
        }
    }

    fn went_out(&mut self, facts: &Facts) {
        assert_eq!(facts.source, GUEST_ADDRESS, "a forged source");
        let key = (facts.protocol, facts.destination, facts.destination_port, facts.source_port);
        let port = (facts.protocol != 1).then_some(facts.destination_port);
        let now = self.now;
        let since = self.begun.get(&key).copied();
        if facts.protocol == 6 && !facts.begins() {
            assert!(since.is_some(), "from the middle of nothing: {facts:?}");
            if facts.resets() {
                self.begun.remove(&key);
            }
            return;
        }
        assert!(!facts.resets() && facts.flags & 0x01 == 0, "an odd beginning: {facts:?}");
        let time = match facts.protocol {
            1 => Duration::from_secs(60),
            6 => Duration::from_secs(130),
            _ => Duration::from_secs(180),
        };
        let goes_on = since.is_some_and(|(since, by_guest)| by_guest && now < since + time);
        let allowed = self.allows(facts.destination, port);
        assert!(allowed || goes_on, "{facts:?} under {:?}", self.policy);
        if facts.protocol != 6 || !goes_on || allowed && since.is_none() {
            self.begun.insert(key, (now, true));
        }
    }

    fn came_in(&mut self, facts: &Facts) {
        assert_eq!(facts.destination, GUEST_ADDRESS, "not for the guest");
        let key = (facts.protocol, facts.source, facts.source_port, facts.destination_port);
        let known = self.begun.get(&key).copied();
        match facts.protocol {
            6 if facts.begins() => {
                assert!(PUBLISHED.contains(&facts.destination_port), "not published: {facts:?}");
                assert!(known.is_none_or(|(_, by_guest)| !by_guest) || self.now > Duration::from_secs(60));
                self.begun.insert(key, (self.now, false));
            }
            6 => {
                assert!(known.is_some(), "belongs to nothing: {facts:?}");
                if facts.resets() {
                    self.begun.remove(&key);
                }
            }
            protocol => {
                let time = Duration::from_secs(if protocol == 1 { 60 } else { 180 });
                let goes_on = known.is_some_and(|(used, _)| self.now < used + time);
                assert!(goes_on, "nobody asked: {facts:?}");
            }
        }
    }

    fn allows(&self, address: Ipv4Addr, port: Option<u16>) -> bool {
        let class = ADDRESSES.iter().find(|(known, _)| *known == address).map(|(_, class)| *class);
        // A byte was changed: only the ends of the address are sure to be what they were.
        let class = class.unwrap_or_else(|| rough_class(address));
        let ruled = address.octets()[..2] == [172, 20] && port == Some(443);
        let named = self.open.get(&address).is_some_and(|until| self.now < *until);
        match class {
            Class::Never | Class::Own => false,
            Class::Inside => self.policy.mode == EgressMode::Open || ruled || named,
            Class::Public => self.policy.mode != EgressMode::Allowlist || ruled || named,
        }
    }

    /// Reads what the engine says to the guest, and holds all that it keeps against its bounds.
    fn look(&mut self) {
        let stream = self.engine.outbox().pending().to_vec();
        assert!(stream.len() <= 256 * 1024);
        self.engine.outbox().advance(stream.len());
        for frame in testing::frames(&stream) {
            if frame[12..14] == [8, 6] {
                continue;
            }
            assert!(testing::checksums_hold(&frame));
            assert_eq!(frame[30..34], GUEST_ADDRESS.octets());
            if frame[23] == 17 {
                self.told(&frame[42..]);
            }
        }
        let errands = self.engine.take_errands();
        for errand in errands {
            match errand {
                Errand::Ask { ticket, message, carrier: Carrier::Udp | Carrier::Tcp, .. } => {
                    let id = u16::from_be_bytes([message[0], message[1]]);
                    let (_, name, _) = testing::read_dns(&message);
                    assert!(self.policy.mode != EgressMode::Allowlist || covered(&name), "asked for {name}");
                    self.asked.insert(ticket, (id, name));
                }
                Errand::Forget(ticket) => {
                    self.asked.remove(&ticket);
                }
            }
        }
        assert!(self.asked.len() <= IN_FLIGHT_MAX);
        assert!(self.engine.take_decisions().len() <= 1001);
        let [flows, names, remembered] = self.engine.sizes();
        assert!(
            flows <= self.policy.max_connections as usize && names <= ADDRESSES_MAX && remembered <= 1024
        );
    }

    /// Notes what the guest was told of a name.
    fn told(&mut self, message: &[u8]) {
        let (_, name, addresses) = testing::read_dns(message);
        for (address, ttl) in addresses {
            assert!(!matches!(rough_class(address), Class::Never | Class::Own), "told of {address}");
            assert!(ttl <= 3600);
            if covered(&name) {
                let until = self.now + Duration::from_secs(u64::from(ttl).max(60));
                let known = self.open.entry(address).or_insert(until);
                *known = until.max(*known);
            }
        }
    }
}

/// A frame that is well made, and whether the guest sends it.
fn made(choices: &mut Choices<'_>) -> (bool, Vec<u8>) {
    let far = choices.of(&ADDRESSES).0;
    let (guest_port, far_port) = (choices.of(&PORTS), choices.of(&PORTS));
    let from_guest = !choices.byte().is_multiple_of(3);
    let frame = match choices.byte() % 8 {
        0..=3 => {
            let flags = choices.of(&[0x02, 0x02, 0x12, 0x10, 0x11, 0x04, 0x14, 0x03, 0x06]);
            testing::tcp(far, guest_port, far_port, flags, b"data")
        }
        4 | 5 => testing::udp(far, guest_port, far_port, b"data"),
        6 => testing::echo(far, from_guest, guest_port),
        _ => testing::arp(far),
    };
    match from_guest || frame[12..14] == [8, 6] {
        true => (from_guest, frame),
        false => (false, testing::reversed(frame)),
    }
}

fn covered(name: &str) -> bool {
    name == "exact.test" || name == "example.org" || name.ends_with(".example.org")
}

fn rough_class(address: Ipv4Addr) -> Class {
    match address.octets() {
        [10, 0, 2, _] => Class::Own,
        [0 | 127 | 224.., ..]
        | [169, 254, ..]
        | [192, 0, 0, _]
        | [100, 100, 100, 200]
        | [168, 63, 129, 16] => Class::Never,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Class::Inside,
        _ if address == HOST => Class::Inside,
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
