//! Saved workspaces: list, look at, delete.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use microagent_store::{
    Failure, LockError, ProcessId, RestartPolicy, State, StateDir, WorkspaceDir, WorkspaceName,
    WorkspaceRecord,
};
use serde::Serialize;

use crate::error::with_cause;
use crate::{Engine, Error, PortForward};

/// How long a killed supervisor may take to be gone; it has nothing to flush.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// One line of `list`.
#[derive(Debug, Clone, Serialize)]
pub struct WorkspaceSummary {
    /// Name.
    pub name: WorkspaceName,
    /// State that is true now; `None` for a damaged record.
    pub state: Option<State>,
    /// What ran it last.
    pub backend: Option<String>,
    /// Profile.
    pub profile: Option<String>,
    /// Network mode.
    pub network: Option<microagent_store::NetworkMode>,
    /// Published ports, as [`crate::NetworkDetails`] has them.
    pub port_forwards: Vec<PortForward>,
    /// Restart policy.
    pub restart: RestartPolicy,
    /// Whether its machine exists now, in whatever state.
    #[serde(skip)]
    pub has_machine: bool,
    /// When this was looked at.
    pub observed_at: Timestamp,
    /// Why it failed, or what is wrong with its record.
    pub problem: Option<String>,
}

/// A workspace as recorded, with what is true now.
#[derive(Debug, Clone)]
pub struct WorkspaceDetails {
    /// The record.
    pub record: WorkspaceRecord,
    /// State that is true now.
    pub state: State,
    /// Why it failed.
    pub failure: Option<Failure>,
}

/// What is done to a workspace that goes.
pub(crate) const DELETE: &str = "delete it";

/// How far `delete` goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteMode {
    /// Only a resting workspace.
    Resting,
    /// Shuts a live one down first, unless it is quarantined.
    Stop,
    /// Kills a live one first, and one that is quarantined.
    Kill,
}

/// What `delete` did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Deletion {
    /// Whether there was something to delete.
    pub deleted: bool,
    /// Whether a live machine was ended for it.
    pub ended: bool,
}

impl Engine {
    /// Lists saved workspaces by name. Changes nothing; a damaged record is a row, not an error.
    ///
    /// # Errors
    /// Fails when the state directory exists and cannot be read.
    pub fn list(&self) -> Result<Vec<WorkspaceSummary>, Error> {
        let state = self.state();
        let names = state.workspace_names().map_err(|source| Error::File {
            action: "read",
            path: state.workspaces(),
            source,
        })?;
        Ok(names.into_iter().filter_map(|name| summary(state, name)).collect())
    }

    /// Looks at one workspace.
    ///
    /// # Errors
    /// Fails when there is none or its record is damaged.
    pub fn workspace(&self, name: &WorkspaceName) -> Result<WorkspaceDetails, Error> {
        let record = self.observe(name)?;
        Ok(WorkspaceDetails { state: record.observed_state(), failure: record.observed_failure(), record })
    }

    /// Removes a workspace: record, disk, logs. One that is not there is not an error.
    ///
    /// # Errors
    /// Fails when it is live and `mode` is [`DeleteMode::Resting`], it does not shut down as `mode` says, another
    /// command holds it, or its files cannot be removed.
    pub async fn delete(&self, name: &WorkspaceName, mode: DeleteMode) -> Result<Deletion, Error> {
        let state = self.state();
        let dir = state.workspace(name);
        if !dir.path().exists() {
            return Ok(Deletion { deleted: false, ended: false });
        }
        // A record that cannot be read has no processes that could be found; what is left is files.
        let observed = WorkspaceRecord::observe(&dir).map(|record| record.observed_state());
        let live = observed.ok().filter(|state| !state.is_resting());
        match (live, mode) {
            (None, _) => {}
            (Some(_), DeleteMode::Kill) => drop(self.kill(name).await?),
            // What somebody has put aside to be examined does not go with the rest.
            (Some(state), DeleteMode::Resting) | (Some(state @ State::Quarantined), _) => {
                return Err(Error::WrongState { name: name.clone(), state, action: DELETE });
            }
            (Some(_), DeleteMode::Stop) => drop(self.stop(name).await?),
        }
        let _lock = lock_patiently(name, &dir)?;
        dir.remove(state).map_err(|source| Error::File {
            action: "remove",
            path: dir.path().to_owned(),
            source,
        })?;
        Ok(Deletion { deleted: true, ended: live.is_some() })
    }

    pub(crate) fn existing(&self, name: &WorkspaceName) -> Result<WorkspaceDir, Error> {
        let dir = self.state().workspace(name);
        if dir.path().is_dir() { Ok(dir) } else { Err(Error::NoSuchWorkspace { name: name.clone() }) }
    }

    pub(crate) fn load(&self, name: &WorkspaceName) -> Result<WorkspaceRecord, Error> {
        Ok(WorkspaceRecord::load(&self.existing(name)?)?)
    }

    /// The record with the state that is true now.
    pub(crate) fn observe(&self, name: &WorkspaceName) -> Result<WorkspaceRecord, Error> {
        Ok(WorkspaceRecord::observe(&self.existing(name)?)?)
    }
}

/// `None` when the workspace was deleted while we looked.
fn summary(state: &StateDir, name: WorkspaceName) -> Option<WorkspaceSummary> {
    let observed_at = Timestamp::now();
    match WorkspaceRecord::observe(&state.workspace(&name)) {
        Ok(record) => Some(WorkspaceSummary {
            state: Some(record.observed_state()),
            has_machine: record.has_machine(),
            problem: record.observed_failure().map(|failure| failure.message),
            name,
            port_forwards: record.observed_publish().iter().map(PortForward::from).collect(),
            profile: Some(record.observed_profile().to_owned()),
            backend: record.backend,
            network: Some(record.network),
            restart: record.restart,
            observed_at,
        }),
        Err(_) if !state.workspace(&name).path().is_dir() => None,
        Err(error) => Some(WorkspaceSummary {
            name,
            state: None,
            has_machine: false,
            backend: None,
            profile: None,
            network: None,
            port_forwards: Vec::new(),
            restart: RestartPolicy::default(),
            observed_at,
            problem: Some(with_cause(&error)),
        }),
    }
}

/// Kills supervisor and VMM; the supervisor first, so that it cannot report the VMM's death.
pub(crate) fn kill(record: &WorkspaceRecord) {
    let processes = [&record.supervisor, &record.vmm];
    for process in processes.into_iter().flatten() {
        process.kill();
    }
    let deadline = Instant::now() + KILL_PATIENCE;
    while processes.into_iter().flatten().any(ProcessId::is_alive) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A supervisor that was just killed lets go of the lock a moment later.
pub(crate) fn lock_patiently(
    name: &WorkspaceName,
    dir: &WorkspaceDir,
) -> Result<microagent_store::Lock, Error> {
    let deadline = Instant::now() + Duration::from_millis(500);
    loop {
        match dir.lock() {
            Ok(lock) => return Ok(lock),
            Err(LockError::Held { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(lock_error(name, error)),
        }
    }
}

/// Tells a lock that somebody holds from one that cannot be had at all.
pub(crate) fn lock_error(name: &WorkspaceName, error: LockError) -> Error {
    match error {
        LockError::Open { path, source } => Error::File { action: "lock", path, source },
        held => Error::Busy { name: name.clone(), source: Some(held) },
    }
}
