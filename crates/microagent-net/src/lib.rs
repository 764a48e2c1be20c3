//! Network `user`: which addresses the guest gets, and how passt is told to serve them.
//!
//! passt runs as an ordinary process on one end of a socket pair whose other end is QEMU's network device,
//! and ends by itself when that socket closes. It turns the guest's connections into ordinary sockets of
//! the host. The guest cannot reach the host's loopback through it (`--no-map-gw`), and nothing reaches the
//! guest that was not published. This crate decides; it starts nothing.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

/// The guest's address. Every guest has the same: each has a passt of its own.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// Bits of the network prefix.
pub const PREFIX_LEN: u8 = 24;

/// The guest's default route.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// The name server that the guest sees; passt forwards to the host's.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// `resolv.conf` of systemd-resolved with the real servers, where `/etc/resolv.conf` names only its stub.
pub const RESOLVED_CONF: &str = "/run/systemd/resolve/resolv.conf";

/// passt's arguments for a guest without published ports.
///
/// `upstream` is the name server that queries go to; `None` leaves the choice to passt.
///
/// # Source
/// `passt(1)`; `--fd` needs passt of 2022-11-16 or later.
pub fn passt_args(socket: BorrowedFd<'_>, upstream: Option<Ipv4Addr>) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["--fd".into(), socket.as_raw_fd().to_string().into()];
    for flag in ["--foreground", "--quiet", "--stderr", "--ipv4-only", "--no-map-gw", "--no-dhcp"] {
        args.push(flag.into());
    }
    for (name, value) in [
        ("--address", GUEST_ADDRESS.to_string()),
        ("--netmask", PREFIX_LEN.to_string()),
        ("--gateway", GATEWAY.to_string()),
        ("--dns-forward", NAME_SERVER.to_string()),
        ("--tcp-ports", "none".to_owned()),
        ("--udp-ports", "none".to_owned()),
    ] {
        args.push(name.into());
        args.push(value.into());
    }
    if let Some(upstream) = upstream {
        args.push("--dns".into());
        args.push(upstream.to_string().into());
    }
    args
}

/// The first IPv4 name server that is not the host's own loopback, looking through the contents of
/// resolver files in order. With `--no-map-gw` passt cannot forward to a server on loopback, such as the
/// stub of systemd-resolved.
pub fn upstream_name_server(resolver_files: &[&str]) -> Option<Ipv4Addr> {
    resolver_files.iter().flat_map(|text| name_servers(text)).find_map(|server| match server {
        IpAddr::V4(address) if !address.is_loopback() && !address.is_unspecified() => Some(address),
        _ => None,
    })
}

fn name_servers(resolver_file: &str) -> impl Iterator<Item = IpAddr> {
    resolver_file.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn skips_loopback_and_ipv6_servers() {
        let stub = "# stub\nnameserver 127.0.0.53\noptions edns0\n";
        let real =
            "nameserver fe80::1%2\nnameserver 2001:db8::1\nnameserver 192.0.2.7\nnameserver 192.0.2.8\n";
        assert_eq!(upstream_name_server(&[stub, real]), Some(Ipv4Addr::new(192, 0, 2, 7)));
        assert_eq!(upstream_name_server(&[stub]), None);
    }

    #[test]
    fn the_host_loopback_is_out_of_reach() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let args = passt_args(null.as_fd(), None);
        assert!(args.iter().any(|arg| arg == "--no-map-gw"));
        assert!(!args.iter().any(|arg| arg == "--dns"));
    }
}
