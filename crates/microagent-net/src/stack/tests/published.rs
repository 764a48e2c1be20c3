//! Clients of published UDP ports.

use super::*;

const PORT: PortNumber = 3;

fn bench() -> Bench {
    Bench::new(policy(EgressMode::Public, &[]))
}

/// A datagram of a client to port 53 of the guest; gives what the guest gets: source, its port, payload.
fn client_sends(bench: &mut Bench, client: &str, payload: &[u8]) -> Vec<(IpAddr, u16, Vec<u8>)> {
    bench.stack.receive_published(PORT, client.parse().unwrap(), 53, payload);
    let frames = bench.run();
    frames
        .iter()
        .map(|frame| match (frame::read(frame), transport(frame)) {
            (Ok(Frame::Ip(packet)), Transport::Udp { source, destination: 53, payload }) => {
                (packet.source, source, payload.to_vec())
            }
            other => panic!("{other:?}"),
        })
        .collect()
}

fn answers(bench: &Bench) -> Vec<(PortNumber, SocketAddr, Vec<u8>)> {
    std::mem::take(&mut bench.host.borrow_mut().answers)
}

#[test]
fn a_client_is_answered_from_the_port_that_it_sent_to() {
    let mut bench = bench();
    for (client, seen) in [
        ("127.0.0.1:5000", GATEWAY),
        ("198.51.100.9:5000", GATEWAY),
        ("[2001:db8::7]:5000", GATEWAY),
        ("203.0.113.5:5000", Ipv4Addr::new(203, 0, 113, 5)),
    ] {
        let [(source, port, payload)] = &client_sends(&mut bench, client, b"question")[..] else {
            panic!("one datagram")
        };
        assert_eq!((*source, &payload[..]), (seen.into(), &b"question"[..]), "{client}");
        assert!(bench.send(&testing::udp(*source, 53, *port, b"answer")).is_empty());
        assert_eq!(answers(&bench), [(PORT, client.parse().unwrap(), b"answer".to_vec())]);
        // The same client is the same flow.
        assert_eq!(client_sends(&mut bench, client, b"again")[0].1, *port);
    }
    assert_eq!(bench.stack.sizes()[0], 4);
    assert!(bench.reasons().iter().all(|said| *said == (Subject::Published, true, Reason::Published)));
}

#[test]
fn a_flow_ends_when_the_guest_is_silent_whatever_the_client_sends() {
    let mut bench = bench();
    for secs in [0, 29] {
        bench.stack.set_time(at(secs));
        client_sends(&mut bench, "127.0.0.1:5000", b"question");
        assert_eq!(bench.stack.sizes()[0], 1);
    }
    bench.stack.set_time(at(30));
    bench.run();
    assert_eq!(bench.stack.sizes()[0], 0);
    // The guest's answer comes too late: it begins a flow of its own, to the gateway, which is refused.
    bench.send(&testing::udp(GATEWAY, 53, 5000, b"answer"));
    assert!(answers(&bench).is_empty());

    client_sends(&mut bench, "127.0.0.1:5000", b"question");
    bench.send(&testing::udp(GATEWAY, 53, 5000, b"answer"));
    assert_eq!(answers(&bench).len(), 1);
    bench.stack.set_time(at(30 + 179));
    bench.run();
    assert_eq!(bench.stack.sizes()[0], 1);
}

#[test]
fn a_port_that_is_closed_answers_nobody() {
    let mut bench = bench();
    client_sends(&mut bench, "127.0.0.1:5000", b"question");
    bench.stack.close_published(PORT + 1);
    assert_eq!(bench.stack.sizes()[0], 1);
    bench.stack.close_published(PORT);
    assert_eq!(bench.stack.sizes()[0], 0);
    bench.send(&testing::udp(GATEWAY, 53, 5000, b"answer"));
    assert!(answers(&bench).is_empty());
}

#[test]
fn clients_leave_half_of_the_flows_to_the_guest() {
    let mut bench = Bench::new(policy(EgressMode::Public, &[]).max_connections(10));
    for port in 1..=20 {
        client_sends(&mut bench, &format!("203.0.113.5:{port}"), b"flood");
    }
    assert_eq!(bench.stack.sizes()[0], 5);
    bench.send(&testing::udp(FAR, 1000, 53, b"own"));
    assert_eq!(bench.stack.sizes()[0], 6);
}
