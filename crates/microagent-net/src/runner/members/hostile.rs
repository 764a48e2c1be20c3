//! Whatever the stack of another member sends: it is understood as a second, simple reading of the same bytes says.

use std::io::Write;
use std::os::unix::net::UnixStream;

use super::*;

const SENDER: Ipv4Addr = Ipv4Addr::new(10, 210, 0, 2);

/// Takes bytes as a message on a connection, as the pieces of a stream, and as a datagram.
///
/// # Panics
/// When one is read as something else.
pub(crate) fn drive(bytes: &[u8]) {
    let (choice, rest) = bytes.split_first().unwrap_or((&0, &[]));
    on_a_connection(*choice, rest);
    in_a_stream(rest);
    as_a_datagram(rest);
}

/// A message of any bytes, with descriptors of any kind.
fn on_a_connection(choice: u8, message: &[u8]) {
    let pair = |kind| socketpair(AddressFamily::UNIX, kind, FLAGS, None).expect("a pair of sockets");
    let (ours, theirs) = pair(SocketType::SEQPACKET);
    let kinds = [SocketType::STREAM, SocketType::SEQPACKET, SocketType::DGRAM];
    let sockets = kinds.map(|kind| pair(kind).0);
    let chosen = sockets.iter().enumerate().filter(|(at, _)| choice & (1 << at) != 0);
    let rights: Vec<_> = chosen.map(|(_, socket)| socket.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !rights.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&rights)));
    }
    let message = &message[..message.len().min(64)];
    if sendmsg(&ours, &[IoSlice::new(message)], &mut ancillary, SEND).is_err() {
        return;
    }
    let sender = (choice & 0x80 != 0).then_some(SENDER);
    match take(&theirs, 1, sender) {
        Taken::Nothing => panic!("nothing was taken"),
        Taken::Hello(address) => {
            assert_eq!((sender, message), (None, crate::membership::hello(address).as_slice()));
        }
        Taken::Flow(from, socket) => {
            assert_eq!((sender, from.address, from.network), (Some(SENDER), SENDER, 1));
            assert_eq!(message, from.opening());
            let is_stream = socket_type(&socket) == Ok(SocketType::STREAM);
            let kind = if is_stream { 1 } else { 2 };
            assert_eq!((choice & 7, is_stream), (kind, from.protocol == MemberProtocol::Tcp));
        }
        Taken::Nonsense | Taken::End => {}
    }
    assert!(matches!(take(&theirs, 1, sender), Taken::Nothing), "it was one message");
}

/// The answer of a member that was called, and what it sends then.
fn in_a_stream(bytes: &[u8]) {
    let (mut theirs, ours) = UnixStream::pair().expect("a pair of sockets");
    // All of it is there at once: it fits the socket's buffer.
    let bytes = &bytes[..bytes.len().min(16 * 1024)];
    theirs.write_all(bytes).expect("room");
    drop(theirs);
    let stream = MemberStream::new(ours.into());
    let Some((outcome, pieces)) = bytes.split_first() else {
        assert_eq!(stream.connected(), Err(Errno::CONNREFUSED));
        return;
    };
    assert_eq!(stream.connected(), outcome_of(*outcome));
    let (expected, has_end) = read_pieces(pieces);
    let (mut content, mut buffer) = (Vec::new(), [0; 700]);
    let end = loop {
        match stream.receive(&mut buffer) {
            Ok(0) => break true,
            Ok(count) => content.extend_from_slice(&buffer[..count]),
            Err(error) => {
                assert_eq!(error, Errno::CONNRESET);
                break false;
            }
        }
    };
    assert_eq!((content, end), (expected, has_end));
}

/// What is in pieces, and whether they have an end.
fn read_pieces(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut content = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<LENGTH_LEN>() {
        let length = u32::from_be_bytes(*length) as usize;
        if length == 0 {
            return (content, true);
        }
        let (piece, after) = after.split_at(length.min(after.len()));
        content.extend_from_slice(piece);
        rest = after;
    }
    (content, false)
}

fn as_a_datagram(bytes: &[u8]) {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None).expect("a pair of sockets");
    let bytes = &bytes[..bytes.len().min(16 * 1024)];
    send(&ours, bytes, SEND).expect("room");
    let mut buffer = vec![0; 16 * 1024];
    let received = MemberDatagrams(theirs).receive(&mut buffer);
    let expected = match bytes.split_first() {
        None => Err(Errno::PIPE),
        Some((kind, content)) => outcome_of(*kind).map(|()| content.len()),
    };
    assert_eq!(received, expected);
    if let (Ok(count), Some((_, content))) = (received, bytes.split_first()) {
        assert_eq!(buffer[..count], *content);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_a_member_sends_is_understood_as_it_is_written(
            choice in any::<u8>(),
            message in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                prop::collection::vec(0u8..4, 0..40),
                (0u8..4, any::<[u8; 4]>()).prop_map(|(first, rest)| [&[first][..], &rest].concat()),
            ],
        ) {
            drive(&[&[choice], message.as_slice()].concat());
        }
    }
}
