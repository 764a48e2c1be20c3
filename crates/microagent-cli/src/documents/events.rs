//! `microagent events`, in JSON.

use microagent::{StateEvent, WorkspaceName};
use serde::Serialize;

/// `microagent events`.
#[derive(Debug, Serialize)]
pub(crate) struct EventsDocument {
    pub(crate) workspace: WorkspaceName,
    pub(crate) events: Vec<StateEvent>,
}
