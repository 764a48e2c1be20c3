//! What the egress filter decided: one [`Decision`] per flow and per name.
//!
//! # Shape
//! As JSON, a decision is one object; fields without a value are left out.
//!
//! | Field | What |
//! |---|---|
//! | `at` | when, RFC 3339 in UTC |
//! | `record` | `connection` (of the guest), `published` (to the guest), `name` (a lookup), `request` (through a broker), `network` (the network ended), `brokers` (they ended), `suppressed` |
//! | `protocol` | `tcp`, `udp` or `icmp`; `dns` with `name` |
//! | `name` | the name that was asked for; with connections, the one that led to the address |
//! | `address`, `port` | the far end; no port with ICMP |
//! | `target` | with a forwarded port, the server that it leads to |
//! | `allowed` | whether it goes through |
//! | `reason` | why; see [`Reason`] |
//! | `request` | with `request`, what was asked and answered; see [`BrokeredRequest`] |
//! | `count` | with `suppressed`, how many decisions were left out |

use std::net::{IpAddr, SocketAddrV4};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A decision of the egress filter: whether one connection, lookup or request was allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// When it was made (host's clock).
    pub at: Timestamp,
    /// What it is about.
    pub record: Subject,
    /// The protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// The name, if it is known: lower case, with unusual bytes as `\DDD`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The address of the other end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The port of the other end; with [`Subject::Published`], the guest's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// With a forwarded port, the server that it leads to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<SocketAddrV4>,
    /// Whether it was allowed.
    pub allowed: bool,
    /// The reason.
    pub reason: Reason,
    /// With [`Subject::Request`], what was asked and answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Box<BrokeredRequest>>,
    /// With [`Subject::Suppressed`], how many decisions were left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

/// A request through a broker, which is recorded at its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokeredRequest {
    /// The broker's name.
    pub broker: String,
    /// The method.
    pub method: String,
    /// The path that the guest requested, without query. A long path is cut.
    pub path: String,
    /// The status that the guest received; `None` if it had closed the connection before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Bytes of the request's body that were passed on.
    pub sent_bytes: u64,
    /// Bytes of the answer's body that were passed on.
    pub received_bytes: u64,
    /// Milliseconds from the head of the request to the end of the answer.
    pub duration_ms: u64,
}

/// The subject of a [`Decision`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A connection of the guest, or a flow of datagrams.
    Connection,
    /// A connection to a port of the guest: a published one, or any one for a member of its private network.
    Published,
    /// The lookup of a name.
    Name,
    /// A request through a broker.
    Request,
    /// The network stack, which has ended or was started again.
    Network,
    /// The process of the brokers, which has ended or was started again.
    Brokers,
    /// Decisions that were left out.
    Suppressed,
}

/// The protocol of a connection or request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP: an echo request (ping).
    Icmp,
    /// DNS: the lookup of a name.
    Dns,
}

/// The reason of a [`Decision`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Allowed by the mode.
    Mode,
    /// Allowed: a rule names the address, or the name that was asked for.
    Rule,
    /// Allowed: a name that a rule covers resolved to the address.
    Name,
    /// Allowed: the name is one that the stack answers itself: `host.microagent.internal`, or one that was added.
    Local,
    /// Allowed: the port is forwarded.
    Forwarded,
    /// Allowed: the port is a broker's, or a broker has passed the request on.
    Broker,
    /// Allowed: the port is published.
    Published,
    /// Allowed: the other end is a member of a private network that the guest has joined.
    Member,
    /// Refused: the address is loopback, link-local, metadata, multicast or reserved, and no rule can allow it. Or all
    /// addresses of the name are.
    Forbidden,
    /// Refused: the address is in the guest's own network, where there is no other host.
    OwnNetwork,
    /// Refused: the address is of the host or a private network, and no rule names it.
    Inside,
    /// Refused: the mode allows only what a rule names.
    NotListed,
    /// Refused: too many connections are open.
    Connections,
    /// Refused: the limit of bytes is reached, so everything is refused from here on.
    Bytes,
    /// Refused: no pattern of the broker allows the request.
    NotAllowed,
    /// Refused: the request is not valid, or of a sort that a broker does not pass on.
    Malformed,
    /// Refused: the broker's upstream cannot be reached, or gave no answer that can be used.
    Upstream,
    /// Refused: the certificate of the broker's upstream is not valid for it, or not from an authority that is trusted.
    Certificate,
    /// Refused: the network stack, or the process of the brokers, has ended.
    Down,
    /// Allowed: a network stack, or a process of the brokers, runs again.
    Up,
    /// Refused: queries of this type are not answered.
    Unserved,
    /// Not refused, but no name server of the host answered.
    NoAnswer,
    /// Too many decisions were made to record all.
    TooMany,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decisions;

    fn decision() -> Decision {
        Decision {
            protocol: Some(Protocol::Tcp),
            name: Some("example.org".to_owned()),
            address: "192.0.2.1".parse().ok(),
            port: Some(443),
            ..decisions::new(Timestamp::UNIX_EPOCH, Subject::Connection, true, Reason::Name)
        }
    }

    #[test]
    fn a_decision_is_one_flat_object() {
        let text = serde_json::to_string(&decision()).unwrap();
        assert_eq!(
            text,
            r#"{"at":"1970-01-01T00:00:00Z","record":"connection","protocol":"tcp","name":"example.org","address":"192.0.2.1","port":443,"allowed":true,"reason":"name"}"#
        );
        assert_eq!(serde_json::from_str::<Decision>(&text).unwrap(), decision());
    }
}
