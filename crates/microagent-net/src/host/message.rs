//! Messages of rtnetlink: requests for all routes and interfaces, and their answers. Pure.
//!
//! # Source
//! `netlink(7)`, `rtnetlink(7)`; Linux `include/uapi/linux/netlink.h`, `rtnetlink.h` and `if_link.h`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Network, Route, RouteKind};

/// Length of the header of a message.
const HEADER_LEN: usize = 16;
/// Length of `struct rtmsg`, and of `struct ifinfomsg`.
const ROUTE_LEN: usize = 12;
const INTERFACE_LEN: usize = 16;

// Types of messages.
const ERROR: u16 = 2;
const DONE: u16 = 3;
const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;

/// `NLM_F_REQUEST | NLM_F_DUMP`: everything there is.
const REQUEST_ALL: u16 = 0x301;
/// `NLM_F_DUMP_INTR`: the table changed while it was read.
const INTERRUPTED: u16 = 0x10;

/// `AF_INET` and `AF_INET6`.
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// `IFF_POINTOPOINT`.
const POINT_TO_POINT: u32 = 0x10;

// Attributes of a route.
const DESTINATION: u16 = 1;
const INTERFACE: u16 = 4;
const GATEWAY: u16 = 5;
const TABLE: u16 = 15;
const VIA: u16 = 18;

/// What all of is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    Routes,
    RoutesV6,
    Interfaces,
}

/// What an answer says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Route(Route),
    Interface {
        number: u32,
        is_point_to_point: bool,
    },
    /// There is no more.
    Done,
    /// The kernel refuses, with this number of an error.
    Error(i32),
}

/// A request.
pub(super) fn request(subject: Subject) -> Vec<u8> {
    let (kind, family, body_len) = match subject {
        Subject::Routes => (GET_ROUTE, IPV4, ROUTE_LEN),
        Subject::RoutesV6 => (GET_ROUTE, IPV6, ROUTE_LEN),
        Subject::Interfaces => (GET_LINK, 0, INTERFACE_LEN),
    };
    let len = HEADER_LEN + body_len;
    let mut message = Vec::with_capacity(len);
    message.extend(u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(REQUEST_ALL.to_ne_bytes());
    message.extend([0; 8]);
    message.push(family);
    message.resize(len, 0);
    message
}

/// The answers in what was received at once, each with whether the table changed meanwhile; what is of another kind is
/// left out.
pub(super) fn answers(received: &[u8]) -> impl Iterator<Item = (Answer, bool)> {
    Parts { left: received, header: Header::Message }.filter_map(|(kind, flags, body)| {
        let answer = match kind {
            DONE => Answer::Done,
            ERROR => Answer::Error(i32::from_ne_bytes(*body.first_chunk()?).saturating_neg()),
            NEW_ROUTE => Answer::Route(route(body)?),
            NEW_LINK => interface(body)?,
            _ => return None,
        };
        Some((answer, flags & INTERRUPTED != 0))
    })
}

fn interface(body: &[u8]) -> Option<Answer> {
    let number = |at: usize| Some(u32::from_ne_bytes(*body.get(at..)?.first_chunk()?));
    Some(Answer::Interface { number: number(4)?, is_point_to_point: number(8)? & POINT_TO_POINT != 0 })
}

fn route(body: &[u8]) -> Option<Route> {
    let (header, attributes) = body.split_at_checked(ROUTE_LEN)?;
    let &[family, bits, _, _, table, protocol, _, kind, ..] = header else { return None };
    let everything: IpAddr = match family {
        IPV4 => Ipv4Addr::UNSPECIFIED.into(),
        IPV6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut route = Route {
        table: table.into(),
        destination: Network::new(everything, bits)?,
        kind: route_kind(kind),
        interface: None,
        is_on_link: true,
        is_of_address: protocol == PROTOCOL_KERNEL,
    };
    for (kind, _, value) in (Parts { left: attributes, header: Header::Attribute }) {
        let number = value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        match kind {
            DESTINATION => {
                let address: IpAddr = match family {
                    IPV4 => (*value.first_chunk::<4>()?).into(),
                    _ => (*value.first_chunk::<16>()?).into(),
                };
                route.destination = Network::new(address, bits)?;
            }
            INTERFACE => route.interface = number,
            TABLE => route.table = number?,
            GATEWAY | VIA => route.is_on_link = false,
            _ => {}
        }
    }
    Some(route)
}

/// `RTPROT_KERNEL`.
const PROTOCOL_KERNEL: u8 = 2;

fn route_kind(kind: u8) -> RouteKind {
    match kind {
        1 => RouteKind::Sent,
        // `local`, `broadcast`, `anycast`.
        2..=4 => RouteKind::Delivered,
        _ => RouteKind::Other,
    }
}

/// The form of what begins a part.
#[derive(Clone, Copy)]
enum Header {
    Message,
    Attribute,
}

/// Parts that begin with their length and are aligned to four bytes: messages, and attributes of one.
struct Parts<'a> {
    left: &'a [u8],
    header: Header,
}

impl<'a> Iterator for Parts<'a> {
    /// Type, flags (of a message) and content.
    type Item = (u16, u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let half = |at: usize| Some(u16::from_ne_bytes(*self.left.get(at..)?.first_chunk()?));
        let (header_len, len, kind, flags) = match self.header {
            Header::Message => {
                let len = u32::from_ne_bytes(*self.left.first_chunk()?) as usize;
                (HEADER_LEN, len, half(4)?, half(6)?)
            }
            // The two highest bits of an attribute's type are marks.
            Header::Attribute => (4, half(0)?.into(), half(2)? & 0x3fff, 0),
        };
        let content = self.left.get(header_len..len)?;
        self.left = self.left.get(len.checked_next_multiple_of(4)?..).unwrap_or_default();
        Some((kind, flags, content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(header: &[u8], content: &[u8]) -> Vec<u8> {
        let mut part = [header, content].concat();
        part.resize(part.len().next_multiple_of(4), 0);
        part
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let len = u16::try_from(4 + value.len()).unwrap();
        part(&[len.to_ne_bytes(), kind.to_ne_bytes()].concat(), value)
    }

    fn message(kind: u16, flags: u16, content: &[u8]) -> Vec<u8> {
        let len = u32::try_from(HEADER_LEN + content.len()).unwrap();
        let header = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8]].concat();
        part(&header, content)
    }

    fn route_message(header: [u8; ROUTE_LEN], attributes: &[Vec<u8>]) -> Vec<u8> {
        message(NEW_ROUTE, 2, &[&header[..], &attributes.concat()].concat())
    }

    #[test]
    fn routes_and_interfaces_are_read_and_the_rest_is_left_out() {
        let local = [IPV4, 24, 0, 0, 255, 2, 254, 2, 0, 0, 0, 0];
        let sent = [IPV4, 0, 0, 0, 252, 3, 0, 1, 0, 0, 0, 0];
        let received = [
            route_message(
                local,
                &[attribute(DESTINATION, &[198, 18, 7, 0]), attribute(INTERFACE, &1_u32.to_ne_bytes())],
            ),
            // MPLS, and a kind of message that is not known.
            route_message([28, 24, 0, 0, 255, 2, 254, 2, 0, 0, 0, 0], &[]),
            message(99, 0, &[1, 2, 3]),
            route_message(
                sent,
                &[attribute(TABLE, &1000_u32.to_ne_bytes()), attribute(GATEWAY, &[192, 0, 2, 1])],
            ),
            route_message(
                [IPV6, 64, 0, 0, 254, 2, 0, 1, 0, 0, 0, 0],
                &[attribute(DESTINATION, &[0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])],
            ),
            message(NEW_LINK, 2, &[[0; 4], 7_u32.to_ne_bytes(), 0x11_u32.to_ne_bytes(), [0; 4]].concat()),
            message(DONE, 2, &[0; 4]),
        ]
        .concat();
        let network = |base: [u8; 4], bits| Network::new(IpAddr::from(base), bits).unwrap();
        let local = Route {
            table: 255,
            destination: network([198, 18, 7, 0], 24),
            kind: RouteKind::Delivered,
            interface: Some(1),
            is_on_link: true,
            is_of_address: true,
        };
        let sent = Route {
            table: 1000,
            destination: network([0; 4], 0),
            kind: RouteKind::Sent,
            interface: None,
            is_on_link: false,
            is_of_address: false,
        };
        let on_link = Route {
            table: 254,
            destination: Network::new("2001:db8:1::".parse().unwrap(), 64).unwrap(),
            is_on_link: true,
            is_of_address: true,
            ..sent
        };
        assert_eq!(
            answers(&received).map(|(answer, _)| answer).collect::<Vec<_>>(),
            [
                Answer::Route(local),
                Answer::Route(sent),
                Answer::Route(on_link),
                Answer::Interface { number: 7, is_point_to_point: true },
                Answer::Done
            ]
        );
        for len in 0..received.len() {
            assert!(answers(&received[..len]).count() < 5, "cut at {len}");
        }
    }

    #[test]
    fn refusals_and_changes_while_reading_are_seen() {
        let refused = message(ERROR, 0, &(-1_i32).to_ne_bytes());
        assert_eq!(answers(&refused).collect::<Vec<_>>(), [(Answer::Error(1), false)]);
        let interrupted = message(DONE, INTERRUPTED, &[0; 4]);
        assert_eq!(answers(&interrupted).collect::<Vec<_>>(), [(Answer::Done, true)]);
    }
}
