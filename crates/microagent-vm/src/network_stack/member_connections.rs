//! Connections between stacks of members of a private network. A stack has no right to connect to anything: it asks its keeper,
//! which connects to the other member's socket, says there whose connection it is, and hands it over.
//!
//! This is all that a keeper reads of a stack: a few bytes that name a member.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use microagent_net::hello;
use microagent_store::{NetworkDir, NetworkRecord};
use rustix::io::Errno;

use super::Join;
use super::messages::{receive_message, send_message};

/// Bytes of a request: the number of the network among those joined, and an address.
const REQUEST_LEN: usize = 5;

/// Requests that are answered before the keeper looks at everything else.
const REQUESTS: usize = 64;

/// The beginning of an answer; the request follows.
const CONNECTION: u8 = b'l';

/// Bytes of an answer.
pub(super) const ANSWER_LEN: usize = 1 + REQUEST_LEN;

/// A connection that was asked for; none if nobody listens there.
pub(super) type MemberConnection = (u8, Ipv4Addr, Option<OwnedFd>);

/// Asks for a connection to a member.
///
/// # Errors
/// When the keeper does not take it now.
pub(super) fn request(keeper: &OwnedFd, network: u8, address: Ipv4Addr) -> io::Result<()> {
    let [a, b, c, d] = address.octets();
    send_message(keeper, &[network, a, b, c, d], &[])
}

/// What an answer of the keeper says.
pub(super) fn read_answer(message: &[u8], descriptors: Vec<OwnedFd>) -> Option<MemberConnection> {
    let [CONNECTION, network, a, b, c, d] = *message else { return None };
    Some((network, Ipv4Addr::new(a, b, c, d), descriptors.into_iter().next()))
}

/// Answers what a stack has asked; false when it asks no more. An answer that the stack does not take is lost.
pub(super) fn serve_requests(stack: BorrowedFd<'_>, joins: &[Join]) -> bool {
    for _ in 0..REQUESTS {
        let mut message = [0; REQUEST_LEN + 1];
        let (len, _) = match receive_message(stack, &mut message) {
            Ok(received) => received,
            Err(Errno::INTR) => continue,
            Err(error) => return error == Errno::AGAIN,
        };
        let [network, a, b, c, d] = message[..len] else { return false };
        let connection =
            joins.get(usize::from(network)).and_then(|join| connect(join, Ipv4Addr::new(a, b, c, d)).ok());
        let answer = [CONNECTION, network, a, b, c, d];
        let _ = send_message(stack, &answer, connection.as_ref().map(AsFd::as_fd).as_slice());
    }
    true
}

/// Connects to a member and says there who sends.
fn connect(join: &Join, address: Ipv4Addr) -> io::Result<OwnedFd> {
    let joined = &join.membership;
    if !joined.subnet.has_member(address) || address == joined.address {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let dir = NetworkDir::at(&join.dir);
    let record = NetworkRecord::load(&dir).map_err(io::Error::other)?;
    // In a network of the same name that was created later the address may be another workspace's.
    if record.created_at != join.created_at {
        return Err(io::ErrorKind::NotFound.into());
    }
    let connection = dir.connect(address)?;
    send_message(&connection, &hello(joined.address), &[])?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use microagent_model::NetworkName;
    use microagent_net::Membership;
    use microagent_store::{NETWORK_FORMAT, StateDir};

    use super::*;
    use crate::network_stack::messages::message_pair;

    #[test]
    fn a_stack_gets_connections_of_its_own_address_to_members_of_its_networks_only() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path());
        state.prepare().unwrap();
        let name: NetworkName = "backend".parse().unwrap();
        let subnet: microagent_model::Subnet = "10.210.0.0/24".parse().unwrap();
        let record = NetworkRecord {
            format: NETWORK_FORMAT,
            name: name.clone(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
            subnet,
            members: Default::default(),
        };
        let network = state.create_network(&record).unwrap();
        let [own, other, dead] = [2, 3, 4].map(|last| Ipv4Addr::new(10, 210, 0, last));
        let membership = Membership { network: name.to_string(), subnet, address: own, members: Vec::new() };
        let joins = [Join { membership, dir: network.path().to_owned(), created_at: record.created_at }];
        let listener = network.listen(other).unwrap();
        drop(network.listen(dead).unwrap());

        let (stack, keeper) = message_pair().unwrap();
        let outside = Ipv4Addr::new(10, 211, 0, 3);
        for (number, address) in [(0, other), (0, dead), (0, own), (0, outside), (1, other)] {
            request(&stack, number, address).unwrap();
            assert!(serve_requests(keeper.as_fd(), &joins));
            let mut message = [0; ANSWER_LEN];
            let (len, descriptors) = receive_message(&stack, &mut message).unwrap();
            let (answered, asked, connection) = read_answer(&message[..len], descriptors).unwrap();
            assert_eq!((answered, asked), (number, address));
            assert_eq!(connection.is_some(), (number, address) == (0, other), "{number} {address}");
        }
        let connection = rustix::net::accept(&listener).unwrap();
        let later = [Join { created_at: jiff::Timestamp::MAX, ..joins[0].clone() }];
        request(&stack, 0, other).unwrap();
        assert!(serve_requests(keeper.as_fd(), &later));
        let mut answer = [0; ANSWER_LEN];
        assert!(receive_message(&stack, &mut answer).unwrap().1.is_empty(), "another network of its name");
        let mut message = [0; 16];
        let (len, _) = receive_message(&connection, &mut message).unwrap();
        assert_eq!(message[..len], hello(own));
        // Nonsense is not answered, and whoever says it is not heard any more.
        rustix::net::send(&stack, &[9; 40], rustix::net::SendFlags::empty()).unwrap();
        assert!(!serve_requests(keeper.as_fd(), &joins));
        assert_eq!(receive_message(&stack, &mut message).unwrap_err(), Errno::AGAIN);
    }
}
