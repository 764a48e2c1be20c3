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

use std::net::{Ipv4Addr, SocketAddrV4};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One decision of the filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// When.
    pub at: Timestamp,
    /// About what.
    pub record: Subject,
    /// How the guest speaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// The name, as far as one is known; lower case, anything unusual in it as `\DDD`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The far end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// The far end's port; with [`Subject::Published`], the guest's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// With a forwarded port, the server that it leads to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<SocketAddrV4>,
    /// Whether it goes through.
    pub allowed: bool,
    /// Why.
    pub reason: Reason,
    /// With [`Subject::Request`], what was asked and answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Box<BrokeredRequest>>,
    /// With [`Subject::Suppressed`], how many decisions were left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

impl Decision {
    /// A decision with what every decision has, and no other field.
    pub fn new(at: Timestamp, record: Subject, allowed: bool, reason: Reason) -> Decision {
        Decision {
            at,
            record,
            protocol: None,
            name: None,
            address: None,
            port: None,
            target: None,
            allowed,
            reason,
            request: None,
            count: None,
        }
    }

    /// The line that says how many decisions were left out.
    pub fn suppressed(at: Timestamp, count: u64) -> Decision {
        Decision { count: Some(count), ..Decision::new(at, Subject::Suppressed, false, Reason::TooMany) }
    }

    /// The line that says that a process that carries the guest's traffic has ended, or that another one runs.
    pub fn process_change(at: Timestamp, record: Subject, is_up: bool) -> Decision {
        Decision::new(at, record, is_up, if is_up { Reason::Up } else { Reason::Down })
    }
}

/// A request through a broker. It is recorded when it is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokeredRequest {
    /// The broker's name.
    pub broker: String,
    /// The method.
    pub method: String,
    /// The path as the guest asked for it, without query; what is long is cut.
    pub path: String,
    /// The status that the guest was answered; none if it had left before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Bytes of the request's body that were passed on.
    pub sent_bytes: u64,
    /// Bytes of the answer's body that were passed on.
    pub received_bytes: u64,
    /// From the request's head to the answer's end.
    pub duration_ms: u64,
}

/// What a decision is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A connection of the guest, or a flow of datagrams.
    Connection,
    /// A connection to a port of the guest: a published one, or any one for a member of its private network.
    Published,
    /// A lookup.
    Name,
    /// A request through a broker.
    Request,
    /// The network as a whole.
    Network,
    /// The process of the brokers.
    Brokers,
    /// Decisions that were left out.
    Suppressed,
}

/// How the guest speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// A connection.
    Tcp,
    /// Datagrams.
    Udp,
    /// An echo.
    Icmp,
    /// A lookup.
    Dns,
}

/// Why a decision is as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Allowed: the egress mode allows it.
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
    /// Refused: loopback, link-local, metadata, multicast or reserved; no rule allows it. Or a name that resolves only
    /// to such addresses.
    Forbidden,
    /// Refused: no other machine is in the guest's own network.
    OwnNetwork,
    /// Refused: the host or one of its networks, and no rule names the address.
    Inside,
    /// Refused: the mode allows only what a rule names.
    NotListed,
    /// Refused: too many connections are open.
    Connections,
    /// Refused: the limit on bytes was reached; from then on everything is refused.
    Bytes,
    /// Refused: no pattern of the broker allows the request.
    NotAllowed,
    /// Refused: brokers do not pass such requests on.
    Malformed,
    /// Refused: the broker's upstream cannot be reached, or did not answer.
    Upstream,
    /// Refused: the network stack, or the process of the brokers, has ended.
    Down,
    /// Allowed: a network stack, or a process of the brokers, runs again.
    Up,
    /// Refused: a query of a type that is not served.
    Unserved,
    /// Not refused, but no name server of the host answered.
    NoAnswer,
    /// There were too many decisions to record.
    TooMany,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision() -> Decision {
        Decision {
            protocol: Some(Protocol::Tcp),
            name: Some("example.org".to_owned()),
            address: Some(Ipv4Addr::new(192, 0, 2, 1)),
            port: Some(443),
            ..Decision::new(Timestamp::UNIX_EPOCH, Subject::Connection, true, Reason::Name)
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
