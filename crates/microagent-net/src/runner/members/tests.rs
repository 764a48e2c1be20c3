//! Connections and flows with real sockets, between two stacks and from a member that lies.

use std::os::fd::AsRawFd;

use rustix::net::{SocketAddrUnix, bind, connect, listen, socket_with};

use super::*;
use crate::membership::hello;

const NETWORK: u8 = 0;
const A: Ipv4Addr = Ipv4Addr::new(10, 210, 0, 2);
const B: Ipv4Addr = Ipv4Addr::new(10, 210, 0, 3);

fn to_b(protocol: MemberProtocol) -> MemberPort {
    MemberPort { network: NETWORK, address: B, protocol, port: 80, source_port: 40_000 }
}

fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, kind, FLAGS, None).unwrap()
}

/// A connection from A to B whose first message B has taken.
fn connection() -> (OwnedFd, OwnedFd) {
    let (ours, theirs) = pair(SocketType::SEQPACKET);
    send(&ours, &hello(A), SEND).unwrap();
    assert!(matches!(take(&theirs, NETWORK, None), Taken::Hello(A)));
    (ours, theirs)
}

fn taken(connection: &OwnedFd) -> Option<(MemberPort, OwnedFd)> {
    match take(connection, NETWORK, Some(A)) {
        Taken::Flow(from, socket) => Some((from, socket)),
        _ => None,
    }
}

/// Both ends of a stream.
fn streams() -> (MemberStream, MemberStream) {
    let (one, other) = pair(SocketType::STREAM);
    (MemberStream::new(one), MemberStream::new(other))
}

#[test]
fn flows_wait_for_their_line_and_arrive_in_order() {
    let mut connections = OutgoingConnections::default();
    let first = MemberStream::new(connections.begin(to_b(MemberProtocol::Tcp)).unwrap());
    let second = connections.begin(to_b(MemberProtocol::Udp)).unwrap();
    assert_eq!(connections.take_wanted(), [(NETWORK, B)]);
    assert!(connections.take_wanted().is_empty());
    assert_eq!(first.connected(), Err(Errno::AGAIN));
    let (ours, theirs) = connection();
    connections.take(NETWORK, B, Some(ours));
    let (from, socket) = taken(&theirs).unwrap();
    assert_eq!((from.address, from.protocol, from.port), (A, MemberProtocol::Tcp, 80));
    MemberStream::new(socket).answer(Ok(()));
    assert_eq!(first.connected(), Ok(()));
    let (from, socket) = taken(&theirs).unwrap();
    assert_eq!(from.protocol, MemberProtocol::Udp);
    let (ours, theirs_datagrams) = (MemberDatagrams(second), MemberDatagrams(socket));
    let mut buffer = [0; 100];
    for message in [&b"question"[..], b""] {
        ours.send(message).unwrap();
        assert_eq!(theirs_datagrams.receive(&mut buffer), Ok(message.len()));
    }
    assert_eq!(theirs_datagrams.receive(&mut buffer), Err(Errno::AGAIN));
    drop(ours);
    assert_eq!(theirs_datagrams.receive(&mut buffer), Err(Errno::PIPE));
    assert_eq!(theirs_datagrams.send(b"late"), Err(Errno::PIPE));
    // Later flows need no new connection.
    connections.begin(to_b(MemberProtocol::Tcp)).unwrap();
    assert!(taken(&theirs).is_some() && connections.take_wanted().is_empty());
}

#[test]
fn a_member_that_is_not_there_refuses_at_once_and_is_asked_for_again() {
    let mut connections = OutgoingConnections::default();
    let stream = MemberStream::new(connections.begin(to_b(MemberProtocol::Tcp)).unwrap());
    let datagrams = MemberDatagrams(connections.begin(to_b(MemberProtocol::Udp)).unwrap());
    connections.take_wanted();
    connections.take(NETWORK, B, None);
    assert_eq!(stream.connected(), Err(Errno::CONNREFUSED));
    let mut buffer = [0; 8];
    assert_eq!(datagrams.receive(&mut buffer), Err(Errno::CONNREFUSED));
    assert_eq!(datagrams.receive(&mut buffer), Err(Errno::PIPE));
    // Its stack was started anew: the old connection is dead.
    connections.begin(to_b(MemberProtocol::Tcp)).unwrap();
    let (ours, theirs) = connection();
    connections.take(NETWORK, B, Some(ours));
    drop(theirs);
    connections.take_wanted();
    connections.begin(to_b(MemberProtocol::Tcp)).unwrap();
    assert_eq!(connections.take_wanted(), [(NETWORK, B)]);
}

#[test]
fn what_waits_for_lines_is_limited() {
    let mut connections = OutgoingConnections::default();
    for last in 0..ASKED_MAX {
        let address = Ipv4Addr::from_bits(B.to_bits() + last as u32);
        connections.begin(MemberPort { address, ..to_b(MemberProtocol::Tcp) }).unwrap();
    }
    let one_more = MemberPort { address: Ipv4Addr::new(10, 210, 9, 9), ..to_b(MemberProtocol::Tcp) };
    assert_eq!(connections.begin(one_more).unwrap_err(), Errno::CONNREFUSED);
    let begin = |connections: &mut OutgoingConnections| {
        MemberStream::new(connections.begin(to_b(MemberProtocol::Tcp)).unwrap())
    };
    let waiting: Vec<MemberStream> = (1..WAITING_MAX).map(|_| begin(&mut connections)).collect();
    connections.take_wanted();
    // Nothing came of the question: it is asked again, and who waits is told.
    let next = begin(&mut connections);
    assert_eq!(connections.take_wanted(), [(NETWORK, B)]);
    assert!(waiting.iter().all(|stream| stream.connected() == Err(Errno::CONNREFUSED)));
    assert_eq!(next.connected(), Err(Errno::AGAIN));
}

#[test]
fn a_stream_has_halves_and_a_close_before_the_end_is_a_reset() {
    let (ours, theirs) = streams();
    let mut buffer = vec![0; 1 << 20];
    assert_eq!(ours.send(b"hello"), Ok(5));
    assert_eq!(theirs.receive(&mut buffer[..3]), Ok(3));
    assert_eq!(theirs.receive(&mut buffer[3..]), Ok(2));
    assert_eq!(&buffer[..5], b"hello");
    ours.shut_down();
    assert!(ours.flush());
    assert_eq!(theirs.receive(&mut buffer), Ok(0));
    assert_eq!(theirs.send(b"back"), Ok(4));
    assert_eq!(ours.receive(&mut buffer), Ok(4));
    drop(theirs);
    assert_eq!(ours.receive(&mut buffer), Err(Errno::CONNRESET));
    let (ours, theirs) = streams();
    // In the middle of a piece, too.
    send(&ours.socket, &[0, 0, 0, 9, 1, 2], SEND).unwrap();
    drop(ours);
    assert_eq!(theirs.receive(&mut buffer), Ok(2));
    assert_eq!(theirs.receive(&mut buffer), Err(Errno::CONNRESET));
}

#[test]
fn a_stream_takes_what_there_is_room_for_and_all_of_it_arrives() {
    let (ours, theirs) = streams();
    let data: Vec<u8> = (0..3_000_000_u32).map(|number| (number / 7) as u8).collect();
    let (mut sent, mut received, mut piece) = (0, Vec::new(), vec![0; 50_000]);
    let mut has_waited = false;
    let mut is_shut_down = false;
    loop {
        if sent < data.len() {
            // Until there is no room.
            match ours.send(&data[sent..data.len().min(sent + 131_072)]) {
                Ok(count) => {
                    sent += count;
                    continue;
                }
                Err(error) => assert_eq!(error, Errno::AGAIN),
            }
            has_waited = true;
        } else if !is_shut_down {
            ours.shut_down();
            is_shut_down = true;
        } else {
            ours.flush();
        }
        match theirs.receive(&mut piece) {
            Ok(0) => break,
            Ok(count) => received.extend_from_slice(&piece[..count]),
            Err(error) => assert_eq!(error, Errno::AGAIN),
        }
    }
    assert!(has_waited && ours.flush());
    assert!(received == data);
}

#[test]
fn an_end_waits_for_room() {
    let (ours, theirs) = streams();
    while ours.send(&[7; 65_536]).is_ok() {}
    // The last piece is whole before the end comes.
    let owed = ours.owed.get();
    ours.owed.set(0);
    ours.shut_down();
    let was_full = !ours.flush();
    let mut buffer = vec![0; 1 << 20];
    while theirs.receive_some(&mut buffer).is_ok() {}
    assert!(ours.flush());
    assert!(was_full || owed == 0);
}

#[test]
fn what_lies_on_a_line_ends_it() {
    for message in [&hello(A)[..], &[9, 0, 80, 1, 1], &[0; 16]] {
        let (ours, theirs) = connection();
        send(&ours, message, SEND).unwrap();
        assert!(matches!(take(&theirs, NETWORK, Some(A)), Taken::Nonsense), "{message:?}");
    }
    let (ours, theirs) = pair(SocketType::SEQPACKET);
    send(&ours, b"hello", SEND).unwrap();
    assert!(matches!(take(&theirs, NETWORK, None), Taken::Nonsense));
    let (ours, theirs) = connection();
    drop(ours);
    assert!(matches!(take(&theirs, NETWORK, Some(A)), Taken::End));
}

#[test]
fn only_a_socket_of_the_right_kind_is_a_flow() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp: OwnedFd = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap().into();
    let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let (datagrams, _) = pair(SocketType::DGRAM);
    let (messages, _) = pair(SocketType::SEQPACKET);
    for wrong in [tcp, file, datagrams, messages] {
        let (ours, theirs) = connection();
        let flow = WaitingFlow { opening: to_b(MemberProtocol::Tcp).opening(), theirs: wrong };
        pass(&ours, &flow).unwrap();
        assert!(taken(&theirs).is_none(), "descriptor {}", flow.theirs.as_raw_fd());
    }
    // Several at once are refused.
    let (ours, theirs) = connection();
    let (one, other) = pair(SocketType::STREAM);
    let rights = [one.as_fd(), other.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&rights));
    let opening = to_b(MemberProtocol::Tcp).opening();
    sendmsg(&ours, &[IoSlice::new(&opening)], &mut ancillary, SEND).unwrap();
    assert!(taken(&theirs).is_none());
    // So is a message without one.
    let (ours, theirs) = connection();
    send(&ours, &opening, SEND).unwrap();
    assert!(taken(&theirs).is_none());
}

#[test]
fn nothing_waits_for_a_socket_that_says_it_would() {
    let (ours, theirs) = streams();
    for stream in [&ours, &theirs] {
        rustix::io::ioctl_fionbio(stream.socket(), false).unwrap();
    }
    let mut buffer = [0; 8];
    assert_eq!(theirs.connected(), Err(Errno::AGAIN));
    assert_eq!(theirs.receive(&mut buffer), Err(Errno::AGAIN));
    while ours.send(&[0; 65_536]).is_ok() {}
    assert_eq!(ours.send(&[0; 65_536]), Err(Errno::AGAIN));
}

#[test]
fn a_line_that_does_not_say_whose_it_is_is_closed() {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = SocketAddrUnix::new(dir.path().join("b")).unwrap();
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None).unwrap();
    bind(&listener, &path).unwrap();
    listen(&listener, 8).unwrap();
    let subnet: Subnet = "10.210.0.0/24".parse().unwrap();
    let mut connections = IncomingConnections::new(&epoll, 1 << 59, vec![(listener, subnet, B)]).unwrap();
    let member = |connections: &mut IncomingConnections| {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None).unwrap();
        connect(&socket, &path).unwrap();
        connections.listeners[0].is_ready = true;
        connections.accept(0, &epoll, 1 << 58, Duration::ZERO);
        let number = connections.last_number;
        (socket, number)
    };
    let (known, known_number) = member(&mut connections);
    let (silent, silent_number) = member(&mut connections);
    let (liar, liar_number) = member(&mut connections);
    send(&known, &hello(A), SEND).unwrap();
    // Nobody is the guest itself, or outside of the network.
    send(&liar, &hello(B), SEND).unwrap();
    let mut stack = crate::runner::tests_stack(&epoll);
    for number in [known_number, silent_number, liar_number] {
        connections.attend_connection(number, Duration::from_secs(1), &mut stack);
    }
    assert_eq!(connections.connections.keys().copied().collect::<Vec<_>>(), [known_number, silent_number]);
    assert_eq!(connections.deadline(), Some(HELLO));
    connections.attend_connection(silent_number, HELLO, &mut stack);
    assert_eq!(connections.connections.keys().copied().collect::<Vec<_>>(), [known_number]);
    assert!(connections.deadline().is_none());
    // Another connection of the same member takes the first one's place.
    let (again, again_number) = member(&mut connections);
    send(&again, &hello(A), SEND).unwrap();
    connections.attend_connection(again_number, HELLO, &mut stack);
    assert_eq!(connections.connections.keys().copied().collect::<Vec<_>>(), [again_number]);
    let mut byte = [0; 8];
    assert_eq!(recv(&silent, &mut byte[..], RecvFlags::DONTWAIT).unwrap().0, 0);
}
