//! `microagent egress`, in JSON.

use std::net::{IpAddr, SocketAddrV4};

use jiff::Timestamp;
use microagent::WorkspaceName;
use microagent::egress::{BrokeredRequest, Decision, Protocol, Reason, Subject};
use serde::Serialize;

#[cfg(test)]
use crate::documents::schema::Words;

/// `microagent egress`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct EgressDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) workspace: WorkspaceName,
    pub(crate) egress: Vec<DecisionDocument>,
}

document! {
    /// One decision of the filter; what does not apply is left out.
    DecisionDocument of Decision {
        at: Timestamp,
        #[cfg_attr(test, schemars(with = "Words<microagent::egress::Subject>"))]
        record: Subject,
        #[serde(skip_serializing_if = "Option::is_none")]
        #[cfg_attr(test, schemars(with = "Option<Words<microagent::egress::Protocol>>"))]
        protocol: Option<Protocol>,
        /// In lower case, anything unusual in it as `\DDD`.
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        address: Option<IpAddr>,
        #[serde(skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
        /// With a forwarded port, the server that it leads to.
        #[serde(skip_serializing_if = "Option::is_none")]
        target: Option<SocketAddrV4>,
        allowed: bool,
        #[cfg_attr(test, schemars(with = "Words<microagent::egress::Reason>"))]
        reason: Reason,
        /// With the record `request`, what was asked of a broker and answered.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[cfg_attr(test, schemars(with = "Option<BrokeredRequestDocument>"))]
        request: Option<Box<BrokeredRequest>>,
        /// With the record `suppressed`, how many decisions were left out.
        #[serde(skip_serializing_if = "Option::is_none")]
        count: Option<u64>,
    }
}

/// A request through a broker.
#[cfg(test)]
#[derive(schemars::JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct BrokeredRequestDocument {
    broker: String,
    method: String,
    /// Without query; what is long is cut.
    path: String,
    /// The status that the guest was answered; left out if it had left before.
    status: Option<u16>,
    /// Bytes of the request's body that were passed on.
    sent_bytes: u64,
    /// Bytes of the answer's body that were passed on.
    received_bytes: u64,
    /// From the request's head to the answer's end.
    duration_ms: u64,
}
