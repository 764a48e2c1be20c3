//! `supervise.json`: what the command that keeps a workspace running has done to it.
//!
//! Only that command writes the file. What it halts because it is ended itself was not halted by a user, which matters at its
//! next start.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::WorkspaceDir;
use crate::atomic::{ReadError, WriteError, read_json, write_json};

/// What `supervise` has done to a workspace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Supervision {
    /// How often it has restarted the workspace since it began.
    pub restarts: u32,
    /// The time of the workspace's last change of state when it halted the workspace because it was ended itself.
    #[serde(default)]
    pub halted_at: Option<Timestamp>,
}

impl Supervision {
    /// Loads it; a workspace that was never supervised has an empty one.
    ///
    /// # Errors
    /// Fails when the file is unreadable or damaged.
    pub fn load(dir: &WorkspaceDir) -> Result<Supervision, ReadError> {
        match read_json(&dir.supervision()) {
            Err(error) if error.is_not_found() => Ok(Supervision::default()),
            loaded => loaded,
        }
    }

    /// Writes it, atomically.
    ///
    /// # Errors
    /// Fails when the file cannot be replaced; the old one is then still there.
    pub fn save(&self, dir: &WorkspaceDir) -> Result<(), WriteError> {
        write_json(&dir.supervision(), self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_again() {
        let dir = tempfile::tempdir().unwrap();
        let dir = WorkspaceDir::at(dir.path());
        assert_eq!(Supervision::load(&dir).unwrap(), Supervision::default());
        let supervision = Supervision { restarts: 3, halted_at: Some(Timestamp::UNIX_EPOCH) };
        supervision.save(&dir).unwrap();
        assert_eq!(Supervision::load(&dir).unwrap(), supervision);
    }
}
