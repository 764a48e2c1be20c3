//! How a guest on network `user` looks names up, as the user sets it. Converts from and to text; the network stack
//! decides which server is asked and what is answered.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::egress::is_host_name;

/// Most name servers of a guest; C libraries use no more.
///
/// # Source
/// `resolv.conf(5)`, MAXNS.
pub const NAME_SERVERS_MAX: usize = 3;

/// Most search domains of a guest; the C library of most images uses no more.
///
/// # Source
/// `resolv.conf(5)` of glibc before 2.26, MAXDNSRCH.
pub const SEARCH_MAX: usize = 6;

/// Most names that can be added for one guest.
pub const ADDED_HOSTS_MAX: usize = 1024;

const PORT: u16 = 53;

/// The word for the host itself, in place of an address.
const HOST_GATEWAY: &str = "host-gateway";

/// How a guest looks up names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsSettings {
    /// Name servers instead of the host's; if empty, the host's.
    pub servers: Vec<NameServer>,
    /// Search domains instead of the host's; if empty, the host's.
    pub search: Vec<SearchDomain>,
    /// Names that the network stack answers itself.
    pub hosts: Vec<AddedHost>,
    /// Whether the names of the host's `/etc/hosts` are answered as well.
    pub host_file: bool,
}

/// A name server. As text an address, with `:PORT` where it is not 53; of IPv6 then in brackets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NameServer(pub SocketAddr);

/// A search domain, or a dot for none at all.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SearchDomain(String);

/// A name with its address. As text `NAME:ADDRESS` or `NAME:host-gateway`; an IPv6 address may be in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddedHost {
    /// The name, in lower case and without a dot at its end.
    pub name: String,
    /// Its address.
    pub address: AddedAddress,
}

/// The address of an added name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddedAddress {
    /// An address.
    Address(IpAddr),
    /// The host, as with `host.microagent.internal`. Forwarded ports determine what the guest reaches there.
    HostGateway,
}

/// Why a text is not a name server, a domain or an added name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DnsError {
    /// It is not an address.
    #[error("`{text}` is not the address of a name server")]
    Server {
        /// The text.
        text: String,
    },
    /// It is not a domain.
    #[error("`{text}` is not a domain")]
    Domain {
        /// The text.
        text: String,
    },
    /// It is not a name with an address.
    #[error("`{text}` is not NAME:ADDRESS")]
    Shape {
        /// The text.
        text: String,
    },
    /// It is not a name.
    #[error("`{text}` is not a host name")]
    Name {
        /// The text.
        text: String,
    },
    /// It is not an address.
    #[error("`{text}` is not an IP address")]
    Address {
        /// The text.
        text: String,
    },
}

impl SearchDomain {
    /// The domain, unless it is the dot that stands for none.
    pub fn domain(&self) -> Option<&str> {
        Some(self.0.as_str()).filter(|domain| *domain != ".")
    }
}

impl FromStr for NameServer {
    type Err = DnsError;

    fn from_str(text: &str) -> Result<NameServer, DnsError> {
        let with_port = |address: IpAddr| SocketAddr::from((address, PORT));
        let address = text.parse().map(with_port).or_else(|_| text.parse::<SocketAddr>());
        match address {
            Ok(address) if address.port() != 0 && !address.ip().is_unspecified() => Ok(NameServer(address)),
            _ => Err(DnsError::Server { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for NameServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.port() == PORT { self.0.ip().fmt(f) } else { self.0.fmt(f) }
    }
}

impl FromStr for SearchDomain {
    type Err = DnsError;

    fn from_str(text: &str) -> Result<SearchDomain, DnsError> {
        let domain = if text == "." { text } else { text.strip_suffix('.').unwrap_or(text) };
        match text == "." || is_host_name(domain) {
            true => Ok(SearchDomain(domain.to_ascii_lowercase())),
            false => Err(DnsError::Domain { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for SearchDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for AddedHost {
    type Err = DnsError;

    fn from_str(text: &str) -> Result<AddedHost, DnsError> {
        // Docker takes both signs.
        let shape = || DnsError::Shape { text: text.to_owned() };
        let (name, address) = text.split_once([':', '=']).ok_or_else(shape)?;
        let address = match address {
            HOST_GATEWAY => AddedAddress::HostGateway,
            _ => AddedAddress::Address(
                added_address(address).ok_or_else(|| DnsError::Address { text: address.to_owned() })?,
            ),
        };
        let plain = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if !is_host_name(&plain) || plain.parse::<Ipv4Addr>().is_ok() {
            return Err(DnsError::Name { text: name.to_owned() });
        }
        Ok(AddedHost { name: plain, address })
    }
}

/// An address; Docker puts one of IPv6 in brackets.
fn added_address(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        Some(inner) => inner.parse().ok().map(IpAddr::V6),
        None => text.parse().ok(),
    }
}

impl fmt::Display for AddedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            AddedAddress::Address(address) => write!(f, "{}:{address}", self.name),
            AddedAddress::HostGateway => write!(f, "{}:{HOST_GATEWAY}", self.name),
        }
    }
}

crate::text::as_text!(NameServer, SearchDomain, AddedHost);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_written_alike() {
        for (text, whole) in [
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1:53", "192.0.2.1"),
            ("192.0.2.1:5353", "192.0.2.1:5353"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]:5353", "[2001:db8::1]:5353"),
        ] {
            assert_eq!(text.parse::<NameServer>().unwrap().to_string(), whole);
        }
        for (text, whole) in [("Corp.Example.", "corp.example"), (".", ".")] {
            assert_eq!(text.parse::<SearchDomain>().unwrap().to_string(), whole);
        }
        assert_eq!(".".parse::<SearchDomain>().unwrap().domain(), None);
        for (text, whole) in [
            ("DB:10.1.2.3", "db:10.1.2.3"),
            ("db.corp.=10.1.2.3", "db.corp:10.1.2.3"),
            ("db:2001:db8::1", "db:2001:db8::1"),
            ("db=[2001:DB8::1]", "db:2001:db8::1"),
            ("host.docker.internal:host-gateway", "host.docker.internal:host-gateway"),
        ] {
            assert_eq!(text.parse::<AddedHost>().unwrap().to_string(), whole);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for text in ["", "example.org", "192.0.2.1:0", "0.0.0.0", "192.0.2.256", "[::1]"] {
            let error = DnsError::Server { text: text.to_owned() };
            assert_eq!(text.parse::<NameServer>(), Err(error), "{text}");
        }
        for text in ["", "..", "a b", "-\u{e4}"] {
            assert!(matches!(text.parse::<SearchDomain>(), Err(DnsError::Domain { .. })), "{text}");
        }
        type Is = fn(&DnsError) -> bool;
        let cases: [(&str, Is); 7] = [
            ("db", |e| matches!(e, DnsError::Shape { .. })),
            ("db:", |e| matches!(e, DnsError::Address { .. })),
            ("db:other", |e| matches!(e, DnsError::Address { .. })),
            ("db:2001:db8::1::", |e| matches!(e, DnsError::Address { .. })),
            ("db:[10.1.2.3]", |e| matches!(e, DnsError::Address { .. })),
            (":10.1.2.3", |e| matches!(e, DnsError::Name { .. })),
            ("192.0.2.1:10.1.2.3", |e| matches!(e, DnsError::Name { .. })),
        ];
        for (text, is) in cases {
            let error = text.parse::<AddedHost>().unwrap_err();
            assert!(is(&error), "{text}: {error:?}");
        }
    }
}
