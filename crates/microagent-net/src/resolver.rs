//! The host's name servers, as its `resolv.conf` names them.
//!
//! # Source
//! `resolv.conf(5)`.

use std::net::{IpAddr, SocketAddr};

/// Port of DNS.
const DNS_PORT: u16 = 53;

/// Most name servers that are used, as in the C library.
const SERVERS_MAX: usize = 3;

/// The name servers of a `resolv.conf`, in its order. One with an IPv6 zone is left out: the zone is a name of an interface.
/// Without any there is the host's own, as the C library has it.
pub fn name_servers(resolv_conf: &str) -> Vec<SocketAddr> {
    let values = resolv_conf.lines().filter_map(|line| {
        // The keyword stands at the very beginning.
        let value = line.strip_prefix("nameserver").filter(|value| value.starts_with([' ', '\t']))?;
        value.split_whitespace().next()
    });
    let servers: Vec<SocketAddr> = values
        .filter_map(|value| value.parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, DNS_PORT))
        .take(SERVERS_MAX)
        .collect();
    if servers.is_empty() { vec![SocketAddr::new([127, 0, 0, 1].into(), DNS_PORT)] } else { servers }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_as_the_c_library_reads_them() {
        let of = |text: &str| name_servers(text).iter().map(ToString::to_string).collect::<Vec<_>>();
        let text = "# comment\nsearch example.org\nnameserver 192.0.2.1\nnameserver\t127.0.0.53 # stub\n\
                    \x20nameserver 192.0.2.8\nnameservers 192.0.2.7\n\
                    nameserver fe80::1%eth0\nnameserver nonsense\nnameserver\nnameserver 2001:db8::1\n;nameserver 192.0.2.9\n\
                    nameserver 192.0.2.2\noptions edns0\n";
        assert_eq!(of(text), ["192.0.2.1:53", "127.0.0.53:53", "[2001:db8::1]:53"]);
        assert_eq!(of("search example.org\n"), ["127.0.0.1:53"]);
    }
}
