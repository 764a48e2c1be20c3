//! Private networks: their addresses.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::address::PRIVATE_V4;

/// Most private networks that a workspace joins.
pub const JOINS_MAX: usize = 8;

/// Most members of a private network.
pub const MEMBERS_MAX: usize = 250;

/// Valid lengths of a prefix: at most the networks that people use, at least room for some members.
const PREFIXES: std::ops::RangeInclusive<u8> = 16..=28;

/// What every guest has for itself, and a metadata service in the middle of the shared range.
const TAKEN: [(Ipv4Addr, u8); 2] =
    [(Ipv4Addr::new(10, 0, 2, 0), 24), (Ipv4Addr::new(100, 100, 100, 200), 32)];

/// The addresses of a private network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet(Ipv4Net);

/// Why a text is not the subnet of a private network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubnetError {
    /// It is not an IPv4 network.
    #[error("`{text}` is not a subnet: write it as 10.210.7.0/24")]
    Form {
        /// The text.
        text: String,
    },
    /// The address has bits behind the prefix.
    #[error("`{text}` is an address in a subnet; the subnet is {subnet}")]
    HostBits {
        /// The text.
        text: String,
        /// What was meant.
        subnet: String,
    },
    /// The prefix is too short or too long.
    #[error("`{text}` has a prefix of {prefix} bits; from 16 to 28 are possible")]
    Prefix {
        /// The text.
        text: String,
        /// Its prefix.
        prefix: u8,
    },
    /// It is not in a private range.
    #[error("`{text}` is not in 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10")]
    Public {
        /// The text.
        text: String,
    },
    /// It overlaps what every guest has.
    #[error("`{text}` overlaps {taken}, which is not free in a guest")]
    Taken {
        /// The text.
        text: String,
        /// What is there.
        taken: String,
    },
}

impl Subnet {
    /// Subnets that a network gets if nobody chooses one, the first one first.
    pub fn choices() -> impl Iterator<Item = Subnet> {
        (0..=u8::MAX).map(|number| Subnet(network(Ipv4Addr::new(10, 210, number, 0), 24)))
    }

    /// Whether it contains an address.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        self.0.contains(&address)
    }

    /// Whether an address can be a member's: it is neither the first nor the last one.
    pub fn has_member(self, address: Ipv4Addr) -> bool {
        self.contains(address) && address != self.0.network() && address != self.0.broadcast()
    }

    /// Whether some addresses are in both.
    pub fn overlaps(self, other: Subnet) -> bool {
        overlap(self.0, other.0)
    }

    /// Whether some of its addresses are in the network of `bits` prefix bits that `base` is in.
    pub fn overlaps_network(self, base: Ipv4Addr, bits: u8) -> bool {
        Ipv4Net::new(base, bits).is_ok_and(|other| overlap(self.0, other))
    }

    /// Length of the prefix in bits.
    pub fn prefix_len(self) -> u8 {
        self.0.prefix_len()
    }

    /// Addresses of members in the order in which they are given out. The first one is not used: people expect a router
    /// there.
    pub fn addresses(self) -> impl Iterator<Item = Ipv4Addr> {
        self.0.hosts().skip(1).take(MEMBERS_MAX)
    }
}

fn network(base: Ipv4Addr, bits: u8) -> Ipv4Net {
    Ipv4Net::new(base, bits).expect("the prefix has at most 32 bits")
}

/// Of two networks that overlap, one contains the other.
fn overlap(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other) || other.contains(&one)
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Subnet, SubnetError> {
        let owned = || text.to_owned();
        let net: Ipv4Net = text.parse().map_err(|_| SubnetError::Form { text: owned() })?;
        if net.trunc() != net {
            return Err(SubnetError::HostBits { text: owned(), subnet: net.trunc().to_string() });
        }
        if !PREFIXES.contains(&net.prefix_len()) {
            return Err(SubnetError::Prefix { text: owned(), prefix: net.prefix_len() });
        }
        if !PRIVATE_V4.iter().any(|&(base, bits)| network(base, bits).contains(&net)) {
            return Err(SubnetError::Public { text: owned() });
        }
        let taken = TAKEN.iter().map(|&(base, bits)| network(base, bits)).find(|taken| overlap(net, *taken));
        match taken {
            Some(taken) => Err(SubnetError::Taken { text: owned(), taken: taken.to_string() }),
            None => Ok(Subnet(net)),
        }
    }
}

crate::text::as_text!(Subnet);

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_private_networks_of_a_usual_size_are_taken() {
        for good in ["10.210.0.0/24", "172.31.0.0/16", "192.168.7.16/28", "100.64.0.0/16"] {
            assert_eq!(good.parse::<Subnet>().unwrap().to_string(), good);
        }
        for (bad, reason) in [
            ("10.210.0.0", "write it as"),
            ("fd00::/64", "write it as"),
            ("10.210.0.1/24", "the subnet is 10.210.0.0/24"),
            ("10.0.0.0/8", "a prefix of 8 bits"),
            ("10.210.0.0/29", "a prefix of 29 bits"),
            ("192.0.2.0/24", "is not in 10.0.0.0/8"),
            ("172.32.0.0/16", "is not in 10.0.0.0/8"),
            ("10.0.0.0/16", "overlaps 10.0.2.0/24"),
            ("10.0.2.16/28", "overlaps 10.0.2.0/24"),
            ("100.100.100.0/24", "overlaps 100.100.100.200/32"),
        ] {
            let error = bad.parse::<Subnet>().unwrap_err().to_string();
            assert!(error.contains(reason), "{bad}: {error}");
        }
    }

    #[test]
    fn choices_are_valid_and_apart() {
        let choices: Vec<Subnet> = Subnet::choices().collect();
        assert_eq!(choices.len(), 256);
        for choice in &choices {
            assert_eq!(choice.to_string().parse(), Ok(*choice));
            assert_eq!(choices.iter().filter(|other| choice.overlaps(**other)).count(), 1);
        }
    }

    #[test]
    fn members_have_addresses_inside() {
        let subnet: Subnet = "10.210.7.0/24".parse().unwrap();
        let addresses: Vec<Ipv4Addr> = subnet.addresses().collect();
        assert_eq!((addresses.len(), addresses[0]), (MEMBERS_MAX, Ipv4Addr::new(10, 210, 7, 2)));
        assert!(addresses.iter().all(|address| subnet.has_member(*address)));
        assert!(!subnet.has_member(Ipv4Addr::new(10, 210, 7, 255)));
        let small: Subnet = "10.210.7.16/28".parse().unwrap();
        assert_eq!(small.addresses().count(), 13);
        assert!(subnet.overlaps(small) && small.overlaps(subnet));
        assert!(subnet.overlaps_network(Ipv4Addr::new(10, 0, 0, 0), 8));
        assert!(!subnet.overlaps_network(Ipv4Addr::new(10, 211, 0, 0), 16));
    }
}
