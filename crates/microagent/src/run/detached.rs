//! A run in the background: a workspace whose service is the command.

use super::generated_name;
use crate::{CreateOptions, Engine, Error, Progress, RunOptions, StartOptions, WorkspaceDetails};

impl Engine {
    /// Starts a workspace whose service is the command of the run. Setup steps run before, in a boot of their own.
    /// Returns when the command runs. A workspace that is not kept is removed when its machine ends for any reason.
    /// The time limit of the options is not used.
    ///
    /// # Errors
    /// As [`Engine::create`] and [`Workspace::start`](crate::Workspace::start). A workspace that is not kept, or
    /// whose start was cancelled, is removed.
    pub async fn run_detached(
        &self,
        options: RunOptions,
        progress: &Progress,
    ) -> Result<WorkspaceDetails, Error> {
        let RunOptions { workspace, command, keep, name, timeout: _ } = options;
        let name = name.map_or_else(generated_name, Ok)?;
        let create = CreateOptions { workspace, service: Some(command), ..CreateOptions::new(name, "") };
        let workspace = self.create_as(create, !keep, progress).await?;
        let record = workspace.observe()?;
        let started = workspace.start_recorded(record.clone(), StartOptions::new(), progress).await;
        match started {
            Ok(()) => match workspace.details() {
                // Its command has ended already.
                Err(Error::NoSuchWorkspace { .. }) if !keep => Ok(WorkspaceDetails::of(record)),
                details => details,
            },
            Err(error) => {
                if !keep || matches!(error, Error::Cancelled) {
                    let dir = workspace.dir();
                    self.remove(workspace.name(), &dir).await?;
                }
                Err(error)
            }
        }
    }
}
