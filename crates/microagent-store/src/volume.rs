//! Volumes: disks that belong to no workspace, each used by one machine that writes to it, or by several that read it.
//!
//! A volume is a directory with a record, a disk and a lock. The supervisor that attaches it holds the lock for its
//! life, shared if it only reads, and writes down who it is: whoever is refused can say who has it. A holder that dies holds
//! nothing any more; its note is then only good for finding the QEMU that may outlive it for a moment. Each reader has a
//! note of its own, which it locks.
//!
//! A supervisor opens the note before it confines itself, and has no right to a path of the volume afterwards: the record is
//! written by commands only.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::atomic::read_json_limited;
use crate::state_dir::names_in;
use crate::{
    Access, Durability, Lock, LockError, MachineProcesses, ProcessId, ReadError, StateDir, WorkspaceDir,
    WriteError, fsync_dir, open_file, read_json, write_json,
};
use microagent_model::VolumeName;

/// Newest format of a volume's record that this build reads and the one that it writes.
pub const VOLUME_FORMAT: u32 = 1;

/// Size of the note in bytes, filled up with spaces. One write replaces it, so nobody reads a part of one.
const NOTE_BYTES: usize = 1024;

/// Most machines that read a volume at a time.
const READERS_MAX: usize = 256;

/// How long a holder that is just ending may take to let go.
const HOLD_PATIENCE: Duration = Duration::from_millis(500);

/// `volume.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Format of this record.
    pub format: u32,
    /// The volume's name, also the name of its directory.
    pub name: VolumeName,
    /// When it was made.
    pub created_at: Timestamp,
    /// Size of its disk in MiB. Its file system is grown to it when it is next attached for writing.
    pub size_mib: u64,
}

/// `holder.json`, and `reader-N.json` of one that only reads: who has a volume, or had it last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeHolder {
    /// The workspace whose machine it is attached to.
    pub workspace: String,
    /// The supervisor of that machine, which has the lock.
    pub supervisor: Option<ProcessId>,
    /// The machine's QEMU, once it is started.
    pub vmm: Option<ProcessId>,
}

impl VolumeHolder {
    /// The machine that it is attached to; `workspace` is the directory of the workspace.
    pub fn processes<'a>(&'a self, workspace: &'a WorkspaceDir) -> MachineProcesses<'a> {
        MachineProcesses::of(workspace.path(), self.supervisor.as_ref(), self.vmm.as_ref())
    }
}

/// Why the record of a volume could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeLoadError {
    /// The record is missing, unreadable or damaged.
    #[error("cannot load volume `{name}`")]
    Read {
        /// The volume.
        name: String,
        /// What is wrong with the file.
        source: ReadError,
    },
    /// Written by a newer release; refusing beats guessing.
    #[error("record `{}` has format {found}, this build reads up to {VOLUME_FORMAT}", path.display())]
    TooNew {
        /// The record.
        path: PathBuf,
        /// The format found there.
        found: u32,
    },
}

/// Why a volume could not be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HoldError {
    /// Somebody has it.
    #[error("volume `{name}` is in use{}", by(holder.as_deref()))]
    Held {
        /// The volume.
        name: String,
        /// The workspace that it is attached to; a command that only changes the volume does not say who it is.
        holder: Option<String>,
    },
    /// Its lock cannot be used: most likely there is no such volume.
    #[error("cannot lock volume `{name}`")]
    Lock {
        /// The volume.
        name: String,
        /// What is wrong with the lock.
        source: LockError,
    },
}

fn by(holder: Option<&str>) -> String {
    holder.map(|holder| format!(" by workspace `{holder}`")).unwrap_or_default()
}

/// The directory of one volume.
#[derive(Debug, Clone)]
pub struct VolumeDir {
    path: PathBuf,
}

/// A volume that this process has. Dropping it (or dying) lets it go.
#[derive(Debug)]
pub struct HeldVolume {
    dir: VolumeDir,
    note_path: PathBuf,
    note: Option<File>,
    _lock: Lock,
    _note_lock: Option<Lock>,
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

impl StateDir {
    /// The directory of one volume, existing or not.
    pub fn volume(&self, name: &VolumeName) -> VolumeDir {
        VolumeDir { path: self.volumes().join(name) }
    }

    /// Makes a volume: its directory is filled aside and then takes its name in one step.
    ///
    /// # Errors
    /// Fails with `AlreadyExists` when the name is taken, as the directory cannot be made, or as `fill` does.
    /// Nothing is left then.
    pub fn create_volume<E: From<io::Error>>(
        &self,
        name: &VolumeName,
        fill: impl FnOnce(&VolumeDir) -> Result<(), E>,
    ) -> Result<VolumeDir, E> {
        let dir = self.volume(name);
        self.bring_in(dir.path(), Durability::Flushed, |making| {
            fill(&VolumeDir { path: making.to_owned() })
        })?;
        Ok(dir)
    }

    /// Names of all directories that could be volumes, sorted.
    ///
    /// # Errors
    /// Fails when there are volumes and their directory cannot be read.
    pub fn volume_names(&self) -> io::Result<Vec<VolumeName>> {
        names_in(&self.volumes())
    }
}

/// Why a volume of a new workspace did not get its place.
#[derive(Debug, thiserror::Error)]
#[error("volume `{name}` cannot be made")]
pub struct UnplacedVolume {
    /// The volume.
    pub name: VolumeName,
    /// Those that did get their places.
    pub placed: Vec<VolumeName>,
    /// What the system said: `AlreadyExists` when the name is taken.
    pub source: io::Error,
}

impl WorkspaceDir {
    /// Volumes that are made with the workspace, each in a directory of its name, until [`StateDir::place_volumes`].
    pub fn new_volumes(&self) -> PathBuf {
        self.path().join("volumes")
    }
}

impl StateDir {
    /// Gives the volumes that were made with a workspace their places. A workspace gets its name with them in it, so a
    /// command that is killed in between leaves nothing that does not belong to a workspace; the next one that uses the
    /// disks of the workspace completes it.
    ///
    /// # Errors
    /// Fails when a name is taken, or a directory cannot be renamed. The volume is still the workspace's then.
    pub fn place_volumes(&self, dir: &WorkspaceDir) -> Result<(), UnplacedVolume> {
        let new = dir.new_volumes();
        let mut placed = Vec::new();
        // One that is missing has none, as almost all.
        for name in names_in::<VolumeName>(&new).unwrap_or_default() {
            let moved =
                renameat_with(CWD, new.join(&name), CWD, self.volume(&name).path(), RenameFlags::NOREPLACE);
            match moved {
                Ok(()) => placed.push(name),
                // Another command does the same.
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(UnplacedVolume { name, placed, source: errno.into() }),
            }
        }
        if !placed.is_empty() {
            // A loss of power brings them back to where they were, or to their places.
            let _ = fsync_dir(&self.volumes());
        }
        if new.exists() {
            let _ = fs::remove_dir(&new);
        }
        Ok(())
    }
}

impl VolumeDir {
    /// The volume in this directory, which may not be its place.
    pub fn at(path: impl Into<PathBuf>) -> VolumeDir {
        VolumeDir { path: path.into() }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `volume.json`: what the volume is.
    pub fn record(&self) -> PathBuf {
        self.path.join("volume.json")
    }

    /// The disk: a raw image, sparse.
    pub fn disk(&self) -> PathBuf {
        self.path.join("disk.ext4")
    }

    fn note(&self) -> PathBuf {
        self.path.join("holder.json")
    }

    fn reader_note(&self, number: usize) -> PathBuf {
        self.path.join(format!("reader-{number}.json"))
    }

    fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The machine that has it now and can write to it. Changes nothing.
    pub fn writer(&self) -> Option<VolumeHolder> {
        noted(&self.note()).filter(|holder| self.is_alive(holder))
    }

    /// The machines that have it now and only read it. Changes nothing.
    pub fn readers(&self) -> Vec<VolumeHolder> {
        self.reader_notes().filter(|holder| self.is_alive(holder)).collect()
    }

    /// One of the machines that have it now. Changes nothing.
    pub fn holder(&self) -> Option<VolumeHolder> {
        self.writer().or_else(|| self.readers().into_iter().next())
    }

    fn is_alive(&self, holder: &VolumeHolder) -> bool {
        holder.processes(&self.workspace_of(holder)).supervisor().is_some()
    }

    /// Notes are numbered without a gap.
    fn reader_notes(&self) -> impl Iterator<Item = VolumeHolder> {
        let notes = (0..READERS_MAX).map(|number| self.reader_note(number));
        notes.take_while(|note| note.exists()).filter_map(|note| noted(&note))
    }

    fn workspace_of(&self, holder: &VolumeHolder) -> WorkspaceDir {
        let root = self.path.parent().and_then(Path::parent).unwrap_or(Path::new("."));
        // What was written there is not believed to be a name.
        match holder.workspace.parse() {
            Ok(name) => StateDir::at(root).workspace(&name),
            Err(_) => WorkspaceDir::at(""),
        }
    }

    /// Takes the volume, for a machine or to change it.
    ///
    /// # Errors
    /// Fails when somebody has it or it does not exist.
    pub fn hold(&self) -> Result<HeldVolume, HoldError> {
        match Lock::exclusive(&self.path.join("lock"), HOLD_PATIENCE) {
            Ok(lock) => Ok(self.held(lock, self.note(), None)),
            Err(error) => Err(self.refused(error)),
        }
    }

    /// Takes the volume together with others that only read it.
    ///
    /// # Errors
    /// Fails when somebody can write to it, too many read it, or it does not exist.
    pub fn hold_for_reading(&self) -> Result<HeldVolume, HoldError> {
        let lock = Lock::shared(&self.path.join("lock"), HOLD_PATIENCE).map_err(|e| self.refused(e))?;
        for note in (0..READERS_MAX).map(|number| self.reader_note(number)) {
            match Lock::try_exclusive(&note) {
                Ok(note_lock) => return Ok(self.held(lock, note, Some(note_lock))),
                Err(LockError::Held { .. }) => {}
                Err(error) => return Err(self.refused(error)),
            }
        }
        Err(HoldError::Held { name: self.name(), holder: None })
    }

    fn held(&self, lock: Lock, note_path: PathBuf, note_lock: Option<Lock>) -> HeldVolume {
        HeldVolume { dir: self.clone(), note_path, note: None, _lock: lock, _note_lock: note_lock }
    }

    fn refused(&self, error: LockError) -> HoldError {
        let name = self.name();
        match error {
            LockError::Held { .. } => {
                HoldError::Held { name, holder: self.holder().map(|holder| holder.workspace) }
            }
            source => HoldError::Lock { name, source },
        }
    }
}

fn noted(note: &Path) -> Option<VolumeHolder> {
    read_json_limited(note, NOTE_BYTES as u64).ok()
}

impl HeldVolume {
    /// Holders that ended without releasing the volume: their supervisors have ended, their QEMU may still run. Other readers,
    /// which have it now, are not among them.
    pub fn dead_holders(&self) -> Vec<VolumeHolder> {
        let noted = noted(&self.dir.note()).into_iter().chain(self.dir.reader_notes());
        noted.filter(|holder| !self.dir.is_alive(holder)).collect()
    }

    /// Writes down who has it. The file is opened the first time only.
    ///
    /// # Errors
    /// Fails when the note cannot be opened or written.
    pub fn note(&mut self, holder: &VolumeHolder) -> Result<(), WriteError> {
        let path = self.note_path.clone();
        let failed = |source| WriteError::Write { path: path.clone(), source };
        let mut bytes =
            serde_json::to_vec(holder).map_err(|source| WriteError::Encode { path: path.clone(), source })?;
        if bytes.len() > NOTE_BYTES {
            return Err(WriteError::TooLarge { path, limit: NOTE_BYTES as u64 });
        }
        bytes.resize(NOTE_BYTES, b' ');
        let file = match self.note.take() {
            Some(file) => file,
            None => open_file(&path, Access::ModifyOrCreate).map_err(failed)?,
        };
        file.write_all_at(&bytes, 0).map_err(failed)?;
        self.note = Some(file);
        Ok(())
    }

    /// Removes the volume and everything on it.
    ///
    /// # Errors
    /// Fails when its directory cannot be renamed or its files cannot be removed.
    pub fn remove(self, state: &StateDir) -> io::Result<()> {
        state.take_out(&self.dir.path)
    }
}

impl Drop for HeldVolume {
    fn drop(&mut self) {
        if let Some(note) = &self.note {
            // One that stays names a process that is about to be gone, which comes to the same.
            let _ = note.set_len(0);
        }
    }
}

impl VolumeRecord {
    /// Loads the record of a volume.
    ///
    /// # Errors
    /// Fails when there is none, it is damaged, or a newer release wrote it.
    pub fn load(dir: &VolumeDir) -> Result<VolumeRecord, VolumeLoadError> {
        let path = dir.record();
        let read = |source| VolumeLoadError::Read { name: dir.name(), source };
        let FormatOnly { format: found } = read_json(&path).map_err(read)?;
        if found > VOLUME_FORMAT {
            return Err(VolumeLoadError::TooNew { path, found });
        }
        read_json(&path).map_err(read)
    }

    /// Writes the record, atomically. The caller holds the volume, or is making it.
    ///
    /// # Errors
    /// Fails when the file cannot be replaced; the old record is then still there.
    pub fn save(&self, dir: &VolumeDir) -> Result<(), WriteError> {
        write_json(&dir.record(), self)
    }
}

impl VolumeLoadError {
    /// Whether there simply is no such volume.
    pub fn is_not_found(&self) -> bool {
        matches!(self, VolumeLoadError::Read { source, .. } if source.is_not_found())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SUPERVISE_ARGUMENT;

    fn state() -> (tempfile::TempDir, StateDir) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path());
        state.prepare().unwrap();
        (dir, state)
    }

    fn made(state: &StateDir) -> VolumeDir {
        let name: VolumeName = "data".parse().unwrap();
        let record = VolumeRecord {
            format: VOLUME_FORMAT,
            name: name.clone(),
            created_at: Timestamp::UNIX_EPOCH,
            size_mib: 64,
        };
        state.create_volume(&name, |dir| record.save(dir).map_err(io::Error::other)).unwrap()
    }

    fn me() -> VolumeHolder {
        VolumeHolder { workspace: "web".into(), supervisor: ProcessId::current(), vmm: None }
    }

    /// A process with the arguments of the supervisor of the workspace `web`. It ends with its standard input.
    fn supervisor(state: &StateDir) -> std::process::Child {
        fs::write(state.root().join(SUPERVISE_ARGUMENT), "read line").unwrap();
        let mut shell = std::process::Command::new("sh");
        shell.args([SUPERVISE_ARGUMENT, "web"]).arg(state.workspace(&"web".parse().unwrap()).path());
        let shell = shell.current_dir(state.root()).stdin(std::process::Stdio::piped()).spawn().unwrap();
        // The kernel resumes the parent a moment before the arguments of its child are visible.
        let arguments = format!("/proc/{}/cmdline", shell.id());
        while fs::read(&arguments).unwrap().is_empty() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        shell
    }

    #[test]
    fn a_name_is_taken_once_and_a_removed_volume_leaves_nothing() {
        let (_dir, state) = state();
        let volume = made(&state);
        let again = state.create_volume(&"data".parse().unwrap(), |_| Ok::<_, io::Error>(()));
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(state.volume_names().unwrap(), ["data".parse().unwrap()]);
        assert_eq!(VolumeRecord::load(&volume).unwrap().size_mib, 64);
        volume.hold().unwrap().remove(&state).unwrap();
        assert!(state.volume_names().unwrap().is_empty());
        assert_eq!(fs::read_dir(state.tmp()).unwrap().count(), 0);
        assert!(VolumeRecord::load(&volume).unwrap_err().is_not_found());
        assert!(matches!(volume.hold(), Err(HoldError::Lock { .. })));
    }

    #[test]
    fn a_holder_is_named_while_it_lives() {
        let (_dir, state) = state();
        let volume = made(&state);
        let mut held = volume.hold().unwrap();
        assert!(matches!(volume.hold(), Err(HoldError::Held { holder: None, .. })));
        // A process that is no supervisor is not believed to hold it.
        held.note(&me()).unwrap();
        assert_eq!(volume.holder(), None);
        let mut process = supervisor(&state);
        let holder = VolumeHolder { supervisor: ProcessId::of(i32::try_from(process.id()).unwrap()), ..me() };
        held.note(&holder).unwrap();
        assert_eq!(volume.holder(), Some(holder));
        let refused = volume.hold().unwrap_err().to_string();
        assert_eq!(refused, "volume `data` is in use by workspace `web`");
        drop(held);
        process.kill().unwrap();
        process.wait().unwrap();
        assert_eq!(volume.holder(), None);
        assert!(volume.hold().unwrap().dead_holders().is_empty());
    }

    #[test]
    fn readers_share_it_and_keep_a_writer_out() {
        let (_dir, state) = state();
        let volume = made(&state);
        let mut process = supervisor(&state);
        let alive = VolumeHolder { supervisor: ProcessId::of(i32::try_from(process.id()).unwrap()), ..me() };
        let (mut first, mut second) =
            (volume.hold_for_reading().unwrap(), volume.hold_for_reading().unwrap());
        first.note(&me()).unwrap();
        second.note(&alive).unwrap();
        assert_eq!((volume.writer(), volume.readers()), (None, vec![alive.clone()]));
        let refused = volume.hold().unwrap_err().to_string();
        assert_eq!(refused, "volume `data` is in use by workspace `web`");
        // One that comes later has the note of one that has ended.
        drop(first);
        let mut third = volume.hold_for_reading().unwrap();
        third.note(&alive).unwrap();
        assert_eq!(volume.readers(), [alive.clone(), alive]);
        drop((second, third));
        process.kill().unwrap();
        process.wait().unwrap();
        let held = volume.hold().unwrap();
        assert_eq!((volume.holder(), held.dead_holders()), (None, Vec::new()));
        assert!(matches!(volume.hold_for_reading(), Err(HoldError::Held { .. })));
    }

    #[test]
    fn a_dead_holder_holds_nothing_and_is_remembered() {
        let (_dir, state) = state();
        let volume = made(&state);
        let gone = ProcessId { boot_id: "earlier".into(), ..ProcessId::current().unwrap() };
        let dead = VolumeHolder { supervisor: Some(gone), ..me() };
        write_json(&volume.note(), &dead).unwrap();
        assert_eq!(volume.holder(), None);
        assert_eq!(volume.hold().unwrap().dead_holders(), std::slice::from_ref(&dead));
        assert_eq!(volume.hold_for_reading().unwrap().dead_holders(), [dead]);
    }

    #[test]
    fn volumes_of_a_new_workspace_get_their_places_and_none_that_is_taken() {
        let (_dir, state) = state();
        made(&state);
        let workspace = WorkspaceDir::at(state.root().join("workspaces/kid"));
        state.place_volumes(&workspace).unwrap();
        for name in ["cache", "data"] {
            let dir = VolumeDir::at(workspace.new_volumes().join(name));
            fs::create_dir_all(dir.path()).unwrap();
            fs::write(dir.disk(), name).unwrap();
        }
        let taken = state.place_volumes(&workspace).unwrap_err();
        assert_eq!((taken.name.as_str(), taken.source.kind()), ("data", io::ErrorKind::AlreadyExists));
        assert_eq!(taken.placed, ["cache".parse().unwrap()]);
        assert!(workspace.new_volumes().join("data").exists());
        state.volume(&"data".parse().unwrap()).hold().unwrap().remove(&state).unwrap();
        state.place_volumes(&workspace).unwrap();
        let found = fs::read_to_string(state.volume(&"data".parse().unwrap()).disk()).unwrap();
        assert_eq!((found.as_str(), workspace.new_volumes().exists()), ("data", false));
    }

    #[test]
    fn a_newer_record_is_refused() {
        let (_dir, state) = state();
        let volume = made(&state);
        fs::write(volume.record(), br#"{"format": 2}"#).unwrap();
        assert!(matches!(VolumeRecord::load(&volume), Err(VolumeLoadError::TooNew { found: 2, .. })));
    }
}
