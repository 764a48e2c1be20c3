//! Addresses and routes of IPv6, by rtnetlink: the older calls give an address only after a while in which the kernel looks
//! whether somebody else has it.
//!
//! # Source
//! `netlink(7)`, `rtnetlink(7)`; Linux `include/uapi/linux/netlink.h`, `if_addr.h` and `rtnetlink.h`.

use std::io;
use std::net::Ipv6Addr;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

// Types of messages.
const ERROR: u16 = 2;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;

/// `NLM_F_REQUEST | NLM_F_ACK | NLM_F_REPLACE | NLM_F_CREATE`.
const CREATE: u16 = 0x1 | 0x4 | 0x100 | 0x400;

/// Length of the header of a message.
const HEADER_LEN: usize = 16;

/// `AF_INET6`.
const IPV6: u8 = 10;

/// `IFA_F_NODAD`: nobody else is on the link, so the address can be used at once.
const AT_ONCE: u8 = 0x02;

// Attributes.
const ADDRESS: u16 = 1;
const INTERFACE: u16 = 4;
const GATEWAY: u16 = 5;

/// `RT_TABLE_MAIN`, `RTPROT_BOOT`, `RT_SCOPE_UNIVERSE`, `RTN_UNICAST`.
const MAIN_TABLE: u8 = 254;
const OF_BOOT: u8 = 3;
const EVERYWHERE: u8 = 0;
const UNICAST: u8 = 1;

/// Gives an interface an address of IPv6; it keeps those that it has.
pub(crate) fn add_address(interface: u32, address: Ipv6Addr, prefix_len: u8) -> io::Result<()> {
    request(&address_message(interface, address, prefix_len))
}

/// Sets the default route of IPv6.
pub(crate) fn add_default_route(interface: u32, gateway: Ipv6Addr) -> io::Result<()> {
    request(&route_message(interface, gateway))
}

fn address_message(interface: u32, address: Ipv6Addr, prefix_len: u8) -> Vec<u8> {
    let mut body = vec![IPV6, prefix_len, AT_ONCE, EVERYWHERE];
    body.extend(interface.to_ne_bytes());
    attribute(&mut body, ADDRESS, &address.octets());
    message(NEW_ADDRESS, &body)
}

fn route_message(interface: u32, gateway: Ipv6Addr) -> Vec<u8> {
    let mut body = vec![IPV6, 0, 0, 0, MAIN_TABLE, OF_BOOT, EVERYWHERE, UNICAST, 0, 0, 0, 0];
    attribute(&mut body, GATEWAY, &gateway.octets());
    attribute(&mut body, INTERFACE, &interface.to_ne_bytes());
    message(NEW_ROUTE, &body)
}

/// Adds an attribute; all values here have a length that needs no padding.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let len = 4 + value.len() as u16;
    body.extend(len.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let len = (HEADER_LEN + body.len()) as u32;
    let mut message = len.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(CREATE.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn request(message: &[u8]) -> io::Result<()> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    sendto(&socket, message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0; 1024];
    let (len, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    match outcome(&answer[..len.min(answer.len())]) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The number in an answer: zero, or that of an error below zero.
fn outcome(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(*answer.get(4..)?.first_chunk()?);
    let number = i32::from_ne_bytes(*answer.get(HEADER_LEN..)?.first_chunk()?);
    (kind == ERROR).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x15);

    #[test]
    fn messages_have_the_lengths_that_they_say() {
        for (message, kind, len) in
            [(address_message(7, OWN, 64), NEW_ADDRESS, 44), (route_message(7, OWN), NEW_ROUTE, 56)]
        {
            assert_eq!(message.len(), len);
            assert_eq!(message[..4], (len as u32).to_ne_bytes());
            assert_eq!(message[4..6], kind.to_ne_bytes());
            assert!(message.windows(16).any(|bytes| bytes == OWN.octets()));
        }
    }

    #[test]
    fn an_answer_says_what_came_of_it() {
        let answer = |kind: u16, number: i32| {
            let mut answer = message(kind, &number.to_ne_bytes());
            answer.extend([0; 16]);
            answer
        };
        assert_eq!(outcome(&answer(ERROR, 0)), Some(0));
        assert_eq!(outcome(&answer(ERROR, -13)), Some(-13));
        assert_eq!(outcome(&answer(NEW_ADDRESS, 0)), None);
        assert_eq!(outcome(&answer(ERROR, 0)[..18]), None);
        // Only root adds addresses, and there is no such interface.
        assert!(add_address(u32::MAX >> 1, OWN, 64).is_err());
    }
}
