//! Resets the connections of a machine that has become another one: nobody is at their other end any more.
//!
//! # Source
//! `sock_diag(7)`; `inet_diag.h` and `SOCK_DESTROY` of the kernel.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

/// Message types and flags of netlink.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;

/// Lengths of a netlink header, of what identifies a socket, and of what comes before that in an answer.
const HEADER: usize = 16;
const SOCKET: usize = 48;
const BEFORE_SOCKET: usize = 4;

/// Families of addresses, and TCP.
const FAMILIES: [u8; 2] = [2, 10];
const TCP: u8 = 6;

/// States of a connection that exists: established, SYN sent and received, FIN waits, CLOSE wait, LAST ACK, closing.
const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// Most connections that are reset, and most answers that are read.
const CONNECTIONS_MAX: usize = 65_536;
const ANSWERS_MAX: usize = 65_536;

/// Bytes of one answer of the kernel.
const ANSWER_BYTES: usize = 32 * 1024;

/// Resets all TCP connections of the guest that leave it; what programs have with each other stays.
///
/// # Errors
/// Fails when the kernel does not list them.
pub(crate) fn reset_connections() -> io::Result<()> {
    let kernel =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?;
    for family in FAMILIES {
        for id in connections(&kernel, family)? {
            if !is_local(family, &id) {
                send(&kernel, &message(SOCK_DESTROY, NLM_F_ACK, family, &id), SendFlags::empty())?;
                // One that has ended meanwhile is refused.
                let _ = recv(&kernel, &mut [0; 1024][..], RecvFlags::empty())?;
            }
        }
    }
    Ok(())
}

/// A request about sockets of TCP.
fn message(kind: u16, flags: u16, family: u8, id: &[u8; SOCKET]) -> Vec<u8> {
    let body = [&[family, TCP, 0, 0], &CONNECTED.to_ne_bytes()[..], id].concat();
    let length = u32::try_from(HEADER + body.len()).expect("it is short");
    let header =
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &(NLM_F_REQUEST | flags).to_ne_bytes(), &[0; 8]]
            .concat();
    [header, body].concat()
}

fn connections(kernel: &OwnedFd, family: u8) -> io::Result<Vec<[u8; SOCKET]>> {
    send(kernel, &message(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, &[0; SOCKET]), SendFlags::empty())?;
    let mut found = Vec::new();
    let mut buffer = vec![0; ANSWER_BYTES];
    for _ in 0..ANSWERS_MAX {
        let count = match recv(kernel.as_fd(), &mut buffer[..], RecvFlags::empty()) {
            Ok((count, _)) => count,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        if !take(&buffer[..count.min(ANSWER_BYTES)], &mut found)? || found.len() >= CONNECTIONS_MAX {
            break;
        }
    }
    Ok(found)
}

/// Takes the sockets of one answer; whether another one follows.
fn take(mut answer: &[u8], found: &mut Vec<[u8; SOCKET]>) -> io::Result<bool> {
    while let Some(header) = answer.first_chunk::<HEADER>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let Some(body) = answer.get(HEADER..length) else { break };
        match kind {
            NLMSG_DONE => return Ok(false),
            NLMSG_ERROR => return Err(io::Error::other("the kernel does not list its connections")),
            _ => {}
        }
        if let Some(id) = body.get(BEFORE_SOCKET..).and_then(|rest| rest.first_chunk::<SOCKET>()) {
            found.push(*id);
        }
        answer = answer.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

/// Whether both ends are in the guest: the destination is a loopback address.
fn is_local(family: u8, id: &[u8; SOCKET]) -> bool {
    let destination = &id[20..36];
    match family {
        2 => destination[0] == 127,
        _ => {
            let (prefix, last) = destination.split_at(12);
            let is_mapped = prefix == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
            destination == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1] || (is_mapped && last[0] == 127)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_within_the_guest_are_its_own() {
        let to = |family, address: &[u8]| {
            let mut id = [0; SOCKET];
            id[20..20 + address.len()].copy_from_slice(address);
            is_local(family, &id)
        };
        assert!(to(2, &[127, 0, 0, 1]));
        assert!(!to(2, &[10, 0, 2, 2]));
        assert!(to(10, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]));
        assert!(to(10, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1]));
        assert!(!to(10, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 2, 2]));
    }

    #[test]
    fn an_answer_that_is_cut_off_has_no_socket() {
        let mut found = Vec::new();
        let whole = message(SOCK_DIAG_BY_FAMILY, 0, 2, &[7; SOCKET]);
        assert!(take(&whole, &mut found).unwrap());
        assert_eq!(found.len(), 1);
        for length in 0..whole.len() {
            assert!(take(&whole[..length], &mut found).unwrap());
        }
        assert_eq!(found.len(), 1);
    }
}
