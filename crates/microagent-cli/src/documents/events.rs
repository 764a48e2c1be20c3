//! `microagent events`, in JSON.

use jiff::Timestamp;
use microagent::{State, StateEvent, WorkspaceName};
use serde::Serialize;

#[cfg(test)]
use crate::documents::schema::Words;

/// `microagent events`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct EventsDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) workspace: WorkspaceName,
    pub(crate) events: Vec<StateEventDocument>,
}

document! {
    /// One change of state.
    StateEventDocument of StateEvent {
        at: Timestamp,
        #[cfg_attr(test, schemars(with = "Words<microagent::State>"))]
        state: State,
        detail: Option<String>,
    }
}
