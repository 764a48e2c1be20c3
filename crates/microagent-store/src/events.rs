//! `machine/events.jsonl`: what happened to a workspace, one line per change of state. Bounded: a full file becomes
//! `events.jsonl.1` in place of the one before.
//!
//! For people and programs to look at, never to decide by: the record is what counts, so a line that could not be
//! written stops nothing, and a torn one is passed over.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::WorkspaceDir;
use crate::atomic::read_limited;
use crate::open::{Access, open_file};
use microagent_model::State;

/// Largest file in bytes: about a thousand lines.
const FILE_LIMIT: u64 = 128 * 1024;

/// Longest detail in bytes; texts of a guest may be longer.
const DETAIL_LIMIT: usize = 1024;

/// The reason of the end of a quarantine: nothing but a request of the user ends one.
pub const RELEASED: &str = "released from its quarantine; its memory is lost, its disk is kept";

/// A change of a workspace's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateEvent {
    /// When it changed (host's clock).
    pub at: Timestamp,
    /// The new state.
    pub state: State,
    /// The reason, if there is more to say.
    pub detail: Option<String>,
}

impl WorkspaceDir {
    /// Appends a change of state; best effort. The caller holds the workspace's lock.
    pub fn note_event(&self, state: State, detail: Option<&str>) {
        let detail = detail.map(|detail| detail.chars().take(DETAIL_LIMIT).collect());
        // Nothing depends on it.
        let _ = self.append_event(&StateEvent { at: Timestamp::now(), state, detail });
    }

    fn append_event(&self, event: &StateEvent) -> io::Result<()> {
        self.make_machine_dir()?;
        let path = self.events();
        let mut file = open_file(&path, Access::Append)?;
        if file.metadata()?.len() >= FILE_LIMIT {
            fs::rename(&path, self.older_events())?;
            file = open_file(&path, Access::Append)?;
        }
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        file.write_all(&line)
    }

    /// What happened to the workspace, oldest first.
    ///
    /// # Errors
    /// Fails when a file is there and cannot be read.
    pub fn read_events(&self) -> io::Result<Vec<StateEvent>> {
        let mut events = Vec::new();
        for path in [self.older_events(), self.events()] {
            let bytes = match read_limited(&path, 2 * FILE_LIMIT) {
                Ok(bytes) => bytes,
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(io::Error::other(error)),
            };
            let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            events.extend(lines.filter_map(|line| serde_json::from_slice::<StateEvent>(line).ok()));
        }
        Ok(events)
    }

    fn older_events(&self) -> PathBuf {
        let mut name = self.events().into_os_string();
        name.push(".1");
        name.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_back_in_order_bounded_and_without_torn_lines() {
        let dir = tempfile::tempdir().unwrap();
        let workspace = WorkspaceDir::at(dir.path());
        assert_eq!(workspace.read_events().unwrap(), []);
        workspace.note_event(State::Prepared, None);
        workspace.note_event(State::Failed, Some(&"x".repeat(5000)));
        let mut file = open_file(&workspace.events(), Access::Append).unwrap();
        file.write_all(b"{\"at\": \"20").unwrap();
        let events = workspace.read_events().unwrap();
        assert_eq!(
            events.iter().map(|event| event.state).collect::<Vec<_>>(),
            [State::Prepared, State::Failed]
        );
        assert_eq!(events[1].detail.as_ref().map(String::len), Some(DETAIL_LIMIT));
        for _ in 0..10_000 {
            workspace.note_event(State::Running, None);
        }
        let bytes: u64 = fs::read_dir(workspace.machine())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(bytes < 3 * FILE_LIMIT, "{bytes}");
        assert_eq!(workspace.read_events().unwrap().last().map(|event| event.state), Some(State::Running));
    }
}
