//! Where everything lies. Paths only: what the files hold is the business of whoever writes them.
//!
//! ```text
//! ~/.microagent/                0700, files 0600
//! ├── format                    layout version of the directory
//! ├── workspaces/NAME/          workspace.json workload.json lock settings.lock disk.qcow2 …
//! │   └── machine/              what a supervisor writes: state.json console.log …
//! ├── volumes/NAME/             volume.json disk.ext4 lock holder.json
//! ├── networks/NAME/            network.json lock
//! │   └── members/              a socket of each member that runs, named by its address
//! ├── images/                   index of references, blobs by digest, base disks by digest
//! ├── guest/SUM/                the kernel and initramfs that this build carries, unpacked once
//! ├── templates/                frozen guests (warm start)
//! ├── running/N                 a lock for each machine that may run at a time
//! └── tmp/                      half-made things; what no running process owns is removed
//! ```

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use microagent_model::WorkspaceName;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};

use crate::atomic::{
    Durability, RECORD_LIMIT, WriteError, fsync_dir, read_json, write_json, write_json_limited,
};
use crate::open::{Access, open_file};
use crate::parents::{UntrustedParent, check_parents};
use crate::{Lock, LockError};

/// Version of the directory layout that this build writes.
const LAYOUT_FORMAT: u32 = 1;

/// How a workspace on its way in is called in `tmp/`.
pub(crate) const CRADLE_PREFIX: &str = "created-";

/// How a directory of [`StateDir::scratch`] is called in `tmp/`.
pub(crate) const SCRATCH_PREFIX: &str = "scratch-";

/// Room for a record and an event, with what a file system takes for a file more.
const RESERVE_BYTES: usize = 64 * 1024;

/// The state directory of one user.
#[derive(Debug, Clone)]
pub struct StateDir {
    root: PathBuf,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The directory could not be made or is not writable.
    #[error("cannot use state directory `{}`", path.display())]
    Create {
        /// The state directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It belongs to somebody else, who could exchange everything in it.
    #[error("state directory `{}` belongs to another user (uid {owner})", path.display())]
    Foreign {
        /// The state directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Other users can write to it, and so exchange everything in it.
    #[error("other users can write to state directory `{}` (mode {mode:03o})", path.display())]
    Writable {
        /// The state directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A directory above it belongs to somebody else, who could exchange it.
    #[error("`{}`, above the state directory, belongs to another user (uid {owner}), who could replace it", path.display())]
    ForeignParent {
        /// The directory above.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// A link on the way to it belongs to somebody else, who could make it lead elsewhere.
    #[error("link `{}`, on the way to the state directory, belongs to another user (uid {owner})", path.display())]
    ForeignLink {
        /// The link.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Other users can write to a directory above it, and so exchange it.
    #[error("other users can write to `{}`, above the state directory (mode {mode:04o}), and could replace it", path.display())]
    WritableParent {
        /// The directory above.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Written by a newer release; refusing beats guessing.
    #[error("state directory `{}` has format {found}, this build knows up to {LAYOUT_FORMAT}", path.display())]
    TooNew {
        /// The state directory.
        path: PathBuf,
        /// The format found there.
        found: u32,
    },
}

impl From<UntrustedParent> for OpenError {
    fn from(error: UntrustedParent) -> OpenError {
        match error {
            UntrustedParent::Foreign { path, owner } => OpenError::ForeignParent { path, owner },
            UntrustedParent::ForeignLink { path, owner } => OpenError::ForeignLink { path, owner },
            UntrustedParent::Writable { path, mode } => OpenError::WritableParent { path, mode },
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Layout {
    format: u32,
}

impl StateDir {
    /// Names a state directory without touching it; good for reading.
    pub fn at(root: impl Into<PathBuf>) -> StateDir {
        StateDir { root: root.into() }
    }

    /// Refuses a directory that another user can change or replace. Changes nothing; one that does not exist passes, if
    /// it can be made safely.
    ///
    /// # Errors
    /// Fails when the directory or one above it belongs to another user or is writable by others, or it cannot be looked
    /// at.
    pub fn check_access(&self) -> Result<(), OpenError> {
        check_parents(&self.root)?;
        let path = || self.root.clone();
        let found = match fs::metadata(&self.root) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(OpenError::Create { path: path(), source }),
        };
        let mode = found.mode() & 0o777;
        if found.uid() != rustix::process::geteuid().as_raw() {
            return Err(OpenError::Foreign { path: path(), owner: found.uid() });
        }
        if mode & 0o022 != 0 {
            return Err(OpenError::Writable { path: path(), mode });
        }
        Ok(())
    }

    /// Makes the directory ready for writing: creates what is missing, refuses a newer layout.
    ///
    /// # Errors
    /// Fails when the directory cannot be made, is not writable, can be changed by other users, or was written by a
    /// newer release.
    pub fn prepare(&self) -> Result<(), OpenError> {
        let create = |source| OpenError::Create { path: self.root.clone(), source };
        check_parents(&self.root)?;
        create_private_dir(&self.root).map_err(create)?;
        self.check_access()?;
        let parts = [
            self.workspaces(),
            self.volumes(),
            self.networks(),
            self.images(),
            self.layers(),
            self.guest(),
            self.templates(),
            self.running(),
            self.tmp(),
        ];
        for dir in &parts {
            create_private_dir(dir).map_err(create)?;
        }
        self.sweep();
        let format = self.root.join("format");
        match read_json::<Layout>(&format) {
            Ok(layout) if layout.format > LAYOUT_FORMAT => {
                Err(OpenError::TooNew { path: self.root.clone(), found: layout.format })
            }
            Ok(_) => Ok(()),
            Err(_) => write_json(&format, &Layout { format: LAYOUT_FORMAT }).map_err(|e| {
                create(io::Error::other(e.io().map_or_else(|| e.to_string(), io::Error::to_string)))
            }),
        }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// One directory per workspace.
    pub fn workspaces(&self) -> PathBuf {
        self.root.join("workspaces")
    }

    /// One directory per volume.
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// Image index, blobs and base disks.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Unpacked guest kernels and initramfs files.
    pub fn guest(&self) -> PathBuf {
        self.root.join("guest")
    }

    /// Locks of machines that run.
    fn running(&self) -> PathBuf {
        self.root.join("running")
    }

    /// The lock of a machine that runs: whoever holds it has this place among those that may run at a time.
    pub fn running_place(&self, place: u32) -> PathBuf {
        self.running().join(place.to_string())
    }

    /// Frozen guests.
    pub fn templates(&self) -> PathBuf {
        self.root.join("templates")
    }

    /// What the installed QEMU was found to be able to do.
    pub fn qemu_features(&self) -> PathBuf {
        self.root.join("qemu.json")
    }

    /// Half-made things.
    pub fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// The directory of one workspace, existing or not.
    pub fn workspace(&self, name: &WorkspaceName) -> WorkspaceDir {
        WorkspaceDir::at(self.workspaces().join(name))
    }

    /// Makes a workspace: its directory is filled aside and then takes its name in one step, so that a name
    /// belongs to exactly one command and no half-made workspace is ever seen. `durability` is that of all its records.
    ///
    /// # Errors
    /// Fails with `AlreadyExists` when the name is taken, as the directory cannot be made, or as `fill` does.
    /// Nothing is left then.
    pub fn create_workspace<E: From<io::Error>>(
        &self,
        name: &WorkspaceName,
        durability: Durability,
        fill: impl FnOnce(&WorkspaceDir) -> Result<(), E>,
    ) -> Result<WorkspaceDir, E> {
        let dir = self.workspace(name).with_durability(durability);
        self.bring_in(dir.path(), durability, |making| {
            fill(&WorkspaceDir::at(making).with_durability(durability))
        })?;
        Ok(dir)
    }

    /// Gives a workspace another name, in one step. The caller holds its lock.
    ///
    /// # Errors
    /// Fails with `AlreadyExists` when the name is taken, and when the directory cannot be renamed.
    pub fn rename_workspace(&self, old: &WorkspaceName, new: &WorkspaceName) -> io::Result<()> {
        let (from, to) = (self.workspace(old), self.workspace(new));
        renameat_with(CWD, from.path(), CWD, to.path(), RenameFlags::NOREPLACE)?;
        fsync_dir(&self.workspaces())
    }

    /// Fills a directory aside, with its lock held so that nobody takes it for abandoned, and gives it its place in
    /// one step.
    pub(crate) fn bring_in<E: From<io::Error>>(
        &self,
        place: &Path,
        durability: Durability,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        let Scratch { dir: cradle, _lock } = self.locked_tempdir(CRADLE_PREFIX)?;
        fill(cradle.path())?;
        durability.flush_dir(cradle.path())?;
        fs::rename(cradle.path(), place).map_err(|error| match error.kind() {
            io::ErrorKind::DirectoryNotEmpty => io::ErrorKind::AlreadyExists.into(),
            _ => error,
        })?;
        // It has another name now, under which nothing of it is to be removed.
        let _ = cradle.keep();
        durability.flush_dir(place.parent().unwrap_or(Path::new(".")))?;
        Ok(())
    }

    /// A directory for what is half-made, on the file system of everything else. Dropped, it is gone.
    ///
    /// # Errors
    /// Fails when it cannot be made.
    pub fn scratch(&self) -> io::Result<Scratch> {
        self.locked_tempdir(SCRATCH_PREFIX)
    }

    fn locked_tempdir(&self, prefix: &str) -> io::Result<Scratch> {
        let private = fs::Permissions::from_mode(0o700);
        let dir = tempfile::Builder::new().prefix(prefix).permissions(private).tempdir_in(self.tmp())?;
        // Nobody else knows it yet.
        let lock = lock_in(dir.path()).map_err(|error| match error {
            LockError::Open { source, .. } => source,
            held @ LockError::Held { .. } => io::Error::other(held),
        })?;
        Ok(Scratch { dir, _lock: lock })
    }

    /// Names of all directories that could be workspaces, sorted. A missing state directory has none.
    ///
    /// # Errors
    /// Fails when the directory exists and cannot be read.
    pub fn workspace_names(&self) -> io::Result<Vec<WorkspaceName>> {
        names_in(&self.workspaces())
    }
}

/// A directory for what is half-made, locked so that nobody takes it for abandoned.
#[derive(Debug)]
pub struct Scratch {
    dir: tempfile::TempDir,
    _lock: Lock,
}

impl Scratch {
    /// The directory itself.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Gives the directory its place, in one step.
    ///
    /// # Errors
    /// Fails when it cannot be renamed; it is removed then.
    pub fn publish(self, place: &Path) -> io::Result<()> {
        self.remove_lock_file()?;
        fs::rename(self.dir.path(), place)?;
        // It has another name now, under which nothing of it is to be removed.
        let _ = self.dir.keep();
        Ok(())
    }

    /// Changes places with a directory that is there, in one step; that one is removed then.
    ///
    /// # Errors
    /// Fails when they cannot be exchanged; this one is removed then.
    pub fn exchange(self, place: &Path) -> io::Result<()> {
        self.remove_lock_file()?;
        Ok(renameat_with(CWD, self.dir.path(), CWD, place, RenameFlags::EXCHANGE)?)
    }

    /// It is not part of what is published. Removing it makes the directory young again, so nobody takes it for
    /// abandoned before it has its place.
    fn remove_lock_file(&self) -> io::Result<()> {
        fs::remove_file(self.dir.path().join("lock"))
    }
}

/// What in a directory could be a name of this kind, sorted; nothing when there is not a directory.
pub(crate) fn names_in<T: FromStr + Ord>(dir: &Path) -> io::Result<Vec<T>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Some(name) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The lock of a directory that has one.
pub(crate) fn lock_in(dir: &Path) -> Result<Lock, LockError> {
    Lock::try_exclusive(&dir.join("lock"))
}

/// The directory of one workspace.
#[derive(Debug, Clone)]
pub struct WorkspaceDir {
    path: PathBuf,
    durability: Durability,
}

impl WorkspaceDir {
    /// The workspace whose directory is this.
    pub fn at(path: impl Into<PathBuf>) -> WorkspaceDir {
        WorkspaceDir { path: path.into(), durability: Durability::Flushed }
    }

    /// The same directory; what is written through this handle has this durability.
    #[must_use]
    pub fn with_durability(self, durability: Durability) -> WorkspaceDir {
        WorkspaceDir { durability, ..self }
    }

    /// The durability of what is written through this handle.
    pub(crate) fn durability(&self) -> Durability {
        self.durability
    }

    /// Replaces a file of this workspace with the JSON of `value`.
    ///
    /// # Errors
    /// As [`write_json`].
    pub fn write_json<T: Serialize>(&self, path: &Path, value: &T) -> Result<(), WriteError> {
        write_json_limited(path, value, RECORD_LIMIT, self.durability)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock that every command which changes this workspace holds. A workspace of an earlier format is moved to
    /// this one.
    ///
    /// # Errors
    /// Fails when another process holds it, or the workspace does not exist.
    pub fn lock(&self) -> Result<Lock, LockError> {
        let lock = lock_in(&self.path)?;
        self.move_to_this_format()?;
        Ok(lock)
    }

    /// As [`WorkspaceDir::lock`], but waits this long for another process to release it.
    ///
    /// # Errors
    /// As [`WorkspaceDir::lock`].
    pub fn lock_within(&self, patience: Duration) -> Result<Lock, LockError> {
        let lock = Lock::exclusive(&self.lock_file(), patience)?;
        self.move_to_this_format()?;
        Ok(lock)
    }

    /// The file whose lock [`WorkspaceDir::lock`] takes.
    pub fn lock_file(&self) -> PathBuf {
        self.path.join("lock")
    }

    /// The directory that the supervisor of a machine writes to, and the only one.
    pub fn machine(&self) -> PathBuf {
        self.path.join("machine")
    }

    /// `workspace.json`: the settings of the workspace.
    pub fn record(&self) -> PathBuf {
        self.path.join("workspace.json")
    }

    /// `workload.json`: what its starts run, and in which environment.
    pub fn workload(&self) -> PathBuf {
        self.path.join("workload.json")
    }

    /// `supervise.json`: what `supervise` has done to it.
    pub(crate) fn supervision(&self) -> PathBuf {
        self.path.join("supervise.json")
    }

    /// What clients of the workspace's supervisor must know ([`crate::control`]).
    pub(crate) fn control_key(&self) -> PathBuf {
        self.machine().join("control.key")
    }

    /// The disk that was made of the workspace's bundle of this number: counted among its bundles, so that other disks
    /// come and go without it.
    pub fn bundle(&self, number: usize) -> PathBuf {
        self.path.join(format!("bundle-{number}.ext4"))
    }

    /// What the guest's console and the workload printed, bounded.
    pub fn console_log(&self) -> PathBuf {
        self.machine().join("console.log")
    }

    /// What the workload printed, stdout and stderr kept apart, bounded.
    pub fn output(&self) -> PathBuf {
        self.machine().join("output")
    }

    /// How the last workload ended.
    pub fn result(&self) -> PathBuf {
        self.machine().join("result.json")
    }

    /// What the supervisor itself had to say; empty unless something went wrong in it.
    pub fn supervisor_log(&self) -> PathBuf {
        self.machine().join("supervisor.log")
    }

    /// What QEMU and the network stack said, bounded.
    pub fn vmm_log(&self) -> PathBuf {
        self.machine().join("vmm.log")
    }

    /// What its network let through and what not, one line per decision, bounded.
    pub fn egress_log(&self) -> PathBuf {
        self.machine().join("egress.jsonl")
    }

    /// What the console of an offline boot printed, bounded.
    pub fn offline_log(&self) -> PathBuf {
        self.machine().join("offline.log")
    }

    /// Takes some room on the disk for a record that must be written when there is none left; best effort. The caller
    /// holds the workspace's lock.
    pub fn keep_room(&self) {
        // Not zeros, which a file system may keep as a hole.
        let made = open_file(&self.reserve(), Access::Replace);
        let _ = made.and_then(|mut file| file.write_all(&[0xff; RESERVE_BYTES]));
    }

    /// Gives back what [`WorkspaceDir::keep_room`] took; whether there was something to give.
    pub fn give_room(&self) -> bool {
        fs::remove_file(self.reserve()).is_ok()
    }

    fn reserve(&self) -> PathBuf {
        self.machine().join("reserve")
    }

    /// What the last `sync` of each pair of directories left.
    pub fn syncs(&self) -> PathBuf {
        self.path.join("sync")
    }

    /// One line per change of state.
    pub fn events(&self) -> PathBuf {
        self.machine().join("events.jsonl")
    }
}

/// Creates a directory with mode 0700 unless it is there.
pub(crate) fn create_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prepares_private_directories_and_refuses_a_newer_layout() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path().join("state"));
        state.prepare().unwrap();
        state.prepare().unwrap();
        assert_eq!(fs::metadata(state.workspaces()).unwrap().permissions().mode() & 0o777, 0o700);
        write_json(&state.root().join("format"), &Layout { format: 99 }).unwrap();
        assert!(matches!(state.prepare(), Err(OpenError::TooNew { found: 99, .. })));
    }

    #[test]
    fn a_directory_that_others_can_change_is_refused_before_anything_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path().join("state"));
        state.check_access().unwrap();
        fs::create_dir(state.root()).unwrap();
        for mode in [0o770, 0o702, 0o777] {
            fs::set_permissions(state.root(), fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(state.prepare(), Err(OpenError::Writable { mode: found, .. }) if found == mode));
            assert_eq!(fs::read_dir(state.root()).unwrap().count(), 0);
        }
        fs::set_permissions(state.root(), fs::Permissions::from_mode(0o755)).unwrap();
        state.prepare().unwrap();
        // Whoever runs the tests: one of these is somebody else's.
        let foreign = match rustix::process::geteuid().is_root() {
            true => {
                std::os::unix::fs::chown(state.root(), Some(4001), None).unwrap();
                state.root()
            }
            false => Path::new("/"),
        };
        assert!(matches!(StateDir::at(foreign).prepare(), Err(OpenError::Foreign { .. })));
    }

    #[test]
    fn a_removed_workspace_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path());
        state.prepare().unwrap();
        let name = "web".parse().unwrap();
        let fill = |dir: &WorkspaceDir| fs::write(dir.workload(), b"x");
        let workspace = state.create_workspace(&name, Durability::Flushed, fill).unwrap();
        assert_eq!(fs::metadata(workspace.path()).unwrap().permissions().mode() & 0o777, 0o700);
        let again = state.create_workspace(&name, Durability::Flushed, fill).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        let failing = |_: &WorkspaceDir| Err(io::ErrorKind::StorageFull.into());
        state
            .create_workspace::<io::Error>(&"other".parse().unwrap(), Durability::Flushed, failing)
            .unwrap_err();
        assert_eq!(state.workspace_names().unwrap(), [name]);
        workspace.remove(&state).unwrap();
        assert!(state.workspace_names().unwrap().is_empty());
        assert_eq!(fs::read_dir(state.tmp()).unwrap().count(), 0);
    }

    #[test]
    fn nothing_there_lists_nothing() {
        let state = StateDir::at("/nonexistent/state");
        assert!(state.workspace_names().unwrap().is_empty());
    }
}
