//! Clones resting workspaces: the same image, settings and disks with another name and identity.
//! The source is locked and only read. The copy gets its name when it is complete; layers are shared. Image files are not
//! copied, and named volumes only for forks that ask for it: both workspaces attach them.

use jiff::Timestamp;
use microagent_model::{State, WorkspaceName};
use microagent_store::{Lock, MachineState, Workload, WorkspaceRecord};
use tokio_util::sync::CancellationToken;

use super::fork_volumes::{CopiedFrom, CopiedVolume, ForkVolumes, attach_copies, copies_for};
use super::layers::copy_bundles;
use super::{Workspace, lock_patiently};
use crate::Error;
use crate::disks::copy_disk;
use crate::error::Action;
use crate::supervisor_spec::new_identity;

impl Workspace {
    /// Clones the [resting](microagent_model::State::is_resting) workspace: the same image, settings and disk, with another
    /// name and identity. The cost depends on the workspace's changes to its image, and is less if the file system can share blocks.
    ///
    /// # Errors
    /// Fails if the workspace is running or in use, or the name is taken. Then nothing is created.
    pub async fn clone_to(&self, name: &WorkspaceName) -> Result<Workspace, Error> {
        let never = CancellationToken::new();
        Ok(self.clone_with(name, ForkVolumes::Shared, &never).await?.0)
    }

    /// The same, with copies of volumes if that is said.
    pub(super) async fn clone_with(
        &self,
        name: &WorkspaceName,
        volumes: ForkVolumes,
        cancel: &CancellationToken,
    ) -> Result<(Workspace, Vec<CopiedVolume>), Error> {
        self.engine.prepare()?;
        let from = self.existing()?;
        self.check_resting(&self.observe()?, Action::Clone)?;
        // Nobody may start it while its disk is copied.
        let lock = lock_patiently(&self.name, &from).await?;
        let (source, copy, cancel) = (self.clone(), self.engine.workspace(name), cancel.clone());
        let copied = copy.clone();
        let copying = tokio::task::spawn_blocking(move || source.copy_to(&copied, &lock, (volumes, &cancel)));
        let copies = copying.await.unwrap_or(Err(Error::Cancelled))?;
        self.engine.place_copies(&copy, &copies).await?;
        Ok((copy, copies))
    }

    /// Copies the locked workspace. The copies of volumes have no places yet.
    fn copy_to(
        &self,
        copy: &Workspace,
        _lock: &Lock,
        (volumes, cancel): (ForkVolumes, &CancellationToken),
    ) -> Result<Vec<CopiedVolume>, Error> {
        let name = &copy.name;
        let from = self.existing()?;
        let record = WorkspaceRecord::load(&from)?;
        self.check_resting(&record, Action::Clone)?;
        let workload = Workload::load(&from).map_err(|e| self.damaged(e))?;
        let _held = self.engine.hold_layers()?;
        let (mut copied, workload) = derived(record, workload, &self.name, name)?;
        let copies = match volumes {
            ForkVolumes::Shared => Vec::new(),
            ForkVolumes::Copied => copies_for(&copied, name)?,
        };
        attach_copies(&mut copied, &copies);
        self.engine.create_dir_with(&copied, Some(&workload), |dir| {
            let path = copied.disk(&from);
            copy_disk(&path, &copied.disk(dir)).map_err(|source| Error::File {
                action: "copy",
                path,
                source,
            })?;
            copy_bundles(&copied, &from, dir)?;
            self.engine.make_copies(&copies, &CopiedFrom::Volumes, dir, cancel)
        })?;
        Ok(copies)
    }
}

/// The state of a workspace or snapshot that is made from a workspace with this one: without a machine.
pub(super) fn resting_state(source: &MachineState, now: Timestamp) -> MachineState {
    let state = if source.state == State::Prepared { State::Prepared } else { State::Stopped };
    MachineState {
        backend: source.backend.clone(),
        asked_to_end: source.asked_to_end,
        ..MachineState::resting(state, now)
    }
}

/// Record and workload of a new workspace that is made from another one: the same settings, with its own name and identity.
pub(super) fn derived(
    record: WorkspaceRecord,
    mut workload: Workload,
    source: &WorkspaceName,
    name: &WorkspaceName,
) -> Result<(WorkspaceRecord, Workload), Error> {
    let hostname =
        if record.hostname == source.to_hostname() { name.to_hostname() } else { record.hostname.clone() };
    let is_own = |(key, value): &(String, String)| key == "HOSTNAME" && *value == record.hostname;
    if let Some((_, value)) = workload.env.iter_mut().find(|variable| is_own(variable)) {
        value.clone_from(&hostname);
    }
    let now = Timestamp::now();
    let record = WorkspaceRecord {
        name: name.clone(),
        created_at: now,
        hostname,
        identity: Some(new_identity()?),
        disposable: false,
        from_snapshot: None,
        machine: resting_state(&record.machine, now),
        ..record
    };
    Ok((record, workload))
}
