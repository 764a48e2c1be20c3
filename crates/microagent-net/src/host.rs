//! The host's own addresses.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

/// All IPv4 addresses of the host's interfaces at this moment, sorted.
///
/// # Errors
///
/// When the system does not tell.
pub fn host_addresses() -> io::Result<Vec<Ipv4Addr>> {
    let interfaces = if_addrs::get_if_addrs()?;
    let mut addresses: Vec<Ipv4Addr> = interfaces
        .iter()
        .filter_map(|interface| match interface.ip() {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_knows_its_loopback() {
        assert!(host_addresses().unwrap().contains(&Ipv4Addr::LOCALHOST));
    }
}
