//! Private networks: what the guest reaches in them, and what members reach of the guest.

use microagent_model::egress::EgressPolicy;

use super::*;
use crate::fake::FakeDatagramSocket;
use crate::membership::{MemberPort, MemberProtocol, Membership};

const OWN: Ipv4Addr = Ipv4Addr::new(10, 210, 0, 2);
const DB: Ipv4Addr = Ipv4Addr::new(10, 210, 0, 3);

fn bench_with(policy: EgressPolicy) -> Bench {
    Bench::with(1500, policy, |options| {
        let members = [("Web", OWN), ("db", DB)].map(|(name, address)| (name.to_owned(), address.into()));
        options.memberships = vec![Membership {
            network: "backend".to_owned(),
            subnet: "10.210.0.0/24".parse().unwrap(),
            address: OWN,
            members: members.to_vec(),
        }];
    })
}

fn bench() -> Bench {
    bench_with(policy(EgressMode::Allowlist, &[]))
}

/// The frame with the guest's address in the private network.
fn private(mut frame: Vec<u8>) -> Vec<u8> {
    frame[26..30].copy_from_slice(&OWN.octets());
    frame
}

fn from(protocol: MemberProtocol, port: u16, source_port: u16) -> MemberPort {
    MemberPort { network: 0, address: DB, protocol, port, source_port }
}

/// The one packet that the guest got: from and to which address, and what.
fn only(frames: &[Vec<u8>]) -> (IpAddr, IpAddr, Transport<'_>) {
    let [frame] = frames else { panic!("{frames:?}") };
    assert!(testing::checksums_hold(frame));
    match frame::read(frame) {
        Ok(Frame::Ip(packet)) => (packet.source, packet.destination, packet.transport),
        other => panic!("{other:?}"),
    }
}

fn member_connects(bench: &mut Bench, port: u16, source_port: u16) -> Rc<RefCell<FakeStream>> {
    let stream = Rc::new(RefCell::new(FakeStream { room: usize::MAX, ..FakeStream::default() }));
    bench
        .stack
        .accept_member(FakeStreamSocket(Rc::clone(&stream)), from(MemberProtocol::Tcp, port, source_port));
    stream
}

fn member_datagrams(bench: &mut Bench, from: MemberPort, messages: &[&[u8]]) -> Rc<RefCell<FakeDatagrams>> {
    let incoming = messages.iter().map(|message| Ok(message.to_vec())).collect();
    let datagrams = Rc::new(RefCell::new(FakeDatagrams { incoming, ..FakeDatagrams::default() }));
    bench.stack.adopt_member(FakeDatagramSocket(Rc::clone(&datagrams)), from);
    datagrams
}

#[test]
fn members_are_called_whatever_the_policy_says_of_the_outside() {
    let mut bench = bench();
    assert!(bench.send(&private(testing::tcp(DB, 40_000, 5432, SYN, b""))).is_empty());
    bench.send(&private(testing::udp(DB, 40_001, 53, b"question")));
    bench.send(&private(testing::echo(DB, true, 7)));
    let called: Vec<_> =
        bench.host.borrow().members.iter().map(|to| (to.protocol, to.port, to.source_port)).collect();
    assert_eq!(
        called,
        [
            (MemberProtocol::Tcp, 5432, 40_000),
            (MemberProtocol::Udp, 53, 40_001),
            (MemberProtocol::Echo, 0, 7)
        ]
    );
    let (token, stream) = bench.stream();
    // Nothing is answered before the member is; then the guest is, at its address there.
    stream.borrow_mut().refused = Some(Errno::AGAIN);
    bench.stack.ready(token, Readiness::WRITABLE);
    assert!(bench.run().is_empty());
    stream.borrow_mut().refused = None;
    bench.stack.ready(token, Readiness::BOTH);
    let frames = bench.run();
    let (source, destination, Transport::Tcp(segment)) = only(&frames) else { panic!("{frames:?}") };
    assert_eq!((source, destination, segment.flags), (DB.into(), OWN.into(), SYN | ACK));
    let decisions = bench.stack.take_decisions();
    assert!(decisions.iter().all(|one| one.allowed && one.reason == Reason::Member));
    assert_eq!(decisions[0].name.as_deref(), Some("db.backend"));
    assert!(!bench.connects(FAR, 443));
}

#[test]
fn an_address_of_the_network_that_is_nobodys_is_refused_and_so_is_a_wrong_source() {
    let mut bench = bench();
    for nobody in [OWN, Ipv4Addr::new(10, 210, 0, 0), Ipv4Addr::new(10, 210, 0, 255)] {
        let frames = bench.send(&private(testing::tcp(nobody, 40_000, 80, SYN, b"")));
        let (_, _, Transport::Tcp(segment)) = only(&frames) else { panic!("{frames:?}") };
        assert!(segment.has(RST), "{nobody}");
    }
    // The guest's address of one network means nothing in another.
    assert!(bench.send(&testing::tcp(DB, 40_000, 80, SYN, b"")).is_empty());
    assert!(bench.send(&private(testing::tcp(FAR, 40_000, 80, SYN, b""))).is_empty());
    assert!(bench.host.borrow().members.is_empty() && bench.connections().is_empty());
}

#[test]
fn a_member_that_does_not_answer_is_given_up() {
    let mut bench = bench();
    bench.send(&private(testing::tcp(DB, 40_000, 80, SYN, b"")));
    bench.stream().1.borrow_mut().refused = Some(Errno::AGAIN);
    bench.stack.set_time(at(129));
    assert!(bench.run().is_empty());
    bench.stack.set_time(at(131));
    assert_eq!(bench.run().len(), 1);
    assert_eq!(bench.stack.sizes()[0], 0);
}

#[test]
fn names_lead_to_members_and_back() {
    let mut bench = bench();
    for (name, address) in [("db", DB), ("DB.backend", DB), ("web", OWN), ("web.Backend", OWN)] {
        assert_eq!(bench.resolve(name, &[], 60), (0, vec![address.into()]), "{name}");
    }
    for name in ["db.other", "backend", "d", "db.backend.example"] {
        assert_eq!(bench.resolve(name, &[], 60), (3, Vec::new()), "{name}");
    }
    let members = Some(vec![vec![("cache".to_owned(), DB.into())]]);
    bench.stack.follow(HostChange { members, ..HostChange::default() });
    assert_eq!(bench.resolve("cache", &[], 60), (0, vec![DB.into()]));
    assert_eq!(bench.resolve("db", &[], 60).0, 3);
}

#[test]
fn a_member_is_not_called_as_the_host_or_as_a_server_of_the_internet() {
    let mut bench = Bench::with(1500, policy(EgressMode::Allowlist, &[]), |options| {
        let names = ["host.microagent", "host.microagent.internal", "localhost", "pypi.org"];
        options.memberships = vec![Membership {
            network: "internal".to_owned(),
            subnet: "10.210.0.0/24".parse().unwrap(),
            address: OWN,
            members: names.map(|name| (name.to_owned(), DB.into())).to_vec(),
        }];
    });
    for (name, address) in [
        ("host.microagent.internal", crate::GATEWAY),
        ("localhost", Ipv4Addr::LOCALHOST),
        ("pypi.org.internal", DB),
    ] {
        assert_eq!(bench.resolve(name, &[], 60), (0, vec![address.into()]), "{name}");
    }
    assert_eq!(bench.resolve("pypi.org", &[], 60).0, 3);
}

#[test]
fn arp_is_answered_for_members_and_not_for_the_guest() {
    let mut bench = bench();
    assert_eq!(bench.send(&testing::arp(DB)).len(), 1);
    assert!(bench.send(&testing::arp(OWN)).is_empty());
    assert!(bench.send(&testing::arp(Ipv4Addr::new(10, 210, 1, 3))).is_empty());
}

#[test]
fn a_member_is_told_what_came_of_its_connection() {
    let mut bench = bench();
    let stream = member_connects(&mut bench, 5432, 40_000);
    let frames = bench.run();
    let (source, destination, Transport::Tcp(syn)) = only(&frames) else { panic!("{frames:?}") };
    assert_eq!((source, destination, syn.source, syn.destination), (DB.into(), OWN.into(), 40_000, 5432));
    assert_eq!((syn.flags, stream.borrow().answered), (SYN, None));
    let answer = |flags| private(testing::tcp_at(DB, 5432, 40_000, flags, 70, syn.sequence + 1, b""));
    bench.send(&answer(SYN | ACK));
    assert_eq!(stream.borrow().answered, Some(Ok(())));

    let refused = member_connects(&mut bench, 5432, 40_001);
    let frames = bench.run();
    let (_, _, Transport::Tcp(syn)) = only(&frames) else { panic!("{frames:?}") };
    let frame = testing::tcp_at(DB, 5432, 40_001, RST | ACK, 0, syn.sequence + 1, b"");
    bench.send(&private(frame));
    assert_eq!(refused.borrow().answered, Some(Err(Errno::CONNREFUSED)));

    let silent = member_connects(&mut bench, 5432, 40_002);
    bench.run();
    bench.stack.set_time(at(131));
    bench.run();
    assert_eq!(silent.borrow().answered, Some(Err(Errno::TIMEDOUT)));
    assert!(bench.reasons().contains(&(Subject::Published, true, Reason::Member)));
}

#[test]
fn datagrams_of_a_member_reach_the_guest_and_its_answers_the_member() {
    let mut bench = bench();
    let datagrams = member_datagrams(&mut bench, from(MemberProtocol::Udp, 53, 5000), &[b"question"]);
    let frames = bench.run();
    let (source, destination, transport) = only(&frames);
    assert_eq!((source, destination), (DB.into(), OWN.into()));
    assert!(matches!(transport, Transport::Udp { source: 5000, destination: 53, payload: b"question" }));
    assert!(bench.send(&private(testing::udp(DB, 53, 5000, b"answer"))).is_empty());
    assert_eq!(datagrams.borrow().outgoing, [b"answer"]);
    assert!(bench.host.borrow().members.is_empty(), "the answer is no flow of its own");
    // The member has ended the flow: what the guest sends next begins one.
    datagrams.borrow_mut().incoming.push_back(Err(Errno::PIPE));
    let (token, _) = bench.datagrams();
    bench.stack.ready(token, Readiness::READABLE);
    assert!(bench.run().is_empty());
    bench.send(&private(testing::udp(DB, 53, 5000, b"later")));
    assert_eq!(bench.host.borrow().members.len(), 1);
}

#[test]
fn two_that_begin_the_same_flow_at_once_hear_each_other() {
    let mut bench = bench();
    bench.send(&private(testing::udp(DB, 7946, 7946, b"mine")));
    let (_, own) = bench.datagrams();
    let theirs = member_datagrams(&mut bench, from(MemberProtocol::Udp, 7946, 7946), &[b"yours"]);
    let frames = bench.run();
    assert!(matches!(only(&frames).2, Transport::Udp { source: 7946, destination: 7946, payload: b"yours" }));
    bench.send(&private(testing::udp(DB, 7946, 7946, b"more")));
    assert_eq!(own.borrow().outgoing, [b"mine", b"more"]);
    assert!(theirs.borrow().outgoing.is_empty());
}

#[test]
fn a_member_pings_the_guest_and_gets_only_answers() {
    let mut bench = bench();
    let request = [8, 0, 0, 0, 0, 1, 0, 5, b'x'];
    let datagrams = member_datagrams(&mut bench, from(MemberProtocol::Echo, 0, 77), &[&request, b"\0\0junk"]);
    let frames = bench.run();
    let (source, _, transport) = only(&frames);
    let expected = Transport::Echo { request: true, id: 77, sequence: 5, payload: b"x" };
    assert_eq!((source, transport), (DB.into(), expected));
    bench.send(&private(testing::echo(DB, false, 77)));
    assert_eq!(datagrams.borrow().outgoing.len(), 1);
    // An answer that nobody has asked for goes nowhere, and the guest's own echoes are others.
    assert!(bench.send(&private(testing::echo(DB, false, 78))).is_empty());
    bench.send(&private(testing::echo(DB, true, 77)));
    assert_eq!((datagrams.borrow().outgoing.len(), bench.host.borrow().members.len()), (1, 1));
}

#[test]
fn one_member_leaves_half_of_the_flows_to_others() {
    let mut bench = bench_with(policy(EgressMode::Public, &[]).max_connections(10));
    for source_port in 1..=20 {
        member_connects(&mut bench, 80, source_port);
        bench.run();
    }
    assert_eq!(bench.stack.sizes()[0], 5);
    bench.send(&private(testing::udp(DB, 1000, 53, b"own")));
    assert_eq!(bench.stack.sizes()[0], 6);
    assert!(bench.reasons().contains(&(Subject::Published, false, Reason::Connections)));
}

#[test]
fn nobody_outside_is_taken_for_a_member() {
    let mut bench = bench();
    bench.accept("10.210.0.3:40000", 80);
    let frames = bench.run();
    assert_eq!((only(&frames).0, only(&frames).1), (GATEWAY.into(), GUEST_ADDRESS.into()));
}
