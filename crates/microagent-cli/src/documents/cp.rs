//! `microagent cp`, in JSON.

use microagent::WorkspaceName;
use serde::Serialize;

/// `microagent cp`.
#[derive(Debug, Serialize)]
pub(crate) struct CopyDocument {
    pub(crate) workspace: WorkspaceName,
    pub(crate) source: String,
    pub(crate) target: String,
}
