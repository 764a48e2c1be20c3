use std::cell::RefCell;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;

use jiff::Timestamp;
use microagent_model::egress::{EgressMode, EgressPolicy, Reason, Subject};

use super::*;
use crate::fake::{FakeDatagrams, FakeHost, FakeSockets, FakeStream, FakeStreamSocket};
use crate::testing::{self, FAR, FAR_V6, addresses, dns_answer, dns_query, read_dns};
use crate::{
    BROKER_ADDRESS, BROKER_PORT, DnsRequest, DnsTransport, GUEST_ADDRESS, GUEST_ADDRESS_V6, MAX_FRAME_LEN,
};
use flags::{ACK, FIN, RST, SYN};

mod hostile;
mod ipv6;
mod members;
mod policy;
mod published;
mod soak;
mod tcp;

const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 7);
const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
/// An address on the host's loopback interface.
const LO: Ipv4Addr = Ipv4Addr::new(198, 18, 7, 7);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn policy(mode: EgressMode, rules: &[&str]) -> EgressPolicy {
    rules.iter().fold(EgressPolicy::new(mode), |policy, rule| policy.allow(rule.parse().unwrap()))
}

fn at(secs: u64) -> Now {
    let running = Duration::from_secs(secs);
    Now { running, day: Timestamp::UNIX_EPOCH + running }
}

/// A stack between a guest that is frames and a host that is a table.
struct Bench {
    stack: Stack<FakeSockets>,
    host: Rc<RefCell<FakeHost>>,
}

impl Bench {
    fn new(policy: EgressPolicy) -> Bench {
        Bench::with_mtu(policy, 1500)
    }

    fn with_mtu(policy: EgressPolicy, mtu: u16) -> Bench {
        Bench::with(mtu, policy, |_| {})
    }

    /// A stack whose options are changed.
    fn with(mtu: u16, policy: EgressPolicy, change: impl FnOnce(&mut StackOptions)) -> Bench {
        let sockets = FakeSockets::default();
        let host = Rc::clone(&sockets.0);
        let mut options = StackOptions {
            policy,
            guest_mac: testing::GUEST_MAC,
            mtu,
            host_addresses: addresses(&[HOST], &[LO]),
            name_servers: vec![SocketAddr::from(([192, 0, 2, 53], 53))],
            names: NameOptions::default(),
            forwards: Vec::new(),
            brokers: 0,
            memberships: Vec::new(),
            moved_bytes: 0,
        };
        change(&mut options);
        Bench { stack: Stack::new(options, sockets, at(0)), host }
    }

    /// Sends a frame of the guest, and lets the stack do all that follows; gives what the guest gets.
    fn send(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        self.stack.receive(frame);
        self.run()
    }

    fn run(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        loop {
            let more = self.stack.advance();
            let stream = self.stack.outbox().pending().to_vec();
            self.stack.outbox().advance(stream.len());
            frames.extend(testing::frames(&stream));
            if !more {
                return frames;
            }
        }
    }

    /// The connections that the host was asked for.
    fn connections(&self) -> Vec<SocketAddr> {
        self.host.borrow().streams.values().map(|(remote, _)| *remote).collect()
    }

    fn datagram_flows(&self) -> usize {
        self.host.borrow().datagrams.len()
    }

    /// The token of the newest connection, if there is one.
    fn newest(&self) -> Option<(Token, SocketAddr)> {
        let host = self.host.borrow();
        host.streams.last_key_value().map(|(token, (remote, _))| (*token, *remote))
    }

    /// The newest connection.
    fn stream(&self) -> (Token, Rc<RefCell<FakeStream>>) {
        let host = self.host.borrow();
        let (token, (_, stream)) = host.streams.last_key_value().unwrap();
        (*token, Rc::clone(stream))
    }

    fn datagrams(&self) -> (Token, Rc<RefCell<FakeDatagrams>>) {
        let host = self.host.borrow();
        let (token, (_, datagrams)) = host.datagrams.last_key_value().unwrap();
        (*token, Rc::clone(datagrams))
    }

    /// Whether a connection of the guest is begun, to where it asks for; one that is not is reset, and no socket was asked for.
    fn connects(&mut self, remote: impl Into<IpAddr>, port: u16) -> bool {
        let remote = remote.into();
        let begun = self.begins(remote, port);
        assert!(!begun || self.connections().last() == Some(&SocketAddr::new(remote, port)));
        begun
    }

    /// The same, to wherever it leads.
    fn begins(&mut self, remote: impl Into<IpAddr>, port: u16) -> bool {
        let remote = remote.into();
        let before = self.connections().len();
        let answers = self.send(&testing::tcp(remote, 40_000, port, SYN, b""));
        let begun = self.connections().len() > before;
        if begun {
            assert!(answers.is_empty(), "nothing is answered before the host is");
        } else {
            let [reset] = &answers[..] else { panic!("{answers:?}") };
            let segment = segment_of(reset);
            assert_eq!((segment.flags, segment.acknowledged), (RST | ACK, 1001));
            assert_eq!((segment.source, segment.destination), (port, 40_000));
            assert!(testing::checksums_hold(reset));
            assert_eq!(source_of(reset), remote);
        }
        begun
    }

    /// A query for an address, answered in the name server's place; gives what the guest is told.
    fn resolve(&mut self, name: &str, addresses: &[Ipv4Addr], ttl: u32) -> (u8, Vec<IpAddr>) {
        let addresses: Vec<IpAddr> = addresses.iter().map(|address| IpAddr::from(*address)).collect();
        self.look_up(name, 1, &addresses, ttl)
    }

    /// The same for addresses of either family, by the number of the type that is asked for.
    fn look_up(&mut self, name: &str, kind: u16, addresses: &[IpAddr], ttl: u32) -> (u8, Vec<IpAddr>) {
        let mut answers = self.send(&testing::udp(NAME_SERVER, 5000, 53, &dns_query(7, name, kind, None)));
        for request in std::mem::take(&mut self.host.borrow_mut().dns_requests) {
            if let DnsRequest::Send { request_id, message, .. } = request {
                let id = u16::from_be_bytes([message[0], message[1]]);
                self.stack.resolved(request_id, Some(&dns_answer(id, name, kind, addresses, ttl)));
            }
        }
        answers.extend(self.run());
        let [answer] = &answers[..] else { panic!("{answers:?}") };
        assert!(testing::checksums_hold(answer));
        let Transport::Udp { source: 53, destination: 5000, payload } = transport(answer) else { panic!() };
        assert_eq!(payload[..2], [0, 7]);
        let (code, _, addresses) = read_dns(payload);
        (code, addresses.into_iter().map(|(address, _)| address).collect())
    }

    fn reasons(&mut self) -> Vec<(Subject, bool, Reason)> {
        let decisions = self.stack.take_decisions();
        decisions.iter().map(|decision| (decision.record, decision.allowed, decision.reason)).collect()
    }

    /// A client connects to a published port.
    fn accept(&mut self, client: &str, guest_port: u16) -> Rc<RefCell<FakeStream>> {
        let stream = Rc::new(RefCell::new(FakeStream { room: usize::MAX, ..FakeStream::default() }));
        let client = client.parse().unwrap();
        self.stack.accept(FakeStreamSocket(Rc::clone(&stream)), client, guest_port);
        stream
    }
}

fn transport(frame: &[u8]) -> Transport<'_> {
    match frame::read(frame) {
        Ok(Frame::Ip(packet)) => packet.transport,
        other => panic!("{other:?}"),
    }
}

fn source_of(frame: &[u8]) -> IpAddr {
    match frame::read(frame) {
        Ok(Frame::Ip(packet)) => packet.source,
        other => panic!("{other:?}"),
    }
}

fn segment_of(frame: &[u8]) -> Segment {
    match transport(frame) {
        Transport::Tcp(segment) => segment,
        other => panic!("{other:?}"),
    }
}
