//! Clones resting workspaces: the same image, settings and disks with another name and identity.
//! The source is locked and only read. The copy gets its name when it is complete. Named volumes and image files are
//! not copied: both workspaces attach them.

use jiff::Timestamp;
use microagent_model::{DiskSource, State, WorkspaceName};
use microagent_store::{Lock, Workload, WorkspaceRecord};

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
        self.engine.prepare()?;
        let from = self.existing()?;
        self.resting(&self.observe()?)?;
        // Nobody may start it while its disk is copied.
        let lock = lock_patiently(&self.name, &from).await?;
        let (source, copy) = (self.clone(), self.engine.workspace(name));
        let copied = copy.clone();
        let copying = tokio::task::spawn_blocking(move || source.copy_to(&copied, &lock));
        copying.await.unwrap_or(Err(Error::Cancelled))?;
        Ok(copy)
    }

    fn resting(&self, record: &WorkspaceRecord) -> Result<State, Error> {
        match record.observed_state() {
            state if state.is_resting() => Ok(state),
            state => Err(self.wrong_state(state, Action::Clone)),
        }
    }

    /// Copies the locked workspace.
    fn copy_to(&self, copy: &Workspace, _lock: &Lock) -> Result<(), Error> {
        let name = &copy.name;
        let from = self.existing()?;
        let record = WorkspaceRecord::load(&from)?;
        let state = self.resting(&record)?;
        let mut workload = Workload::load(&from).map_err(|e| self.damaged(e))?;
        let hostname = if record.hostname == self.name.to_hostname() {
            name.to_hostname()
        } else {
            record.hostname.clone()
        };
        let is_own = |(key, value): &(String, String)| key == "HOSTNAME" && *value == record.hostname;
        if let Some((_, value)) = workload.env.iter_mut().find(|variable| is_own(variable)) {
            value.clone_from(&hostname);
        }
        let now = Timestamp::now();
        let record = WorkspaceRecord {
            name: name.clone(),
            state: if state == State::Prepared { State::Prepared } else { State::Stopped },
            created_at: now,
            changed_at: now,
            hostname,
            identity: Some(new_identity()?),
            supervisor: None,
            vmm: None,
            link: None,
            failure: None,
            disposable: false,
            weak_jail: Vec::new(),
            one_start: None,
            ..record
        };
        self.engine.create_dir_with(&record, Some(&workload), |dir| {
            let bundles = record.disks.iter().filter(|disk| matches!(disk.source, DiskSource::Bundle(_)));
            let numbers = 0..bundles.count();
            let disks = numbers.map(|number| (from.bundle(number), dir.bundle(number)));
            for (from, to) in std::iter::once((from.disk(), dir.disk())).chain(disks) {
                copy_disk(&from, &to).map_err(|source| Error::File { action: "copy", path: from, source })?;
            }
            Ok(())
        })?;
        Ok(())
    }
}
