//! The lock of a workspace's settings, and the move of a workspace of an earlier format to this one.
//!
//! Commands change settings while a machine runs, too, and the machine's supervisor holds the workspace's lock meanwhile. So
//! settings have a lock of their own, which only commands take, and hold from reading the record to writing it. Who takes both
//! takes the workspace's lock first.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::time::Duration;

use serde::Deserialize;

use crate::atomic::{fsync_dir, read_json, write_json};
use crate::record::SETTINGS_FORMAT;
use crate::{Lock, LockError, WorkspaceDir, WorkspaceRecord};

/// What lay beside the record before format 7, and lies in `machine/` from then on.
const MOVED: [&str; 15] = [
    "console.log",
    "console.log.1",
    "console.log.times",
    "egress.jsonl",
    "egress.jsonl.1",
    "events.jsonl",
    "events.jsonl.1",
    "jobs",
    "offline.log",
    "offline.log.1",
    "output",
    "result.json",
    "supervisor.log",
    "vmm.log",
    "vmm.log.1",
];

/// What has no use without the supervisor that made it.
const REMOVED: [&str; 3] = ["control", "control.key", "reserve"];

/// The held lock of a workspace's settings.
#[derive(Debug)]
pub struct SettingsLock {
    _lock: Lock,
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

impl WorkspaceDir {
    /// Takes the lock of the settings, waiting at most `patience`. Blocks the thread.
    ///
    /// # Errors
    /// Fails when another command holds it, or a supervisor of an earlier release still writes the record.
    pub fn lock_settings(&self, patience: Duration) -> Result<SettingsLock, LockError> {
        let path = self.path().join("settings.lock");
        let lock = Lock::exclusive(&path, patience)?;
        // One that is damaged is of no supervisor.
        if self.is_of_earlier_format() && WorkspaceRecord::load(self).is_ok() {
            return Err(LockError::Held { path: self.record() });
        }
        Ok(SettingsLock { _lock: lock })
    }

    /// Makes the only directory that a supervisor writes to, unless it is there. The workspace itself is not made: another
    /// command may have deleted or renamed it.
    ///
    /// # Errors
    /// Fails when it cannot be made, or something else has its name.
    pub fn make_machine_dir(&self) -> io::Result<()> {
        let path = self.machine();
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        match path.symlink_metadata()?.is_dir() {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::NotADirectory,
                format!("`{}` is not a directory", path.display()),
            )),
        }
    }

    /// Whether the record has an earlier format. A damaged or missing one has none.
    fn is_of_earlier_format(&self) -> bool {
        read_json::<FormatOnly>(&self.record()).is_ok_and(|record| record.format < SETTINGS_FORMAT)
    }

    /// Moves a workspace of an earlier format to this one. The caller holds the workspace's lock. The record is written
    /// last: killed before, the next command does it again, and what has been moved stays moved.
    pub(crate) fn move_to_this_format(&self) -> Result<(), LockError> {
        if !self.is_of_earlier_format() {
            return Ok(());
        }
        // What is wrong with a damaged record is said by whoever needs it.
        let Ok(record) = WorkspaceRecord::load(self) else { return Ok(()) };
        let failed = |source| LockError::Open { path: self.machine(), source };
        self.make_machine_dir().map_err(failed)?;
        for name in MOVED {
            let (from, to) = (self.path().join(name), self.machine().join(name));
            ignore_missing(fs::rename(from, to)).map_err(failed)?;
        }
        for name in REMOVED {
            ignore_missing(fs::remove_file(self.path().join(name))).map_err(failed)?;
        }
        fsync_dir(self.path()).map_err(failed)?;
        let saved = record.machine.save(self).and_then(|()| write_json(&self.record(), &record));
        saved.map_err(|error| failed(error.into()))
    }
}

fn ignore_missing(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use microagent_model::State;
    use serde_json::Value;

    use super::*;
    use crate::record::tests::record;
    use crate::{MachineState, WORKSPACE_FORMAT};

    /// A workspace as format 6 has it.
    fn earlier() -> (tempfile::TempDir, WorkspaceDir) {
        let dir = tempfile::tempdir().unwrap();
        let workspace = WorkspaceDir::at(dir.path());
        let record = record();
        let mut old = serde_json::to_value(&record).unwrap();
        let state =
            MachineState { asked_to_end: true, ..MachineState::resting(State::Halted, record.created_at) };
        let Value::Object(fields) = serde_json::to_value(state).unwrap() else { panic!() };
        old.as_object_mut().unwrap().extend(fields);
        old["format"] = 6.into();
        write_json(&workspace.record(), &old).unwrap();
        for name in MOVED.iter().filter(|name| **name != "jobs").chain(&REMOVED) {
            fs::write(dir.path().join(name), name).unwrap();
        }
        fs::create_dir_all(dir.path().join("jobs/1")).unwrap();
        fs::write(dir.path().join("disk.qcow2"), "disk").unwrap();
        (dir, workspace)
    }

    fn names(path: &Path) -> Vec<PathBuf> {
        let mut names: Vec<_> =
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into()).collect();
        names.sort();
        names
    }

    fn check_moved(dir: &WorkspaceDir) {
        let loaded = WorkspaceRecord::load(dir).unwrap();
        assert_eq!((loaded.machine.state, loaded.machine.asked_to_end), (State::Halted, true));
        let record: Value = read_json(&dir.record()).unwrap();
        assert_eq!((&record["format"], record.get("state")), (&WORKSPACE_FORMAT.into(), None));
        let expected = ["disk.qcow2", "lock", "machine", "workspace.json"].map(PathBuf::from);
        assert_eq!(names(dir.path()), expected);
        let mut expected: Vec<PathBuf> = MOVED.iter().chain(&["state.json"]).map(PathBuf::from).collect();
        expected.sort();
        assert_eq!(names(&dir.machine()), expected);
        assert_eq!(fs::read_to_string(dir.console_log()).unwrap(), "console.log");
        assert!(dir.job(microagent_model::JobId::FIRST).path().is_dir());
    }

    #[test]
    fn a_workspace_of_an_earlier_format_is_read_and_moved_by_who_locks_it() {
        let (_dir, workspace) = earlier();
        let loaded = WorkspaceRecord::load(&workspace).unwrap();
        assert_eq!((loaded.machine.state, loaded.machine.asked_to_end), (State::Halted, true));
        assert!(!workspace.machine().exists(), "reading changes nothing");
        for _ in 0..2 {
            drop(workspace.lock().unwrap());
            check_moved(&workspace);
        }
    }

    #[test]
    fn a_move_that_was_killed_is_completed() {
        for moved in 0..=MOVED.len() {
            let (_dir, workspace) = earlier();
            workspace.make_machine_dir().unwrap();
            for name in &MOVED[..moved] {
                fs::rename(workspace.path().join(name), workspace.machine().join(name)).unwrap();
            }
            if moved == MOVED.len() {
                MachineState::resting(State::Prepared, record().created_at).save(&workspace).unwrap();
            }
            drop(workspace.lock().unwrap());
            check_moved(&workspace);
        }
    }

    #[test]
    fn settings_are_not_changed_while_a_supervisor_of_an_earlier_release_writes_them() {
        let (_dir, workspace) = earlier();
        let before = fs::read(workspace.record()).unwrap();
        assert!(matches!(workspace.lock_settings(Duration::ZERO), Err(LockError::Held { .. })));
        assert_eq!(fs::read(workspace.record()).unwrap(), before);
        drop(workspace.lock().unwrap());
        let held = workspace.lock_settings(Duration::ZERO).unwrap();
        assert!(matches!(workspace.lock_settings(Duration::ZERO), Err(LockError::Held { .. })));
        record().save(&workspace, &held).unwrap();
    }

    #[test]
    fn a_damaged_record_can_be_locked() {
        let dir = tempfile::tempdir().unwrap();
        let workspace = WorkspaceDir::at(dir.path());
        drop(workspace.lock().unwrap());
        for content in ["", "{", "{\"format\": 1}"] {
            fs::write(workspace.record(), content).unwrap();
            drop(workspace.lock().unwrap());
            drop(workspace.lock_settings(Duration::ZERO).unwrap());
            assert_eq!(fs::read_to_string(workspace.record()).unwrap(), content);
        }
    }
}
