//! States of a workspace, and why one failed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a workspace is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum State {
    /// Disk and record exist; never started.
    Prepared,
    /// A supervisor is bringing the machine up.
    Starting,
    /// The guest's agent has answered.
    Running,
    /// Frozen, memory kept.
    Paused,
    /// On its way down.
    Stopping,
    /// Parked by a clean shutdown.
    Halted,
    /// Ended.
    Stopped,
    /// Ended in a way that nobody asked for.
    Failed,
    /// Cut off and stopped for good, its disk and, while its processes live, its memory kept to be examined. Only
    /// somebody's word ends this, not the end of a process.
    Quarantined,
}

impl State {
    /// Whether a supervisor must be alive for this state to be true.
    pub fn is_live(self) -> bool {
        matches!(self, State::Starting | State::Running | State::Paused | State::Stopping)
    }

    /// Whether `start` and offline access to the disk are possible.
    pub fn is_resting(self) -> bool {
        matches!(self, State::Prepared | State::Halted | State::Stopped | State::Failed)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            State::Prepared => "prepared",
            State::Starting => "starting",
            State::Running => "running",
            State::Paused => "paused",
            State::Stopping => "stopping",
            State::Halted => "halted",
            State::Stopped => "stopped",
            State::Failed => "failed",
            State::Quarantined => "quarantined",
        })
    }
}

/// Why a workspace is in state `failed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceFailure {
    /// What kind of thing went wrong.
    pub kind: FailureKind,
    /// One line for a person.
    pub message: String,
}

/// What kind of thing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailureKind {
    /// The machine could not be brought up.
    Boot,
    /// `--timeout` ran out.
    Timeout,
    /// A disk beside the root disk cannot be used.
    Disk,
    /// The guest or its VMM went away in the middle.
    GuestDied,
    /// The guest broke the protocol.
    Protocol,
    /// A setup step failed.
    Setup,
    /// The host ran out of something (disk, memory).
    HostFull,
    /// Ended on request.
    Cancelled,
    /// The supervisor itself went away.
    SupervisorDied,
    /// The service ended with an error, or could not be started.
    Service,
    /// A port of the host that was to be published cannot be listened at.
    PortUnavailable,
}
