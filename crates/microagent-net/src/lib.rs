//! Network `user`: which addresses the guest gets, and how passt is told to serve them.
//!
//! passt runs as an ordinary process on one end of a socket pair, and ends by itself when that socket closes. It
//! turns the guest's connections into ordinary sockets of the host. The guest cannot reach the host's loopback
//! through it (`--no-map-gw`), and nothing reaches the guest that was not published.
//!
//! Between QEMU's network device and passt sits the egress filter ([`start_filter`]), which lets through what an
//! [`EgressPolicy`] allows. What it decides, [`Engine`] decides, without clock or socket. This crate starts that one
//! thread and no process, and reads no file.

#![forbid(unsafe_code)]

mod address;
mod decision;
mod dns;
mod engine;
mod filter;
mod flows;
mod frame;
mod host;
mod lane;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod model;
mod probe;
mod reply;
mod resolv_conf;
#[cfg(any(test, feature = "fuzzing"))]
mod testing;
mod upstream;

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

pub use address::Scope;
pub use decision::{BURST, DecisionLog, PER_SECOND};
pub use dns::resolver::{Carrier, Errand, Ticket};
pub use engine::{Engine, FilterOptions, Now, Verdict};
pub use filter::{FilterHandle, start_filter};
pub use frame::MAX_FRAME_LEN;
pub use host::host_addresses;
pub use microagent_model::egress::{
    AllowRule, AllowRuleError, BYTES_DEFAULT, CONNECTIONS_DEFAULT, Decision, EgressMode, EgressModeError,
    EgressPolicy, Protocol, RULES_MAX, Reason, Subject as Record,
};
pub use microagent_model::{Publish, PublishError, published_twice};
pub use probe::{is_probe_answer, probe_frame};
pub use reply::{LENGTH_LEN, Outbox};
pub use resolv_conf::name_servers;

/// The guest's address. Every guest has the same: each has a passt of its own.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// Bits of the network prefix.
pub const PREFIX_LEN: u8 = 24;

/// The guest's default route.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// The name server that the guest sees; the filter asks the host's.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// passt's arguments for a guest with these published ports, none of which has the host's port 0.
///
/// Nothing about names: queries to [`NAME_SERVER`] never come as far as passt, the filter answers them.
///
/// # Source
/// `passt(1)`; `--fd` needs passt of 2022-11-16 or later.
pub fn passt_args(socket: BorrowedFd<'_>, published: &[Publish]) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["--fd".into(), socket.as_raw_fd().to_string().into()];
    for flag in ["--foreground", "--quiet", "--stderr", "--ipv4-only", "--no-map-gw", "--no-dhcp"] {
        args.push(flag.into());
    }
    for (name, value) in [
        ("--address", GUEST_ADDRESS.to_string()),
        ("--netmask", PREFIX_LEN.to_string()),
        ("--gateway", GATEWAY.to_string()),
        // Without this, a port that is published would be forwarded for UDP, too.
        ("--udp-ports", "none".to_owned()),
    ] {
        args.push(name.into());
        args.push(value.into());
    }
    // One option per port: of several ports in one option passt is content with any.
    let ports = published
        .iter()
        .map(|Publish { host, host_port, guest_port }| format!("{host}/{host_port}:{guest_port}"));
    for ports in if published.is_empty() { vec!["none".to_owned()] } else { ports.collect() } {
        args.push("--tcp-ports".into());
        args.push(ports.into());
    }
    args
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_host_loopback_is_out_of_reach() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let args = passt_args(null.as_fd(), &[]);
        assert!(args.iter().any(|arg| arg == "--no-map-gw"));
        assert!(!args.iter().any(|arg| arg == "--dns-forward"));
    }

    #[test]
    fn each_port_has_an_option_of_its_own() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let ports = |published: &[&str]| {
            let published: Vec<Publish> = published.iter().map(|text| text.parse().unwrap()).collect();
            let args = passt_args(null.as_fd(), &published);
            let words: Vec<_> = args.iter().map(|arg| arg.to_str().unwrap().to_owned()).collect();
            let value = |pair: &[String]| (pair[0] == "--tcp-ports").then(|| pair[1].clone());
            words.windows(2).filter_map(value).collect::<Vec<_>>()
        };
        assert_eq!(ports(&[]), ["none"]);
        assert_eq!(ports(&["8080:80", "0.0.0.0:2222:22"]), ["127.0.0.1/8080:80", "0.0.0.0/2222:22"]);
    }
}
