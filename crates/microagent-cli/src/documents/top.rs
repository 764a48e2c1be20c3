//! `microagent top`, in JSON.

use microagent::{GuestProcess, ProcessList, WorkspaceName};
use serde::Serialize;

/// `microagent top`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ProcessListDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    workspace: WorkspaceName,
    processes: Vec<ProcessDocument>,
}

/// A process of a guest.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ProcessDocument {
    pid: u32,
    parent_pid: u32,
    uid: u32,
    user: String,
    cpu_percent: f64,
    cpu_seconds: f64,
    age_seconds: f64,
    memory_bytes: u64,
    command: Vec<String>,
}

impl From<ProcessList> for ProcessListDocument {
    fn from(list: ProcessList) -> ProcessListDocument {
        ProcessListDocument {
            workspace: list.workspace,
            processes: list.processes.into_iter().map(ProcessDocument::from).collect(),
        }
    }
}

impl From<GuestProcess> for ProcessDocument {
    fn from(process: GuestProcess) -> ProcessDocument {
        ProcessDocument {
            cpu_percent: process.cpu_percent(),
            pid: process.pid,
            parent_pid: process.parent_pid,
            uid: process.uid,
            user: process.user,
            cpu_seconds: process.cpu_time.as_secs_f64(),
            age_seconds: process.age.as_secs_f64(),
            memory_bytes: process.memory_bytes,
            command: process.command,
        }
    }
}
