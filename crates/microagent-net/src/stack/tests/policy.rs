//! What may begin, and what a guest is told of the rest.

use super::*;

#[test]
fn each_mode_lets_its_addresses_through() {
    use EgressMode::{Allowlist, Open, Public};
    let private = Ipv4Addr::new(172, 20, 0, 5);
    for (mode, rules, remote, port, reason) in [
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
        (Open, &["198.18.7.7"], LO, 443, Err(Reason::Forbidden)),
        (Open, &["0.0.0.0/0"], METADATA, 80, Err(Reason::Forbidden)),
        (Open, &["169.254.0.0/16"], METADATA, 80, Err(Reason::Forbidden)),
        (Open, &["0.0.0.0/0"], Ipv4Addr::new(168, 63, 129, 16), 80, Err(Reason::Forbidden)),
        (Open, &["0.0.0.0/0"], GATEWAY, 80, Err(Reason::OwnNetwork)),
        (Open, &["0.0.0.0/0"], NAME_SERVER, 80, Err(Reason::OwnNetwork)),
        (Open, &["0.0.0.0/0"], Ipv4Addr::new(10, 0, 2, 77), 80, Err(Reason::OwnNetwork)),
    ] {
        let mut bench = Bench::new(policy(mode, rules));
        assert_eq!(bench.connects(remote, port), reason.is_ok(), "{mode} {rules:?} {remote}:{port}");
        let expected = (Subject::Connection, reason.is_ok(), reason.unwrap_or_else(|reason| reason));
        assert_eq!(bench.reasons(), [expected], "{mode} {rules:?} {remote}:{port}");
    }
}

#[test]
fn a_refused_datagram_or_echo_is_answered_by_the_gateway() {
    let mut bench = Bench::new(policy(EgressMode::Public, &["10.0.0.0/8:7"]));
    for frame in [testing::udp(INSIDE, 5000, 99, b"data"), testing::echo(INSIDE, true, 9)] {
        let answers = bench.send(&frame);
        assert_eq!(answers[0][26..30], GATEWAY.octets());
        assert_eq!(answers[0][34..36], [3, 13]);
        assert!(testing::checksums_hold(&answers[0]));
    }
    assert_eq!(bench.datagram_flows(), 0);
    // A rule with a port speaks of ports; an echo has none.
    assert!(bench.send(&testing::udp(INSIDE, 5000, 7, b"data")).is_empty());
    assert_eq!(bench.datagrams().1.borrow().outgoing, [b"data"]);
}

#[test]
fn an_allowed_name_opens_its_addresses_while_the_ttl_lasts() {
    let (mut bench, remote) = (Bench::new(policy(EgressMode::Allowlist, &[".example.org"])), FAR);
    assert!(!bench.connects(remote, 443));
    assert_eq!(bench.resolve("WWW.example.org", &[remote], 300), (0, vec![remote.into()]));
    assert!(bench.connects(remote, 443));
    let decisions = bench.stack.take_decisions();
    let last = decisions.last().unwrap();
    assert_eq!((last.reason, last.name.as_deref()), (Reason::Name, Some("www.example.org")));
    bench.stack.set_time(at(301));
    // What is open stays so; what is new does not begin.
    let (token, stream) = bench.stream();
    bench.stack.ready(token, Readiness::BOTH);
    let answer = bench.run().remove(0);
    let data = testing::tcp_at(remote, 40_000, 443, ACK, 1001, segment_of(&answer).sequence + 1, b"data");
    bench.send(&data);
    assert_eq!(stream.borrow().outgoing, b"data");
    assert!(!bench.connects(remote, 444));
    // The ports of a connection do not begin another one.
    bench.send(&testing::tcp(remote, 40_000, 443, SYN, b""));
    assert_eq!(bench.connections().len(), 1);
}

#[test]
fn a_name_alone_opens_nothing_inside() {
    use EgressMode::{Allowlist, Open, Public};
    let named = ".example.org";
    for (mode, rules, remote, told, reason) in [
        (Public, &[named][..], INSIDE, true, Err(Reason::Inside)),
        (Public, &[named], HOST, true, Err(Reason::Inside)),
        (Public, &[named, "10.9.0.0/16"], INSIDE, true, Ok(Reason::Rule)),
        (Public, &[named, "198.51.100.9:443"], HOST, true, Ok(Reason::Rule)),
        (Public, &[named], FAR, true, Ok(Reason::Name)),
        (Allowlist, &[named], INSIDE, true, Err(Reason::Inside)),
        (Allowlist, &[named], HOST, true, Err(Reason::Inside)),
        (Allowlist, &[named, "10.9.8.7:443"], INSIDE, true, Ok(Reason::Rule)),
        (Allowlist, &[named, "10.9.8.7:80"], INSIDE, true, Err(Reason::Inside)),
        (Allowlist, &[named], FAR, true, Ok(Reason::Name)),
        (Open, &[named], INSIDE, true, Ok(Reason::Mode)),
        // The guest does not even get these.
        (Open, &[named, "0.0.0.0/0"], LOOPBACK, false, Err(Reason::Forbidden)),
        (Open, &[named, "0.0.0.0/0"], LO, false, Err(Reason::Forbidden)),
        (Open, &[named, "0.0.0.0/0"], METADATA, false, Err(Reason::Forbidden)),
        (Open, &[named, "0.0.0.0/0"], GATEWAY, false, Err(Reason::OwnNetwork)),
    ] {
        let what = format!("{mode} {rules:?} {remote}");
        let mut bench = Bench::new(policy(mode, rules));
        let addresses: Vec<IpAddr> = if told { vec![remote.into()] } else { Vec::new() };
        assert_eq!(bench.resolve("rebind.example.org", &[remote], 300), (0, addresses), "{what}");
        bench.stack.take_decisions();
        assert_eq!(bench.connects(remote, 443), reason.is_ok(), "{what}");
        let expected = (Subject::Connection, reason.is_ok(), reason.unwrap_or_else(|reason| reason));
        assert_eq!(bench.reasons(), [expected], "{what}");
    }
}

#[test]
fn an_added_name_is_judged_by_its_address_or_its_own_rule() {
    use EgressMode::{Allowlist, Open, Public};
    for (mode, rules, remote, reason) in [
        (Public, &[][..], INSIDE, Err(Reason::Inside)),
        (Public, &["db.corp"], INSIDE, Ok(Reason::Name)),
        (Public, &["10.9.0.0/16:443"], INSIDE, Ok(Reason::Rule)),
        (Public, &[], FAR, Ok(Reason::Mode)),
        (Allowlist, &[], FAR, Err(Reason::NotListed)),
        (Allowlist, &[".corp"], FAR, Ok(Reason::Name)),
        (Allowlist, &[".corp"], INSIDE, Ok(Reason::Name)),
        (Allowlist, &["db.corp"], HOST, Ok(Reason::Name)),
        (Allowlist, &["other.corp"], INSIDE, Err(Reason::Inside)),
        (Open, &["db.corp"], LOOPBACK, Err(Reason::Forbidden)),
        (Open, &["db.corp"], LO, Err(Reason::Forbidden)),
        (Open, &["db.corp"], METADATA, Err(Reason::Forbidden)),
        (Open, &["db.corp"], GATEWAY, Err(Reason::OwnNetwork)),
    ] {
        let what = format!("{mode} {rules:?} {remote}");
        let mut bench = Bench::with(1500, policy(mode, rules), |options| {
            options.names.added = vec![("db.corp".to_owned(), remote.into())];
        });
        let query = dns_query(7, "DB.corp", 1, None);
        let frame = bench.send(&testing::udp(NAME_SERVER, 5000, 53, &query)).remove(0);
        assert!(bench.host.borrow().dns_requests.is_empty(), "{what}: a name server was asked");
        let Transport::Udp { payload, .. } = transport(&frame) else { panic!() };
        assert_eq!(read_dns(payload).2, [(remote.into(), 10)], "{what}");
        assert_eq!(bench.reasons(), [(Subject::Name, true, Reason::Local)], "{what}");
        assert_eq!(bench.connects(remote, 443), reason.is_ok(), "{what}");
        let decision = bench.stack.take_decisions().remove(0);
        assert_eq!(
            (decision.reason, decision.allowed),
            (reason.unwrap_or_else(|r| r), reason.is_ok()),
            "{what}"
        );
        assert_eq!(decision.name.as_deref(), Some("db.corp"), "{what}");
    }
}

#[test]
fn a_forwarded_port_leads_to_its_server_and_no_other_does() {
    let target = std::net::SocketAddrV4::new(LOOPBACK, 11_434);
    let forward = |options: &mut StackOptions| {
        options.forwards = vec!["8080=127.0.0.1:11434".parse().unwrap()];
    };
    for mode in [EgressMode::Public, EgressMode::Allowlist, EgressMode::Open] {
        let mut bench = Bench::with(1500, policy(mode, &[]), forward);
        assert!(bench.begins(GATEWAY, 8080), "{mode}");
        assert_eq!(bench.host.borrow().streams.values().next().unwrap().0, target.into());
        let decision = bench.stack.take_decisions().remove(0);
        assert_eq!((decision.reason, decision.target), (Reason::Forwarded, Some(target)));
        assert_eq!((decision.address, decision.port), (Some(GATEWAY.into()), Some(8080)));
        // Not by another port, another address, or datagrams.
        for (remote, port) in [(GATEWAY, 11_434), (NAME_SERVER, 8080), (LOOPBACK, 11_434)] {
            assert!(!bench.connects(remote, port), "{mode} {remote}:{port}");
        }
        bench.send(&testing::udp(GATEWAY, 5000, 8080, b"data"));
        assert_eq!(bench.datagram_flows(), 0, "{mode}");
    }
    // Limits hold for it as well.
    let few = policy(EgressMode::Public, &[]).max_connections(0);
    assert!(!Bench::with(1500, few, forward).connects(GATEWAY, 8080));
}

#[test]
fn each_broker_has_a_port_and_nothing_else_is_there() {
    for mode in [EgressMode::Public, EgressMode::Allowlist, EgressMode::Open] {
        let mut bench = Bench::with(1500, policy(mode, &[]), |options| options.brokers = 2);
        for port in [BROKER_PORT, BROKER_PORT + 1] {
            assert!(bench.connects(BROKER_ADDRESS, port), "{mode}");
            let decision = bench.stack.take_decisions().remove(0);
            assert_eq!((decision.reason, decision.port), (Reason::Broker, Some(port)));
        }
        let others = [(BROKER_ADDRESS, 80), (BROKER_ADDRESS, BROKER_PORT + 2), (GATEWAY, BROKER_PORT)];
        for (remote, port) in others {
            assert!(!bench.connects(remote, port), "{mode} {remote}:{port}");
        }
    }
    assert!(!Bench::new(policy(EgressMode::Open, &[])).connects(BROKER_ADDRESS, BROKER_PORT));
}

#[test]
fn what_changes_on_the_host_counts_from_then_on() {
    let mut bench = Bench::new(policy(EgressMode::Public, &[]));
    assert!(bench.connects(FAR, 443));
    let addresses = addresses(&[FAR], &[HOST]);
    let servers = vec![SocketAddr::from(([192, 0, 2, 99], 53))];
    let hosts = Some(vec![("printer".to_owned(), FAR.into())]);
    bench.stack.follow(HostChange {
        addresses: Some(addresses),
        name_servers: Some(servers.clone()),
        hosts,
        members: None,
    });
    bench.stack.take_decisions();
    assert!(!bench.connects(FAR, 444));
    assert!(!bench.connects(HOST, 444));
    let reasons: Vec<_> = bench.reasons().into_iter().map(|(_, _, reason)| reason).collect();
    assert_eq!(reasons, [Reason::Inside, Reason::Forbidden]);
    bench.send(&testing::udp(NAME_SERVER, 5000, 53, &dns_query(7, "example.org", 1, None)));
    let host = bench.host.borrow();
    let asked = host.dns_requests.iter().find_map(|request| match request {
        DnsRequest::Send { server, .. } => Some(*server),
        DnsRequest::Cancel(_) => None,
    });
    assert_eq!(asked, Some(servers[0]));
    drop(host);
    let frame = bench.send(&testing::udp(NAME_SERVER, 5001, 53, &dns_query(8, "printer", 1, None))).remove(0);
    let Transport::Udp { payload, .. } = transport(&frame) else { panic!() };
    assert_eq!(read_dns(payload).2, [(FAR.into(), 10)]);
}

#[test]
fn a_name_that_no_rule_covers_is_not_even_asked_for() {
    let mut bench = Bench::new(policy(EgressMode::Allowlist, &["example.org"]));
    assert_eq!(bench.resolve("www.example.org", &[FAR], 300), (3, vec![]));
    assert_eq!(bench.reasons(), [(Subject::Name, false, Reason::NotListed)]);
    // Nor one that only looks as if.
    for query in [&b"\x07example\x03org\x04evil\x00"[..], b"\x0bexample.org\x00"] {
        let message = [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], query, &[0, 1, 0, 1]].concat();
        let frame = bench.send(&testing::udp(NAME_SERVER, 5000, 53, &message)).remove(0);
        assert!(bench.host.borrow().dns_requests.is_empty());
        let Transport::Udp { payload, .. } = transport(&frame) else { panic!() };
        assert_eq!(payload[3] & 15, 3);
    }
}

#[test]
fn a_name_cannot_lead_to_what_is_never_reachable() {
    let mut bench = Bench::new(policy(EgressMode::Allowlist, &["example.org"]));
    let all = [LOOPBACK, METADATA, GATEWAY, Ipv4Addr::UNSPECIFIED];
    assert_eq!(bench.resolve("example.org", &all, 300), (0, vec![]));
    assert_eq!(bench.reasons(), [(Subject::Name, false, Reason::Forbidden)]);
    for remote in all {
        assert!(!bench.connects(remote, 80), "{remote}");
    }
    assert_eq!(bench.resolve("example.org", &[METADATA, FAR], 300), (0, vec![FAR.into()]));
}

#[test]
fn service_bindings_do_not_exist_nor_addresses_of_ipv6_where_the_host_has_none() {
    let mut bench = Bench::new(policy(EgressMode::Public, &[]));
    for kind in [28, 64, 65] {
        let query = dns_query(7, "example.org", kind, None);
        let frame = bench.send(&testing::udp(NAME_SERVER, 5000, 53, &query)).remove(0);
        assert!(bench.host.borrow().dns_requests.is_empty());
        let Transport::Udp { payload, .. } = transport(&frame) else { panic!() };
        assert_eq!((payload[3] & 15, &payload[6..8]), (0, &[0, 0][..]));
    }
}

#[test]
fn a_query_without_an_answer_fails_before_the_guest_gives_up() {
    let mut bench = Bench::new(policy(EgressMode::Public, &[]));
    bench.send(&testing::udp(NAME_SERVER, 5000, 53, &dns_query(7, "example.org", 1, None)));
    let mut frames = Vec::new();
    while let Some(deadline) = bench.stack.deadline() {
        assert!(deadline < Duration::from_secs(5));
        bench.stack.set_time(Now { running: deadline, ..at(0) });
        frames.extend(bench.run());
    }
    let host = bench.host.borrow();
    let asked = host
        .dns_requests
        .iter()
        .filter(|e| matches!(e, DnsRequest::Send { transport: DnsTransport::Udp, .. }))
        .count();
    assert_eq!(asked, 3);
    drop(host);
    let Transport::Udp { payload, .. } = transport(&frames[0]) else { panic!() };
    assert_eq!(payload[3] & 15, 2);
    assert_eq!(bench.reasons(), [(Subject::Name, false, Reason::NoAnswer)]);
}

#[test]
fn other_name_servers_are_ordinary_addresses() {
    let query = dns_query(7, "example.org", 1, None);
    for (mode, passes) in [(EgressMode::Public, true), (EgressMode::Allowlist, false)] {
        let mut bench = Bench::new(policy(mode, &["example.org"]));
        bench.send(&testing::udp(FAR, 5000, 53, &query));
        assert_eq!(bench.datagram_flows() == 1, passes);
        assert_eq!(bench.connects(FAR, 853), passes);
    }
}

#[test]
fn nothing_begins_in_the_middle() {
    let mut bench = Bench::new(policy(EgressMode::Public, &[]));
    for set in [ACK, SYN | ACK, FIN | ACK, 0, SYN | FIN, SYN | RST | ACK] {
        bench.send(&testing::tcp(FAR, 40_000, 443, set, b"data"));
    }
    assert!(bench.send(&testing::tcp(FAR, 40_000, 443, RST, b"")).is_empty());
    assert!(bench.connections().is_empty());
    assert!(bench.connects(FAR, 443));
    bench.send(&testing::tcp(FAR, 40_000, 443, SYN | FIN, b""));
    bench.send(&testing::tcp(FAR, 40_000, 443, ACK, b"data"));
    assert_eq!(bench.connections().len(), 1);
    assert!(bench.stream().1.borrow().outgoing.is_empty());
}

#[test]
fn what_the_guest_forges_goes_nowhere() {
    let mut bench = Bench::new(policy(EgressMode::Open, &[]));
    let mut forged = testing::tcp(FAR, 40_000, 443, SYN, b"");
    forged[29] ^= 1;
    assert!(bench.send(&forged).is_empty());
    let mut forged = testing::udp(FAR, 40_000, 443, b"data");
    forged[29] ^= 1;
    assert!(bench.send(&forged).is_empty());
    let mut arp = testing::arp(GATEWAY);
    assert_eq!(bench.send(&arp).len(), 1);
    assert!(bench.send(&testing::arp(FAR)).is_empty());
    assert!(bench.send(&testing::arp(GUEST_ADDRESS)).is_empty(), "its own address is its own");
    arp[31] ^= 1;
    assert!(bench.send(&arp).is_empty());
    assert!(bench.send(&vec![0; MAX_FRAME_LEN + 1]).is_empty());
    assert!(bench.connections().is_empty() && bench.datagram_flows() == 0);
}

#[test]
fn answers_come_only_to_what_was_asked() {
    let mut bench = Bench::new(policy(EgressMode::Public, &[]));
    assert!(bench.send(&testing::echo(FAR, false, 9)).is_empty(), "nobody asked the guest");
    assert_eq!(bench.datagram_flows(), 0);
    bench.send(&testing::udp(FAR, 5000, 99, b"data"));
    let (token, datagrams) = bench.datagrams();
    assert_eq!(datagrams.borrow().outgoing, [b"data"]);
    datagrams.borrow_mut().incoming.push_back(Ok(b"answer".to_vec()));
    bench.stack.ready(token, Readiness::READABLE);
    let frame = bench.run().remove(0);
    assert!(testing::checksums_hold(&frame));
    assert_eq!(frame[26..30], FAR.octets());
    assert_eq!(transport(&frame), Transport::Udp { source: 99, destination: 5000, payload: b"answer" });
    bench.stack.set_time(at(181));
    bench.run();
    assert!(datagrams.borrow().is_closed, "nobody outside keeps a flow");
}

#[test]
fn an_echo_comes_back_under_the_guests_id() {
    let mut bench = Bench::new(policy(EgressMode::Public, &[]));
    bench.send(&testing::echo(FAR, true, 9));
    let (token, datagrams) = bench.datagrams();
    let mut reply = datagrams.borrow().outgoing[0].clone();
    assert_eq!(reply[0], 8);
    // The kernel puts an id of its own into the request, and so into the answer.
    reply[0] = 0;
    reply[4..6].copy_from_slice(&[0x77, 0x77]);
    datagrams.borrow_mut().incoming.extend([Ok(vec![8; 20]), Ok(reply)]);
    bench.stack.ready(token, Readiness::READABLE);
    let frames = bench.run();
    let [frame] = &frames[..] else { panic!("{frames:?}") };
    assert!(testing::checksums_hold(frame));
    let Transport::Echo { request: false, id: 9, sequence: 1, payload: b"" } = transport(frame) else {
        panic!("{:?}", transport(frame));
    };
}

#[test]
fn what_became_of_a_datagram_is_told() {
    let mut bench = Bench::new(policy(EgressMode::Public, &[]));
    let sent = testing::udp(FAR, 5000, 99, b"data");
    for (error, code) in [(Errno::CONNREFUSED, 3), (Errno::HOSTUNREACH, 1), (Errno::NETUNREACH, 0)] {
        bench.send(&sent);
        let (token, datagrams) = bench.datagrams();
        datagrams.borrow_mut().incoming.push_back(Err(error));
        bench.stack.ready(token, Readiness::READABLE);
        let frame = bench.run().remove(0);
        assert_eq!(frame[34..36], [3, code]);
        assert_eq!(frame[42..], sent[14..42], "the guest knows its datagram again");
    }
    assert_eq!(bench.datagram_flows(), 1);
}

#[test]
fn a_host_without_sockets_is_told_to_guest_and_log() {
    let mut bench = Bench::new(policy(EgressMode::Public, &[]));
    bench.host.borrow_mut().exhausted = Some(Errno::MFILE);
    assert!(!bench.connects(FAR, 443));
    assert_eq!(bench.reasons()[1], (Subject::Connection, false, Reason::Connections));
    let frame = bench.send(&testing::udp(FAR, 5000, 99, b"data")).remove(0);
    assert_eq!(frame[34..36], [3, 1]);
    // Who may not send echo requests learns it.
    bench.host.borrow_mut().exhausted = Some(Errno::ACCESS);
    let frame = bench.send(&testing::echo(FAR, true, 9)).remove(0);
    assert_eq!(frame[34..36], [3, 13]);
    bench.host.borrow_mut().exhausted = None;
    assert!(bench.connects(FAR, 443));
}

#[test]
fn too_many_connections_are_refused_and_said_once() {
    let mut bench = Bench::new(EgressPolicy::default().max_connections(2));
    assert!(bench.connects(FAR, 1));
    assert!(bench.connects(FAR, 2));
    bench.stack.take_decisions();
    for _ in 0..3 {
        assert!(!bench.connects(FAR, 3));
    }
    assert_eq!(bench.reasons(), [(Subject::Connection, false, Reason::Connections)]);
    assert!(bench.send(&testing::tcp(FAR, 40_000, 1, RST, b"")).is_empty());
    assert!(bench.connects(FAR, 3));
}

#[test]
fn a_stubborn_guest_is_refused_each_time_and_logged_now_and_then() {
    let mut bench = Bench::new(policy(EgressMode::Allowlist, &[]));
    let mut lines = 0;
    for second in 0..60 {
        bench.stack.set_time(at(second));
        for _ in 0..10 {
            assert!(!bench.connects(FAR, 443));
            lines += bench.stack.take_decisions().len();
        }
    }
    assert_eq!(lines, 2);
}

#[test]
fn after_the_last_byte_all_is_reset_and_refused() {
    let mut bench = Bench::new(EgressPolicy::default().max_bytes(150));
    assert!(bench.connects(FAR, 443));
    let (token, stream) = bench.stream();
    bench.stack.ready(token, Readiness::BOTH);
    let answer = segment_of(&bench.run().remove(0));
    bench.send(&testing::tcp_at(FAR, 40_000, 443, ACK, 1001, answer.sequence + 1, b""));
    bench.stack.take_decisions();
    stream.borrow_mut().incoming.extend(vec![7; 151]);
    bench.stack.ready(token, Readiness::READABLE);
    let frames = bench.run();
    // The guest waits for data: it gets what may pass, and is told without asking.
    let last = segment_of(frames.last().unwrap());
    assert!(last.has(RST) && last.destination == 40_000, "{last:?}");
    let passed: usize = frames.iter().map(|frame| usize::from(segment_of(frame).data_len)).sum();
    assert!(passed <= 150, "{passed}");
    assert!(stream.borrow().is_reset && stream.borrow().is_closed);
    assert!(!bench.connects(FAR, 443));
    assert_eq!(bench.resolve("example.org", &[FAR], 60), (3, vec![]));
    let said = bench.reasons();
    assert_eq!(said[0], (Subject::Network, false, Reason::Bytes));
    assert_eq!(said.iter().filter(|(subject, ..)| *subject == Subject::Network).count(), 1);
    // The gateway can still be found, so that refusals arrive.
    assert_eq!(bench.send(&testing::arp(GATEWAY)).len(), 1);
}

#[test]
fn a_question_by_tcp_is_answered_like_one_by_udp() {
    let mut bench = Bench::new(policy(EgressMode::Allowlist, &["example.org"]));
    let answer = bench.send(&testing::tcp(NAME_SERVER, 40_000, 53, SYN, b"")).remove(0);
    assert_eq!(segment_of(&answer).flags, SYN | ACK);
    let number = segment_of(&answer).sequence + 1;
    let mut bytes = Vec::new();
    for name in ["example.org", "example.com"] {
        let question = dns_query(7, name, 1, None);
        bytes.extend((question.len() as u16).to_be_bytes());
        bytes.extend(question);
    }
    // In two pieces, the second with the end of what is asked.
    bench.send(&testing::tcp_at(NAME_SERVER, 40_000, 53, ACK, 1001, number, &bytes[..10]));
    let end = 1011;
    let frames = bench.send(&testing::tcp_at(NAME_SERVER, 40_000, 53, FIN | ACK, end, number, &bytes[10..]));
    let mut got: Vec<u8> = frames.iter().flat_map(|frame| testing::tcp_data(frame)).collect();
    let dns_requests = std::mem::take(&mut bench.host.borrow_mut().dns_requests);
    let [DnsRequest::Send { request_id, message, .. }] = &dns_requests[..] else {
        panic!("{dns_requests:?}")
    };
    let many: Vec<IpAddr> = (0..80).map(|n| [192, 0, 2, n].into()).collect();
    let id = u16::from_be_bytes([message[0], message[1]]);
    bench.stack.resolved(*request_id, Some(&dns_answer(id, "example.org", 1, &many, 60)));
    got.extend(bench.run().iter().flat_map(|frame| testing::tcp_data(frame)));
    let mut codes = Vec::new();
    let mut rest = &got[..];
    while let Some((length, behind)) = rest.split_first_chunk::<2>() {
        let (message, behind) = behind.split_at(u16::from_be_bytes(*length).into());
        let (code, name, addresses) = read_dns(message);
        codes.push((code, name, addresses.len()));
        rest = behind;
    }
    assert_eq!(codes, [(3, "example.com".to_owned(), 0), (0, "example.org".to_owned(), 80)]);
    assert!(bench.connections().is_empty(), "the host is asked for nothing but the name");
    // A question that is longer than any ends the connection.
    let answer = bench.send(&testing::tcp(NAME_SERVER, 40_001, 53, SYN, b"")).remove(0);
    let number = segment_of(&answer).sequence + 1;
    let frames = bench.send(&testing::tcp_at(NAME_SERVER, 40_001, 53, ACK, 1001, number, &[0xff; 100]));
    assert!(segment_of(frames.last().unwrap()).has(RST));
}
