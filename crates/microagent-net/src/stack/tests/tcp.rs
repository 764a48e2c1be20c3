//! Connections, segment by segment.

use super::*;

/// A connection of the guest that is open on both sides.
fn open(bench: &mut Bench) -> (Token, Rc<RefCell<FakeStream>>, u32) {
    assert!(bench.connects(FAR, 443));
    let (token, stream) = bench.stream();
    bench.stack.ready(token, Readiness::BOTH);
    let answer = segment_of(&bench.run().remove(0));
    assert_eq!(answer.flags, SYN | ACK);
    bench.send(&testing::tcp_at(FAR, 40_000, 443, ACK, 1001, answer.sequence + 1, b""));
    (token, stream, answer.sequence + 1)
}

#[test]
fn a_connection_is_answered_as_the_far_end_answered() {
    for (error, expected) in [
        (None, None),
        (Some(Errno::CONNREFUSED), None),
        (Some(Errno::NETUNREACH), Some(0)),
        (Some(Errno::HOSTUNREACH), Some(1)),
        (Some(Errno::TIMEDOUT), Some(1)),
        (Some(Errno::PERM), Some(13)),
    ] {
        let mut bench = Bench::new(policy(EgressMode::Public, &[]));
        assert!(bench.connects(FAR, 443));
        // A first segment that is repeated opens nothing more.
        assert!(bench.send(&testing::tcp(FAR, 40_000, 443, SYN, b"")).is_empty());
        let (token, stream) = bench.stream();
        stream.borrow_mut().refused = error;
        bench.stack.ready(token, Readiness::WRITABLE);
        let frames = bench.run();
        let [frame] = &frames[..] else { panic!("{error:?}: {frames:?}") };
        assert!(testing::checksums_hold(frame));
        match (error, expected) {
            (_, Some(code)) => assert_eq!(frame[34..36], [3, code], "{error:?}"),
            (None, None) => assert_eq!(segment_of(frame).flags, SYN | ACK),
            (Some(_), None) => {
                let reset = segment_of(frame);
                assert_eq!((reset.flags, reset.acknowledged), (RST | ACK, 1001));
            }
        }
        assert_eq!(stream.borrow().is_closed, error.is_some());
    }
}

#[test]
fn a_guest_that_gives_up_closes_the_hosts_socket() {
    let mut bench = Bench::new(policy(EgressMode::Public, &[]));
    assert!(bench.connects(FAR, 443));
    let (token, stream) = bench.stream();
    assert!(bench.send(&testing::tcp(FAR, 40_000, 443, RST, b"")).is_empty());
    assert!(stream.borrow().is_closed);
    bench.stack.ready(token, Readiness::BOTH);
    assert!(bench.run().is_empty(), "what comes too late is nobody's");
}

#[test]
fn a_half_that_is_closed_leaves_the_other_open() {
    let mut bench = Bench::new(policy(EgressMode::Public, &[]));
    let (token, stream, number) = open(&mut bench);
    bench.send(&testing::tcp_at(FAR, 40_000, 443, FIN | ACK, 1001, number, b"question"));
    assert_eq!(stream.borrow().outgoing, b"question");
    assert!(stream.borrow().is_shut_down && !stream.borrow().is_closed);
    stream.borrow_mut().incoming.extend(b"answer");
    stream.borrow_mut().has_ended = true;
    bench.stack.ready(token, Readiness::READABLE);
    let frames = bench.run();
    let data = frames.iter().map(|frame| segment_of(frame)).find(|segment| segment.data_len > 0).unwrap();
    assert_eq!((data.sequence, data.data_len), (number, 6));
    assert!(!frames.iter().any(|frame| segment_of(frame).has(FIN)), "its end comes when the data has come");
    let frames = bench.send(&testing::tcp_at(FAR, 40_000, 443, ACK, 1010, number + 6, b""));
    assert!(segment_of(&frames[0]).has(FIN));
    assert!(!stream.borrow().is_closed);
    bench.send(&testing::tcp_at(FAR, 40_000, 443, ACK, 1010, number + 7, b""));
    assert!(stream.borrow().is_closed && !stream.borrow().is_reset);
    assert_eq!(bench.stack.sizes()[0], 0);
}

#[test]
fn the_end_of_the_far_end_leaves_the_guest_sending() {
    let mut bench = Bench::new(policy(EgressMode::Public, &[]));
    let (token, stream, number) = open(&mut bench);
    stream.borrow_mut().has_ended = true;
    bench.stack.ready(token, Readiness::READABLE);
    assert!(segment_of(&bench.run()[0]).has(FIN));
    bench.send(&testing::tcp_at(FAR, 40_000, 443, ACK, 1001, number + 1, b"more"));
    assert_eq!(stream.borrow().outgoing, b"more");
    let frames = bench.send(&testing::tcp_at(FAR, 40_000, 443, FIN | ACK, 1005, number + 1, b""));
    assert_eq!(segment_of(&frames[0]).acknowledged, 1006, "the guest's end is acknowledged");
    assert!(stream.borrow().is_shut_down && stream.borrow().is_closed && !stream.borrow().is_reset);
    assert_eq!(bench.stack.sizes()[0], 0, "nothing waits for stragglers");
}

#[test]
fn a_slow_far_end_gets_everything_after_the_guest_has_closed() {
    let mut bench = Bench::new(policy(EgressMode::Public, &[]));
    let (token, stream, number) = open(&mut bench);
    stream.borrow_mut().room = 3;
    stream.borrow_mut().has_ended = true;
    bench.stack.ready(token, Readiness::READABLE);
    bench.run();
    bench.send(&testing::tcp_at(FAR, 40_000, 443, FIN | ACK, 1001, number + 1, b"all of this"));
    for minutes in 0..60 {
        bench.stack.set_time(at(minutes * 60));
        bench.run();
        assert_eq!((stream.borrow().outgoing.len(), stream.borrow().is_closed), (3, false));
    }
    stream.borrow_mut().room = usize::MAX;
    bench.stack.ready(token, Readiness::WRITABLE);
    bench.run();
    assert_eq!(stream.borrow().outgoing, b"all of this");
    assert!(stream.borrow().is_shut_down && stream.borrow().is_closed);
}

#[test]
fn a_reset_is_passed_on_as_a_reset() {
    let mut bench = Bench::new(policy(EgressMode::Public, &[]));
    let (_, stream, _) = open(&mut bench);
    bench.send(&testing::tcp_at(FAR, 40_000, 443, RST, 1001, 0, b""));
    assert!(stream.borrow().is_reset && stream.borrow().is_closed);

    let (token, stream, number) = open(&mut bench);
    stream.borrow_mut().incoming.extend(b"last words");
    stream.borrow_mut().error = Some(Errno::CONNRESET);
    bench.stack.ready(token, Readiness::BOTH);
    let frames = bench.run();
    assert_eq!(segment_of(&frames[0]).data_len, 10, "what came before it is not lost");
    assert!(!frames.iter().any(|frame| segment_of(frame).has(RST)));
    let frames = bench.send(&testing::tcp_at(FAR, 40_000, 443, ACK, 1001, number + 10, b""));
    assert!(segment_of(&frames[0]).has(RST));
    assert!(stream.borrow().is_closed);
    assert_eq!(bench.stack.sizes()[0], 0);
}

#[test]
fn a_reset_behind_the_end_is_passed_on_behind_the_end() {
    // A guest that has heard the end and still sends, or waits, is told that nobody takes anything any more.
    let mut bench = Bench::new(policy(EgressMode::Public, &[]));
    let (token, stream, number) = open(&mut bench);
    stream.borrow_mut().has_ended = true;
    bench.stack.ready(token, Readiness::READABLE);
    assert!(segment_of(&bench.run()[0]).has(FIN));
    bench.send(&testing::tcp_at(FAR, 40_000, 443, ACK, 1001, number + 1, b""));
    stream.borrow_mut().error = Some(Errno::PIPE);
    bench.stack.ready(token, Readiness::BOTH);
    assert!(segment_of(&bench.run()[0]).has(RST));
    assert!(stream.borrow().is_closed);
    assert_eq!(bench.stack.sizes()[0], 0);

    // Both are there at once, and data before them.
    let (token, stream, number) = open(&mut bench);
    stream.borrow_mut().incoming.extend(b"last words");
    stream.borrow_mut().has_ended = true;
    bench.stack.ready(token, Readiness::READABLE);
    stream.borrow_mut().error = Some(Errno::PIPE);
    let frames = bench.run();
    assert_eq!((frames.len(), segment_of(&frames[0]).data_len), (1, 10));
    let frames = bench.send(&testing::tcp_at(FAR, 40_000, 443, ACK, 1001, number + 10, b""));
    assert!(segment_of(&frames[0]).has(FIN) && !frames.iter().any(|frame| segment_of(frame).has(RST)));
    bench.stack.ready(token, Readiness::BOTH);
    bench.run();
    let frames = bench.send(&testing::tcp_at(FAR, 40_000, 443, ACK, 1001, number + 11, b""));
    assert!(segment_of(&frames[0]).has(RST));
    assert_eq!(bench.stack.sizes()[0], 0);
}

#[test]
fn a_guest_that_does_not_take_its_last_data_is_reset_all_the_same() {
    let mut bench = Bench::new(policy(EgressMode::Public, &[]));
    let (token, stream, _) = open(&mut bench);
    stream.borrow_mut().incoming.extend(b"last words");
    stream.borrow_mut().error = Some(Errno::CONNRESET);
    bench.stack.ready(token, Readiness::BOTH);
    bench.run();
    let mut frames = Vec::new();
    while let Some(deadline) = bench.stack.deadline() {
        assert!(deadline < Duration::from_secs(60));
        bench.stack.set_time(Now { running: deadline, ..at(0) });
        frames = bench.run();
    }
    assert!(segment_of(frames.last().unwrap()).has(RST));
    assert!(stream.borrow().is_closed);
}

#[test]
fn an_idle_connection_lives_for_days() {
    let mut bench = Bench::new(policy(EgressMode::Public, &[]));
    let (_, stream, number) = open(&mut bench);
    for hour in 1..72 {
        bench.stack.set_time(at(hour * 3600));
        assert!(bench.run().is_empty(), "an idle connection costs nothing");
        assert_eq!(bench.stack.deadline(), None);
    }
    // The guest asks whether anybody is there, as programs have it do.
    let frames = bench.send(&testing::tcp_at(FAR, 40_000, 443, ACK, 1000, number, b""));
    assert_eq!(segment_of(&frames[0]).acknowledged, 1001);
    bench.send(&testing::tcp_at(FAR, 40_000, 443, ACK, 1001, number, b"still here"));
    assert_eq!(stream.borrow().outgoing, b"still here");
}

#[test]
fn a_client_reaches_a_published_port() {
    let mut bench = Bench::new(policy(EgressMode::Allowlist, &[]));
    for (client, seen) in [
        ("127.0.0.1:50000", GATEWAY),
        ("198.51.100.9:50000", GATEWAY),
        ("10.0.2.99:50000", GATEWAY),
        ("203.0.113.5:50000", Ipv4Addr::new(203, 0, 113, 5)),
        ("10.9.8.7:50000", INSIDE),
    ] {
        let stream = bench.accept(client, 80);
        let syn = bench.run().remove(0);
        assert_eq!(syn[26..30], seen.octets(), "{client}");
        let segment = segment_of(&syn);
        assert_eq!((segment.flags, segment.destination), (SYN, 80));
        let client_port = segment.source;
        // A server that speaks first is heard.
        let acknowledged = segment.sequence.wrapping_add(1);
        let answer = testing::tcp_at(seen, 80, client_port, SYN | ACK, 1000, acknowledged, b"");
        assert_eq!(segment_of(&bench.send(&answer)[0]).flags, ACK);
        bench.send(&testing::tcp_at(seen, 80, client_port, ACK, 1001, acknowledged, b"220"));
        assert_eq!(stream.borrow().outgoing, b"220");
    }
    assert!(bench.reasons().iter().all(|said| *said == (Subject::Published, true, Reason::Published)));
    assert!(bench.connections().len() == 5, "five clients, though three have one address and port");
    // The ports of a client begin nothing of the guest's.
    assert!(!bench.connects(GATEWAY, 40_001));
}

#[test]
fn a_client_whose_port_nobody_has_is_reset() {
    let mut bench = Bench::new(policy(EgressMode::Public, &[]));
    let stream = bench.accept("127.0.0.1:50000", 80);
    let syn = segment_of(&bench.run().remove(0));
    let acknowledged = syn.sequence.wrapping_add(1);
    bench.send(&testing::tcp_at(GATEWAY, 80, syn.source, RST | ACK, 0, acknowledged, b""));
    assert!(stream.borrow().is_reset && stream.borrow().is_closed);
    // And one whose guest does not answer at all.
    let stream = bench.accept("127.0.0.1:50000", 80);
    bench.run();
    bench.stack.set_time(at(131));
    bench.run();
    assert!(stream.borrow().is_reset && stream.borrow().is_closed);
    assert_eq!(bench.stack.sizes()[0], 0);
}

/// A segment of the guest that only acknowledges, with this window.
fn acknowledging(number: u32, window: u16) -> Vec<u8> {
    let mut frame = testing::tcp_at(FAR, 40_000, 443, ACK, 1001, number, b"");
    frame[48..50].copy_from_slice(&window.to_be_bytes());
    frame
}

/// What smoltcp 0.14 forgets: data is on its way when the guest closes its window, and the window that it opens then is
/// just as large as that data. Without an option in its first segment, a guest takes 536 bytes at once.
#[test]
fn data_that_a_guest_threw_away_with_its_window_closed_is_sent_again() {
    let mut bench = Bench::new(policy(EgressMode::Public, &[]));
    let (token, stream, number) = open(&mut bench);
    stream.borrow_mut().incoming.extend(vec![7; 5000]);
    bench.stack.ready(token, Readiness::READABLE);
    let sent: usize = bench.run().iter().map(|frame| usize::from(segment_of(frame).data_len)).sum();
    assert_eq!(sent, 5000);
    assert!(bench.send(&acknowledging(number + 536, 0)).is_empty());
    assert!(bench.send(&acknowledging(number + 536, 4464)).is_empty());
    let mut time = Duration::ZERO;
    let mut wait = |bench: &mut Bench| {
        let deadline = bench.stack.deadline().expect("it is not forgotten");
        time = deadline;
        assert!(time < Duration::from_secs(1), "it is sent again soon");
        bench.stack.set_time(Now { running: deadline, ..at(0) });
        bench.run()
    };
    let mut frames = Vec::new();
    while frames.is_empty() {
        frames = wait(&mut bench);
    }
    let again = segment_of(&frames[0]);
    assert_eq!((again.sequence, again.data_len), (number + 536, 536));
    // Piece by piece as the guest takes it, without waiting.
    for piece in [1072, 1608] {
        let frames = bench.send(&acknowledging(number + piece, 4464));
        let again = segment_of(&frames[0]);
        assert_eq!((again.sequence, frames.len()), (number + piece, 1));
    }
    assert!(bench.send(&acknowledging(number + 5000, 4464)).is_empty());
    stream.borrow_mut().incoming.extend(b"more");
    bench.stack.ready(token, Readiness::READABLE);
    assert_eq!(segment_of(&bench.run()[0]).sequence, number + 5000);
}

#[test]
fn a_guest_that_is_paused_costs_less_and_less() {
    let mut bench = Bench::new(policy(EgressMode::Public, &[]));
    let (token, stream, _) = open(&mut bench);
    stream.borrow_mut().incoming.extend(vec![7; 5000]);
    bench.stack.ready(token, Readiness::READABLE);
    bench.run();
    let mut sent = 0;
    while let Some(deadline) = bench.stack.deadline().filter(|at| *at < Duration::from_secs(3600)) {
        bench.stack.set_time(Now { running: deadline, ..at(0) });
        sent += bench.run().len();
    }
    assert!(sent < 600, "{sent} frames in an hour");
    assert!(!stream.borrow().is_closed, "and it is still there");
}
