//! IPv6: what may begin, what a guest is told, and what it cannot forge.

use microagent_model::egress::Decision;

use super::*;
use crate::HostAddresses;

const HOST_V6: &str = "2001:db8:1::5";

/// A host with a global address, one on its loopback interface, a network and a route to everything.
fn host_addresses() -> HostAddresses {
    let text = r#"{"own":["198.51.100.9/32","2001:db8:1::5/128"],"loopback":["2001:db8:7::7/128","::1/128"],
        "neighbours":["2001:db8:1::/64"],"reached":["::/0"]}"#;
    serde_json::from_str(text).unwrap()
}

fn bench(mode: EgressMode, rules: &[&str]) -> Bench {
    Bench::with(1500, policy(mode, rules), |options| options.host_addresses = host_addresses())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

#[test]
fn each_mode_lets_its_addresses_through() {
    use EgressMode::{Allowlist, Open, Public};
    for (mode, rules, remote, port, reason) in [
        (Public, &[][..], "2001:db8::1", 443, Ok(Reason::Mode)),
        (Public, &[], "fd00::1", 443, Err(Reason::Inside)),
        (Public, &[], HOST_V6, 443, Err(Reason::Inside)),
        (Public, &[], "2001:db8:1::9", 443, Err(Reason::Inside)),
        (Public, &["[fd00::]/8:443"], "fd00::1", 443, Ok(Reason::Rule)),
        (Public, &["[fd00::]/8:5432"], "fd00::1", 443, Err(Reason::Inside)),
        (Public, &[HOST_V6], HOST_V6, 443, Ok(Reason::Rule)),
        (Public, &["0.0.0.0/0"], HOST_V6, 443, Err(Reason::Inside)),
        (Allowlist, &[], "2001:db8::1", 443, Err(Reason::NotListed)),
        (Allowlist, &["2001:db8::/32"], "2001:db8::1", 443, Ok(Reason::Rule)),
        (Allowlist, &["[2001:db8::1]:443"], "2001:db8::1", 80, Err(Reason::NotListed)),
        (Open, &[], "fd00::1", 443, Ok(Reason::Mode)),
        (Open, &[], HOST_V6, 443, Ok(Reason::Mode)),
        // What no rule opens.
        (Open, &["::/0"], "::1", 443, Err(Reason::Forbidden)),
        (Open, &["::/0"], "2001:db8:7::7", 443, Err(Reason::Forbidden)),
        (Open, &["::/0"], "fe80::1", 443, Err(Reason::Forbidden)),
        (Open, &["::/0"], "fd00:ec2::254", 80, Err(Reason::Forbidden)),
        (Open, &["::/0"], "::ffff:192.0.2.1", 80, Err(Reason::Forbidden)),
        (Open, &["::/0"], "::192.0.2.1", 80, Err(Reason::Forbidden)),
        (Open, &["::/0"], "ff02::1", 80, Err(Reason::Forbidden)),
        (Open, &["::/0"], "fd5c:8b21:46e7::2", 80, Err(Reason::OwnNetwork)),
        (Open, &["::/0"], "fd5c:8b21:46e7::77", 80, Err(Reason::OwnNetwork)),
        // By a translator it is the address of IPv4 that counts; tunnels to such addresses are closed.
        (Public, &[], "64:ff9b::192.0.2.1", 443, Ok(Reason::Mode)),
        (Public, &[], "64:ff9b::10.0.0.1", 443, Err(Reason::Inside)),
        (Public, &["::/0"], "64:ff9b::10.0.0.1", 443, Err(Reason::Inside)),
        (Public, &["10.0.0.0/8"], "64:ff9b::10.0.0.1", 443, Ok(Reason::Rule)),
        (Open, &["::/0", "0.0.0.0/0"], "64:ff9b::169.254.169.254", 80, Err(Reason::Forbidden)),
        (Open, &["::/0", "0.0.0.0/0"], "64:ff9b::127.0.0.1", 80, Err(Reason::Forbidden)),
        (Open, &["::/0", "0.0.0.0/0"], "64:ff9b::10.0.2.2", 80, Err(Reason::OwnNetwork)),
        (Open, &["::/0"], "2002:0a00:0001::1", 80, Err(Reason::Forbidden)),
    ] {
        let what = format!("{mode} {rules:?} {remote} {port}");
        let mut bench = bench(mode, rules);
        assert_eq!(bench.connects(ip(remote), port), reason.is_ok(), "{what}");
        let expected = (Subject::Connection, reason.is_ok(), reason.unwrap_or_else(|reason| reason));
        let decisions = bench.stack.take_decisions();
        let [Decision { record, allowed, reason, address, .. }] = &decisions[..] else {
            panic!("{decisions:?}")
        };
        assert_eq!(((*record, *allowed, *reason), *address), (expected, Some(ip(remote))), "{what}");
    }
}

#[test]
fn a_refused_datagram_or_echo_is_answered_by_the_gateway() {
    let mut bench = bench(EgressMode::Public, &[]);
    for frame in [testing::udp(v6("fd00::1"), 5000, 99, b"data"), testing::echo(v6("fd00::1"), true, 9)] {
        let answers = bench.send(&frame);
        let [answer] = &answers[..] else { panic!("{answers:?}") };
        assert!(testing::checksums_hold(answer));
        assert_eq!(answer[22..38], GATEWAY_V6.octets());
        assert_eq!(answer[54..56], [1, 1]);
        assert_eq!(answer[62..], frame[14..62]);
    }
    assert_eq!(bench.datagram_flows(), 0);
}

#[test]
fn a_connection_is_answered_as_the_far_end_answered() {
    for (error, expected) in [
        (None, None),
        (Some(Errno::CONNREFUSED), None),
        (Some(Errno::NETUNREACH), Some(0)),
        (Some(Errno::HOSTUNREACH), Some(3)),
        (Some(Errno::TIMEDOUT), Some(3)),
        (Some(Errno::PERM), Some(1)),
    ] {
        let mut bench = bench(EgressMode::Public, &[]);
        assert!(bench.connects(FAR_V6, 443));
        let (token, stream) = bench.stream();
        stream.borrow_mut().refused = error;
        bench.stack.ready(token, Readiness::WRITABLE);
        let frames = bench.run();
        let [frame] = &frames[..] else { panic!("{error:?}: {frames:?}") };
        assert!(testing::checksums_hold(frame));
        match (error, expected) {
            (_, Some(code)) => assert_eq!(frame[54..56], [1, code], "{error:?}"),
            (None, None) => assert_eq!(segment_of(frame).flags, SYN | ACK),
            (Some(_), None) => assert_eq!(segment_of(frame).flags, RST | ACK),
        }
        assert_eq!(stream.borrow().is_closed, error.is_some());
    }
    // Without a route at all, the host says it at once, and so does the stack.
    let mut bench = bench(EgressMode::Public, &[]);
    bench.host.borrow_mut().exhausted = Some(Errno::NETUNREACH);
    let answers = bench.send(&testing::tcp(FAR_V6, 40_000, 443, SYN, b""));
    assert_eq!(answers[0][54..56], [1, 0]);
}

#[test]
fn a_half_that_is_closed_leaves_the_other_open() {
    let mut bench = bench(EgressMode::Public, &[]);
    assert!(bench.connects(FAR_V6, 443));
    let (token, stream) = bench.stream();
    bench.stack.ready(token, Readiness::BOTH);
    let number = segment_of(&bench.run()[0]).sequence + 1;
    let from_guest = |flags, sequence, acknowledged, data: &[u8]| {
        testing::tcp_at(FAR_V6, 40_000, 443, flags, sequence, acknowledged, data)
    };
    bench.send(&from_guest(ACK, 1001, number, b""));
    bench.send(&from_guest(FIN | ACK, 1001, number, b"question"));
    assert_eq!(stream.borrow().outgoing, b"question");
    assert!(stream.borrow().is_shut_down && !stream.borrow().is_closed);
    stream.borrow_mut().incoming.extend(b"answer");
    stream.borrow_mut().has_ended = true;
    bench.stack.ready(token, Readiness::READABLE);
    let frames = bench.run();
    assert!(frames.iter().all(|frame| testing::checksums_hold(frame)));
    let data = frames.iter().find(|frame| segment_of(frame).data_len > 0).unwrap();
    assert_eq!((source_of(data), testing::tcp_data(data)), (FAR_V6.into(), b"answer".to_vec()));
    let frames = bench.send(&from_guest(ACK, 1010, number + 6, b""));
    assert!(segment_of(&frames[0]).has(FIN));
    bench.send(&from_guest(ACK, 1010, number + 7, b""));
    assert!(stream.borrow().is_closed && !stream.borrow().is_reset);
    assert_eq!(bench.stack.sizes()[0], 0);
}

#[test]
fn datagrams_and_echoes_come_back() {
    let mut bench = bench(EgressMode::Public, &[]);
    bench.send(&testing::udp(FAR_V6, 5000, 99, b"data"));
    let (token, datagrams) = bench.datagrams();
    assert_eq!(datagrams.borrow().outgoing, [b"data"]);
    datagrams.borrow_mut().incoming.extend([Ok(b"answer".to_vec()), Err(Errno::CONNREFUSED)]);
    bench.stack.ready(token, Readiness::READABLE);
    let frames = bench.run();
    assert!(frames.iter().all(|frame| testing::checksums_hold(frame)));
    assert_eq!(source_of(&frames[0]), FAR_V6);
    assert_eq!(transport(&frames[0]), Transport::Udp { source: 99, destination: 5000, payload: b"answer" });
    assert_eq!(frames[1][54..56], [1, 4]);

    bench.send(&testing::echo(FAR_V6, true, 9));
    let (token, datagrams) = bench.datagrams();
    let mut reply = datagrams.borrow().outgoing[0].clone();
    assert_eq!(reply[0], 128);
    // The kernel puts an id of its own into the request, and so into the answer.
    reply[0] = 129;
    reply[4..6].copy_from_slice(&[0x77, 0x77]);
    datagrams.borrow_mut().incoming.extend([Ok(vec![0; 20]), Ok(vec![128; 20]), Ok(reply)]);
    bench.stack.ready(token, Readiness::READABLE);
    let frames = bench.run();
    let [frame] = &frames[..] else { panic!("{frames:?}") };
    assert!(testing::checksums_hold(frame));
    assert_eq!(transport(frame), Transport::Echo { request: false, id: 9, sequence: 1, payload: b"" });
}

#[test]
fn the_gateway_answers_pings_itself() {
    for gateway in [IpAddr::from(GATEWAY), GATEWAY_V6.into()] {
        let mut bench = bench(EgressMode::Allowlist, &[]);
        let frames = bench.send(&testing::echo(gateway, true, 9));
        let [frame] = &frames[..] else { panic!("{frames:?}") };
        assert!(testing::checksums_hold(frame));
        assert_eq!(source_of(frame), gateway);
        assert_eq!(transport(frame), Transport::Echo { request: false, id: 9, sequence: 1, payload: b"" });
        assert_eq!((bench.datagram_flows(), bench.stack.sizes()[0]), (0, 0));
        assert!(bench.reasons().is_empty());
        // Nothing else of that network is there.
        let beside = if gateway.is_ipv4() { ip("10.0.2.77") } else { ip("fd5c:8b21:46e7::77") };
        bench.send(&testing::echo(beside, true, 9));
        assert_eq!(bench.reasons(), [(Subject::Connection, false, Reason::OwnNetwork)]);
    }
    // What is answered counts as moved.
    let few = policy(EgressMode::Public, &[]).max_bytes(100);
    let mut bench = Bench::with(1500, few, |_| {});
    assert_eq!(bench.send(&testing::echo(GATEWAY, true, 9)).len(), 1);
    assert_eq!(bench.send(&testing::echo(GATEWAY, true, 9)).len(), 0);
    let refused = bench.send(&testing::echo(GATEWAY, true, 9));
    assert_eq!(refused[0][34..36], [3, 13]);
}

#[test]
fn addresses_are_told_where_the_host_reaches_them() {
    let all =
        ["2001:db8::1", "2606:4700::1", "::1", "fe80::1", "::ffff:192.0.2.1", "fd5c:8b21:46e7::15"].map(ip);
    let mut bench = bench(EgressMode::Public, &[]);
    let (code, told) = bench.look_up("example.org", 28, &all, 300);
    assert_eq!((code, told), (0, all[..2].to_vec()));
    let decision = bench.stack.take_decisions().remove(0);
    assert_eq!((decision.allowed, decision.address), (true, Some(all[0])));

    // A host with routes to some addresses only: the others are left out, and nobody is told that they are forbidden.
    let text = r#"{"own":["2001:db8:1::5/128"],"loopback":[],"neighbours":[],"reached":["2001:db8::/32"]}"#;
    let addresses: HostAddresses = serde_json::from_str(text).unwrap();
    bench.stack.follow(HostChange { addresses: Some(addresses), ..HostChange::default() });
    assert_eq!(bench.look_up("two.example.org", 28, &all[..2], 300), (0, all[..1].to_vec()));
    assert_eq!(bench.look_up("three.example.org", 28, &all[1..2], 300), (0, Vec::new()));
    let said = bench.reasons();
    assert_eq!(said, [(Subject::Name, true, Reason::Mode)], "a name without addresses has no line");
    assert_eq!(bench.look_up("four.example.org", 28, &all[2..], 300), (0, Vec::new()));

    // Without IPv6 on the host no name server is asked.
    bench.stack.follow(HostChange { addresses: Some(HostAddresses::default()), ..HostChange::default() });
    assert_eq!(bench.look_up("five.example.org", 28, &all, 300), (0, Vec::new()));
    assert!(bench.host.borrow().dns_requests.is_empty());
}

#[test]
fn an_allowed_name_opens_its_addresses_of_both_families() {
    let mut bench = bench(EgressMode::Allowlist, &["example.org"]);
    assert_eq!(bench.look_up("example.com", 28, &[FAR_V6.into()], 300).0, 3);
    assert!(!bench.connects(FAR_V6, 443));
    assert_eq!(bench.look_up("example.org", 28, &[FAR_V6.into()], 300), (0, vec![FAR_V6.into()]));
    assert!(bench.connects(FAR_V6, 443));
    assert!(!bench.connects(FAR, 443), "the other family was not looked up");
    bench.stack.set_time(at(301));
    assert!(!bench.connects(FAR_V6, 444));
    // Inside, a name alone opens nothing, and neither by a translator.
    for inside in ["fd00::1", HOST_V6, "64:ff9b::10.0.0.1"].map(ip) {
        assert_eq!(bench.look_up("example.org", 28, &[inside], 300), (0, vec![inside]));
        bench.stack.take_decisions();
        assert!(!bench.connects(inside, 443));
        assert_eq!(bench.reasons(), [(Subject::Connection, false, Reason::Inside)]);
    }
}

#[test]
fn forwarded_ports_are_at_both_addresses_of_the_gateway() {
    let target = SocketAddr::from(([127, 0, 0, 1], 11_434));
    let mut bench = Bench::with(1500, policy(EgressMode::Allowlist, &[]), |options| {
        options.forwards = vec!["8080=127.0.0.1:11434".parse().unwrap()];
    });
    assert!(bench.begins(GATEWAY_V6, 8080));
    assert_eq!(bench.connections(), [target]);
    assert!(!bench.connects(GATEWAY_V6, 11_434));
    assert_eq!(bench.look_up("host.microagent.internal", 28, &[], 0), (0, vec![GATEWAY_V6.into()]));
}

#[test]
fn what_the_guest_forges_goes_nowhere() {
    let mut bench = bench(EgressMode::Open, &[]);
    let syn = testing::tcp(FAR_V6, 40_000, 443, SYN, b"");
    let body = syn[54..].to_vec();
    for forged in
        ["fd5c:8b21:46e7::16", "fd5c:8b21:46e7::2", "fe80::1", "::", "::1", "2001:db8::2", "::ffff:10.0.2.15"]
    {
        for (next, body) in [(6, &body[..]), (17, &testing::udp(FAR_V6, 1, 2, b"data")[54..])] {
            assert!(bench.send(&testing::ipv6(v6(forged), FAR_V6, next, 64, body)).is_empty(), "{forged}");
        }
        assert!(
            bench
                .send(&testing::ipv6(v6(forged), GATEWAY_V6, 58, 64, &[128, 0, 0, 0, 0, 9, 0, 1]))
                .is_empty()
        );
    }
    // Before a header of options, of routes, of fragments: nothing of what follows is read.
    for extension in [0, 43, 44, 60] {
        let body = [&[6, 0, 0, 0, 0, 0, 0, 0][..], &body].concat();
        assert!(bench.send(&testing::ipv6(GUEST_ADDRESS_V6, FAR_V6, extension, 64, &body)).is_empty());
    }
    // A packet of IPv6 in one of IPv4, and the other way round.
    for (next, inner) in [(41, &syn[14..]), (4, &testing::tcp(FAR, 40_000, 443, SYN, b"")[14..])] {
        assert!(bench.send(&testing::ipv6(GUEST_ADDRESS_V6, FAR_V6, next, 64, inner)).is_empty());
    }
    // What routers say: a route, a better one, a smaller size.
    for kind in [133, 134, 137, 2, 1, 3] {
        let mut body = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        body.extend([0xfe; 32]);
        assert!(bench.send(&testing::ipv6(GUEST_ADDRESS_V6, GATEWAY_V6, 58, 255, &body)).is_empty());
    }
    assert!(bench.connections().is_empty() && bench.datagram_flows() == 0);
    assert!(bench.reasons().is_empty());
}

#[test]
fn neighbours_are_answered_for_and_nobody_takes_their_place() {
    let mut bench = bench(EgressMode::Public, &[]);
    let asks = |sender: &str, target: &str, mac| testing::solicitation(v6(sender), v6(target), mac);
    let (own, gateway) = ("fd5c:8b21:46e7::15", "fd5c:8b21:46e7::2");
    for sender in [own, "fe80::5054:ff:fe01:203"] {
        let frames = bench.send(&asks(sender, gateway, testing::GUEST_MAC));
        let [frame] = &frames[..] else { panic!("{frames:?}") };
        assert!(testing::checksums_hold(frame));
        assert_eq!((frame[..12].to_vec(), frame[21]), ([testing::GUEST_MAC, OUR_MAC].concat(), 255));
        assert_eq!(
            (frame[22..38].to_vec(), frame[38..54].to_vec()),
            (GATEWAY_V6.octets().to_vec(), v6(sender).octets().to_vec())
        );
        assert_eq!((frame[54], frame[80..86].to_vec()), (136, OUR_MAC.to_vec()));
    }
    // Not for the guest, for others, for who does not say who it is, nor as somebody else.
    for unanswered in [
        asks("::", own, testing::GUEST_MAC),
        asks("::", gateway, testing::GUEST_MAC),
        asks(own, own, testing::GUEST_MAC),
        asks(own, "fe80::2", testing::GUEST_MAC),
        asks(own, "2001:db8::1", testing::GUEST_MAC),
        asks("2001:db8::1", gateway, testing::GUEST_MAC),
        asks("fd5c:8b21:46e7::16", gateway, testing::GUEST_MAC),
        asks(own, gateway, [0x52, 0x55, 10, 0, 2, 2]),
    ] {
        assert!(bench.send(&unanswered).is_empty());
    }
    // An advertisement changes nothing: frames go to the guest's hardware address whatever it says.
    let mut body = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
    body.extend(GUEST_ADDRESS_V6.octets());
    body.extend([2, 1, 2, 2, 2, 2, 2, 2]);
    assert!(bench.send(&testing::ipv6(GUEST_ADDRESS_V6, GATEWAY_V6, 58, 255, &body)).is_empty());
    let frame = bench.send(&testing::echo(GATEWAY_V6, true, 9)).remove(0);
    assert_eq!(frame[..6], testing::GUEST_MAC);
}
