//! The host's own addresses.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

/// Number of the loopback interface in every network namespace.
///
/// # Source
/// Linux `include/net/flow.h`, `LOOPBACK_IFINDEX`.
const LOOPBACK: u32 = 1;

/// The IPv4 addresses of the host's interfaces.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostAddresses {
    /// Those of interfaces that lead out of the host.
    pub own: BTreeSet<Ipv4Addr>,
    /// Those of the loopback interface, also outside of 127.0.0.0/8.
    pub loopback: BTreeSet<Ipv4Addr>,
}

impl HostAddresses {
    /// The addresses at this moment.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn now() -> io::Result<HostAddresses> {
        let mut addresses = HostAddresses::default();
        for interface in if_addrs::get_if_addrs()? {
            let set = match interface.index {
                Some(LOOPBACK) => &mut addresses.loopback,
                _ => &mut addresses.own,
            };
            if let IpAddr::V4(address) = interface.ip() {
                set.insert(address);
            }
        }
        // One that is on both can be reached from outside.
        addresses.loopback.retain(|address| !addresses.own.contains(address));
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_knows_its_loopback() {
        let addresses = HostAddresses::now().unwrap();
        assert!(addresses.loopback.contains(&Ipv4Addr::LOCALHOST));
        assert!(!addresses.own.contains(&Ipv4Addr::LOCALHOST));
    }
}
