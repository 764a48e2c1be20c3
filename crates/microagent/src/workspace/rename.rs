//! Names that are made up for workspaces, and other names for resting ones.
//!
//! The name of its directory is its name. Record and variables get the new host name before the directory is renamed, so a
//! command that is killed in between leaves a whole workspace under its old name, and doing it again completes it.

use microagent_model::WorkspaceName;
use microagent_store::{Lock, Workload, WorkspaceRecord};

use super::{SETTINGS_PATIENCE, Workspace, lock_error, lock_patiently};
use crate::error::Action;
use crate::supervisor_spec::random;
use crate::{Engine, Error};

/// Numbers in made-up names: six digits, far more than workspaces of one host.
const MADE_UP_NUMBERS: u32 = 1_000_000;

impl Engine {
    /// Generates an unused name for a new workspace of this image: the last part of the image's name and six digits.
    ///
    /// # Errors
    /// Fails if the host provides no random numbers.
    pub fn made_up_name(&self, image: &str) -> Result<WorkspaceName, Error> {
        loop {
            let number = u32::from_le_bytes(random::<4>()?) % MADE_UP_NUMBERS;
            let name = WorkspaceName::made_up(image, number);
            if !self.state().workspace(&name).path().exists() {
                return Ok(name);
            }
        }
    }
}

impl Workspace {
    /// Renames the [resting](microagent_model::State::is_resting) workspace. Its host name changes as well if it was made from the name.
    ///
    /// # Errors
    /// Fails if the workspace is running or in use, or the name is taken. Then nothing is changed.
    pub async fn rename_to(&self, name: &WorkspaceName) -> Result<Workspace, Error> {
        self.engine.prepare()?;
        let dir = self.existing()?;
        self.check_renamable(&self.observe()?)?;
        let renamed = self.engine.workspace(name);
        if renamed.dir().path().exists() {
            return Err(Error::NameTaken { name: name.clone() });
        }
        // Nobody may start it meanwhile.
        let lock = lock_patiently(&self.name, &dir).await?;
        self.rename_locked(&renamed, &lock)?;
        Ok(renamed)
    }

    fn check_renamable(&self, record: &WorkspaceRecord) -> Result<(), Error> {
        match record.observed_state() {
            state if state.is_resting() => Ok(()),
            state => Err(self.wrong_state(state, Action::Rename)),
        }
    }

    fn rename_locked(&self, renamed: &Workspace, _lock: &Lock) -> Result<(), Error> {
        let dir = self.existing()?;
        let settings = dir.lock_settings(SETTINGS_PATIENCE).map_err(|e| lock_error(&self.name, e))?;
        let record = WorkspaceRecord::load(&dir)?;
        self.check_renamable(&record)?;
        let networks = record.networks.clone();
        if record.hostname == self.name.to_hostname() {
            let mut workload = Workload::load(&dir).map_err(|e| self.damaged(e))?;
            let hostname = renamed.name.to_hostname();
            let is_own =
                |(key, value): &&mut (String, String)| key == "HOSTNAME" && *value == record.hostname;
            if let Some((_, value)) = workload.env.iter_mut().find(is_own) {
                value.clone_from(&hostname);
            }
            workload.save(&dir)?;
            WorkspaceRecord { hostname, ..record }.save(&dir, &settings)?;
        }
        // Whoever looks for the layers that records name must find this one, under its old or its new name.
        let _held = self.engine.hold_layers()?;
        let renaming = self.engine.state().rename_workspace(&self.name, &renamed.name);
        if renaming.is_ok() {
            self.engine.rename_member(&networks, &self.name, &renamed.name);
        }
        renaming.map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => Error::NameTaken { name: renamed.name.clone() },
            _ => Error::File { action: "rename", path: dir.path().to_owned(), source },
        })
    }
}
