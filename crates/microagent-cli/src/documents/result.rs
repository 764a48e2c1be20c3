//! `microagent result`, in JSON.

use microagent::{RunResult, WorkspaceName};
use serde::Serialize;

/// `microagent result`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct LastResultDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) workspace: WorkspaceName,
    pub(crate) result: ResultDocument,
}

/// How something ended.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ResultDocument {
    pub(crate) started_at: String,
    pub(crate) exited_at: String,
    pub(crate) exit_code: i32,
    pub(crate) signal: Option<i32>,
    pub(crate) start_error: Option<String>,
    pub(crate) out_of_memory: Option<String>,
    pub(crate) disk_full: Option<String>,
}

impl From<RunResult> for ResultDocument {
    fn from(result: RunResult) -> ResultDocument {
        ResultDocument {
            started_at: result.started_at.to_string(),
            exited_at: result.exited_at.to_string(),
            exit_code: result.exit_code,
            signal: result.signal,
            start_error: result.start_error,
            out_of_memory: result.out_of_memory,
            disk_full: result.disk_full,
        }
    }
}
