//! Published ports: which port of the host leads to which port of the guest. Converts from and to text, nothing else.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Ports that one workspace publishes at most.
pub const PORTS_MAX: usize = 250;

/// Protocol of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortProtocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for PortProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PortProtocol::Tcp => "tcp",
            PortProtocol::Udp => "udp",
        })
    }
}

/// One port of the host that leads into the guest. As text `[[HOST:]HOST_PORT:]GUEST_PORT[/tcp|/udp]`; an IPv6 address is
/// in brackets.
/// `"8080:80".parse()` is port 8080 of the host's loopback address, which leads to port 80 of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Publish {
    /// The host's address on which the supervisor listens; without one in the text, `127.0.0.1`.
    pub host: IpAddr,
    /// The host's port; with 0, or none in the text, a free port is picked at each start.
    pub host_port: u16,
    /// The guest's port.
    pub guest_port: NonZeroU16,
    /// Protocol; older records have TCP only.
    #[serde(default)]
    pub protocol: PortProtocol,
}

/// Published ports of one text, which may name ranges: `8000-8010:8000-8010`. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishRange(Vec<Publish>);

/// Why a text is not a published port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// It has more than an address and two ports.
    #[error("`{text}` is not [[HOST:]HOST_PORT:]GUEST_PORT[/tcp|/udp]")]
    Shape {
        /// The text.
        text: String,
    },
    /// The address is not valid, or a name.
    #[error("`{text}` is not an address of the host: IPv4, or IPv6 in brackets")]
    Host {
        /// That part of the text.
        text: String,
    },
    /// A port is not valid.
    #[error("`{text}` is not a valid port")]
    Port {
        /// That part of the text.
        text: String,
    },
    /// A range has no ports, or too many.
    #[error("`{text}` is not a range of 1 to {PORTS_MAX} ports")]
    Range {
        /// That part of the text.
        text: String,
    },
    /// Two ranges have different lengths.
    #[error("`{text}` names {host} ports of the host and {guest} of the guest")]
    Lengths {
        /// The text.
        text: String,
        /// Ports of the host.
        host: usize,
        /// Ports of the guest.
        guest: usize,
    },
    /// One port is meant.
    #[error("`{text}` is a range; name one port")]
    Several {
        /// The text.
        text: String,
    },
    /// Only TCP and UDP have ports that can be published.
    #[error("`{text}` cannot be published: only `tcp` and `udp` can")]
    Protocol {
        /// That part of the text.
        text: String,
    },
}

/// The first published port that another one before it excludes: the same port of the host, at the same address or at all
/// addresses of its family.
pub fn published_twice(publish: &[Publish]) -> Option<Publish> {
    let clash = |one: &Publish, other: &Publish| {
        (one.host_port, one.protocol) == (other.host_port, other.protocol)
            && one.host_port != 0
            && one.host.is_ipv4() == other.host.is_ipv4()
            && (one.host == other.host || one.host.is_unspecified() || other.host.is_unspecified())
    };
    let mut all = publish.iter().enumerate();
    all.find(|(at, one)| publish[..*at].iter().any(|other| clash(one, other))).map(|(_, one)| *one)
}

impl PublishRange {
    /// The ports, in their order.
    pub fn ports(&self) -> &[Publish] {
        &self.0
    }
}

impl From<Publish> for PublishRange {
    fn from(publish: Publish) -> PublishRange {
        PublishRange(vec![publish])
    }
}

impl FromStr for PublishRange {
    type Err = PublishError;

    fn from_str(text: &str) -> Result<PublishRange, PublishError> {
        let (ports, protocol) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.split('/').next().unwrap_or_default(), PortProtocol::Tcp),
            Some((ports, "udp")) => (ports, PortProtocol::Udp),
            Some((_, protocol)) => return Err(PublishError::Protocol { text: protocol.to_owned() }),
        };
        let (host, host_ports, guest_ports) = parts(ports, text)?;
        let guest_ports = range(guest_ports)?;
        let host_ports = match host_ports {
            None => vec![0; guest_ports.len()],
            Some(ports) => range(ports)?,
        };
        if host_ports.len() != guest_ports.len() {
            let (host, guest) = (host_ports.len(), guest_ports.len());
            return Err(PublishError::Lengths { text: text.to_owned(), host, guest });
        }
        let publish = |(host_port, guest_port): (u16, u16)| {
            let guest_port = NonZeroU16::new(guest_port);
            let guest_port = guest_port.ok_or_else(|| PublishError::Port { text: "0".to_owned() })?;
            Ok(Publish { host, host_port, guest_port, protocol })
        };
        host_ports.into_iter().zip(guest_ports).map(publish).collect::<Result<_, _>>().map(PublishRange)
    }
}

/// Address, ports of the host (none: free ones) and ports of the guest.
fn parts<'t>(ports: &'t str, text: &str) -> Result<(IpAddr, Option<&'t str>, &'t str), PublishError> {
    let Some((rest, guest)) = ports.rsplit_once(':') else {
        return Ok((Ipv4Addr::LOCALHOST.into(), None, ports));
    };
    let Some((host, port)) = rest.rsplit_once(':') else {
        return Ok((Ipv4Addr::LOCALHOST.into(), Some(rest), guest));
    };
    let address = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) => inner.parse().ok().map(IpAddr::V6),
        None if host.contains([':', '[', ']']) => {
            return Err(PublishError::Shape { text: text.to_owned() });
        }
        None => host.parse().ok().map(IpAddr::V4),
    };
    let address = address.ok_or_else(|| PublishError::Host { text: host.to_owned() })?;
    // As Docker has it: `ADDRESS::PORT` is a free port of that address.
    Ok((address, (!port.is_empty()).then_some(port), guest))
}

/// `80` or `80-90`.
fn range(text: &str) -> Result<Vec<u16>, PublishError> {
    let port = |text: &str| text.parse().map_err(|_| PublishError::Port { text: text.to_owned() });
    let Some((first, last)) = text.split_once('-') else { return Ok(vec![port(text)?]) };
    let (first, last): (u16, u16) = (port(first)?, port(last)?);
    let count = (usize::from(last) + 1).saturating_sub(first.into());
    if first == 0 || !(1..=PORTS_MAX).contains(&count) {
        return Err(PublishError::Range { text: text.to_owned() });
    }
    Ok((first..=last).collect())
}

/// What names a published port: `[HOST:]HOST_PORT[:GUEST_PORT][/tcp|/udp]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortSelector {
    host: Option<IpAddr>,
    host_port: u16,
    guest_port: Option<NonZeroU16>,
    protocol: PortProtocol,
}

impl PortSelector {
    /// Whether it names this port.
    pub fn covers(&self, publish: &Publish) -> bool {
        self.host.is_none_or(|host| host == publish.host)
            && self.guest_port.is_none_or(|port| port == publish.guest_port)
            && (self.host_port, self.protocol) == (publish.host_port, publish.protocol)
    }
}

impl FromStr for PortSelector {
    type Err = PublishError;

    fn from_str(text: &str) -> Result<PortSelector, PublishError> {
        let (address, protocol) = match text.split_once('/') {
            None => (text, PortProtocol::Tcp),
            Some((ports, "tcp")) => (ports, PortProtocol::Tcp),
            Some((ports, "udp")) => (ports, PortProtocol::Udp),
            Some((_, protocol)) => return Err(PublishError::Protocol { text: protocol.to_owned() }),
        };
        if let Ok(address) = address.parse::<SocketAddr>() {
            let host_port = address.port();
            return Ok(PortSelector { host: Some(address.ip()), host_port, guest_port: None, protocol });
        }
        if let Ok(host_port) = address.parse() {
            return Ok(PortSelector { host: None, host_port, guest_port: None, protocol });
        }
        let has_host = address.matches(':').count() > 1;
        let Publish { host, host_port, guest_port, protocol } = text.parse()?;
        Ok(PortSelector { host: has_host.then_some(host), host_port, guest_port: Some(guest_port), protocol })
    }
}

impl fmt::Display for PortSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            Some(host) => write!(f, "{}", SocketAddr::new(host, self.host_port))?,
            None => write!(f, "{}", self.host_port)?,
        }
        if let Some(guest_port) = self.guest_port {
            write!(f, ":{guest_port}")?;
        }
        write!(f, "/{}", self.protocol)
    }
}

impl FromStr for Publish {
    type Err = PublishError;

    fn from_str(text: &str) -> Result<Publish, PublishError> {
        match text.parse::<PublishRange>()?.ports() {
            [one] => Ok(*one),
            _ => Err(PublishError::Several { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Publish { host, host_port, guest_port, protocol } = self;
        match host {
            IpAddr::V4(host) => write!(f, "{host}:{host_port}:{guest_port}/{protocol}"),
            IpAddr::V6(host) => write!(f, "[{host}]:{host_port}:{guest_port}/{protocol}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> String {
        let range: PublishRange = text.parse().unwrap();
        range.ports().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn is_read_as_docker_writes_it() {
        for (text, whole) in [
            ("8080:80", "127.0.0.1:8080:80/tcp"),
            ("80", "127.0.0.1:0:80/tcp"),
            ("53/udp", "127.0.0.1:0:53/udp"),
            ("0:80/tcp", "127.0.0.1:0:80/tcp"),
            ("53:53/udp", "127.0.0.1:53:53/udp"),
            ("0.0.0.0:8080:80", "0.0.0.0:8080:80/tcp"),
            ("0.0.0.0::80", "0.0.0.0:0:80/tcp"),
            ("192.0.2.7:1:65535/tcp", "192.0.2.7:1:65535/tcp"),
            ("[::1]:8080:80", "[::1]:8080:80/tcp"),
            ("[::]::80/udp", "[::]:0:80/udp"),
        ] {
            let publish: Publish = text.parse().unwrap();
            assert_eq!(publish.to_string(), whole);
            assert_eq!(whole.parse(), Ok(publish));
        }
    }

    #[test]
    fn a_range_is_each_of_its_ports() {
        assert_eq!(
            all("8000-8002:80-82"),
            "127.0.0.1:8000:80/tcp 127.0.0.1:8001:81/tcp 127.0.0.1:8002:82/tcp"
        );
        assert_eq!(all("[::1]:53-54:53-54/udp"), "[::1]:53:53/udp [::1]:54:54/udp");
        assert_eq!(all("80-81"), "127.0.0.1:0:80/tcp 127.0.0.1:0:81/tcp");
        assert_eq!(all("65535-65535:1-1"), "127.0.0.1:65535:1/tcp");
        let several = PublishError::Several { text: "80-81".to_owned() };
        assert_eq!("80-81".parse::<Publish>(), Err(several));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let shape = |text: &str| PublishError::Shape { text: text.to_owned() };
        let port = |text: &str| PublishError::Port { text: text.to_owned() };
        let host = |text: &str| PublishError::Host { text: text.to_owned() };
        let range = |text: &str| PublishError::Range { text: text.to_owned() };
        let lengths = |text: &str, host, guest| PublishError::Lengths { text: text.to_owned(), host, guest };
        for (text, error) in [
            ("", port("")),
            ("8080:0", port("0")),
            ("0", port("0")),
            ("8080:65536", port("65536")),
            (":80", port("")),
            ("8080:", port("")),
            ("localhost:8080:80", host("localhost")),
            ("[192.0.2.7]:8080:80", host("[192.0.2.7]")),
            ("::1:8080:80", shape("::1:8080:80")),
            ("1:2:3:4", shape("1:2:3:4")),
            ("53:53/sctp", PublishError::Protocol { text: "sctp".to_owned() }),
            ("8000-8010:80", lengths("8000-8010:80", 11, 1)),
            ("80:8000-8010", lengths("80:8000-8010", 1, 11)),
            ("90-80:90-80", range("90-80")),
            ("0-3:1-4", range("0-3")),
            ("1-65535", range("1-65535")),
            ("1-2-3", port("2-3")),
        ] {
            assert_eq!(text.parse::<Publish>(), Err(error), "{text}");
        }
    }

    #[test]
    fn a_selector_names_a_port_as_far_as_it_says() {
        let named = |selector: &str, publish: &str| {
            let (selector, publish): (PortSelector, Publish) =
                (selector.parse().unwrap(), publish.parse().unwrap());
            assert_eq!(selector.to_string().parse(), Ok(selector));
            selector.covers(&publish)
        };
        for (selector, covered) in [
            ("8080", ["127.0.0.1:8080:80", "[::1]:8080:81"]),
            ("0", ["80", "0.0.0.0::81"]),
            ("0:80", ["80", "0.0.0.0::80"]),
            ("53/udp", ["53:53/udp", "[::1]:53:54/udp"]),
            ("[::1]:53", ["[::1]:53:53", "[::1]:53:54"]),
            ("127.0.0.1:8080:80/tcp", ["8080:80", "127.0.0.1:8080:80"]),
        ] {
            assert!(covered.iter().all(|publish| named(selector, publish)), "{selector}");
        }
        for (selector, other) in [
            ("8080", "8080:80/udp"),
            ("8080", "8081:80"),
            ("127.0.0.1:8080", "[::1]:8080:80"),
            ("8080:80", "8080:81"),
        ] {
            assert!(!named(selector, other), "{selector}");
        }
        for wrong in ["web", "", "8080/sctp", "127.0.0.1", "1:2:3:4", "80-90"] {
            assert!(wrong.parse::<PortSelector>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_port_of_an_address_is_published_once() {
        let twice = |texts: &[&str]| {
            let all: Vec<Publish> = texts.iter().map(|text| text.parse().unwrap()).collect();
            published_twice(&all).map(|one| one.to_string())
        };
        assert_eq!(twice(&["8080:80", "8081:80", "0:80", "0:81", "80", "80"]), None);
        assert_eq!(twice(&["8080:80", "192.0.2.7:8080:80", "[::1]:8080:80", "8080:80/udp"]), None);
        assert_eq!(twice(&["8080:80", "[::]:8080:80"]), None);
        assert_eq!(twice(&["8080:80", "8080:81"]).as_deref(), Some("127.0.0.1:8080:81/tcp"));
        let all_addresses = twice(&["8080:80", "8081:80", "0.0.0.0:8080:81"]);
        assert_eq!(all_addresses.as_deref(), Some("0.0.0.0:8080:81/tcp"));
        assert_eq!(twice(&["[::]:1:1/udp", "[::1]:1:1/udp"]).as_deref(), Some("[::1]:1:1/udp"));
    }
}
