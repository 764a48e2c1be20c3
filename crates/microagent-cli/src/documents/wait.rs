//! `microagent wait`, in JSON.

use microagent::{State, WorkspaceName};
use serde::Serialize;

/// `microagent wait`.
#[derive(Debug, Serialize)]
pub(crate) struct WaitDocument {
    pub(crate) workspace: WorkspaceName,
    pub(crate) state: State,
    pub(crate) ok: bool,
}
