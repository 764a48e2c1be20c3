use super::*;
use crate::testing::{self, FAR, dns_answer, dns_query, read_dns, reversed};
use crate::{Carrier, MAX_FRAME_LEN};
use flags::{ACK, FIN, RST, SYN};

const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 7);
const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn policy(mode: EgressMode, rules: &[&str]) -> EgressPolicy {
    let allow = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    EgressPolicy { mode, allow, ..EgressPolicy::default() }
}

fn engine(policy: EgressPolicy) -> Engine {
    let options = FilterOptions {
        policy,
        published: vec![80],
        host_addresses: vec![HOST],
        name_servers: vec![SocketAddr::from(([192, 0, 2, 53], 53))],
    };
    Engine::new(options, at(0))
}

fn at(secs: u64) -> Now {
    let running = Duration::from_secs(secs);
    Now { running, day: Timestamp::UNIX_EPOCH + running }
}

/// What the guest got since it was asked last.
fn got(engine: &mut Engine) -> Vec<Vec<u8>> {
    let stream = engine.outbox().pending().to_vec();
    engine.outbox().advance(stream.len());
    testing::frames(&stream)
}

fn transport(frame: &[u8]) -> Transport<'_> {
    match frame::read(frame) {
        Ok(Frame::Ip(packet)) => packet.transport,
        other => panic!("{other:?}"),
    }
}

/// Whether a connection of the guest is begun; one that is not is reset.
fn connects(engine: &mut Engine, far: Ipv4Addr, port: u16) -> bool {
    let verdict = engine.from_guest(&testing::tcp(far, 40_000, port, SYN, b""));
    let answers = got(engine);
    if verdict == Verdict::Drop {
        let [reset] = &answers[..] else { panic!("{answers:?}") };
        let Transport::Tcp(segment) = transport(reset) else { panic!("{reset:?}") };
        assert_eq!((segment.flags, segment.acknowledged), (RST | ACK, 1001));
        assert_eq!((segment.source, segment.destination), (port, 40_000));
        assert_eq!(reset[26..30], far.octets());
    } else {
        assert!(answers.is_empty());
    }
    verdict == Verdict::Forward
}

/// Asks for a name and answers in the name server's place; gives what the guest is told.
fn resolve(engine: &mut Engine, name: &str, addresses: &[Ipv4Addr], ttl: u32) -> (u8, Vec<Ipv4Addr>) {
    assert_eq!(
        engine.from_guest(&testing::udp(NAME_SERVER, 5000, 53, &dns_query(7, name, 1, None))),
        Verdict::Drop
    );
    for errand in engine.take_errands() {
        if let Errand::Ask { ticket, message, .. } = errand {
            let id = u16::from_be_bytes([message[0], message[1]]);
            let octets: Vec<[u8; 4]> = addresses.iter().map(|address| address.octets()).collect();
            engine.receive_answer(ticket, &dns_answer(id, name, &octets, ttl));
        }
    }
    let answers = got(engine);
    let [answer] = &answers[..] else { panic!("{answers:?}") };
    assert!(testing::checksums_hold(answer));
    let Transport::Udp { source: 53, destination: 5000, payload } = transport(answer) else { panic!() };
    assert_eq!(payload[..2], [0, 7]);
    let (code, _, addresses) = read_dns(payload);
    (code, addresses.into_iter().map(|(address, _)| address).collect())
}

fn reasons(engine: &mut Engine) -> Vec<(Record, bool, Reason)> {
    let decisions = engine.take_decisions();
    decisions.iter().map(|decision| (decision.record, decision.allowed, decision.reason)).collect()
}

#[test]
fn each_mode_lets_its_addresses_through() {
    use EgressMode::{Allowlist, Open, Public};
    let private = Ipv4Addr::new(172, 20, 0, 5);
    for (mode, rules, far, port, reason) in [
        (Public, &[][..], FAR, 443, Ok(Reason::Mode)),
        (Public, &[], Ipv4Addr::new(203, 0, 113, 5), 22, Ok(Reason::Mode)),
        (Public, &[], INSIDE, 443, Err(Reason::Inside)),
        (Public, &[], HOST, 443, Err(Reason::Inside)),
        (Public, &["172.16.0.0/12"], private, 443, Ok(Reason::Rule)),
        (Public, &["172.16.0.0/12:5432"], private, 5432, Ok(Reason::Rule)),
        (Public, &["172.16.0.0/12:5432"], private, 443, Err(Reason::Inside)),
        (Public, &["198.51.100.9"], HOST, 443, Ok(Reason::Rule)),
        (Allowlist, &[], FAR, 443, Err(Reason::NotListed)),
        (Allowlist, &["192.0.2.0/24:443"], FAR, 443, Ok(Reason::Rule)),
        (Allowlist, &["192.0.2.0/24:443"], FAR, 80, Err(Reason::NotListed)),
        (Allowlist, &["10.9.0.0/16"], INSIDE, 80, Ok(Reason::Rule)),
        (Open, &[], FAR, 443, Ok(Reason::Mode)),
        (Open, &[], INSIDE, 443, Ok(Reason::Mode)),
        (Open, &[], HOST, 443, Ok(Reason::Mode)),
        (Open, &["0.0.0.0/0"], LOOPBACK, 443, Err(Reason::Forbidden)),
        (Open, &["0.0.0.0/0"], METADATA, 80, Err(Reason::Forbidden)),
        (Open, &["169.254.0.0/16"], METADATA, 80, Err(Reason::Forbidden)),
        (Open, &["0.0.0.0/0"], Ipv4Addr::new(168, 63, 129, 16), 80, Err(Reason::Forbidden)),
        (Open, &["0.0.0.0/0"], GATEWAY, 80, Err(Reason::OwnNetwork)),
        (Open, &["0.0.0.0/0"], NAME_SERVER, 53, Err(Reason::OwnNetwork)),
        (Open, &["0.0.0.0/0"], Ipv4Addr::new(10, 0, 2, 77), 80, Err(Reason::OwnNetwork)),
    ] {
        let mut engine = engine(policy(mode, rules));
        assert_eq!(connects(&mut engine, far, port), reason.is_ok(), "{mode} {rules:?} {far}:{port}");
        let expected = (Record::Connection, reason.is_ok(), reason.unwrap_or_else(|reason| reason));
        assert_eq!(reasons(&mut engine), [expected], "{mode} {rules:?} {far}:{port}");
    }
}

#[test]
fn a_refused_datagram_or_echo_is_answered_by_the_gateway() {
    let mut engine = engine(policy(EgressMode::Public, &["10.0.0.0/8:7"]));
    for frame in [testing::udp(INSIDE, 5000, 99, b"data"), testing::echo(INSIDE, true, 9)] {
        assert_eq!(engine.from_guest(&frame), Verdict::Drop);
        let answers = got(&mut engine);
        assert_eq!(answers[0][26..30], GATEWAY.octets());
        assert_eq!(answers[0][34..36], [3, 13]);
        assert!(testing::checksums_hold(&answers[0]));
    }
    // A rule with a port speaks of ports; an echo has none.
    assert_eq!(engine.from_guest(&testing::udp(INSIDE, 5000, 7, b"data")), Verdict::Forward);
}

#[test]
fn an_allowed_name_opens_its_addresses_while_the_ttl_lasts() {
    for mode in [EgressMode::Allowlist, EgressMode::Public] {
        let mut engine = engine(policy(mode, &[".example.org"]));
        let far = if mode == EgressMode::Public { INSIDE } else { FAR };
        assert!(!connects(&mut engine, far, 443));
        assert_eq!(resolve(&mut engine, "WWW.example.org", &[far], 300), (0, vec![far]));
        assert!(connects(&mut engine, far, 443));
        let decisions = engine.take_decisions();
        let last = decisions.last().unwrap();
        assert_eq!((last.reason, last.name.as_deref()), (Reason::Name, Some("www.example.org")));
        let answer = reversed(testing::tcp(far, 40_000, 443, SYN | ACK, b""));
        assert_eq!(engine.from_passt(&answer), Verdict::Forward);
        engine.set_time(at(301));
        // What is open stays so; what is new does not begin.
        let data = testing::tcp(far, 40_000, 443, ACK, b"data");
        assert_eq!(engine.from_guest(&data), Verdict::Forward);
        assert!(!connects(&mut engine, far, 444));
        // The same ports again are a new connection, and end the old one.
        assert!(!connects(&mut engine, far, 443));
        assert_eq!(engine.from_guest(&data), Verdict::Drop);
        let Transport::Tcp(reset) = transport(&got(&mut engine)[0]) else { panic!() };
        assert_eq!((reset.flags, reset.sequence), (RST, 2000));
    }
}

#[test]
fn a_name_that_no_rule_covers_is_not_even_asked_for() {
    let mut engine = engine(policy(EgressMode::Allowlist, &["example.org"]));
    assert_eq!(resolve(&mut engine, "www.example.org", &[FAR], 300), (3, vec![]));
    assert_eq!(reasons(&mut engine), [(Record::Name, false, Reason::NotListed)]);
    // Nor one that only looks as if.
    for query in [&b"\x07example\x03org\x04evil\x00"[..], b"\x0bexample.org\x00"] {
        let message = [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], query, &[0, 1, 0, 1]].concat();
        engine.from_guest(&testing::udp(NAME_SERVER, 5000, 53, &message));
        assert!(engine.take_errands().is_empty());
        let frame = got(&mut engine).remove(0);
        let Transport::Udp { payload, .. } = transport(&frame) else { panic!() };
        assert_eq!(payload[3] & 15, 3);
    }
}

#[test]
fn a_name_cannot_lead_to_what_is_never_reachable() {
    let mut engine = engine(policy(EgressMode::Allowlist, &["example.org"]));
    let all = [LOOPBACK, METADATA, GATEWAY, Ipv4Addr::UNSPECIFIED];
    assert_eq!(resolve(&mut engine, "example.org", &all, 300), (0, vec![]));
    assert_eq!(reasons(&mut engine), [(Record::Name, false, Reason::Forbidden)]);
    for far in all {
        assert!(!connects(&mut engine, far, 80), "{far}");
    }
    assert_eq!(resolve(&mut engine, "example.org", &[METADATA, FAR], 300), (0, vec![FAR]));
}

#[test]
fn addresses_of_ipv6_and_service_bindings_do_not_exist() {
    let mut engine = engine(policy(EgressMode::Public, &[]));
    for kind in [28, 64, 65] {
        engine.from_guest(&testing::udp(NAME_SERVER, 5000, 53, &dns_query(7, "example.org", kind, None)));
        assert!(engine.take_errands().is_empty());
        let frame = got(&mut engine).remove(0);
        let Transport::Udp { payload, .. } = transport(&frame) else { panic!() };
        assert_eq!((payload[3] & 15, &payload[6..8]), (0, &[0, 0][..]));
    }
}

#[test]
fn a_query_without_an_answer_fails_before_the_guest_gives_up() {
    let mut engine = engine(policy(EgressMode::Public, &[]));
    engine.from_guest(&testing::udp(NAME_SERVER, 5000, 53, &dns_query(7, "example.org", 1, None)));
    let mut asked = 0;
    while let Some(deadline) = engine.deadline() {
        let errands = engine.take_errands();
        asked += errands.iter().filter(|e| matches!(e, Errand::Ask { carrier: Carrier::Udp, .. })).count();
        engine.set_time(Now { running: deadline, ..at(0) });
        engine.tick();
        assert!(deadline < Duration::from_secs(5));
    }
    assert_eq!(asked, 3);
    let frame = got(&mut engine).remove(0);
    let Transport::Udp { payload, .. } = transport(&frame) else { panic!() };
    assert_eq!(payload[3] & 15, 2);
    assert_eq!(reasons(&mut engine), [(Record::Name, false, Reason::NoAnswer)]);
}

#[test]
fn other_name_servers_are_ordinary_addresses() {
    let query = dns_query(7, "example.org", 1, None);
    for (mode, verdict) in [(EgressMode::Public, Verdict::Forward), (EgressMode::Allowlist, Verdict::Drop)] {
        let mut engine = engine(policy(mode, &["example.org"]));
        assert_eq!(engine.from_guest(&testing::udp(FAR, 5000, 53, &query)), verdict);
        got(&mut engine);
        assert_eq!(connects(&mut engine, FAR, 853), verdict == Verdict::Forward);
    }
}

#[test]
fn nothing_begins_in_the_middle() {
    let mut engine = engine(policy(EgressMode::Public, &[]));
    for set in [ACK, SYN | ACK, FIN | ACK, 0, SYN | FIN, SYN | RST | ACK] {
        assert_eq!(engine.from_guest(&testing::tcp(FAR, 40_000, 443, set, b"data")), Verdict::Drop);
        let answer = reversed(testing::tcp(FAR, 40_000, 443, set, b"data"));
        assert_eq!(engine.from_passt(&answer), Verdict::Drop);
    }
    assert_eq!(engine.from_guest(&testing::tcp(FAR, 40_000, 443, RST, b"")), Verdict::Drop);
    got(&mut engine);
    // passt would take a SYN with a FIN for a beginning, also where the filter knows a connection.
    assert!(connects(&mut engine, FAR, 443));
    assert_eq!(engine.from_guest(&testing::tcp(FAR, 40_000, 443, SYN | FIN, b"")), Verdict::Drop);
}

#[test]
fn what_the_guest_forges_goes_nowhere() {
    let mut engine = engine(policy(EgressMode::Open, &[]));
    let mut forged = testing::tcp(FAR, 40_000, 443, SYN, b"");
    forged[29] ^= 1;
    assert_eq!(engine.from_guest(&forged), Verdict::Drop);
    let mut arp = testing::arp(GATEWAY);
    assert_eq!(engine.from_guest(&arp), Verdict::Forward);
    assert_eq!(engine.from_guest(&testing::arp(FAR)), Verdict::Drop);
    arp[31] ^= 1;
    assert_eq!(engine.from_guest(&arp), Verdict::Drop);
    assert!(got(&mut engine).is_empty());
    assert_eq!(engine.from_guest(&vec![0; MAX_FRAME_LEN + 1]), Verdict::Drop);
}

#[test]
fn only_what_was_asked_for_and_published_ports_come_in() {
    let mut engine = engine(policy(EgressMode::Public, &[]));
    let incoming = |far, port, set| reversed(testing::tcp(far, port, 40_000, set, b""));
    for far in [GATEWAY, INSIDE, FAR] {
        assert_eq!(engine.from_passt(&incoming(far, 81, SYN)), Verdict::Drop);
        assert_eq!(engine.from_passt(&incoming(far, 80, ACK)), Verdict::Drop);
        assert_eq!(engine.from_passt(&incoming(far, 80, SYN)), Verdict::Forward);
        // The guest may answer where it could not have begun.
        assert_eq!(engine.from_guest(&testing::tcp(far, 80, 40_000, SYN | ACK, b"")), Verdict::Forward);
        assert_eq!(engine.from_guest(&testing::tcp(far, 81, 40_000, SYN | ACK, b"")), Verdict::Drop);
    }
    assert_eq!(engine.from_passt(&incoming(NAME_SERVER, 80, SYN)), Verdict::Drop);
    assert_eq!(engine.from_passt(&incoming(LOOPBACK, 80, SYN)), Verdict::Drop);
    // For each address an acknowledgement of the answer, and a reset of what nobody asked for.
    assert_eq!(got(&mut engine).len(), 6);
    assert!(!connects(&mut engine, GATEWAY, 40_000));
    let udp = testing::udp(FAR, 5000, 99, b"data");
    let echo = testing::echo(FAR, true, 9);
    let reply = reversed(testing::echo(FAR, false, 9));
    assert_eq!(engine.from_passt(&reversed(udp.clone())), Verdict::Drop);
    assert_eq!(engine.from_passt(&reply), Verdict::Drop);
    assert_eq!(engine.from_guest(&udp), Verdict::Forward);
    assert_eq!(engine.from_guest(&echo), Verdict::Forward);
    assert_eq!(engine.from_passt(&reversed(udp)), Verdict::Forward);
    assert_eq!(engine.from_passt(&reply), Verdict::Forward);
    assert_eq!(engine.from_passt(&reversed(echo)), Verdict::Drop, "nobody asks the guest");
    assert_eq!(engine.from_guest(&testing::echo(FAR, false, 9)), Verdict::Drop);
}

/// passt of Debian 12 leaves a server that speaks first without the acknowledgement that it waits for.
#[test]
fn the_guests_answer_to_a_client_is_acknowledged_at_once() {
    let mut engine = engine(policy(EgressMode::Public, &[]));
    assert_eq!(engine.from_passt(&reversed(testing::tcp(GATEWAY, 80, 40_000, SYN, b""))), Verdict::Forward);
    let answer = testing::tcp(GATEWAY, 80, 40_000, SYN | ACK, b"");
    assert_eq!(engine.from_guest(&answer), Verdict::Forward);
    let [frame] = &got(&mut engine)[..] else { panic!("one frame") };
    assert!(testing::checksums_hold(frame));
    let number = |frame: &[u8], at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
    assert_eq!(number(frame, 38), number(&answer, 42), "it goes on where the client is");
    assert_eq!(number(frame, 42), number(&answer, 38).wrapping_add(1), "it takes the guest's SYN");
    assert_eq!((frame[47], u16::from_be_bytes([frame[48], frame[49]])), (ACK, 64));
    // What follows is passt's business, and so are the guest's own connections.
    assert_eq!(engine.from_guest(&testing::tcp(GATEWAY, 80, 40_000, ACK, b"220")), Verdict::Forward);
    assert!(connects(&mut engine, FAR, 40_001));
    assert!(got(&mut engine).is_empty());
}

#[test]
fn too_many_connections_are_refused_and_said_once() {
    let mut engine = engine(EgressPolicy { max_connections: 2, ..EgressPolicy::default() });
    assert!(connects(&mut engine, FAR, 1));
    assert!(connects(&mut engine, FAR, 2));
    engine.take_decisions();
    for _ in 0..3 {
        assert!(!connects(&mut engine, FAR, 3));
    }
    assert_eq!(reasons(&mut engine), [(Record::Connection, false, Reason::Connections)]);
    assert_eq!(engine.from_guest(&testing::tcp(FAR, 40_000, 1, RST, b"")), Verdict::Forward);
    assert!(connects(&mut engine, FAR, 3));
}

#[test]
fn after_the_last_byte_all_is_reset_and_refused() {
    let mut engine = engine(EgressPolicy { max_bytes: 150, ..EgressPolicy::default() });
    assert!(connects(&mut engine, FAR, 443));
    let answer = reversed(testing::tcp(FAR, 40_000, 443, SYN | ACK, b""));
    assert_eq!(engine.from_passt(&answer), Verdict::Forward);
    assert_eq!(engine.from_guest(&testing::tcp(FAR, 40_000, 443, ACK, b"")), Verdict::Forward);
    engine.take_decisions();
    let data = reversed(testing::tcp(FAR, 40_000, 443, ACK, b"data"));
    assert_eq!(engine.from_passt(&data), Verdict::Drop);
    // The guest waits for data: it is told without asking, with the number that it expects.
    let Transport::Tcp(reset) = transport(&got(&mut engine)[0]) else { panic!() };
    assert_eq!((reset.flags, reset.sequence, reset.destination), (RST, 2000, 40_000));
    assert!(!connects(&mut engine, FAR, 443));
    assert_eq!(resolve(&mut engine, "example.org", &[FAR], 60), (3, vec![]));
    let said = reasons(&mut engine);
    assert_eq!(said[0], (Record::Network, false, Reason::Bytes));
    assert_eq!(said.iter().filter(|(record, ..)| *record == Record::Network).count(), 1);
    // The gateway can still be found, so that refusals arrive.
    assert_eq!(engine.from_guest(&testing::arp(GATEWAY)), Verdict::Forward);
}

#[test]
fn without_passt_the_guest_is_refused_and_its_gateway_still_answers() {
    let mut engine = engine(policy(EgressMode::Public, &[]));
    assert!(connects(&mut engine, FAR, 443));
    engine.network_down();
    engine.network_down();
    got(&mut engine);
    assert!(!connects(&mut engine, FAR, 443));
    assert_eq!(engine.from_guest(&testing::udp(FAR, 5000, 99, b"data")), Verdict::Drop);
    assert_eq!(got(&mut engine)[0][34..36], [3, 0]);
    assert_eq!(engine.from_guest(&testing::arp(GATEWAY)), Verdict::Drop);
    let answer = got(&mut engine).remove(0);
    assert_eq!((answer[21], &answer[28..32]), (2, &GATEWAY.octets()[..]));
    assert_eq!(resolve(&mut engine, "example.org", &[FAR], 60), (2, vec![]));
    let network = reasons(&mut engine).iter().filter(|(record, ..)| *record == Record::Network).count();
    assert_eq!(network, 1);
}

#[test]
fn a_stubborn_guest_is_refused_each_time_and_logged_now_and_then() {
    let mut engine = engine(policy(EgressMode::Allowlist, &[]));
    let mut lines = 0;
    for second in 0..60 {
        engine.set_time(at(second));
        for _ in 0..10 {
            assert!(!connects(&mut engine, FAR, 443));
            lines += engine.take_decisions().len();
        }
    }
    assert_eq!(lines, 2);
}
