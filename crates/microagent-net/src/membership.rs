//! The private networks that a guest has joined, and what a stack tells the stacks of other members.
//!
//! A *member connection* is a socket of messages from one stack to another. Its first message ([`hello`]) is the keeper's that has
//! connected it, and says which member sends there: a stack cannot claim another address, because it cannot connect. Each
//! further message ([`MemberPort::opening`]) begins one flow and comes with a socket for it.
//!
//! # The socket of a flow
//! Of TCP a stream. The stack that was called answers with one byte, [`CONNECTED`] or why not; after that both sides send
//! pieces, each with its length in four bytes before it, and a piece of no length at their end. A stream that closes
//! before that was reset, also when a stack was killed. Of UDP and ICMP messages, each with one byte before it: [`DATAGRAM`],
//! or why the first one did not arrive.

use std::net::{IpAddr, Ipv4Addr};

use microagent_model::Subnet;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::dns::local::HostEntry;
use crate::{GUEST_ADDRESS, GUEST_ADDRESS_V6};

/// Version of the messages between stacks. Another one is not understood.
pub const MEMBER_PROTOCOL: u8 = 1;

/// Bytes of a hello.
pub(crate) const HELLO_LEN: usize = 5;

/// Bytes of an opening.
pub(crate) const OPENING_LEN: usize = 5;

/// Answer to a stream: the guest has accepted the connection.
pub(crate) const CONNECTED: u8 = 0;

/// Before the bytes of a datagram.
pub(crate) const DATAGRAM: u8 = 0;

/// Answers that are errors.
const FAILURES: [(u8, Errno); 4] =
    [(1, Errno::CONNREFUSED), (2, Errno::HOSTUNREACH), (3, Errno::TIMEDOUT), (4, Errno::PERM)];

/// A private network that a guest has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The network's name.
    pub network: String,
    /// Its addresses.
    pub subnet: Subnet,
    /// The guest's address in it.
    pub address: Ipv4Addr,
    /// Names of all members with their addresses.
    pub members: Vec<HostEntry>,
}

/// A port of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberPort {
    /// The number of the network among those that the guest has joined.
    pub network: u8,
    /// The other member's address.
    pub address: Ipv4Addr,
    /// The protocol.
    pub protocol: MemberProtocol,
    /// The port that is called; zero with echoes.
    pub port: u16,
    /// The port that calls; with echoes their id.
    pub source_port: u16,
}

/// Protocols between members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberProtocol {
    /// A connection.
    Tcp,
    /// Datagrams.
    Udp,
    /// Echoes; messages begin with the ICMP header.
    Echo,
}

/// The first message of a member connection: who sends there.
pub fn hello(address: Ipv4Addr) -> [u8; HELLO_LEN] {
    let [a, b, c, d] = address.octets();
    [MEMBER_PROTOCOL, a, b, c, d]
}

/// Who sends on a member connection, as its first message says.
pub(crate) fn read_hello(message: &[u8]) -> Option<Ipv4Addr> {
    match *message {
        [MEMBER_PROTOCOL, a, b, c, d] => Some(Ipv4Addr::new(a, b, c, d)),
        _ => None,
    }
}

impl MemberPort {
    /// The message that begins a flow.
    pub(crate) fn opening(&self) -> [u8; OPENING_LEN] {
        let ([a, b], [c, d]) = (self.port.to_be_bytes(), self.source_port.to_be_bytes());
        [self.protocol as u8, a, b, c, d]
    }

    /// What a message of the member with this address begins.
    pub(crate) fn read(message: &[u8], network: u8, address: Ipv4Addr) -> Option<MemberPort> {
        let [protocol, a, b, c, d] = *message else { return None };
        let all = [MemberProtocol::Tcp, MemberProtocol::Udp, MemberProtocol::Echo];
        let protocol = all.into_iter().find(|one| *one as u8 == protocol)?;
        let (port, source_port) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let is_whole = protocol == MemberProtocol::Echo || (port != 0 && source_port != 0);
        is_whole.then_some(MemberPort { network, address, protocol, port, source_port })
    }
}

/// The byte that says what came of a flow.
pub(crate) fn outcome_byte(outcome: Result<(), Errno>) -> u8 {
    let Err(error) = outcome else { return CONNECTED };
    FAILURES.iter().find(|(_, known)| *known == error).map_or(FAILURES[0].0, |(byte, _)| *byte)
}

/// What a byte says of a flow.
pub(crate) fn outcome_of(byte: u8) -> Result<(), Errno> {
    if byte == CONNECTED {
        return Ok(());
    }
    Err(FAILURES.iter().find(|(known, _)| *known == byte).map_or(FAILURES[0].1, |(_, error)| *error))
}

/// The private networks of a guest.
#[derive(Debug, Default)]
pub(crate) struct Memberships(Vec<Membership>);

impl Memberships {
    pub(crate) fn new(all: Vec<Membership>) -> Memberships {
        Memberships(all)
    }

    /// The network that an address is in, with its number.
    pub(crate) fn of(&self, remote: IpAddr) -> Option<(u8, &Membership)> {
        let IpAddr::V4(remote) = remote else { return None };
        (0..).zip(&self.0).find(|(_, membership)| membership.subnet.contains(remote))
    }

    /// The guest's address, as the far end at `remote` has to see it.
    pub(crate) fn guest_address(&self, remote: IpAddr) -> IpAddr {
        match remote {
            IpAddr::V4(_) => {
                self.of(remote).map_or(GUEST_ADDRESS, |(_, membership)| membership.address).into()
            }
            IpAddr::V6(_) => GUEST_ADDRESS_V6.into(),
        }
    }

    /// Whether the guest has the address.
    pub(crate) fn is_guests(&self, address: Ipv4Addr) -> bool {
        address == GUEST_ADDRESS || self.0.iter().any(|membership| membership.address == address)
    }

    /// Takes the members of all networks, in place of those before.
    pub(crate) fn use_members(&mut self, all: Vec<Vec<HostEntry>>) {
        for (membership, members) in self.0.iter_mut().zip(all) {
            membership.members = members;
        }
    }

    /// Addresses of a member by its name, or by its name and the network's; `name` is in lower case. A name with a dot
    /// needs the network's: otherwise a workspace could be called as a server of the Internet.
    pub(crate) fn addresses(&self, name: &str) -> Vec<IpAddr> {
        let of = |membership: &Membership| {
            let below =
                name.strip_suffix(membership.network.as_str()).and_then(|name| name.strip_suffix('.'));
            let is_called = |called: &str| {
                !called.contains('.') && called.eq_ignore_ascii_case(name)
                    || below.is_some_and(|below| called.eq_ignore_ascii_case(below))
            };
            let members = membership.members.iter().filter(|(called, _)| is_called(called));
            members.map(|(_, address)| *address).collect::<Vec<_>>()
        };
        let mut addresses: Vec<IpAddr> = self.0.iter().flat_map(of).collect();
        addresses.dedup();
        addresses
    }

    /// The name of a member with that of the network.
    pub(crate) fn name_of(&self, address: IpAddr) -> Option<String> {
        let (_, membership) = self.of(address)?;
        let (name, _) = membership.members.iter().find(|(_, known)| *known == address)?;
        Some(format!("{}.{}", name.to_ascii_lowercase(), membership.network))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_were_written_and_nothing_else_is() {
        let address = Ipv4Addr::new(10, 210, 0, 2);
        assert_eq!(read_hello(&hello(address)), Some(address));
        for bad in [
            &[][..],
            &[MEMBER_PROTOCOL],
            &[MEMBER_PROTOCOL + 1, 1, 2, 3, 4],
            &[MEMBER_PROTOCOL, 1, 2, 3, 4, 5],
        ] {
            assert_eq!(read_hello(bad), None, "{bad:?}");
        }
        for protocol in [MemberProtocol::Tcp, MemberProtocol::Udp, MemberProtocol::Echo] {
            let port = MemberPort { network: 3, address, protocol, port: 5432, source_port: 40_001 };
            assert_eq!(MemberPort::read(&port.opening(), 3, address), Some(port));
        }
        for bad in [
            &[][..],
            &[0, 0, 80, 1],
            &[9, 0, 80, 1, 1],
            &[0, 0, 0, 1, 1],
            &[1, 0, 80, 0, 0],
            &[0, 0, 80, 1, 1, 1],
        ] {
            assert_eq!(MemberPort::read(bad, 0, address), None, "{bad:?}");
        }
    }

    #[test]
    fn outcomes_survive_and_an_unknown_one_is_a_refusal() {
        for outcome in [Ok(()), Err(Errno::CONNREFUSED), Err(Errno::HOSTUNREACH), Err(Errno::TIMEDOUT)] {
            assert_eq!(outcome_of(outcome_byte(outcome)), outcome);
        }
        assert_eq!(outcome_of(outcome_byte(Err(Errno::NOMEM))), Err(Errno::CONNREFUSED));
        assert_eq!(outcome_of(200), Err(Errno::CONNREFUSED));
    }
}
