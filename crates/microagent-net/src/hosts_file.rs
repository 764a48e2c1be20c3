//! The host's own names, from the text of its `/etc/hosts`.

use std::net::IpAddr;

use crate::address::Scope;
use crate::dns::local::HostEntry;
use crate::host::HostAddresses;

/// Entries that are taken of one file.
const ENTRIES_MAX: usize = 4096;

/// Longest name in characters.
const NAME_MAX: usize = 253;

/// Reads the text of a `hosts` file: names with addresses that mean the same in a guest. Loopback addresses are each
/// machine's own and are left out.
///
/// # Source
/// `hosts(5)`.
pub fn host_entries(text: &str) -> Vec<HostEntry> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    lines.flat_map(entries).take(ENTRIES_MAX).collect()
}

fn entries(line: &str) -> Vec<HostEntry> {
    let mut words = line.split_ascii_whitespace();
    let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
    let is_own =
        |address: IpAddr| matches!(Scope::of(address, &HostAddresses::default()), Scope::Never | Scope::Own);
    let Some(address) = address.filter(|address| !is_own(*address)) else { return Vec::new() };
    let is_name = |name: &&str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        name.len() <= NAME_MAX && name.bytes().all(plain) && name.parse::<IpAddr>().is_err()
    };
    words.filter(is_name).map(|name| (name.trim_end_matches('.').to_ascii_lowercase(), address)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_addresses_that_mean_the_same_in_a_guest_are_taken() {
        let text = "127.0.0.1 localhost\n127.0.1.1\tbox.example box\n::1 ip6-localhost\n\
                    10.1.2.3 Db.Corp db # comment 1.2.3.4 x\n#10.1.2.4 other\n  192.0.2.7\twww.\n\
                    169.254.169.254 metadata\n10.0.2.2 gateway\n10.1.2.5 b\u{e4}d 10.1.2.6\n10.1.2.7\nnonsense x\n\
                    fe00::0 ip6-localnet\nff02::1 ip6-allnodes\n2001:db8::7 six\n";
        let entry = |name: &str, address: &str| (name.to_owned(), address.parse().unwrap());
        assert_eq!(
            host_entries(text),
            [
                entry("db.corp", "10.1.2.3"),
                entry("db", "10.1.2.3"),
                entry("www", "192.0.2.7"),
                entry("six", "2001:db8::7")
            ]
        );
        assert_eq!(host_entries(&"10.0.0.1 a b c d\n".repeat(2000)).len(), ENTRIES_MAX);
    }
}
