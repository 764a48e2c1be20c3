//! `microagent jobs`, `job` and `exec --detach`, in JSON.

use jiff::Timestamp;
use microagent::{JobDetails, JobId, JobOutput, JobOutputPiece, JobState, OutputStream, WorkspaceName};
use serde::Serialize;

use super::output::json_bytes;
#[cfg(test)]
use crate::documents::schema::Words;

/// `microagent jobs`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct JobListDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) workspace: WorkspaceName,
    /// Oldest first.
    pub(crate) jobs: Vec<JobDocument>,
}

/// One job, as it is after what was requested.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct JobDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) workspace: WorkspaceName,
    /// Its number in the workspace.
    #[cfg_attr(test, schemars(with = "u32"))]
    pub(crate) job: JobId,
    #[cfg_attr(test, schemars(with = "Words<microagent::JobState>"))]
    pub(crate) state: JobState,
    /// The command line as a shell takes it, cut to 4 KiB.
    pub(crate) command: String,
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) started_at: Timestamp,
    /// `null` while it runs, and where it ended with its machine and nobody saw when.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub(crate) ended_at: Option<Timestamp>,
    /// `null` while it runs, and where it ended with its machine and nobody saw how.
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
    /// Whether it was started with a standard input.
    pub(crate) stdin: bool,
    /// Bytes that it printed, kept or not; `null` while it runs, and where nobody saw its end.
    pub(crate) printed_bytes: Option<u64>,
    pub(crate) out_of_memory: Option<String>,
    pub(crate) disk_full: Option<String>,
}

/// `microagent job logs`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct JobLogsDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) workspace: WorkspaceName,
    #[cfg_attr(test, schemars(with = "u32"))]
    pub(crate) job: JobId,
    /// As it was before its output was read: when it is not `running`, nothing follows.
    #[cfg_attr(test, schemars(with = "Words<microagent::JobState>"))]
    pub(crate) state: JobState,
    pub(crate) exit_code: Option<i32>,
    /// Where the output begins, in bytes from the start.
    pub(crate) position: u64,
    /// What `--from` takes for what follows.
    pub(crate) next_position: u64,
    pub(crate) stdout: String,
    pub(crate) stdout_encoding: &'static str,
    pub(crate) stderr: String,
    pub(crate) stderr_encoding: &'static str,
    /// Bytes between the two places that are not kept.
    pub(crate) dropped_bytes: u64,
}

impl JobDocument {
    /// A job of this workspace.
    pub(crate) fn new(workspace: &WorkspaceName, details: JobDetails) -> JobDocument {
        JobDocument {
            workspace: workspace.clone(),
            job: details.id,
            state: details.state,
            command: details.command,
            started_at: details.started_at,
            ended_at: details.ended_at,
            exit_code: details.exit_code,
            signal: details.signal,
            stdin: details.stdin,
            printed_bytes: details.printed_bytes,
            out_of_memory: details.out_of_memory,
            disk_full: details.disk_full,
        }
    }
}

impl JobLogsDocument {
    /// What a job of this workspace printed.
    pub(crate) fn new(workspace: WorkspaceName, output: JobOutput) -> JobLogsDocument {
        let JobOutput { details, position, next_position, pieces, .. } = output;
        let (mut out, mut err, mut dropped_bytes) = (Vec::new(), Vec::new(), 0);
        for piece in pieces {
            match piece {
                JobOutputPiece::Printed(frame) => match frame.stream {
                    OutputStream::Stdout => out.extend(frame.bytes),
                    OutputStream::Stderr => err.extend(frame.bytes),
                },
                JobOutputPiece::Dropped(count) => dropped_bytes += count,
            }
        }
        let (stdout, stdout_encoding) = json_bytes(out);
        let (stderr, stderr_encoding) = json_bytes(err);
        JobLogsDocument {
            workspace,
            job: details.id,
            state: details.state,
            exit_code: details.exit_code,
            position,
            next_position,
            stdout,
            stdout_encoding,
            stderr,
            stderr_encoding,
            dropped_bytes,
        }
    }
}
