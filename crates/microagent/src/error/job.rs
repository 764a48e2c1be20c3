//! Why a job cannot be started or reached.

use microagent_model::{FailureKind, JobId, WorkspaceName};
use microagent_store::ReadError;

use super::ErrorKind;
use super::kind::failure_kind;
use crate::Hint;

/// Why a job cannot be started or reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// No job of this number.
    #[error("workspace `{workspace}` has no job {job}")]
    NoSuch {
        /// The workspace.
        workspace: WorkspaceName,
        /// The requested job.
        job: JobId,
    },
    /// The job has ended.
    #[error("job {job} of workspace `{workspace}` has ended")]
    Ended {
        /// The workspace.
        workspace: WorkspaceName,
        /// The job.
        job: JobId,
    },
    /// The job takes no input.
    #[error("job {job} of workspace `{workspace}` has no standard input, or it was closed")]
    NoStdin {
        /// The workspace.
        workspace: WorkspaceName,
        /// The job.
        job: JobId,
    },
    /// The maximum number of jobs runs.
    #[error("{running} jobs run in workspace `{workspace}`; no more can run at a time")]
    TooMany {
        /// The workspace.
        workspace: WorkspaceName,
        /// How many run.
        running: u32,
    },
    /// The guest could not start the command. Nothing is left of the job.
    #[error("the command could not be started: {message}")]
    NotStarted {
        /// The workspace.
        workspace: WorkspaceName,
        /// 127 for a command that was not found, else 126.
        exit_code: i32,
        /// What the guest said.
        message: String,
    },
    /// The job could not be started. Nothing is left of it.
    #[error("workspace `{workspace}`: cannot start the job: {message}")]
    Failed {
        /// The workspace.
        workspace: WorkspaceName,
        /// What kind of failure.
        kind: FailureKind,
        /// One line.
        message: String,
    },
    /// The job could not be killed.
    #[error("job {job} of workspace `{workspace}` did not end within {seconds} s after it was killed")]
    NotKilled {
        /// The workspace.
        workspace: WorkspaceName,
        /// The job.
        job: JobId,
        /// How long was waited.
        seconds: u64,
    },
    /// The job's record cannot be read.
    #[error("cannot read job {job} of workspace `{workspace}`")]
    Record {
        /// The workspace.
        workspace: WorkspaceName,
        /// The job.
        job: JobId,
        /// What is wrong with it.
        source: ReadError,
    },
}

impl JobError {
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            JobError::NoSuch { .. } => ErrorKind::NotFound,
            JobError::Ended { .. } | JobError::NoStdin { .. } => ErrorKind::WrongState,
            JobError::TooMany { .. } => ErrorKind::Busy,
            JobError::NotStarted { .. } | JobError::NotKilled { .. } => ErrorKind::RunFailed,
            JobError::Failed { kind, .. } => failure_kind(*kind),
            JobError::Record { .. } => ErrorKind::Damaged,
        }
    }

    pub(super) fn hint(&self) -> Option<Hint> {
        Some(match self {
            JobError::NoSuch { workspace, .. } => Hint::ListJobs { name: workspace.clone() },
            JobError::Ended { workspace, job } => Hint::JobLogs { name: workspace.clone(), job: *job },
            JobError::NoStdin { workspace, .. } => Hint::StartJobWithStdin { name: workspace.clone() },
            JobError::TooMany { .. } => Hint::advice("try again when one of them has ended"),
            JobError::Failed { kind: FailureKind::HostFull, .. } => Hint::FreeSpace { leftover: None },
            JobError::Failed { workspace, .. } | JobError::NotKilled { workspace, .. } => {
                Hint::LogsOrKill { name: workspace.clone() }
            }
            JobError::NotStarted { .. } | JobError::Record { .. } => return None,
        })
    }
}
