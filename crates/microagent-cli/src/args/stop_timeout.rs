//! `--timeout` of verbs that end the processes of a workspace.

use std::time::Duration;

use clap::Args;
use microagent::spec::value::duration;
use microagent::{Error, Workspace, WorkspaceDetails};

/// How long processes have to end.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct StopTimeout {
    /// How long processes have to end: seconds, or units as in 1m30s [default: the workspace's --stop-timeout, else 10]
    #[arg(short, long, alias = "time", value_name = "SECONDS", value_parser = duration)]
    timeout: Option<Duration>,
}

impl StopTimeout {
    /// Halts a workspace within the time.
    pub(crate) async fn halt(self, workspace: &Workspace) -> Result<WorkspaceDetails, Error> {
        match self.timeout {
            Some(limit) => workspace.halt_within(limit).await,
            None => workspace.halt().await,
        }
    }

    /// Stops a workspace within the time.
    pub(crate) async fn stop(self, workspace: &Workspace) -> Result<WorkspaceDetails, Error> {
        match self.timeout {
            Some(limit) => workspace.stop_within(limit).await,
            None => workspace.stop().await,
        }
    }
}
