//! Asks the kernel for the host's routes, by rtnetlink.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with,
};

use super::HostAddresses;
use super::message::{Answer, Subject, answers, request};

/// Longest answer that the kernel gives at once is 32 KiB.
///
/// # Source
/// Linux `net/netlink/af_netlink.c`, `netlink_dump`.
const RECEIVE_LEN: usize = 64 * 1024;

/// The kernel answers at once.
const DEADLINE: Duration = Duration::from_secs(10);

/// How often a table is read again that changes meanwhile.
const ATTEMPTS: u32 = 8;

/// Most networks that count. The host's whole routing table may be larger.
const NETWORKS_MAX: usize = 16 * 1024;

/// What is heard of: interfaces, their addresses, routes.
///
/// # Source
/// Linux `include/uapi/linux/rtnetlink.h`, `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV6_IFADDR`
/// and `RTMGRP_IPV6_ROUTE`.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// Messages about changes that are read at once. What is left is a change at the next look.
const CHANGES_MAX: usize = 1024;

/// Hears of changes of what [`HostAddresses`] are made of.
#[derive(Debug)]
pub struct HostWatch(OwnedFd);

impl HostWatch {
    /// Hears of changes from here on.
    ///
    /// # Errors
    /// When the kernel does not tell of them.
    pub fn new() -> io::Result<HostWatch> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        Ok(HostWatch(socket))
    }

    /// Whether something has changed since the last call.
    pub fn has_changed(&self) -> bool {
        let mut has_changed = false;
        let mut start = [0; 64];
        for _ in 0..CHANGES_MAX {
            match recv(&self.0, &mut start[..], RecvFlags::TRUNC) {
                // Without room for all of them, the kernel has dropped some.
                Ok(_) | Err(Errno::NOBUFS) => has_changed = true,
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        has_changed
    }
}

/// The addresses of the running host.
pub(super) fn host_addresses() -> io::Result<HostAddresses> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(DEADLINE))?;
    for _ in 0..ATTEMPTS {
        if let Some(addresses) = read_once(&socket)? {
            return Ok(addresses);
        }
    }
    Err(io::Error::other("the routing table does not stop changing"))
}

/// Reads all interfaces and routes; `None` if they changed meanwhile.
fn read_once(socket: &OwnedFd) -> io::Result<Option<HostAddresses>> {
    let mut point_to_point = BTreeSet::new();
    let is_whole = ask(socket, Subject::Interfaces, |answer| {
        if let Answer::Interface { number, is_point_to_point: true } = answer {
            point_to_point.insert(number);
        }
        Ok(())
    })?;
    if !is_whole {
        return Ok(None);
    }
    let mut addresses = HostAddresses::default();
    let mut take = |answer| {
        if let Answer::Route(route) = answer {
            addresses.add(&route, &|interface| point_to_point.contains(&interface));
        }
        let HostAddresses { own, loopback, neighbours, .. } = &addresses;
        match own.len() + loopback.len() + neighbours.len() {
            0..=NETWORKS_MAX => Ok(()),
            _ => Err(io::Error::other(format!(
                "the host has more than {NETWORKS_MAX} own addresses and networks"
            ))),
        }
    };
    let is_whole = ask(socket, Subject::Routes, &mut take)? && ask_v6(socket, &mut take)?;
    Ok(is_whole.then_some(addresses))
}

/// Gives all routes of IPv6. A kernel that refuses to tell them has none.
fn ask_v6(socket: &OwnedFd, take: impl FnMut(Answer) -> io::Result<()>) -> io::Result<bool> {
    match ask(socket, Subject::RoutesV6, take) {
        Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => Ok(true),
        asked => asked,
    }
}

/// Gives all answers to a request; false if some may be missing.
fn ask(
    socket: &OwnedFd,
    subject: Subject,
    mut take: impl FnMut(Answer) -> io::Result<()>,
) -> io::Result<bool> {
    sendto(socket, &request(subject), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut buffer = vec![0; RECEIVE_LEN];
    let mut is_whole = true;
    loop {
        let (len, whole_len) = recv(socket, &mut buffer[..], RecvFlags::TRUNC)?;
        if whole_len > RECEIVE_LEN {
            return Err(io::ErrorKind::InvalidData.into());
        }
        for (answer, is_interrupted) in answers(&buffer[..len]) {
            is_whole &= !is_interrupted;
            match answer {
                Answer::Done => return Ok(is_whole),
                Answer::Error(number) => return Err(io::Error::from_raw_os_error(number)),
                other => take(other)?,
            }
        }
    }
}
