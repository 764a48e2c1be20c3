//! Workspaces that a spec file has created from a snapshot: with the disk and the settings of the snapshot, which the other
//! keys of the file change as an `apply` does.

use microagent_store::WorkspaceRecord;

use super::Workspace;
use super::apply::ApplyMode;
use crate::error::SnapshotError;
use crate::{Engine, Error, Lookup, Progress, SpecFile};

/// What a spec file changes of a workspace that was just created from a snapshot.
pub(super) struct SpecChanges<'a> {
    spec: &'a SpecFile,
    host: &'a Lookup,
}

impl SpecChanges<'_> {
    /// Makes the changes, or removes the workspace. With memory, the disks must be those of the snapshot.
    pub(super) async fn make(
        &self,
        created: &Workspace,
        with_memory: bool,
    ) -> Result<WorkspaceRecord, Error> {
        let changed = self.try_to_make(created, with_memory).await;
        if changed.is_err() {
            // It has done nothing yet. That it cannot be removed is not the error to report.
            let _ = created.engine.remove(&created.name, &created.dir()).await;
        }
        changed
    }

    async fn try_to_make(&self, created: &Workspace, with_memory: bool) -> Result<WorkspaceRecord, Error> {
        let before = created.observe()?;
        created.apply(self.spec, self.host, ApplyMode::Write).await?;
        let record = created.observe()?;
        if with_memory && record.disks != before.disks {
            let snapshot = record.from_snapshot.map(|name| name.to_string()).unwrap_or_default();
            return Err(SnapshotError::OtherMachine { snapshot, what: "disks of the workspace" }.into());
        }
        Ok(record)
    }
}

impl Engine {
    /// Creates a workspace from the snapshot that a spec file names
    /// ([`create_workspace`](crate::Snapshots::create_workspace)), and changes it to match the other keys of the file
    /// ([`Workspace::apply`]).
    ///
    /// # Errors
    /// Fails as these two do, and if the file names no snapshot or no workspace. Then nothing is created, but volumes that did
    /// not exist before.
    pub async fn create_from_snapshot(&self, spec: &SpecFile, host: &Lookup) -> Result<Workspace, Error> {
        let (snapshot, name) = spec.snapshot_and_name()?;
        let snapshots = self.workspace(&snapshot.workspace).snapshots();
        let created = snapshots.create_workspace(&snapshot.tag, name).await?;
        SpecChanges { spec, host }.make(&created, false).await?;
        Ok(created)
    }

    /// The same, and starts it as [`start_workspace`](crate::Snapshots::start_workspace) does: with the processes of that time
    /// if the snapshot has the memory. The service and the variables of the file are used from its next boot on.
    ///
    /// # Errors
    /// As [`Engine::create_from_snapshot`] and [`start_workspace`](crate::Snapshots::start_workspace), and if the snapshot has
    /// memory and the file attaches other disks.
    pub async fn start_from_snapshot(
        &self,
        spec: &SpecFile,
        host: &Lookup,
        progress: &Progress,
    ) -> Result<Workspace, Error> {
        let (snapshot, name) = spec.snapshot_and_name()?;
        let snapshots = self.workspace(&snapshot.workspace).snapshots();
        let (origin, changes) = (snapshots.origin(&snapshot.tag)?, SpecChanges { spec, host });
        Ok(snapshots.start_from(&origin, name, Some(&changes), progress).await?.0)
    }
}
