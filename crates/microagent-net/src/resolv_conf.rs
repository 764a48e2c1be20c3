//! The host's name servers, from the text of its `/etc/resolv.conf`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Name servers that count; C libraries look at no more.
///
/// # Source
/// `resolv.conf(5)`, MAXNS.
const SERVERS_MAX: usize = 3;

const PORT: u16 = 53;

/// The name servers that the text of a `resolv.conf` names, in their order. Without one it is the host's own,
/// as in every C library. One of IPv6 with a zone counts only if the zone is a number.
pub fn name_servers(text: &str) -> Vec<SocketAddr> {
    let mut servers: Vec<SocketAddr> = text.lines().filter_map(server).take(SERVERS_MAX).collect();
    if servers.is_empty() {
        servers.push((Ipv4Addr::LOCALHOST, PORT).into());
    }
    servers
}

fn server(line: &str) -> Option<SocketAddr> {
    let mut words = line.split_ascii_whitespace();
    if words.next() != Some("nameserver") {
        return None;
    }
    let word = words.next()?;
    if let Some((address, zone)) = word.split_once('%') {
        let address: Ipv6Addr = address.parse().ok()?;
        return Some(SocketAddrV6::new(address, PORT, 0, zone.parse().ok()?).into());
    }
    Some((word.parse::<IpAddr>().ok()?, PORT).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_as_the_c_library_does() {
        let text = "# nameserver 192.0.2.1\n; nameserver 192.0.2.2\nsearch example.org\n\
                    nameserver 192.0.2.3 # comment\n  nameserver\t2001:db8::1\nnameserver fe80::1%2\n\
                    nameserver 192.0.2.9\n";
        let servers: Vec<String> = name_servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.3:53", "[2001:db8::1]:53", "[fe80::1%2]:53"]);
    }

    #[test]
    fn without_any_it_is_the_host_itself() {
        for text in
            ["", "options edns0\n", "nameserver\n", "nameserver example.org\nnameserver fe80::1%eth0\n"]
        {
            assert_eq!(name_servers(text), ["127.0.0.1:53".parse().unwrap()], "{text:?}");
        }
    }
}
