//! `microagent wait`, in JSON.

use microagent::{HealthState, State, WorkspaceName};
use serde::Serialize;

#[cfg(test)]
use crate::documents::schema::Words;

/// `microagent wait`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct WaitDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) workspace: WorkspaceName,
    #[cfg_attr(test, schemars(with = "Words<microagent::State>"))]
    pub(crate) state: State,
    /// With --healthy; `null` without, or if it has no machine any more.
    #[cfg_attr(test, schemars(with = "Option<Words<microagent::HealthState>>"))]
    pub(crate) health: Option<HealthState>,
    pub(crate) ok: bool,
}
