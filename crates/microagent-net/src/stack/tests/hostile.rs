//! Guests and far ends that are slow, greedy or dead.

use super::*;

/// A connection of the guest to this port, open on both sides; gives the number of the first byte for the guest. `options`
/// are those of its first segment.
fn open(bench: &mut Bench, guest_port: u16, options: &[u8]) -> (Token, Rc<RefCell<FakeStream>>, u32) {
    let mut syn = testing::tcp(FAR, guest_port, 443, SYN, options);
    // The options are part of the header.
    syn[46] = ((20 + options.len()) as u8 / 4) << 4;
    assert!(bench.send(&syn).is_empty(), "nothing is answered before the host is");
    let (token, stream) = bench.stream();
    bench.stack.ready(token, Readiness::BOTH);
    let answer = segment_of(&bench.run().remove(0));
    assert_eq!(answer.flags, SYN | ACK);
    bench.send(&testing::tcp_at(FAR, guest_port, 443, ACK, 1001, answer.sequence + 1, b""));
    (token, stream, answer.sequence + 1)
}

/// A segment of the guest that only acknowledges, with this window.
fn acknowledging(guest_port: u16, number: u32, window: u16) -> Vec<u8> {
    let mut frame = testing::tcp_at(FAR, guest_port, 443, ACK, 1001, number, b"");
    frame[48..50].copy_from_slice(&window.to_be_bytes());
    frame
}

fn data_of(frames: &[Vec<u8>]) -> Vec<u8> {
    frames.iter().flat_map(|frame| testing::tcp_data(frame)).collect()
}

#[test]
fn a_hundred_thousand_connections_are_no_more_than_may_be() {
    let mut bench = Bench::new(EgressPolicy::default());
    let most = EgressPolicy::default().max_connections as usize;
    let mut refused = 0;
    for number in 0..100_000_u32 {
        let (guest_port, port) = (1024 + (number % 50_000) as u16, 1 + (number / 50_000) as u16);
        let frames = bench.send(&testing::tcp(FAR, guest_port, port, SYN, b""));
        refused += frames.iter().filter(|frame| segment_of(frame).has(RST)).count();
        assert!(bench.stack.sizes()[0] <= most);
    }
    assert_eq!(refused, 100_000 - most);
    let [flows, timers, ..] = bench.stack.sizes();
    assert_eq!(flows, most);
    assert!(timers <= 2 * most + STALE_MAX, "{timers}");
    // They do not stay: the guest gives each of them up.
    for number in 0..most {
        bench.send(&testing::tcp(FAR, 1024 + number as u16, 1, RST, b""));
    }
    assert_eq!(bench.stack.sizes()[0], 0);
    assert!(bench.connects(FAR, 443));
}

#[test]
fn a_guest_that_never_reads_holds_its_far_end_up_and_nobody_else() {
    let mut bench = Bench::new(policy(EgressMode::Public, &[]));
    let (token, stream, number) = open(&mut bench, 40_000, &[]);
    bench.send(&acknowledging(40_000, number, 0));
    stream.borrow_mut().incoming.extend(vec![7; 10_000_000]);
    bench.stack.ready(token, Readiness::READABLE);
    bench.run();
    let taken = 10_000_000 - stream.borrow().incoming.len();
    assert_eq!(taken, BUFFER, "no more than there is room for");
    // It is asked now and then whether it takes something now, for hours.
    let mut asked = 0;
    while let Some(deadline) = bench.stack.deadline().filter(|at| *at < Duration::from_secs(7200)) {
        bench.stack.set_time(Now { running: deadline, ..at(0) });
        asked += bench.run().len();
    }
    assert!((1..2000).contains(&asked), "{asked}");
    assert!(!stream.borrow().is_closed);

    let (token, other, number) = open(&mut bench, 40_001, &[]);
    other.borrow_mut().incoming.extend(b"for somebody who reads");
    bench.stack.ready(token, Readiness::READABLE);
    let frames = bench.run();
    let frames: Vec<Vec<u8>> =
        frames.into_iter().filter(|frame| segment_of(frame).destination == 40_001).collect();
    assert_eq!(data_of(&frames), b"for somebody who reads");
    assert_eq!(segment_of(&frames[0]).sequence, number);
}

#[test]
fn a_window_that_is_scaled_to_the_limit_is_not_filled() {
    let mut bench = Bench::new(policy(EgressMode::Public, &[]));
    // A gibibyte.
    let (token, stream, number) = open(&mut bench, 40_000, &[2, 4, 5, 0xb4, 1, 3, 3, 14]);
    stream.borrow_mut().incoming.extend(vec![7; 10_000_000]);
    bench.stack.ready(token, Readiness::READABLE);
    let sent = data_of(&bench.run()).len();
    assert_eq!(sent, BUFFER);
    let frames = bench.send(&acknowledging(40_000, number + sent as u32, u16::MAX));
    assert_eq!(data_of(&frames).len(), BUFFER, "what is acknowledged makes room");
    // A shift that no guest may ask for counts as the largest one (RFC 7323, 2.3).
    let (token, stream, _) = open(&mut bench, 40_001, &[2, 4, 5, 0xb4, 1, 3, 3, 255]);
    stream.borrow_mut().incoming.extend(vec![7; 1_000_000]);
    bench.stack.ready(token, Readiness::READABLE);
    assert_eq!(data_of(&bench.run()).len(), BUFFER);
}

#[test]
fn a_byte_at_a_time_arrives_from_either_side() {
    let mut bench = Bench::new(policy(EgressMode::Public, &[]));
    let (token, stream, number) = open(&mut bench, 40_000, &[]);
    let bytes: Vec<u8> = (0..20_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (offset, byte) in bytes.iter().enumerate() {
        let sequence = 1001 + offset as u32;
        let frames = bench.send(&testing::tcp_at(FAR, 40_000, 443, ACK, sequence, number, &[*byte]));
        assert!(frames.len() <= 1, "one acknowledgement at most");
    }
    assert_eq!(stream.borrow().outgoing, bytes);
    let mut got = Vec::new();
    for byte in &bytes {
        stream.borrow_mut().incoming.push_back(*byte);
        bench.stack.ready(token, Readiness::READABLE);
        let frames = bench.run();
        got.extend(data_of(&frames));
        let mut frame = testing::tcp_at(FAR, 40_000, 443, ACK, 21_001, number + got.len() as u32, b"");
        frame[48..50].copy_from_slice(&u16::MAX.to_be_bytes());
        bench.send(&frame);
    }
    assert_eq!(got, bytes);
}

#[test]
fn a_port_can_be_used_again_at_once_and_after_the_guest_has_forgotten_its_connection() {
    let mut bench = Bench::new(policy(EgressMode::Public, &[]));
    for round in 0..3 {
        let (_, stream, number) = open(&mut bench, 40_000, &[]);
        bench.send(&testing::tcp_at(FAR, 40_000, 443, RST, 1001, 0, b""));
        assert!(stream.borrow().is_reset, "{round}: {number}");
    }
    // Its kernel is another one, or its memory an older one: it knows nothing of what is open here (RFC 5961, 4.2).
    let (_, stream, number) = open(&mut bench, 40_000, &[]);
    let answer = segment_of(&bench.send(&testing::tcp(FAR, 40_000, 443, SYN, b"")).remove(0));
    assert_eq!((answer.flags, answer.sequence, answer.acknowledged), (ACK, number, 1001));
    bench.send(&testing::tcp_at(FAR, 40_000, 443, RST, answer.acknowledged, 0, b""));
    assert!(stream.borrow().is_reset && stream.borrow().is_closed);
    open(&mut bench, 40_000, &[]);
}

#[test]
fn four_thousand_connections_may_be_half_closed_and_all_of_them_end() {
    let mut bench = Bench::new(EgressPolicy::default());
    let most = EgressPolicy::default().max_connections as u16;
    let mut connections = Vec::new();
    for number in 0..most {
        let (guest_port, is_guests) = (1024 + number, number % 2 == 0);
        let (token, stream, first) = open(&mut bench, guest_port, &[]);
        match is_guests {
            true => drop(bench.send(&testing::tcp_at(FAR, guest_port, 443, FIN | ACK, 1001, first, b""))),
            false => {
                stream.borrow_mut().has_ended = true;
                bench.stack.ready(token, Readiness::READABLE);
                assert!(segment_of(&bench.run()[0]).has(FIN));
                bench.send(&acknowledging(guest_port, first + 1, u16::MAX));
            }
        }
        connections.push((guest_port, token, stream, first));
    }
    assert_eq!(bench.stack.sizes()[0], usize::from(most));
    bench.stack.set_time(at(86_400));
    bench.run();
    assert_eq!(bench.stack.sizes()[0], usize::from(most), "for as long as they want");
    for (guest_port, token, stream, first) in connections {
        match guest_port % 2 == 0 {
            true => {
                stream.borrow_mut().has_ended = true;
                bench.stack.ready(token, Readiness::READABLE);
                bench.run();
                bench.send(&testing::tcp_at(FAR, guest_port, 443, ACK, 1002, first + 1, b""));
            }
            false => {
                drop(bench.send(&testing::tcp_at(FAR, guest_port, 443, FIN | ACK, 1001, first + 1, b"")));
            }
        }
        assert!(stream.borrow().is_closed && !stream.borrow().is_reset, "{guest_port}");
    }
    assert_eq!(bench.stack.sizes()[0], 0);
}
