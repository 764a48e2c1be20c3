//! Forwarded ports: which port of `host.microagent.internal` leads to which server. Converts from and to text, nothing
//! else.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Forwarded ports of one guest.
pub const FORWARDS_MAX: usize = 256;

/// A TCP port that a guest finds at `host.microagent.internal`, and the server that it leads to, as the host sees it. As text
/// `GUEST_PORT=HOST:PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Forward {
    /// The port that the guest connects to.
    pub guest_port: NonZeroU16,
    /// The server that the host connects to; loopback addresses are the host's.
    pub target: SocketAddrV4,
}

/// Why a text is not a forwarded port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// It is not a port and a server.
    #[error("`{text}` is not GUEST_PORT=HOST:PORT")]
    Shape {
        /// The text.
        text: String,
    },
    /// The server is not an IPv4 address or `localhost`.
    #[error("`{text}` is not an IPv4 address or `localhost`")]
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
}

/// The first port of the guest that is forwarded twice.
pub fn forwarded_twice(forwards: &[Forward]) -> Option<NonZeroU16> {
    let ports: Vec<NonZeroU16> = forwards.iter().map(|one| one.guest_port).collect();
    ports.iter().enumerate().find(|(at, port)| ports[..*at].contains(port)).map(|(_, port)| *port)
}

impl FromStr for Forward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Forward, ForwardError> {
        let shape = || ForwardError::Shape { text: text.to_owned() };
        let (guest_port, target) = text.split_once('=').ok_or_else(shape)?;
        let (host, target_port) = target.rsplit_once(':').ok_or_else(shape)?;
        let wrong_host = || ForwardError::Host { text: host.to_owned() };
        let address = match host {
            "localhost" => Ipv4Addr::LOCALHOST,
            _ => host.parse().map_err(|_| wrong_host())?,
        };
        if address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
            return Err(wrong_host());
        }
        let port =
            |text: &str| text.parse::<NonZeroU16>().map_err(|_| ForwardError::Port { text: text.to_owned() });
        Ok(Forward {
            guest_port: port(guest_port)?,
            target: SocketAddrV4::new(address, port(target_port)?.get()),
        })
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.guest_port, self.target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_and_written_alike() {
        for (text, whole) in [
            ("11434=127.0.0.1:11434", "11434=127.0.0.1:11434"),
            ("80=localhost:8080", "80=127.0.0.1:8080"),
            ("5432=10.1.2.3:5432", "5432=10.1.2.3:5432"),
        ] {
            let forward: Forward = text.parse().unwrap();
            assert_eq!(forward.to_string(), whole);
            assert_eq!(whole.parse(), Ok(forward));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let shape = |text: &str| ForwardError::Shape { text: text.to_owned() };
        let port = |text: &str| ForwardError::Port { text: text.to_owned() };
        let host = |text: &str| ForwardError::Host { text: text.to_owned() };
        for (text, error) in [
            ("", shape("")),
            ("80", shape("80")),
            ("8080:80", shape("8080:80")),
            ("80=8080", shape("80=8080")),
            ("0=127.0.0.1:80", port("0")),
            ("80=127.0.0.1:0", port("0")),
            ("80=127.0.0.1:x", port("x")),
            ("80=db.example:80", host("db.example")),
            ("80=[::1]:80", host("[::1]")),
            ("80=0.0.0.0:80", host("0.0.0.0")),
        ] {
            assert_eq!(text.parse::<Forward>(), Err(error), "{text}");
        }
    }

    #[test]
    fn a_port_of_the_guest_leads_to_one_server() {
        let all =
            |texts: &[&str]| -> Vec<Forward> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        assert_eq!(forwarded_twice(&all(&["80=127.0.0.1:1", "81=127.0.0.1:1"])), None);
        let twice = forwarded_twice(&all(&["80=127.0.0.1:1", "81=127.0.0.1:1", "80=127.0.0.1:2"]));
        assert_eq!(twice.map(NonZeroU16::get), Some(80));
    }
}
