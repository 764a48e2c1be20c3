//! Egress: what a guest may reach, and what was decided about one flow or name.

mod decision;
mod policy;

pub(crate) use policy::is_host_name;

pub use decision::{BrokeredRequest, Decision, Protocol, Reason, Subject};
pub use policy::{
    AllowRule, AllowRuleError, BYTES_DEFAULT, CONNECTIONS_DEFAULT, EgressMode, EgressModeError, EgressPolicy,
    RULES_MAX,
};
