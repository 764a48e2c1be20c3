//! `microagent egress`, in JSON.

use std::net::{Ipv4Addr, SocketAddrV4};

use jiff::Timestamp;
use microagent::WorkspaceName;
use microagent::egress::{Decision, Protocol, Reason, Subject};
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
        address: Option<Ipv4Addr>,
        #[serde(skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
        /// With a forwarded port, the server that it leads to.
        #[serde(skip_serializing_if = "Option::is_none")]
        target: Option<SocketAddrV4>,
        allowed: bool,
        #[cfg_attr(test, schemars(with = "Words<microagent::egress::Reason>"))]
        reason: Reason,
        /// With the record `suppressed`, how many decisions were left out.
        #[serde(skip_serializing_if = "Option::is_none")]
        count: Option<u64>,
    }
}
