//! States of a workspace, and why one failed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The state of a workspace.
///
/// A workspace has a machine, or it is *resting* ([`State::is_resting`]), or it is quarantined:
///
/// | State | Machine | Reached by |
/// |---|---|---|
/// | `Prepared` | no | creation |
/// | `Starting` | yes | a start, until the guest's agent answers and setup has run |
/// | `Running` | yes | a complete start, a resume |
/// | `Paused` | yes | a pause |
/// | `Stopping` | yes | a halt or stop that is not complete |
/// | `Halted` | no | a halt: a clean shutdown of the guest |
/// | `Stopped` | no | a stop, a kill, a service that ended with exit code 0, a cancelled start |
/// | `Failed` | no | an error, or a service that ended with another exit code |
/// | `Quarantined` | as long as QEMU runs | a quarantine, until a halt, stop, kill or forced deletion |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum State {
    /// Record and disk exist. The workspace was never started.
    Prepared,
    /// The machine is being started.
    Starting,
    /// The machine runs, and its guest's agent has answered.
    Running,
    /// The processors of the machine are stopped. Its memory is kept.
    Paused,
    /// The machine is being shut down.
    Stopping,
    /// The machine was halted: all processes of the guest have ended, and its disk was flushed.
    Halted,
    /// The machine was stopped or killed, or its service ended with exit code 0.
    Stopped,
    /// The start failed, the machine ended without a request, or its service ended with another exit code.
    Failed,
    /// The machine is disconnected from network and clients, and its processors are stopped permanently. Disk and
    /// memory are kept for examination, the memory only while QEMU runs. A request ends this state; the end of QEMU
    /// does not.
    Quarantined,
}

impl State {
    /// Whether the workspace has a machine whose supervisor runs: `Starting`, `Running`, `Paused` and `Stopping`.
    pub fn is_live(self) -> bool {
        matches!(self, State::Starting | State::Running | State::Paused | State::Stopping)
    }

    /// Whether the workspace is *resting*: it has no machine, and its disk is not in use. These are the states
    /// `Prepared`, `Halted`, `Stopped` and `Failed`.
    ///
    /// Only a resting workspace can be started, committed, cloned, renamed or resized, and deleted without force.
    /// Files of a resting workspace can be copied: its disk is booted for the copy.
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
    /// Kind of the failure.
    pub kind: FailureKind,
    /// One line that describes the failure.
    pub message: String,
}

/// Kind of a failure of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailureKind {
    /// The machine could not be started.
    Boot,
    /// The time limit of the run was reached.
    Timeout,
    /// A volume, bundle or disk image cannot be used.
    Disk,
    /// The guest or QEMU ended unexpectedly.
    GuestDied,
    /// The guest sent a message that is not valid.
    Protocol,
    /// A setup step failed.
    Setup,
    /// The host has no free disk space or memory.
    HostFull,
    /// The machine was ended on request.
    Cancelled,
    /// The supervisor ended unexpectedly.
    SupervisorDied,
    /// The service ended with an error, or could not be started.
    Service,
    /// The supervisor cannot listen on a published port.
    PortUnavailable,
    /// Its health check failed, and it was ended for that.
    Unhealthy,
}
