//! How the host looks names up, from the text of its `/etc/resolv.conf`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Name servers that count; C libraries look at no more.
///
/// # Source
/// `resolv.conf(5)`, MAXNS.
const SERVERS_MAX: usize = 3;

const PORT: u16 = 53;

/// Search domains that are passed on; the C library of most images looks at no more.
///
/// # Source
/// `resolv.conf(5)` of glibc before 2.26, MAXDNSRCH.
const SEARCH_MAX: usize = 6;

/// Largest number of dots that a name can be required to have before it is looked up as it is.
///
/// # Source
/// `resolv.conf(5)`, RES_MAXNDOTS.
const DOTS_MAX: u8 = 15;

/// How a host looks names up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostResolver {
    /// Its name servers, in their order.
    pub name_servers: Vec<SocketAddr>,
    /// Domains in which it looks for short names, in their order.
    pub search: Vec<String>,
    /// Options that change which names it looks for.
    pub options: Vec<String>,
}

/// Reads the text of a `resolv.conf` as every C library does: without a name server it is the host's own, and the last line
/// of search domains counts. A name server of IPv6 with a zone counts only if the zone is a number. A domain that is no
/// name is left out.
pub fn host_resolver(text: &str) -> HostResolver {
    let mut name_servers: Vec<SocketAddr> = text.lines().filter_map(server).take(SERVERS_MAX).collect();
    if name_servers.is_empty() {
        name_servers.push((Ipv4Addr::LOCALHOST, PORT).into());
    }
    let mut search = Vec::new();
    let mut options = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("search") => search = words.filter_map(domain).take(SEARCH_MAX).collect(),
            Some("domain") => search = words.take(1).filter_map(domain).collect(),
            Some("options") => options.extend(words.filter_map(dots)),
            _ => {}
        }
    }
    HostResolver { name_servers, search, options: options.pop().into_iter().collect() }
}

fn domain(word: &str) -> Option<String> {
    let name = word.strip_suffix('.').unwrap_or(word);
    let is_label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        !label.is_empty() && label.len() <= 63 && label.bytes().all(plain)
    };
    (name.len() <= 253 && name.split('.').all(is_label)).then(|| name.to_owned())
}

fn dots(word: &str) -> Option<String> {
    let count: u8 = word.strip_prefix("ndots:")?.parse().ok()?;
    Some(format!("ndots:{}", count.min(DOTS_MAX)))
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
        let servers: Vec<String> = host_resolver(text).name_servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.3:53", "[2001:db8::1]:53", "[fe80::1%2]:53"]);
    }

    #[test]
    fn without_any_it_is_the_host_itself() {
        for text in
            ["", "options edns0\n", "nameserver\n", "nameserver example.org\nnameserver fe80::1%eth0\n"]
        {
            let HostResolver { name_servers, search, .. } = host_resolver(text);
            assert_eq!(name_servers, ["127.0.0.1:53".parse().unwrap()], "{text:?}");
            assert!(search.is_empty());
        }
    }

    #[test]
    fn search_domains_are_the_last_that_are_named() {
        for (text, search) in [
            ("search corp.example lab.example.\n", &["corp.example", "lab.example"][..]),
            ("domain corp.example extra\n", &["corp.example"]),
            ("search a.example\ndomain b.example\nsearch c.example d.example", &["c.example", "d.example"]),
            ("search good.example bad..example b\u{e4}d .\n", &["good.example"]),
            ("search 1.example 2 3 4 5 6 7\n", &["1.example", "2", "3", "4", "5", "6"]),
            ("# search a.example\n", &[]),
        ] {
            assert_eq!(host_resolver(text).search, search, "{text:?}");
        }
        let options = |text| host_resolver(text).options;
        assert_eq!(options("options edns0 ndots:5\noptions rotate ndots:2 trust-ad\n"), ["ndots:2"]);
        assert_eq!(options("options ndots:99\n"), ["ndots:15"]);
        assert_eq!(options("options ndots:x timeout:1\n"), [] as [&str; 0]);
    }
}
