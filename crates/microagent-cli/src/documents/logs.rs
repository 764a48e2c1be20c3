//! `microagent logs`, in JSON.

use microagent::WorkspaceName;
use serde::Serialize;

/// `microagent logs`.
#[derive(Debug, Serialize)]
pub(crate) struct LogsDocument {
    pub(crate) workspace: WorkspaceName,
    pub(crate) logs: String,
    pub(crate) logs_encoding: &'static str,
}
