//! Published ports: which TCP port of the host leads to which port of the guest. Text and back, nothing else.

use std::fmt;
use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One TCP port of the host that leads into the guest. As text `[HOST:]HOST_PORT:GUEST_PORT[/tcp]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Publish {
    /// The host's address that is listened at; without one in the text, `127.0.0.1`.
    pub host: Ipv4Addr,
    /// The host's port; 0 has one picked at each start.
    pub host_port: u16,
    /// The guest's port.
    pub guest_port: NonZeroU16,
}

/// Why a text is not a published port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// It has not two ports.
    #[error("`{text}` does not name a port of the host and one of the guest")]
    Shape {
        /// The text.
        text: String,
    },
    /// The address is not valid, or a name, or of IPv6.
    #[error("`{text}` is not an IPv4 address of the host")]
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
    /// Only TCP is published.
    #[error("`{text}` cannot be published: only TCP ports can")]
    Protocol {
        /// That part of the text.
        text: String,
    },
}

/// The first port of the host that is published twice, at whatever addresses.
pub fn published_twice(publish: &[Publish]) -> Option<u16> {
    let fixed: Vec<u16> = publish.iter().map(|one| one.host_port).filter(|port| *port != 0).collect();
    fixed.iter().enumerate().find(|(at, port)| fixed[..*at].contains(port)).map(|(_, port)| *port)
}

impl FromStr for Publish {
    type Err = PublishError;

    fn from_str(text: &str) -> Result<Publish, PublishError> {
        let shape = || PublishError::Shape { text: text.to_owned() };
        let ports = match text.split_once('/') {
            None | Some((_, "tcp")) => text.split('/').next().unwrap_or_default(),
            Some((_, protocol)) => return Err(PublishError::Protocol { text: protocol.to_owned() }),
        };
        let (rest, guest_port) = ports.rsplit_once(':').ok_or_else(shape)?;
        let (host, host_port) = match rest.rsplit_once(':') {
            None => (Ipv4Addr::LOCALHOST, rest),
            Some((host, port)) => {
                (host.parse().map_err(|_| PublishError::Host { text: host.to_owned() })?, port)
            }
        };
        let port = |text: &str| PublishError::Port { text: text.to_owned() };
        Ok(Publish {
            host,
            host_port: host_port.parse().map_err(|_| port(host_port))?,
            guest_port: guest_port.parse().map_err(|_| port(guest_port))?,
        })
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}/tcp", self.host, self.host_port, self.guest_port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_as_docker_writes_it() {
        for (text, whole) in [
            ("8080:80", "127.0.0.1:8080:80/tcp"),
            ("0:80/tcp", "127.0.0.1:0:80/tcp"),
            ("0.0.0.0:8080:80", "0.0.0.0:8080:80/tcp"),
            ("192.0.2.7:1:65535/tcp", "192.0.2.7:1:65535/tcp"),
        ] {
            let publish: Publish = text.parse().unwrap();
            assert_eq!(publish.to_string(), whole);
            assert_eq!(whole.parse(), Ok(publish));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let shape = |text: &str| PublishError::Shape { text: text.to_owned() };
        let port = |text: &str| PublishError::Port { text: text.to_owned() };
        let host = |text: &str| PublishError::Host { text: text.to_owned() };
        for (text, error) in [
            ("80", shape("80")),
            ("", shape("")),
            ("8080:0", port("0")),
            ("8080:65536", port("65536")),
            (":80", port("")),
            ("8080:", port("")),
            ("localhost:8080:80", host("localhost")),
            ("[::1]:8080:80", host("[::1]")),
            ("53:53/udp", PublishError::Protocol { text: "udp".to_owned() }),
        ] {
            assert_eq!(text.parse::<Publish>(), Err(error), "{text}");
        }
    }

    #[test]
    fn a_port_of_the_host_is_published_once() {
        let twice = |texts: &[&str]| {
            let all: Vec<Publish> = texts.iter().map(|text| text.parse().unwrap()).collect();
            published_twice(&all)
        };
        assert_eq!(twice(&["8080:80", "8081:80", "0:80", "0:81"]), None);
        assert_eq!(twice(&["8080:80", "8081:80", "0.0.0.0:8080:81"]), Some(8080));
    }
}
