//! Snapshots of running workspaces.
//!
//! The disk is exchanged as for a resting workspace, by writing the record, and only then is the machine told to write to
//! the new overlay. Whether QEMU does, and whoever dies: the disk that the record describes (the old overlay as a layer, and
//! what is in the new overlay) is whole. So nothing has to be undone. Until it is known that QEMU writes to the new overlay,
//! the layer is listed as not sealed, and it is merged with no other.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use microagent_model::{Attachment, DiskSource, Layer, LayerId, SnapshotTag, State};
use microagent_store::{
    Access, Lock, Scratch, SettingsLock, SnapshotDir, Workload, WorkspaceDir, WorkspaceRecord, fsync_dir,
    open_file,
};
use microagent_vm::{Answer, Capture, ControlError, control, flatten};
use tokio_util::sync::CancellationToken;

use super::fork_volumes::ForkVolumes;
use super::memory::MemoryRecord;
use super::origin::{Origin, OriginKind};
use super::snapshot::{LAYERS_MAX, Snapshot, SnapshotContents};
use super::{SETTINGS_PATIENCE, Workspace, lock_error, lock_patiently};
use crate::Error;
use crate::blocking::blocking;
use crate::error::{Action, InvalidRequest, SnapshotError};
use crate::supervisor_spec::{layer_files, random};

/// Directory of the copies of volumes in that of a capture.
const VOLUMES: &str = "volumes";

/// A snapshot of a running workspace that is being made. Its settings are locked, and no layers are removed.
struct LiveSnapshot {
    dir: WorkspaceDir,
    settings: SettingsLock,
    _held: Lock,
    scratch: Scratch,
    record: WorkspaceRecord,
    workload: Workload,
    tag: SnapshotTag,
    now: Timestamp,
    contents: SnapshotContents,
    old_disk: PathBuf,
    overlay: File,
    memory: Option<File>,
}

/// How long a snapshot is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lifespan {
    /// Until it is deleted: it survives a loss of power.
    Lasting,
    /// For a command that makes forks, with what they get of the volumes.
    Passing(ForkVolumes),
}

impl Lifespan {
    fn volumes(self) -> ForkVolumes {
        match self {
            Lifespan::Lasting => ForkVolumes::Shared,
            Lifespan::Passing(volumes) => volumes,
        }
    }
}

/// The files of a capture that has no place yet. No layers are removed meanwhile.
pub(super) struct Captured {
    pub(super) origin: Origin,
    pub(super) scratch: Scratch,
    /// How long the machine was stopped.
    standstill: Duration,
    _held: Lock,
}

impl Workspace {
    /// Makes a snapshot of the running workspace.
    pub(super) async fn make_live_snapshot(
        &self,
        tag: Option<SnapshotTag>,
        contents: SnapshotContents,
    ) -> Result<Snapshot, Error> {
        let Captured { origin, scratch, standstill, .. } =
            self.capture_into_files(tag, contents, Lifespan::Lasting, &CancellationToken::new()).await?;
        let workspace = self.clone();
        blocking(move || {
            workspace.publish_snapshot(&workspace.existing()?, &origin.tag, scratch)?;
            Ok(Snapshot { standstill: Some(standstill), ..workspace.snapshots().read(&origin.tag)? })
        })
        .await
    }

    /// Captures the running workspace for a command. What it has not needed any more is removed with the command, however
    /// it ends.
    pub(super) async fn capture_for(
        &self,
        tag: SnapshotTag,
        volumes: ForkVolumes,
        cancel: &CancellationToken,
    ) -> Result<Captured, Error> {
        let (contents, lifespan) = (SnapshotContents::MemoryAndDisk, Lifespan::Passing(volumes));
        self.capture_into_files(Some(tag), contents, lifespan, cancel).await
    }

    async fn capture_into_files(
        &self,
        tag: Option<SnapshotTag>,
        contents: SnapshotContents,
        lifespan: Lifespan,
        cancel: &CancellationToken,
    ) -> Result<Captured, Error> {
        if contents == SnapshotContents::Evidence {
            self.check_evidence().await?;
        }
        let workspace = self.clone();
        let making = blocking(move || workspace.prepare_capture(tag, contents, lifespan)).await?;
        let answer = match lifespan.volumes() {
            ForkVolumes::Shared => {
                let memory = making.memory.as_ref().map(File::as_fd);
                control::capture(&making.dir, making.overlay.as_fd(), memory).await
            }
            ForkVolumes::Copied => self.capture_with_copies(&making, cancel).await?,
        };
        let capture = match answer {
            Ok(Answer::Captured(capture)) => *capture,
            Ok(Answer::Failed(failure)) if contents == SnapshotContents::Evidence => {
                let (workspace, message) = (self.name.clone(), failure.message);
                return Err(SnapshotError::NoEvidence { workspace, message }.into());
            }
            other => {
                self.changed(other, Action::Snapshot)?;
                return Err(self.unreachable(Action::Snapshot, control::ControlError::Closed));
            }
        };
        let workspace = self.clone();
        blocking(move || workspace.finish_capture(making, &capture, lifespan)).await
    }

    /// Captures the machine, and copies the other disks that it can write to before it continues.
    async fn capture_with_copies(
        &self,
        making: &LiveSnapshot,
        cancel: &CancellationToken,
    ) -> Result<Result<Answer, ControlError>, Error> {
        let memory = making.memory.as_ref().map(File::as_fd);
        let captured = control::capture_and_stop(&making.dir, making.overlay.as_fd(), memory).await;
        let stopped = match captured {
            Ok((stopped, Answer::Stopped)) => stopped,
            Ok((_, other)) => return Ok(Ok(other)),
            Err(error) => return Ok(Err(error)),
        };
        let (workspace, cancel, record) = (self.clone(), cancel.clone(), making.record.clone());
        let scratch = making.scratch.path().to_owned();
        // If it fails, the machine continues, because its supervisor is told nothing else.
        blocking(move || {
            let files = SnapshotDir::at(&scratch);
            workspace.copy_written_disks(&record, &scratch.join(VOLUMES), files.files(), &cancel)
        })
        .await?;
        Ok(stopped.resume().await)
    }

    /// Fails if the memory of the quarantined machine was captured before: QEMU writes it once.
    async fn check_evidence(&self) -> Result<(), Error> {
        let since = self.observe()?.machine.changed_at;
        let is_of_now = |snapshot: &Snapshot| snapshot.forensic && snapshot.created_at >= Some(since);
        match self.snapshots().list().await?.into_iter().find(is_of_now) {
            None => Ok(()),
            Some(Snapshot { tag, .. }) => {
                Err(SnapshotError::HasEvidence { workspace: self.name.clone(), tag }.into())
            }
        }
    }

    /// Gives the record another disk, which the machine is told of afterwards.
    fn prepare_capture(
        &self,
        tag: Option<SnapshotTag>,
        contents: SnapshotContents,
        lifespan: Lifespan,
    ) -> Result<LiveSnapshot, Error> {
        let dir = self.existing()?;
        let settings = dir.lock_settings(SETTINGS_PATIENCE).map_err(|e| lock_error(&self.name, e))?;
        let mut record = WorkspaceRecord::load(&dir)?;
        let is_evidence = contents == SnapshotContents::Evidence;
        match record.observed_state() {
            State::Quarantined if is_evidence && record.has_machine() => {}
            State::Running | State::Paused if !is_evidence => {}
            state => return Err(self.wrong_state(state, Action::Snapshot)),
        }
        if record.disposable {
            return Err(InvalidRequest::Leftover { name: self.name.clone(), verb: "captured" }.into());
        }
        self.check_contents(&record, contents, lifespan)?;
        let kind = if is_evidence { "forensic" } else { "snap" };
        let (workload, tag, now) = self.check_snapshot(&dir, tag, kind)?;
        let clean_up = |source| Error::File { action: "clean up", path: dir.path().to_owned(), source };
        // The machine writes to one of them perhaps, which is a layer, too.
        dir.remove_other_disks(&record).map_err(clean_up)?;
        let held = self.engine.hold_layers()?;
        let scratch = self.snapshot_scratch(&dir, &tag)?;
        let memory = match contents {
            SnapshotContents::MemoryAndDisk | SnapshotContents::Evidence => {
                Some(create_memory(&SnapshotDir::at(scratch.path()))?)
            }
            SnapshotContents::Disk => None,
        };
        let old_disk = record.disk(&dir);
        self.merge_sealed(&mut record)?;
        self.make_layer(&mut record, &old_disk)?;
        self.lay_overlay(&dir, &record)?;
        let path = record.disk(&dir);
        let overlay = open_file(&path, Access::Modify).map_err(|source| Error::File {
            action: "open",
            path,
            source,
        })?;
        record.save(&dir, &settings)?;
        Ok(LiveSnapshot {
            dir,
            settings,
            _held: held,
            scratch,
            record,
            workload,
            tag,
            now,
            contents,
            old_disk,
            overlay,
            memory,
        })
    }

    /// Refuses what a snapshot of the running workspace cannot have.
    fn check_contents(
        &self,
        record: &WorkspaceRecord,
        contents: SnapshotContents,
        lifespan: Lifespan,
    ) -> Result<(), Error> {
        match contents {
            SnapshotContents::MemoryAndDisk => {
                self.check_capture(record, Action::Snapshot, lifespan.volumes())
            }
            SnapshotContents::Disk => self.check_bundles(record, Action::Snapshot),
            // Nothing runs in it any more, and nobody restores it.
            SnapshotContents::Evidence => Ok(()),
        }
    }

    fn check_bundles(&self, record: &WorkspaceRecord, action: Action) -> Result<(), Error> {
        let is_open_bundle =
            |disk: &Attachment| matches!(disk.source, DiskSource::Bundle(_)) && !disk.read_only;
        if record.disks.iter().any(is_open_bundle) {
            return Err(SnapshotError::Bundles { workspace: self.name.clone(), action }.into());
        }
        Ok(())
    }

    /// Refuses what the memory of the running workspace cannot be captured with.
    pub(super) fn check_capture(
        &self,
        record: &WorkspaceRecord,
        action: Action,
        volumes: ForkVolumes,
    ) -> Result<(), Error> {
        let workspace = self.name.clone();
        if !record.secrets.is_empty() {
            return Err(SnapshotError::MemoryWithSecrets { workspace, action }.into());
        }
        if volumes == ForkVolumes::Copied {
            return Ok(());
        }
        self.check_bundles(record, action)?;
        match record.disks.iter().find(|disk| !disk.read_only) {
            Some(disk) => {
                let mount_point = disk.mount_point.clone();
                let is_image = matches!(disk.source, DiskSource::Image(_));
                Err(SnapshotError::MemoryWithDisk { workspace, action, mount_point, is_image }.into())
            }
            None => Ok(()),
        }
    }

    /// Merges layers that no machine writes to, where there are too many.
    fn merge_sealed(&self, record: &mut WorkspaceRecord) -> Result<(), Error> {
        let sealed = record.layers.iter().take_while(|layer| layer.is_sealed()).count();
        if sealed < LAYERS_MAX {
            return Ok(());
        }
        let state = self.engine.state();
        let id = LayerId::of(random::<16>()?);
        let file = state.layer(&id);
        let base = self.engine.image_store().disk_path(&record.image.disk);
        let mut files = layer_files(state, &record.layers[..sealed])?;
        let top = files.pop().expect("there are at least as many as the limit");
        if let Err(error) = flatten(&files, &top.path, &file, &base, record.resources.disk_bytes()) {
            let _ = fs::remove_file(&file);
            return Err(Error::File {
                action: "merge the layers of",
                path: error.path,
                source: error.source,
            });
        }
        let mut merged = [Layer { id, bytes: 0 }];
        self.seal(&mut merged)?;
        record.layers.splice(..sealed, merged);
        Ok(())
    }

    /// Makes the overlay a layer, by another name for its file.
    fn make_layer(&self, record: &mut WorkspaceRecord, disk: &std::path::Path) -> Result<(), Error> {
        let state = self.engine.state();
        let id = LayerId::of(random::<16>()?);
        let file = state.layer(&id);
        let made = fs::hard_link(disk, &file).and_then(|()| fsync_dir(&state.layers()));
        made.map_err(|source| Error::File { action: "make the layer", path: file, source })?;
        record.layers.push(Layer { id, bytes: 0 });
        Ok(())
    }

    /// Notes the lengths of layers that no machine writes to any more.
    pub(super) fn seal(&self, layers: &mut [Layer]) -> Result<(), Error> {
        for layer in layers.iter_mut().filter(|layer| !layer.is_sealed()) {
            let path = self.engine.state().layer(&layer.id);
            let sealed = File::open(&path).and_then(|file| {
                file.sync_all()?;
                file.set_permissions(fs::Permissions::from_mode(0o400))?;
                file.metadata()
            });
            layer.bytes = sealed.map_err(|source| Error::File { action: "read", path, source })?.len();
        }
        Ok(())
    }

    /// Seals the layers of the resting workspace that a capture without an end has left, and returns its record.
    pub(super) async fn seal_resting(&self, record: WorkspaceRecord) -> Result<WorkspaceRecord, Error> {
        if record.layers.iter().all(Layer::is_sealed) {
            return Ok(record);
        }
        let dir = self.existing()?;
        let _lock = lock_patiently(&self.name, &dir).await?;
        let workspace = self.clone();
        blocking(move || {
            let settings =
                dir.lock_settings(SETTINGS_PATIENCE).map_err(|e| lock_error(&workspace.name, e))?;
            let mut record = WorkspaceRecord::observe(&dir)?;
            workspace.check_resting(&record, Action::Start)?;
            workspace.seal(&mut record.layers)?;
            record.save(&dir, &settings)?;
            Ok(record)
        })
        .await
    }

    /// Writes the files of a machine that writes to the new overlay.
    fn finish_capture(
        &self,
        making: LiveSnapshot,
        capture: &Capture,
        lifespan: Lifespan,
    ) -> Result<Captured, Error> {
        let LiveSnapshot {
            dir,
            settings,
            scratch,
            mut record,
            workload,
            tag,
            now,
            contents,
            old_disk,
            memory,
            _held,
            ..
        } = making;
        self.seal(&mut record.layers)?;
        record.save(&dir, &settings)?;
        // From here on the old overlay is a layer, and only a layer.
        let _ = fs::remove_file(old_disk);
        if let (Some(memory), Some(token)) = (memory, capture.token) {
            let place = SnapshotDir::at(scratch.path());
            let (path, resources) = (place.memory(), record.observed_resources());
            let described = MemoryRecord::new(&memory, token, capture, resources);
            let described = described.and_then(|described| match lifespan {
                Lifespan::Lasting => {
                    memory.sync_all()?;
                    described.with_digest(&path)
                }
                Lifespan::Passing(_) => Ok(described),
            });
            described.map_err(|source| Error::File { action: "write", path, source })?.save(&place)?;
        }
        self.fill_snapshot(&dir, &scratch, (&record, &workload), (now, contents))?;
        let volumes = (lifespan.volumes() == ForkVolumes::Copied).then(|| scratch.path().join(VOLUMES));
        let kind = OriginKind::Capture { volumes };
        let origin = Origin { tag, files: SnapshotDir::at(scratch.path()), kind };
        Ok(Captured { origin, scratch, standstill: Duration::from_micros(capture.standstill_us), _held })
    }
}

/// The file of the memory, for QEMU to write to.
fn create_memory(place: &SnapshotDir) -> Result<File, Error> {
    let path = place.memory();
    let created: io::Result<File> = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    created.map_err(|source| Error::File { action: "create", path, source })
}
