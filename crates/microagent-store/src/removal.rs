//! How workspaces and other directories are removed, and what killed commands have left of them.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::remove_tree::remove_tree;
use crate::state_dir::{CRADLE_PREFIX, SCRATCH_PREFIX, lock_in};
use crate::{LockError, StateDir, WorkspaceDir};

/// How a workspace on its way out is called in `tmp/`.
const GRAVE_PREFIX: &str = "deleted-";

/// What lies in `tmp/` only for moments: workspaces, volumes and templates on their way out and in.
/// Earlier releases froze templates and unpacked guest files under names of their own, and locked neither.
const SWEPT_PREFIXES: [&str; 5] = [GRAVE_PREFIX, CRADLE_PREFIX, SCRATCH_PREFIX, "template-", "guest-"];

/// How long a command may be at work on such files before another one takes them for abandoned.
const GRAVE_AGE: Duration = Duration::from_secs(60);

impl StateDir {
    /// Removes what killed commands left; best effort, because it is in nobody's way.
    pub(crate) fn sweep(&self) {
        self.sweep_emptied();
        let Ok(entries) = fs::read_dir(self.tmp()) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let swept =
                SWEPT_PREFIXES.iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes()));
            let age = entry
                .metadata()
                .and_then(|metadata| metadata.modified())
                .ok()
                .and_then(|at| at.elapsed().ok());
            if swept && age.is_some_and(|age| age > GRAVE_AGE) {
                // A large disk takes its time on its way in; whoever makes it holds its lock.
                if !matches!(lock_in(&entry.path()), Err(LockError::Held { .. })) {
                    let _ = remove_tree(&entry.path());
                }
            }
        }
    }

    /// Removes directories of workspaces that have nothing but a lock: what [`WorkspaceDir::remove_in_place`] leaves when
    /// it is killed. A workspace gets its name with its record in it.
    fn sweep_emptied(&self) {
        for name in self.workspace_names().unwrap_or_default() {
            let dir = self.workspace(&name);
            let lock = dir.lock_file();
            let is_emptied = fs::read_dir(dir.path())
                .is_ok_and(|mut entries| entries.all(|entry| entry.is_ok_and(|entry| entry.path() == lock)));
            if is_emptied && let Ok(_lock) = lock_in(dir.path()) {
                let _ = fs::remove_file(&lock);
                let _ = fs::remove_dir(dir.path());
            }
        }
    }

    /// Removes a directory of the state directory: first the name, in one step, then the files. The caller holds its lock.
    ///
    /// # Errors
    /// Fails when it cannot be renamed, which leaves it as it is, or its files cannot be removed.
    pub fn take_out(&self, place: &Path) -> io::Result<()> {
        let grave = tempfile::Builder::new().prefix(GRAVE_PREFIX).tempdir_in(self.tmp())?;
        fs::rename(place, grave.path())?;
        remove_tree(&grave.keep())
    }
}

impl WorkspaceDir {
    /// Removes the workspace: first the name, in one step, then the files.
    ///
    /// The caller holds the workspace's lock. Killed in between, the files lie in `tmp/` of the state
    /// directory, where the next command that writes sweeps them away.
    ///
    /// # Errors
    /// Fails when the directory cannot be renamed or its files cannot be removed.
    pub fn remove(&self, state: &StateDir) -> io::Result<()> {
        state.take_out(self.path())
    }

    /// Removes the workspace without moving it, for a process that may not move directories. The record is removed last
    /// of what the directory has, so that a workspace of which files are missing is still found and can be deleted.
    ///
    /// The caller holds the workspace's lock. What is left when it is killed without a record,
    /// [`StateDir::prepare`] removes.
    ///
    /// # Errors
    /// Fails when a file cannot be removed, or when somebody has made a new one meanwhile.
    pub fn remove_in_place(&self) -> io::Result<()> {
        let last = [self.record(), self.lock_file()];
        for entry in fs::read_dir(self.path())? {
            let entry = entry?;
            let path = entry.path();
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(&path)?,
                false if last.contains(&path) => {}
                false => fs::remove_file(&path)?,
            }
        }
        for path in last {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::remove_dir(self.path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workspace_is_removed_where_it_is_and_what_a_kill_leaves_of_it_is_swept() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::at(root.path().join("state"));
        state.prepare().unwrap();
        let made = |name: &str| {
            let dir = state.workspace(&name.parse().unwrap());
            fs::create_dir_all(dir.machine().join("jobs")).unwrap();
            for file in
                [dir.record(), dir.lock_file(), dir.machine().join("jobs/1"), dir.path().join("disk.qcow2")]
            {
                fs::write(file, "x").unwrap();
            }
            dir
        };
        let [removed, damaged, emptied] = ["removed", "damaged", "emptied"].map(made);
        removed.remove_in_place().unwrap();
        assert!(!removed.path().exists());
        // Killed before the record is removed, it is still a workspace; killed after that, it is not.
        fs::remove_dir_all(damaged.machine()).unwrap();
        fs::remove_dir_all(emptied.path()).unwrap();
        fs::create_dir(emptied.path()).unwrap();
        fs::write(emptied.lock_file(), "").unwrap();
        let held = lock_in(emptied.path()).unwrap();
        state.prepare().unwrap();
        assert!(emptied.path().exists(), "somebody is using it");
        drop(held);
        state.prepare().unwrap();
        assert!(!emptied.path().exists() && damaged.record().exists());
    }

    #[test]
    fn what_a_killed_delete_left_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path());
        state.prepare().unwrap();
        let (old, fresh) = (state.tmp().join("deleted-old"), state.tmp().join("deleted-fresh"));
        for grave in [&old, &fresh] {
            fs::create_dir(grave).unwrap();
        }
        let long_ago = std::time::SystemTime::now() - 2 * GRAVE_AGE;
        fs::File::open(&old).unwrap().set_modified(long_ago).unwrap();
        state.prepare().unwrap();
        assert!(!old.exists() && fresh.exists());
    }

    #[test]
    fn a_workspace_that_is_long_in_the_making_is_not_swept() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path());
        state.prepare().unwrap();
        let long_ago = std::time::SystemTime::now() - 2 * GRAVE_AGE;
        let made = state.create_workspace::<io::Error>(
            &"web".parse().unwrap(),
            crate::Durability::Flushed,
            |making| {
                making.make_machine_dir()?;
                fs::write(making.console_log(), b"x")?;
                fs::File::open(making.path())?.set_modified(long_ago)?;
                state.prepare().map_err(io::Error::other)
            },
        );
        assert!(made.unwrap().console_log().exists());
        // One whose maker was killed goes.
        let abandoned = state.tmp().join("created-abandoned");
        fs::create_dir(&abandoned).unwrap();
        fs::File::open(&abandoned).unwrap().set_modified(long_ago).unwrap();
        state.prepare().unwrap();
        assert!(!abandoned.exists());
    }
}
