//! Snapshots of workspaces, and the layers that they share with them.
//!
//! A root disk is a base disk, a chain of layers and an overlay. A layer is an overlay that a snapshot has made immutable;
//! its file lies in a directory that all workspaces share. Which layers are needed is read from the records of workspaces
//! and snapshots ([`StateDir::free_layers`]). Who makes or moves a record holds a shared lock meanwhile
//! ([`StateDir::hold_layers`]).
//!
//! A snapshot is a directory with a manifest and the files of a workspace that describe it: record, workload, bundles. That of
//! a running machine has its memory, too.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use microagent_model::{Layer, LayerId, SnapshotTag};
use serde::{Deserialize, Serialize};

use crate::state_dir::names_in;
use crate::{
    LoadError, Lock, LockError, ReadError, StateDir, WorkspaceDir, WorkspaceRecord, WriteError, read_json,
    write_json,
};

/// Newest format of a snapshot's manifest that this build reads and the one that it writes.
pub const SNAPSHOT_FORMAT: u32 = 1;

/// How long layers may be held by whoever frees them, or by those who use them.
const LAYERS_PATIENCE: Duration = Duration::from_secs(5);

/// How long freeing layers waits for those who use them: what it does not free is freed the next time.
const FREE_PATIENCE: Duration = Duration::from_millis(200);

/// Extension of a layer's file.
const LAYER_EXTENSION: &str = "qcow2";

/// `manifest.json` of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotManifest {
    /// Format of this manifest.
    pub format: u32,
    /// When the snapshot was made.
    pub created_at: Timestamp,
    /// Whether it has the memory of a machine. Releases before this field said so by the file alone.
    #[serde(default)]
    pub has_memory: bool,
    /// Whether it is evidence of a quarantined workspace, which is never started or restored.
    #[serde(default)]
    pub forensic: bool,
}

/// Why layers could not be freed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FreeError {
    /// A record cannot be read, so the layers that it needs are not known.
    #[error("the layers that `{owner}` needs are not known")]
    Unknown {
        /// A workspace, or a snapshot as `WORKSPACE:TAG`.
        owner: String,
        /// What is wrong with its record.
        source: Box<LoadError>,
    },
    /// A directory cannot be read or a layer cannot be removed.
    #[error("cannot remove unused layers in `{}`", path.display())]
    Files {
        /// The directory or file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// The directory of one snapshot.
#[derive(Debug, Clone)]
pub struct SnapshotDir {
    files: WorkspaceDir,
}

impl SnapshotDir {
    /// The snapshot whose directory is this.
    pub fn at(path: impl Into<PathBuf>) -> SnapshotDir {
        SnapshotDir { files: WorkspaceDir::at(path) }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        self.files.path()
    }

    /// The files that describe the workspace at the time of the snapshot: record, workload, bundles.
    pub fn files(&self) -> &WorkspaceDir {
        &self.files
    }

    /// The memory of the machine that was captured; missing in the snapshot of a disk.
    pub fn memory(&self) -> PathBuf {
        self.path().join("memory")
    }

    /// What the memory can be restored in.
    pub fn memory_record(&self) -> PathBuf {
        self.path().join("memory.json")
    }

    fn manifest(&self) -> PathBuf {
        self.path().join("manifest.json")
    }

    /// Reads the manifest.
    ///
    /// # Errors
    /// Fails when there is none, it is damaged, or a newer release wrote it.
    pub fn load(&self) -> Result<SnapshotManifest, LoadError> {
        #[derive(Deserialize)]
        struct FormatOnly {
            format: u32,
        }
        let (path, name) = (self.manifest(), self.path().file_name().unwrap_or_default().to_string_lossy());
        let read = |source: ReadError| LoadError::Read { name: name.clone().into_owned(), source };
        let FormatOnly { format: found } = read_json(&path).map_err(read)?;
        if found > SNAPSHOT_FORMAT {
            return Err(LoadError::TooNew { path, found, newest: SNAPSHOT_FORMAT });
        }
        read_json(&path).map_err(read)
    }

    /// Writes the manifest.
    ///
    /// # Errors
    /// Fails when it cannot be written.
    pub fn save(&self, manifest: &SnapshotManifest) -> Result<(), WriteError> {
        write_json(&self.manifest(), manifest)
    }
}

impl WorkspaceDir {
    /// The directory of the workspace's snapshots; missing while there is none.
    pub fn snapshots(&self) -> PathBuf {
        self.path().join("snapshots")
    }

    /// The directory of one snapshot, existing or not.
    pub fn snapshot(&self, tag: &SnapshotTag) -> SnapshotDir {
        SnapshotDir::at(self.snapshots().join(tag))
    }

    /// Tags of the workspace's snapshots, sorted.
    ///
    /// # Errors
    /// Fails when there are snapshots and their directory cannot be read.
    pub fn snapshot_tags(&self) -> io::Result<Vec<SnapshotTag>> {
        names_in(&self.snapshots())
    }

    /// The root disk on a layer: a name of its own for each, so that the record alone tells which file is the disk.
    pub(crate) fn disk_on(&self, top: Option<&Layer>) -> PathBuf {
        self.path()
            .join(top.map_or("disk.qcow2".to_owned(), |layer| format!("disk-{}.qcow2", layer.id.as_str())))
    }

    /// Removes root disks that the record does not name: what a killed snapshot left. The caller holds the workspace's
    /// lock.
    ///
    /// # Errors
    /// Fails when the directory cannot be read or a file cannot be removed.
    pub fn remove_other_disks(&self, record: &WorkspaceRecord) -> io::Result<()> {
        let kept = record.disk(self);
        for entry in fs::read_dir(self.path())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            if name.starts_with(b"disk") && name.ends_with(b".qcow2") && path != kept {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}

impl StateDir {
    /// Layers of root disks.
    pub fn layers(&self) -> PathBuf {
        self.root().join("layers")
    }

    /// The file of a layer.
    pub fn layer(&self, id: &LayerId) -> PathBuf {
        self.layers().join(id.as_str()).with_extension(LAYER_EXTENSION)
    }

    /// Keeps layers from being freed: held by whoever makes a layer until a record names it, copies a record that names
    /// one, or moves such a record.
    ///
    /// # Errors
    /// Fails when layers are being freed for longer than a few seconds, or the lock cannot be opened.
    pub fn hold_layers(&self) -> Result<Lock, LockError> {
        Lock::shared(&self.layers().join("lock"), LAYERS_PATIENCE)
    }

    /// Layers that a record of a workspace or of a snapshot names.
    fn needed_layers(&self) -> Result<HashSet<LayerId>, FreeError> {
        let files = |path: PathBuf| |source| FreeError::Files { path, source };
        let mut needed = HashSet::new();
        let names = self.workspace_names().map_err(files(self.workspaces()))?;
        for name in names {
            let dir = self.workspace(&name);
            let tags = dir.snapshot_tags().map_err(files(dir.snapshots()))?;
            let snapshots =
                tags.iter().map(|tag| (format!("{name}:{tag}"), dir.snapshot(tag).files().clone()));
            let owners: Vec<_> = snapshots.chain([(name.to_string(), dir.clone())]).collect();
            for (owner, owned) in owners {
                match WorkspaceRecord::load(&owned) {
                    Ok(record) => needed.extend(record.layers.into_iter().map(|layer| layer.id)),
                    // Deleted meanwhile. A workspace that is being deleted loses its name first.
                    Err(error) if error.is_not_found() && !owned.path().exists() => {}
                    Err(source) => return Err(FreeError::Unknown { owner, source: Box::new(source) }),
                }
            }
        }
        Ok(needed)
    }

    /// Removes the layers that nothing needs, and returns how many bytes on disk this frees. Removes nothing while layers are held.
    ///
    /// # Errors
    /// Fails when a record cannot be read, and then removes nothing; or when a layer cannot be removed.
    pub fn free_layers(&self) -> Result<u64, FreeError> {
        let files = |path: &Path, source| FreeError::Files { path: path.to_owned(), source };
        let dir = self.layers();
        if !dir.is_dir() {
            return Ok(0);
        }
        let _alone = match Lock::exclusive(&dir.join("lock"), FREE_PATIENCE) {
            Ok(lock) => lock,
            Err(LockError::Held { .. }) => return Ok(0),
            Err(LockError::Open { path, source }) => return Err(FreeError::Files { path, source }),
        };
        let needed = self.needed_layers()?;
        let mut freed = 0;
        for (id, path) in self.layer_files().map_err(|e| files(&dir, e))? {
            if id.is_some_and(|id| needed.contains(&id)) {
                continue;
            }
            // One with another name is the disk of a workspace as well, and takes no room of its own.
            let bytes = path
                .symlink_metadata()
                .map_or(0, |found| if found.nlink() > 1 { 0 } else { found.blocks() * 512 });
            fs::remove_file(&path).map_err(|e| files(&path, e))?;
            freed += bytes;
        }
        Ok(freed)
    }

    /// Bytes on disk that all layers, and the memory of all snapshots, use.
    ///
    /// # Errors
    /// Fails when a directory exists and cannot be read.
    pub fn snapshot_bytes(&self) -> io::Result<u64> {
        let layers = self.layer_files()?.into_iter().map(|(_, path)| blocks(&path)).sum::<u64>();
        let mut memory = 0;
        for name in self.workspace_names()? {
            let dir = self.workspace(&name);
            let tags = dir.snapshot_tags()?;
            memory += tags.iter().map(|tag| blocks(&dir.snapshot(tag).memory())).sum::<u64>();
        }
        Ok(layers + memory)
    }

    /// Files of layers, with the ids that their names have.
    fn layer_files(&self) -> io::Result<Vec<(Option<LayerId>, PathBuf)>> {
        let entries = match fs::read_dir(self.layers()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == LAYER_EXTENSION) {
                let id = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
                found.push((id, path));
            }
        }
        Ok(found)
    }
}

/// Bytes on disk of a file; none if it is not there.
fn blocks(path: &Path) -> u64 {
    path.symlink_metadata().map_or(0, |found| found.blocks() * 512)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::record;

    fn id(digit: u8) -> LayerId {
        LayerId::of([digit; 16])
    }

    fn layer(state: &StateDir, digit: u8) -> Layer {
        fs::write(state.layer(&id(digit)), [digit; 8192]).unwrap();
        Layer { id: id(digit), bytes: 8192 }
    }

    /// A state directory with a workspace on the first two of four layers, and its snapshot on the second and third.
    fn state() -> (tempfile::TempDir, StateDir) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path());
        state.prepare().unwrap();
        let layers: Vec<Layer> = (0..4).map(|digit| layer(&state, digit)).collect();
        let fill = |dir: &WorkspaceDir| {
            let mut record = record();
            record.layers = layers[..2].to_vec();
            record.save_new(dir).map_err(io::Error::other)?;
            let snapshot = dir.snapshot(&"one".parse().unwrap());
            fs::create_dir_all(snapshot.path())?;
            record.layers = layers[1..3].to_vec();
            record.save_new(snapshot.files()).map_err(io::Error::other)
        };
        state
            .create_workspace::<io::Error>(&"web".parse().unwrap(), crate::Durability::Flushed, fill)
            .unwrap();
        (dir, state)
    }

    #[test]
    fn a_layer_stays_as_long_as_a_record_names_it() {
        let (_dir, state) = state();
        let exists = |digit| state.layer(&id(digit)).exists();
        assert_eq!(state.free_layers().unwrap(), 8192);
        assert_eq!([0, 1, 2, 3].map(exists), [true, true, true, false]);
        let web = state.workspace(&"web".parse().unwrap());
        state.take_out(web.snapshot(&"one".parse().unwrap()).path()).unwrap();
        state.free_layers().unwrap();
        assert_eq!([0, 1, 2].map(exists), [true, true, false]);
        state.take_out(web.path()).unwrap();
        state.free_layers().unwrap();
        assert_eq!(state.snapshot_bytes().unwrap(), 0);
    }

    #[test]
    fn nothing_is_freed_while_layers_are_held_or_a_record_cannot_be_read() {
        let (_dir, state) = state();
        let held = state.hold_layers().unwrap();
        assert_eq!(state.free_layers().unwrap(), 0);
        drop(held);
        let snapshot = state.workspace(&"web".parse().unwrap()).snapshot(&"one".parse().unwrap());
        for damage in ["{", "{\"format\": 9999}"] {
            fs::write(snapshot.files().record(), damage).unwrap();
            assert!(
                matches!(state.free_layers(), Err(FreeError::Unknown { owner, .. }) if owner == "web:one")
            );
        }
        fs::remove_file(snapshot.files().record()).unwrap();
        assert!(state.free_layers().is_err());
        assert!((0..4).all(|digit| state.layer(&id(digit)).exists()));
    }

    #[test]
    fn a_manifest_of_a_newer_release_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let snapshot = SnapshotDir::at(dir.path());
        assert!(snapshot.load().unwrap_err().is_not_found());
        let manifest = SnapshotManifest {
            format: SNAPSHOT_FORMAT,
            created_at: Timestamp::UNIX_EPOCH,
            has_memory: false,
            forensic: false,
        };
        snapshot.save(&manifest).unwrap();
        assert_eq!(snapshot.load().unwrap(), manifest);
        snapshot.save(&SnapshotManifest { format: SNAPSHOT_FORMAT + 1, ..manifest }).unwrap();
        assert!(matches!(snapshot.load(), Err(LoadError::TooNew { .. })));
    }

    #[test]
    fn disks_that_a_killed_snapshot_left_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let workspace = WorkspaceDir::at(dir.path());
        let mut record = record();
        record.layers = vec![Layer { id: id(1), bytes: 0 }];
        let other = dir.path().join("disk.qcow2");
        for path in [&other, &record.disk(&workspace), &workspace.record()] {
            fs::write(path, "x").unwrap();
        }
        workspace.remove_other_disks(&record).unwrap();
        assert!(!other.exists() && record.disk(&workspace).exists() && workspace.record().exists());
    }
}
