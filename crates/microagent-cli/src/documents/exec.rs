//! `microagent exec`, in JSON.

use microagent::WorkspaceName;
use serde::Serialize;

/// `microagent exec`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ExecDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) workspace: WorkspaceName,
    pub(crate) status: &'static str,
    pub(crate) exit_code: i32,
    pub(crate) signal: Option<i32>,
    pub(crate) start_error: Option<String>,
    pub(crate) out_of_memory: Option<String>,
    pub(crate) disk_full: Option<String>,
    pub(crate) started_at: String,
    pub(crate) exited_at: String,
    pub(crate) stdout: String,
    pub(crate) stdout_encoding: &'static str,
    pub(crate) stderr: String,
    pub(crate) stderr_encoding: &'static str,
    pub(crate) dropped_bytes: u64,
}
