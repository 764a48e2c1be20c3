//! `workload.json`: what the starts of a workspace run, and in which environment.
//!
//! It holds what the user gave with `--env` and `--setup`, so it is as private as the disk (mode 0600) and
//! never printed. A disposable run has none.

use microagent_model::{CommandLine, SetupStep};
use serde::{Deserialize, Serialize};

use crate::WorkspaceDir;
use crate::atomic::{ReadError, WriteError, read_json, write_json};

/// What the starts of a workspace run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Whole environment of everything that runs, in order; later entries win.
    pub env: Vec<(String, String)>,
    /// How many of the last ones the user gave; an older release did not say.
    #[serde(default)]
    pub given_env: usize,
    /// Working directory; empty means `/`.
    pub working_dir: String,
    /// OCI user; empty means root.
    pub user: String,
    /// What runs from start to end; without it the machine just waits.
    pub service: Option<CommandLine>,
    /// Program of an interactive session, in place of the guest's shell.
    pub shell: Option<String>,
    /// The image's stop signal, by name or number.
    pub stop_signal: Option<String>,
    /// Setup steps that have not run yet; the next start begins with them, on a fresh disk.
    pub setup: Vec<SetupStep>,
    /// What tells the steps that the workspace was made with from others, when they have run, too; an older release did
    /// not say.
    #[serde(default)]
    pub setup_digest: Option<String>,
}

impl Workload {
    /// Loads it; a workspace of an older release has none, and gets an empty one.
    ///
    /// # Errors
    /// Fails when the file is unreadable or damaged.
    pub fn load(dir: &WorkspaceDir) -> Result<Workload, ReadError> {
        match read_json(&dir.workload()) {
            Err(error) if error.is_not_found() => Ok(Workload::default()),
            loaded => loaded,
        }
    }

    /// Writes it, atomically. The caller holds the workspace's lock, or makes the workspace.
    ///
    /// # Errors
    /// Fails when the file cannot be replaced; the old one is then still there.
    pub fn save(&self, dir: &WorkspaceDir) -> Result<(), WriteError> {
        write_json(&dir.workload(), self)
    }
}
