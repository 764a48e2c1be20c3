//! `microagent stats`, in JSON.

use jiff::Timestamp;
use microagent::{Stats, WorkspaceName};
use serde::Serialize;

/// `microagent stats` of several workspaces.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct StatsListDocument {
    pub(crate) workspaces: Vec<StatsDocument>,
}

document! {
    /// `microagent stats`.
    StatsDocument of Stats {
        #[cfg_attr(test, schemars(with = "String"))]
        workspace: WorkspaceName,
        pid: i32,
        cpu_percent: f64,
        memory_bytes: u64,
        memory_limit_bytes: u64,
        io_read_bytes: u64,
        io_write_bytes: u64,
        sampled_at: Timestamp,
    }
}
