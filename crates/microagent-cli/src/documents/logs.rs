//! `microagent logs`, in JSON.

use microagent::WorkspaceName;
use serde::Serialize;

/// `microagent logs`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct LogsDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) workspace: WorkspaceName,
    pub(crate) logs: String,
    pub(crate) logs_encoding: &'static str,
}
