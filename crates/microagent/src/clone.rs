//! Copies of resting workspaces: the same image, settings and disks under another name and identity.
//!
//! The source is only read, and locked meanwhile; the copy appears whole or not at all. Named volumes and image files are
//! not copied: both workspaces name them.

use jiff::Timestamp;
use microagent_store::{DiskSource, State, Workload, WorkspaceName, WorkspaceRecord};

use crate::disks::copy_disk;
use crate::supervisor_spec::new_identity;
use crate::workspace::lock_patiently;
use crate::{Engine, Error, WorkspaceDetails};

impl Engine {
    /// Makes a copy of a resting workspace under another name: the same image, settings and disk, another identity.
    /// Costs as much as the source has changed of its image, or less where the file system can share.
    ///
    /// # Errors
    /// Fails when the source lives or is in use, or the name is taken. Nothing is left then.
    pub fn clone_workspace(
        &self,
        source: &WorkspaceName,
        name: &WorkspaceName,
    ) -> Result<WorkspaceDetails, Error> {
        self.prepare()?;
        let from = self.existing(source)?;
        let resting = |record: &WorkspaceRecord| match record.observed_state() {
            state if state.is_resting() => Ok(state),
            state => Err(Error::WrongState { name: source.clone(), state, action: "clone it" }),
        };
        resting(&self.observe(source)?)?;
        // Nobody may start it while its disk is copied.
        let _lock = lock_patiently(source, &from)?;
        let record = WorkspaceRecord::load(&from)?;
        let state = resting(&record)?;
        let mut workload = Workload::load(&from).map_err(|e| self.damaged(source, e))?;
        let hostname = if record.hostname == source.to_hostname() {
            name.to_hostname()
        } else {
            record.hostname.clone()
        };
        let is_own = |(key, value): &(String, String)| key == "HOSTNAME" && *value == record.hostname;
        if let Some((_, value)) = workload.env.iter_mut().find(|variable| is_own(variable)) {
            value.clone_from(&hostname);
        }
        let now = Timestamp::now();
        let copy = WorkspaceRecord {
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
        self.create_dir_with(&copy, Some(&workload), |dir| {
            let bundles = copy.disks.iter().filter(|disk| matches!(disk.source, DiskSource::Bundle(_)));
            let numbers = 0..bundles.count();
            let disks = numbers.map(|number| (from.bundle(number), dir.bundle(number)));
            for (from, to) in std::iter::once((from.disk(), dir.disk())).chain(disks) {
                copy_disk(&from, &to).map_err(|source| Error::File { action: "copy", path: from, source })?;
            }
            Ok(())
        })?;
        self.workspace(name)
    }
}
