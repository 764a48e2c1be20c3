//! Jobs: commands in the background of a running workspace. Pure.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The number of a job in its workspace, from 1. Numbers go up and are not used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(u32);

/// A text is not the number of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a job has a number from 1 up")]
pub struct JobIdError;

impl JobId {
    /// The first job of a workspace.
    pub const FIRST: JobId = JobId(1);

    /// The number after this one, if there is one.
    pub fn next(self) -> Option<JobId> {
        self.0.checked_add(1).map(JobId)
    }

    /// The number.
    pub fn number(self) -> u32 {
        self.0
    }
}

impl FromStr for JobId {
    type Err = JobIdError;

    fn from_str(text: &str) -> Result<JobId, JobIdError> {
        // One spelling for each: the number is also the name of a directory.
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
        text.parse().ok().filter(|_| is_plain).map(JobId).ok_or(JobIdError)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The state of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum JobState {
    /// Its command runs, or is paused with its machine.
    Running,
    /// Its command exited.
    Exited,
    /// A signal ended its command.
    Signaled,
    /// It reached its time limit and was killed.
    TimedOut,
    /// It ended with its machine, or with its guest, which restarted.
    MachineEnded,
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            JobState::Running => "running",
            JobState::Exited => "exited",
            JobState::Signaled => "signaled",
            JobState::TimedOut => "timed_out",
            JobState::MachineEnded => "machine_ended",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_has_one_spelling() {
        assert_eq!("12".parse::<JobId>().unwrap().to_string(), "12");
        for text in ["", "0", "01", "+1", "-1", "1 ", "x", "4294967296", "../1"] {
            assert_eq!(text.parse::<JobId>(), Err(JobIdError), "{text:?}");
        }
        assert_eq!(JobId::FIRST.next().unwrap().number(), 2);
        assert_eq!("4294967295".parse::<JobId>().unwrap().next(), None);
    }

    #[test]
    fn a_state_is_shown_as_it_is_written() {
        for state in [
            JobState::Running,
            JobState::Exited,
            JobState::Signaled,
            JobState::TimedOut,
            JobState::MachineEnded,
        ] {
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{state}\""));
        }
    }
}
