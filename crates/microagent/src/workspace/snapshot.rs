//! Snapshots of workspaces.
//!
//! A snapshot makes the workspace's overlay a layer, which never changes again, and gives the workspace an empty overlay on
//! it: nothing is copied. Which file is the overlay follows from the layers in the record, so writing the record is the one
//! step that exchanges the disk. Everything that the new record names is complete and flushed before; a command that is
//! killed earlier has changed nothing, and later has left files that the next one removes. What is different for a running
//! machine is in [`capture`](super::capture), and what concerns its memory in [`memory`](super::memory).

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use microagent_model::{
    DiskSource, ImageIdentity, Layer, LayerId, Resources, SnapshotTag, State, WorkspaceName,
};
use microagent_proto::chain;
use microagent_store::{
    Lock, SNAPSHOT_FORMAT, Scratch, SnapshotDir, SnapshotManifest, Workload, WorkspaceDir, WorkspaceRecord,
    fsync_dir,
};
use microagent_vm::flatten;
use tokio_util::sync::CancellationToken;

use super::clone::{derived, resting_state};
use super::fork_volumes::{CopiedFrom, CopiedVolume, attach_copies, copies_for};
use super::layers::{bundle_count, copy_bundles, remove_if_there, restore_bundles};
use super::origin::Origin;
use super::{SETTINGS_PATIENCE, Workspace, lock_error, lock_patiently};
use crate::blocking::blocking;
use crate::error::{Action, SnapshotError};
use crate::supervisor_spec::{layer_files, random};
use crate::{Error, Progress};

/// Most layers of a root disk. A snapshot of a disk that has this many merges them into one: each layer costs an open
/// file and a lookup per read.
pub(crate) const LAYERS_MAX: usize = 16;

/// Name of an overlay that is being made.
const NEW_DISK: &str = "disk.new";

/// The snapshots of a workspace. Made by [`Workspace::snapshots`].
///
/// ```no_run
/// # use microagent::{Progress, Workspace};
/// use microagent::snapshot::{SnapshotContents, SnapshotDeleteMode};
///
/// # async fn example(web: &Workspace) -> Result<(), microagent::Error> {
/// let snapshots = web.snapshots();
/// let made = snapshots.create(Some(&"before-upgrade".parse()?), SnapshotContents::Disk).await?;
/// for snapshot in snapshots.list().await? {
///     println!("{} {:?}", snapshot.tag, snapshot.created_at);
/// }
/// snapshots.delete(&made.tag, SnapshotDeleteMode::Ordinary).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Snapshots {
    workspace: Workspace,
}

/// A snapshot.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Snapshot {
    /// Its workspace.
    pub workspace: WorkspaceName,
    /// Its tag.
    pub tag: SnapshotTag,
    /// When it was made; `None` if it is damaged.
    pub created_at: Option<Timestamp>,
    /// The image of its disk; `None` if it is damaged.
    pub image: Option<ImageIdentity>,
    /// The sizes that the workspace had; `None` if it is damaged.
    pub resources: Option<Resources>,
    /// Bytes on disk of its newest layer, its memory and its bundles. Older layers belong to older snapshots as well.
    pub bytes: u64,
    /// Bytes on disk of its memory; `None` if it has the disk only.
    pub memory_bytes: Option<u64>,
    /// How long the machine was stopped for it; only of one that [`Snapshots::create`] has just made of a running workspace.
    pub standstill: Option<Duration>,
    /// Named volumes that the workspace attached, which are not part of the snapshot.
    pub volumes: Vec<String>,
    /// The error of its records, if it is damaged.
    pub problem: Option<String>,
    /// Whether it is evidence of a quarantined workspace, which nothing starts, restores or exports.
    pub forensic: bool,
}

/// What a snapshot of a running workspace has. That of a resting one has the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotContents {
    /// Memory, devices and disk, at one instant.
    #[default]
    MemoryAndDisk,
    /// The disk.
    Disk,
    /// Memory, devices and disk of a quarantined workspace, as evidence: nothing starts, restores or exports it.
    Evidence,
}

/// Which ports of the host a workspace publishes that is made from a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ports {
    Same,
    Picked,
}

/// Which snapshots [`Snapshots::delete`] may delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotDeleteMode {
    /// Those that are no evidence: none that is forensic, and none of a quarantined workspace.
    Ordinary,
    /// Any.
    Force,
}

/// The result of [`Snapshots::delete`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotDeletion {
    /// Whether the snapshot existed.
    pub deleted: bool,
    /// Bytes on disk that were freed: of its memory, and of layers that nothing else needs.
    pub freed_bytes: u64,
}

impl Workspace {
    /// Returns the snapshots of the workspace, which may not exist.
    pub fn snapshots(&self) -> Snapshots {
        Snapshots { workspace: self.clone() }
    }
}

impl Snapshots {
    /// Makes a snapshot of the workspace, which continues to run if it does. Without a tag, it is `snap-` and the time. The cost
    /// does not depend on the size of the disk, except that every 16th snapshot in a row merges layers into one. A resting
    /// workspace has no memory, so its snapshot has the disk only.
    ///
    /// # Errors
    /// Fails if the workspace is being started or ended or in use, its setup has not run, the tag is taken, a file cannot be
    /// written, or the guest does not flush its disk in time. A snapshot with memory is refused for a workspace with
    /// secrets, or with further disks that it can write to. Then there is no new snapshot, and a running workspace
    /// continues.
    pub async fn create(
        &self,
        tag: Option<&SnapshotTag>,
        contents: SnapshotContents,
    ) -> Result<Snapshot, Error> {
        let workspace = &self.workspace;
        workspace.engine.prepare()?;
        workspace.existing()?;
        if contents == SnapshotContents::Evidence
            || matches!(workspace.observe()?.observed_state(), State::Running | State::Paused)
        {
            return workspace.make_live_snapshot(tag.cloned(), contents).await;
        }
        let (lock, workspace, tag) =
            (self.take(Action::Snapshot).await?, self.workspace.clone(), tag.cloned());
        blocking(move || workspace.make_snapshot(tag, &lock)).await
    }

    /// Lists the snapshots of the workspace, the oldest first. Changes nothing. A damaged one has a `problem`.
    ///
    /// # Errors
    /// Fails if the workspace does not exist or its directory cannot be read.
    pub async fn list(&self) -> Result<Vec<Snapshot>, Error> {
        let snapshots = self.clone();
        blocking(move || snapshots.read_all()).await
    }

    fn read_all(&self) -> Result<Vec<Snapshot>, Error> {
        let dir = self.workspace.existing()?;
        let tags = dir.snapshot_tags().map_err(|source| Error::File {
            action: "read",
            path: dir.snapshots(),
            source,
        })?;
        let mut found: Vec<_> = tags.iter().filter_map(|tag| self.observe(&dir, tag)).collect();
        found.sort_by_key(|snapshot| snapshot.created_at);
        Ok(found)
    }

    /// Returns a snapshot. Changes nothing.
    ///
    /// # Errors
    /// Fails if there is none.
    pub async fn get(&self, tag: &SnapshotTag) -> Result<Snapshot, Error> {
        let (snapshots, tag) = (self.clone(), tag.clone());
        blocking(move || snapshots.read(&tag)).await
    }

    pub(super) fn read(&self, tag: &SnapshotTag) -> Result<Snapshot, Error> {
        self.observe(&self.workspace.existing()?, tag).ok_or_else(|| self.no_such(tag))
    }

    /// Deletes a snapshot, and the layers that nothing else needs. The workspace may be running. A missing snapshot is not
    /// an error.
    ///
    /// # Errors
    /// Fails if the workspace does not exist, the snapshot is one that `mode` keeps, or files cannot be removed.
    pub async fn delete(
        &self,
        tag: &SnapshotTag,
        mode: SnapshotDeleteMode,
    ) -> Result<SnapshotDeletion, Error> {
        let (snapshots, tag) = (self.clone(), tag.clone());
        blocking(move || snapshots.remove(&tag, mode)).await
    }

    fn remove(&self, tag: &SnapshotTag, mode: SnapshotDeleteMode) -> Result<SnapshotDeletion, Error> {
        let engine = &self.workspace.engine;
        engine.prepare()?;
        let snapshot = self.workspace.existing()?.snapshot(tag);
        if mode == SnapshotDeleteMode::Ordinary {
            self.check_free(Action::DeleteSnapshot)?;
            // A damaged record says nothing of evidence, and must not keep the snapshot.
            if snapshot.load().is_ok_and(|manifest| manifest.forensic) {
                let (workspace, tag) = (self.workspace.name.clone(), tag.clone());
                return Err(SnapshotError::KeptEvidence { workspace, tag }.into());
            }
        }
        let memory = blocks(&snapshot.memory());
        match engine.state().take_out(snapshot.path()) {
            Ok(()) => {
                let freed_bytes = memory + engine.remove_unneeded_layers()?;
                Ok(SnapshotDeletion { deleted: true, freed_bytes })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Renamed in the meantime, the workspace still has the snapshot.
                self.workspace.existing()?;
                Ok(SnapshotDeletion { deleted: false, freed_bytes: 0 })
            }
            Err(source) => Err(Error::File { action: "remove", path: snapshot.path().to_owned(), source }),
        }
    }

    /// Restores the workspace to the snapshot: the root disk of a resting one; disk, memory and processes of a running
    /// one, which runs again afterwards. What was written to the disk since is lost, except to other snapshots.
    /// Settings and volumes are not changed; the disk keeps its size if it was enlarged.
    ///
    /// # Errors
    /// Fails if the snapshot does not exist or is damaged, the workspace is in use, or it is running and the snapshot has no
    /// memory or one that does not fit this host. Then nothing is changed. If the machine cannot be restored afterwards, the
    /// workspace is `failed`, with the disk of the snapshot. If `progress` is cancelled before the running machine is ended,
    /// nothing is changed; a later cancellation has no effect.
    pub async fn restore(&self, tag: &SnapshotTag, progress: &Progress) -> Result<(), Error> {
        let workspace = &self.workspace;
        if matches!(workspace.observe()?.observed_state(), State::Running | State::Paused) {
            return workspace.roll_back(tag, progress).await;
        }
        self.restore_disk(tag).await.map(drop)
    }

    /// Restores the root disk of the resting workspace to the snapshot.
    pub(super) async fn restore_disk(&self, tag: &SnapshotTag) -> Result<WorkspaceRecord, Error> {
        let (lock, workspace, tag) = (self.take(Action::Restore).await?, self.workspace.clone(), tag.clone());
        blocking(move || workspace.restore_snapshot(&tag, &lock)).await
    }

    /// Creates a workspace with the disk and the settings that this one had at the snapshot, and with its own name and
    /// identity. This workspace may be running.
    ///
    /// # Errors
    /// Fails if the snapshot does not exist or is damaged, the workspace is quarantined, or the name is taken. Then nothing
    /// is created.
    pub async fn create_workspace(
        &self,
        tag: &SnapshotTag,
        name: &WorkspaceName,
    ) -> Result<Workspace, Error> {
        let never = CancellationToken::new();
        Ok(self.create_as(&self.origin(tag)?, name, (Ports::Same, &never)).await?.0)
    }

    /// As [`Snapshots::create_workspace`], with ports of the host that are picked at each start, and with the copies of volumes
    /// that the origin has.
    pub(super) async fn create_unpublished(
        &self,
        origin: &Origin,
        name: &WorkspaceName,
        cancel: &CancellationToken,
    ) -> Result<(Workspace, Vec<CopiedVolume>), Error> {
        self.create_as(origin, name, (Ports::Picked, cancel)).await
    }

    async fn create_as(
        &self,
        origin: &Origin,
        name: &WorkspaceName,
        (ports, cancel): (Ports, &CancellationToken),
    ) -> Result<(Workspace, Vec<CopiedVolume>), Error> {
        self.workspace.engine.prepare()?;
        self.workspace.existing()?;
        self.check_free(Action::UseSnapshot)?;
        let (source, origin, cancel) = (self.workspace.clone(), origin.clone(), cancel.clone());
        let created = self.workspace.engine.workspace(name);
        let target = created.clone();
        let copies = blocking(move || source.create_from(&origin, &target, (ports, &cancel))).await?;
        created.engine.place_copies(&created, &copies).await?;
        Ok((created, copies))
    }

    pub(super) fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// Locks the workspace if it is resting.
    async fn take(&self, action: Action) -> Result<Lock, Error> {
        let workspace = &self.workspace;
        workspace.engine.prepare()?;
        let dir = workspace.existing()?;
        workspace.check_resting(&workspace.observe()?, action)?;
        lock_patiently(&workspace.name, &dir).await
    }

    fn observe(&self, dir: &WorkspaceDir, tag: &SnapshotTag) -> Option<Snapshot> {
        let found = dir.snapshot(tag);
        let loaded = found.load().and_then(|manifest| Ok((manifest, WorkspaceRecord::load(found.files())?)));
        let mut snapshot = Snapshot {
            workspace: self.workspace.name.clone(),
            tag: tag.clone(),
            created_at: None,
            image: None,
            resources: None,
            bytes: 0,
            memory_bytes: None,
            standstill: None,
            volumes: Vec::new(),
            problem: None,
            forensic: false,
        };
        match loaded {
            Ok((manifest, record)) => {
                let state = self.workspace.engine.state();
                let layer = record.layers.last().map(|layer| state.layer(&layer.id));
                let bundles = (0..bundle_count(&record)).map(|number| found.files().bundle(number));
                let memory = found.memory();
                snapshot.memory_bytes = memory.exists().then(|| blocks(&memory));
                snapshot.bytes =
                    layer.into_iter().chain(bundles).chain([memory]).map(|path| blocks(&path)).sum();
                snapshot.volumes = volumes(&record);
                snapshot.created_at = Some(manifest.created_at);
                snapshot.forensic = manifest.forensic;
                snapshot.resources = Some(record.resources);
                snapshot.image = Some(record.image);
            }
            Err(_) if !found.path().is_dir() => return None,
            Err(error) => snapshot.problem = Some(chain(&error)),
        }
        Some(snapshot)
    }

    pub(super) fn no_such(&self, tag: &SnapshotTag) -> Error {
        SnapshotError::NoSuch { workspace: self.workspace.name.clone(), tag: tag.clone() }.into()
    }
}

impl Workspace {
    pub(super) fn check_resting(&self, record: &WorkspaceRecord, action: Action) -> Result<State, Error> {
        match record.observed_state() {
            state if state.is_resting() => Ok(state),
            state => Err(self.wrong_state(state, action)),
        }
    }

    /// Makes a snapshot of the locked workspace.
    fn make_snapshot(&self, tag: Option<SnapshotTag>, _lock: &Lock) -> Result<Snapshot, Error> {
        let dir = self.existing()?;
        let settings = dir.lock_settings(SETTINGS_PATIENCE).map_err(|e| lock_error(&self.name, e))?;
        let mut record = WorkspaceRecord::load(&dir)?;
        self.check_resting(&record, Action::Snapshot)?;
        let (workload, tag, now) = self.check_snapshot(&dir, tag, "snap")?;
        dir.remove_other_disks(&record).map_err(|source| Error::File {
            action: "clean up",
            path: dir.path().to_owned(),
            source,
        })?;
        let _held = self.engine.hold_layers()?;
        self.seal(&mut record.layers)?;
        let layers = self.freeze_disk(&dir, &record)?;
        let old_disk = record.disk(&dir);
        let record = WorkspaceRecord { layers, ..record };
        self.lay_overlay(&dir, &record)?;
        record.save(&dir, &settings)?;
        // From here on the overlay is a layer, and only a layer.
        let _ = fs::remove_file(old_disk);
        if let Some(layer) = record.layers.last() {
            let _ =
                fs::set_permissions(self.engine.state().layer(&layer.id), fs::Permissions::from_mode(0o400));
        }
        let scratch = self.snapshot_scratch(&dir, &tag)?;
        self.fill_snapshot(&dir, &scratch, (&record, &workload), (now, SnapshotContents::Disk))?;
        self.publish_snapshot(&dir, &tag, scratch)?;
        self.snapshots().read(&tag)
    }

    /// What a snapshot needs beside the disk, if one can be made.
    pub(super) fn check_snapshot(
        &self,
        dir: &WorkspaceDir,
        tag: Option<SnapshotTag>,
        kind: &str,
    ) -> Result<(Workload, SnapshotTag, Timestamp), Error> {
        let workload = Workload::load(dir).map_err(|e| self.damaged(e))?;
        if !workload.setup.is_empty() {
            return Err(SnapshotError::SetupPending { workspace: self.name.clone() }.into());
        }
        let now = Timestamp::now();
        let tag = match tag {
            Some(tag) if dir.snapshot(&tag).path().exists() => {
                return Err(SnapshotError::Exists { workspace: self.name.clone(), tag }.into());
            }
            Some(tag) => tag,
            None => free_tag(dir, now, kind),
        };
        Ok((workload, tag, now))
    }

    /// Where the snapshot is made.
    pub(super) fn snapshot_scratch(&self, dir: &WorkspaceDir, tag: &SnapshotTag) -> Result<Scratch, Error> {
        self.engine.state().scratch().map_err(|source| Error::File {
            action: "make",
            path: dir.snapshot(tag).path().to_owned(),
            source,
        })
    }

    /// Makes the overlay a layer, by another name for its file or merged with the layers below it. Returns the layers that
    /// the workspace has then.
    fn freeze_disk(&self, dir: &WorkspaceDir, record: &WorkspaceRecord) -> Result<Vec<Layer>, Error> {
        let state = self.engine.state();
        let id = LayerId::of(random::<16>()?);
        let (disk, file) = (record.disk(dir), state.layer(&id));
        let failed = |source| Error::File { action: "make the layer", path: file.clone(), source };
        let is_merged = record.layers.len() >= LAYERS_MAX;
        if is_merged {
            let base = self.engine.image_store().disk_path(&record.image.disk);
            let layers = layer_files(state, &record.layers)?;
            let merged = flatten(&layers, &disk, &file, &base, record.resources.disk_bytes());
            if let Err(error) = merged {
                let _ = fs::remove_file(&file);
                return Err(Error::File {
                    action: "merge the layers of",
                    path: error.path,
                    source: error.source,
                });
            }
        } else {
            fs::hard_link(&disk, &file).map_err(failed)?;
        }
        let flushed = fs::File::open(&file).and_then(|opened| {
            opened.sync_all()?;
            Ok(opened.metadata()?.len())
        });
        let bytes = flushed.and_then(|bytes| fsync_dir(&state.layers()).map(|()| bytes)).map_err(failed)?;
        let kept = if is_merged { &[] } else { record.layers.as_slice() };
        Ok(kept.iter().cloned().chain([Layer { id, bytes }]).collect())
    }

    /// Makes the empty overlay on the layers of this record. It takes the place of one of the same name.
    pub(super) fn lay_overlay(&self, dir: &WorkspaceDir, record: &WorkspaceRecord) -> Result<(), Error> {
        let (fresh, disk) = (dir.path().join(NEW_DISK), record.disk(dir));
        let failed = |source| Error::File { action: "make", path: disk.clone(), source };
        remove_if_there(&fresh).map_err(failed)?;
        self.engine.create_disk(&fresh, record)?;
        let flushed = fs::File::open(&fresh).and_then(|overlay| overlay.sync_all());
        flushed.and_then(|()| fs::rename(&fresh, &disk)).and_then(|()| fsync_dir(dir.path())).map_err(failed)
    }

    /// Writes the files that describe a snapshot.
    pub(super) fn fill_snapshot(
        &self,
        dir: &WorkspaceDir,
        scratch: &Scratch,
        (record, workload): (&WorkspaceRecord, &Workload),
        (created_at, contents): (Timestamp, SnapshotContents),
    ) -> Result<(), Error> {
        let making = SnapshotDir::at(scratch.path());
        let machine = resting_state(&record.machine, created_at);
        WorkspaceRecord { disposable: false, machine, ..record.clone() }.save_new(making.files())?;
        workload.save(making.files())?;
        copy_bundles(record, dir, making.files())?;
        let has_memory = making.memory().exists();
        let forensic = contents == SnapshotContents::Evidence;
        Ok(making.save(&SnapshotManifest { format: SNAPSHOT_FORMAT, created_at, has_memory, forensic })?)
    }

    /// Gives a snapshot that is complete its place.
    pub(super) fn publish_snapshot(
        &self,
        dir: &WorkspaceDir,
        tag: &SnapshotTag,
        scratch: Scratch,
    ) -> Result<(), Error> {
        let place = dir.snapshot(tag);
        let failed = |source| Error::File { action: "make", path: place.path().to_owned(), source };
        let snapshots = dir.snapshots();
        let published = match DirBuilder::new().mode(0o700).create(&snapshots) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => scratch.publish(place.path()).and_then(|()| fsync_dir(&snapshots)),
        };
        published.map_err(failed)
    }

    /// Restores the disk of the locked workspace to the snapshot.
    fn restore_snapshot(&self, tag: &SnapshotTag, _lock: &Lock) -> Result<WorkspaceRecord, Error> {
        let dir = self.existing()?;
        let settings = dir.lock_settings(SETTINGS_PATIENCE).map_err(|e| lock_error(&self.name, e))?;
        let record = WorkspaceRecord::load(&dir)?;
        self.check_resting(&record, Action::Restore)?;
        let restored = {
            let _held = self.engine.hold_layers()?;
            let origin = self.snapshots().origin(tag)?;
            let (snapshot, found) = (self.load_snapshot(&origin)?, origin.files);
            let old_disk = record.disk(&dir);
            let mut restored = WorkspaceRecord {
                image: snapshot.image,
                layers: snapshot.layers,
                machine: resting_state(&snapshot.machine, Timestamp::now()),
                ..record
            };
            restored.resources.size_mib = restored.resources.size_mib.max(snapshot.resources.size_mib);
            restore_bundles(&found, &dir)?;
            self.lay_overlay(&dir, &restored)?;
            // The disk is not as any sync has left it. A sync without this knowledge is a first one.
            let _ = fs::remove_dir_all(dir.syncs());
            restored.save(&dir, &settings)?;
            restored.machine.save(&dir)?;
            if old_disk != restored.disk(&dir) {
                let _ = fs::remove_file(old_disk);
            }
            dir.note_event(restored.machine.state, Some(&format!("restored from snapshot {tag}")));
            restored
        };
        // The workspace was perhaps the last that needed a layer; what cannot be freed now is freed by a prune.
        let _ = self.engine.remove_unneeded_layers();
        Ok(restored)
    }

    /// Creates another workspace from the snapshot. Its copies of volumes have no places yet.
    fn create_from(
        &self,
        origin: &Origin,
        target: &Workspace,
        (ports, cancel): (Ports, &CancellationToken),
    ) -> Result<Vec<CopiedVolume>, Error> {
        let _held = self.engine.hold_layers()?;
        let (snapshot, found) = (self.load_snapshot(origin)?, &origin.files);
        let workload = Workload::load(found.files()).map_err(|e| self.damaged(e))?;
        let (mut record, workload) = derived(snapshot, workload, &self.name, &target.name)?;
        if ports == Ports::Picked {
            record.publish.iter_mut().for_each(|publish| publish.host_port = 0);
        }
        record.from_snapshot = origin.name(&self.name);
        let copies = match origin.volumes() {
            Some(_) => copies_for(&record, &target.name)?,
            None => Vec::new(),
        };
        attach_copies(&mut record, &copies);
        self.engine.create_dir_with(&record, Some(&workload), |dir| {
            copy_bundles(&record, found.files(), dir)?;
            self.engine.create_disk(&record.disk(dir), &record)?;
            match origin.volumes() {
                Some(from) => {
                    self.engine.make_copies(&copies, &CopiedFrom::Capture(from.clone()), dir, cancel)
                }
                None => Ok(()),
            }
        })?;
        Ok(copies)
    }
}

/// A tag from the time that is not taken.
fn free_tag(dir: &WorkspaceDir, now: Timestamp, kind: &str) -> SnapshotTag {
    let time = format!("{kind}-{}", now.strftime("%Y%m%d-%H%M%S"));
    let numbered = (2..).map(|number: u32| format!("{time}-{number}"));
    let mut tags = std::iter::once(time.clone()).chain(numbered).filter_map(|tag| tag.parse().ok());
    tags.find(|tag| !dir.snapshot(tag).path().exists()).expect("there are more numbers than directories")
}

fn volumes(record: &WorkspaceRecord) -> Vec<String> {
    let name = |source: &DiskSource| match source {
        DiskSource::Volume(name) => Some(name.to_string()),
        DiskSource::Image(_) | DiskSource::Bundle(_) => None,
    };
    record.disks.iter().filter_map(|disk| name(&disk.source)).collect()
}

fn blocks(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.blocks() * 512)
}
