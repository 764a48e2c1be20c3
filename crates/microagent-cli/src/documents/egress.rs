//! `microagent egress`, in JSON.

use microagent::WorkspaceName;
use microagent::egress::Decision;
use serde::Serialize;

/// `microagent egress`.
#[derive(Debug, Serialize)]
pub(crate) struct EgressDocument {
    pub(crate) workspace: WorkspaceName,
    pub(crate) egress: Vec<Decision>,
}
