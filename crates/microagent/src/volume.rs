//! Named volumes: create, list, get, resize, delete.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use jiff::Timestamp;
use microagent_ext4::{BLOCK_SIZE, Builder, Meta, Options, ROOT};
use microagent_model::{DISK_MIB_MAX, DiskSource, State, VolumeName, WorkspaceName};
use microagent_proto::{UNUSED_SINCE, chain};
use microagent_store::{
    Access, HeldVolume, HoldError, LockError, VOLUME_FORMAT, VolumeDir, VolumeHolder, VolumeRecord,
    WorkspaceRecord, open_file,
};

use crate::blocking::blocking;
use crate::error::{Action, InvalidRequest};
use crate::provision::MIB;
use crate::supervisor_spec::random;
use crate::{Engine, Error, Progress};

/// Default size of a volume, in MiB.
pub const SIZE_MIB: u64 = 1024;

/// Valid sizes of a volume, in MiB. The smallest one is what a file system needs for itself.
pub(crate) const SIZE_RANGE_MIB: std::ops::RangeInclusive<u64> = 16..=DISK_MIB_MAX;

/// Largest file system that is written completely, in MiB; the guest's kernel grows it to the size of a larger
/// volume. Each GiB needs 64 KiB of tables.
const WRITTEN_MAX_MIB: u64 = 1024 * 1024;

const BLOCKS_PER_MIB: u64 = MIB / BLOCK_SIZE as u64;

/// Length of the journal in blocks, which cannot be changed later: a 64th of the volume.
const JOURNAL_SHARE: u64 = 64;
const JOURNAL_MIN: u64 = 1024;
const JOURNAL_MAX: u64 = 32_768;

/// A named ext4 disk that can be attached to one machine at a time, or read-only to several.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Volume {
    /// Name.
    pub name: VolumeName,
    /// Size in MiB; `None` if its record is damaged.
    pub size_mib: Option<u64>,
    /// When it was created.
    pub created_at: Option<Timestamp>,
    /// The workspace whose machine uses it now; the first of `readers` if machines only read it.
    pub attached_to: Option<String>,
    /// The workspaces whose machines use it now and only read it.
    pub readers: Vec<String>,
    /// Bytes that it uses on the host.
    pub bytes: u64,
    /// Path of its disk.
    pub path: PathBuf,
    /// The error of its record, if it is damaged.
    pub problem: Option<String>,
}

/// Which volumes [`Volumes::delete`] may delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeDeleteMode {
    /// Only a volume that no machine uses and no workspace attaches.
    Unused,
    /// Any volume. The machines that use it are killed first. Workspaces that attach it can no longer start.
    Force,
}

/// The result of [`Volumes::delete`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VolumeDeletion {
    /// Whether the volume existed.
    pub deleted: bool,
    /// The workspaces that were killed, because they used the volume.
    pub killed: Vec<WorkspaceName>,
    /// Workspaces that attach the volume and cannot start without it.
    pub missed_by: Vec<WorkspaceName>,
}

/// The result of [`Volumes::prune`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrunedVolumes {
    /// Names of the deleted volumes.
    pub volumes: Vec<VolumeName>,
    /// Bytes that they used on the host.
    pub freed_bytes: u64,
}

/// The volumes of a state directory. Made by [`Engine::volumes`].
#[derive(Debug, Clone)]
pub struct Volumes {
    engine: Engine,
}

impl Engine {
    /// Returns the volumes of this state directory.
    pub fn volumes(&self) -> Volumes {
        Volumes { engine: self.clone() }
    }
}

impl Volumes {
    /// Creates a volume of this size: an empty ext4 file system without `lost+found`, in a sparse file.
    ///
    /// # Errors
    /// Fails if the name is taken ([`AlreadyExists`](crate::ErrorKind::AlreadyExists)), the size is not valid
    /// ([`Invalid`](crate::ErrorKind::Invalid)), or the disk cannot be written. Then nothing is created.
    pub async fn create(&self, name: &VolumeName, size_mib: u64) -> Result<Volume, Error> {
        let (volumes, name) = (self.clone(), name.clone());
        blocking(move || volumes.write(&name, size_mib)).await
    }

    /// As [`Volumes::create`], on this thread.
    pub(crate) fn write(&self, name: &VolumeName, size_mib: u64) -> Result<Volume, Error> {
        check_size(size_mib)?;
        self.engine.prepare()?;
        let record = VolumeRecord {
            format: VOLUME_FORMAT,
            name: name.clone(),
            created_at: Timestamp::now(),
            size_mib,
        };
        let uuid = random_uuid()?;
        let made = self.engine.state().create_volume(name, |dir| {
            write_disk(dir, size_mib, uuid)?;
            record.save(dir).map_err(io::Error::other)
        });
        made.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => Error::VolumeExists { name: name.clone() },
            _ => Error::File {
                action: "create volume",
                path: self.engine.state().volume(name).path().to_owned(),
                source,
            },
        })?;
        self.read(name)
    }

    /// Lists volumes by name, including damaged ones. Changes nothing.
    ///
    /// # Errors
    /// Fails if the directory of volumes exists and cannot be read.
    pub async fn list(&self) -> Result<Vec<Volume>, Error> {
        let volumes = self.clone();
        blocking(move || volumes.read_all()).await
    }

    fn read_all(&self) -> Result<Vec<Volume>, Error> {
        let names = self.engine.state().volume_names().map_err(|source| Error::File {
            action: "read",
            path: self.engine.state().volumes(),
            source,
        })?;
        Ok(names.iter().filter_map(|name| self.observe(name)).collect())
    }

    /// Returns a volume. Changes nothing.
    ///
    /// # Errors
    /// Fails if the volume does not exist ([`NotFound`](crate::ErrorKind::NotFound)).
    pub async fn get(&self, name: &VolumeName) -> Result<Volume, Error> {
        let (volumes, name) = (self.clone(), name.clone());
        blocking(move || volumes.read(&name)).await
    }

    fn read(&self, name: &VolumeName) -> Result<Volume, Error> {
        self.observe(name).ok_or_else(|| Error::NoSuchVolume { name: name.clone() })
    }

    fn observe(&self, name: &VolumeName) -> Option<Volume> {
        let dir = self.engine.state().volume(name);
        let (record, problem) = match VolumeRecord::load(&dir) {
            Ok(record) => (Some(record), None),
            Err(_) if !dir.path().is_dir() => return None,
            Err(error) => (None, Some(chain(&error))),
        };
        Some(Volume {
            name: name.clone(),
            size_mib: record.as_ref().map(|record| record.size_mib),
            created_at: record.as_ref().map(|record| record.created_at),
            attached_to: dir.holder().map(|holder| holder.workspace),
            readers: dir.readers().into_iter().map(|holder| holder.workspace).collect(),
            bytes: dir.disk().metadata().map_or(0, |found| found.blocks() * 512),
            path: dir.disk(),
            problem,
        })
    }

    /// Enlarges a volume. Its file system grows at the next start that attaches it for writing.
    ///
    /// # Errors
    /// Fails if the volume does not exist ([`NotFound`](crate::ErrorKind::NotFound)) or is in use
    /// ([`Busy`](crate::ErrorKind::Busy)), or the size is smaller than before or not valid
    /// ([`Invalid`](crate::ErrorKind::Invalid)).
    pub async fn resize(&self, name: &VolumeName, size_mib: u64) -> Result<Volume, Error> {
        let (volumes, name) = (self.clone(), name.clone());
        blocking(move || volumes.grow(&name, size_mib)).await
    }

    fn grow(&self, name: &VolumeName, size_mib: u64) -> Result<Volume, Error> {
        let dir = self.existing(name)?;
        let _held = hold(name, &dir)?;
        let record = VolumeRecord::load(&dir).map_err(|e| Error::from_volume(name, e))?;
        if size_mib < record.size_mib {
            return Err(
                InvalidRequest::VolumeShrinks { name: name.clone(), size_mib: record.size_mib }.into()
            );
        }
        check_size(size_mib)?;
        let grown = open_file(&dir.disk(), Access::Modify).and_then(|file| {
            // A resize that was killed half-way may have left it longer.
            file.set_len((size_mib * MIB).max(file.metadata()?.len()))?;
            file.sync_all()
        });
        grown.map_err(|source| Error::File { action: "grow", path: dir.disk(), source })?;
        VolumeRecord { size_mib, ..record }.save(&dir)?;
        self.read(name)
    }

    /// Deletes a volume with its data. A missing volume is not an error.
    ///
    /// # Errors
    /// Fails if a machine uses it ([`Busy`](crate::ErrorKind::Busy)) or a workspace attaches it
    /// ([`WrongState`](crate::ErrorKind::WrongState)) and `mode` is [`VolumeDeleteMode::Unused`], if that machine cannot
    /// be ended, or its files cannot be removed.
    pub async fn delete(&self, name: &VolumeName, mode: VolumeDeleteMode) -> Result<VolumeDeletion, Error> {
        let Ok(dir) = self.existing(name) else {
            return Ok(VolumeDeletion { deleted: false, killed: Vec::new(), missed_by: Vec::new() });
        };
        let mut killed = Vec::new();
        if mode == VolumeDeleteMode::Force {
            for holder in dir.writer().into_iter().chain(dir.readers()) {
                killed.extend(self.end_holder(name, &holder).await?);
            }
        }
        let held = match hold(name, &dir) {
            Err(Error::NoSuchVolume { .. }) => {
                return Ok(VolumeDeletion { deleted: false, killed, missed_by: Vec::new() });
            }
            held => held?,
        };
        let named_by = self.named_by(name)?;
        if mode == VolumeDeleteMode::Unused && !named_by.is_empty() {
            return Err(Error::VolumeNamed { name: name.clone(), workspaces: named_by });
        }
        held.remove(self.engine.state()).map_err(|source| Error::File {
            action: "remove",
            path: dir.path().to_owned(),
            source,
        })?;
        Ok(VolumeDeletion { deleted: true, killed, missed_by: named_by })
    }

    /// Deletes all volumes that no machine uses and no workspace attaches, with their data. A volume that cannot be deleted
    /// is kept and is no error.
    ///
    /// # Errors
    /// Fails if the directory of volumes exists and cannot be read, or `progress` is cancelled. Volumes that were deleted
    /// before stay deleted.
    pub async fn prune(&self, progress: &Progress) -> Result<PrunedVolumes, Error> {
        let mut pruned = PrunedVolumes { volumes: Vec::new(), freed_bytes: 0 };
        for volume in self.list().await? {
            progress.check()?;
            // A volume that a workspace attaches is refused.
            if self
                .delete(&volume.name, VolumeDeleteMode::Unused)
                .await
                .is_ok_and(|deletion| deletion.deleted)
            {
                pruned.freed_bytes += volume.bytes;
                pruned.volumes.push(volume.name);
            }
        }
        Ok(pruned)
    }

    /// Kills the workspace that uses a volume. The workspace of a run is then removed, or in state `failed`. A workspace
    /// that does not attach the volume is not killed, whatever the note of the holder says.
    async fn end_holder(
        &self,
        name: &VolumeName,
        holder: &VolumeHolder,
    ) -> Result<Option<WorkspaceName>, Error> {
        let workspace: WorkspaceName = holder.workspace.parse().map_err(InvalidRequest::VolumeHolder)?;
        let attaches = WorkspaceRecord::load(&self.engine.state().workspace(&workspace))
            .is_ok_and(|record| attaches(&record, name));
        if !attaches {
            return Ok(None);
        }
        let workspace = self.engine.workspace(&workspace);
        workspace.check_free(Action::Kill)?;
        let (killed, workspace) = (workspace.kill().await, workspace.name().clone());
        match killed {
            // A run that ends removes its workspace.
            Ok(_) | Err(Error::NoSuchWorkspace { .. }) => Ok(Some(workspace)),
            Err(Error::Record(error)) if error.is_not_found() => Ok(Some(workspace)),
            Err(error) => Err(error),
        }
    }

    /// Returns the workspaces whose starts attach the volume.
    fn named_by(&self, name: &VolumeName) -> Result<Vec<WorkspaceName>, Error> {
        let state = self.engine.state();
        let names = state.workspace_names().map_err(|source| Error::File {
            action: "read",
            path: state.workspaces(),
            source,
        })?;
        let names_it = |workspace: &WorkspaceName| {
            // One with a damaged record cannot be started anyway, and a disposable run's is only a log.
            WorkspaceRecord::observe(&state.workspace(workspace)).is_ok_and(|record| {
                attaches(&record, name)
                    && !(record.disposable
                        && matches!(record.observed_state(), State::Failed | State::Stopped))
            })
        };
        Ok(names.into_iter().filter(names_it).collect())
    }

    fn existing(&self, name: &VolumeName) -> Result<VolumeDir, Error> {
        let dir = self.engine.state().volume(name);
        if dir.path().is_dir() { Ok(dir) } else { Err(Error::NoSuchVolume { name: name.clone() }) }
    }
}

/// Whether the machines of a workspace have a volume.
fn attaches(record: &WorkspaceRecord, name: &VolumeName) -> bool {
    record.disks.iter().any(|disk| disk.source == DiskSource::Volume(name.clone()))
}

pub(crate) fn hold(name: &VolumeName, dir: &VolumeDir) -> Result<HeldVolume, Error> {
    dir.hold().map_err(|error| match error {
        HoldError::Held { holder, .. } => Error::DiskBusy { disk: format!("volume `{name}`"), holder },
        // The file is created where it is missing, so its directory is gone.
        HoldError::Lock { source: LockError::Open { source, .. }, .. }
            if source.kind() == io::ErrorKind::NotFound =>
        {
            Error::NoSuchVolume { name: name.clone() }
        }
        HoldError::Lock { source: LockError::Open { path, source }, .. } => {
            Error::File { action: "lock", path, source }
        }
        error => Error::DiskBusy { disk: error.to_string(), holder: None },
    })
}

fn check_size(size_mib: u64) -> Result<(), InvalidRequest> {
    match SIZE_RANGE_MIB.contains(&size_mib) {
        true => Ok(()),
        false => Err(InvalidRequest::VolumeSize { size_mib }),
    }
}

/// A random UUID (version 4).
fn random_uuid() -> Result<[u8; 16], Error> {
    let mut uuid = random::<16>()?;
    uuid[6] = (uuid[6] & 0x0F) | 0x40;
    uuid[8] = (uuid[8] & 0x3F) | 0x80;
    Ok(uuid)
}

/// Returns the options of the new file system.
fn options(size_mib: u64, uuid: [u8; 16]) -> Options {
    let blocks = size_mib.min(WRITTEN_MAX_MIB) * BLOCKS_PER_MIB;
    let journal = (size_mib * BLOCKS_PER_MIB / JOURNAL_SHARE).clamp(JOURNAL_MIN, JOURNAL_MAX);
    // It must not be in the future, or e2fsck complains.
    let epoch = u32::try_from(UNUSED_SINCE.0).expect("a moment of this century");
    Options {
        blocks: Some(blocks),
        free_blocks: 0,
        journal_blocks: u32::try_from(journal).expect("the largest journal fits"),
        ..Options::new(uuid, epoch)
    }
}

fn write_disk(dir: &VolumeDir, size_mib: u64, uuid: [u8; 16]) -> io::Result<()> {
    let failed = |error| match error {
        microagent_ext4::Error::Write(error) => error,
        other => io::Error::other(other),
    };
    let mut builder = Builder::new(options(size_mib, uuid));
    let root = Meta { mode: 0o755, uid: 0, gid: 0, mtime: UNUSED_SINCE };
    builder.set_meta(ROOT, root).map_err(failed)?;
    let layout = builder.seal().map_err(failed)?;
    let file = File::options().write(true).create_new(true).mode(0o600).open(dir.disk())?;
    file.set_len(size_mib * MIB)?;
    layout.write_metadata(&mut |offset, bytes| file.write_all_at(bytes, offset)).map_err(failed)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EngineOptions;

    fn engine() -> (tempfile::TempDir, Engine) {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::new(EngineOptions::new(dir.path().join("state"), "/bin/false"));
        (dir, engine)
    }

    fn name(text: &str) -> VolumeName {
        text.parse().unwrap()
    }

    fn e2fsck(volume: &Volume) {
        let program =
            ["/usr/sbin/e2fsck", "/sbin/e2fsck"].into_iter().find(|path| std::path::Path::new(path).exists());
        let program = program.expect("e2fsprogs is installed");
        let checked = std::process::Command::new(program).arg("-fn").arg(&volume.path).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    }

    #[test]
    fn a_volume_of_any_size_is_sparse_and_clean() {
        let (_dir, engine) = engine();
        for size_mib in [16, 17, 64, 129, 1000, 1024, 5000, 64 * 1024] {
            let volume = engine.volumes().write(&name("data"), size_mib).unwrap();
            assert_eq!(volume.path.metadata().unwrap().len(), size_mib * MIB);
            assert!(volume.bytes < 5 * MIB, "{size_mib} MiB take {} bytes", volume.bytes);
            e2fsck(&volume);
            std::fs::remove_dir_all(volume.path.parent().unwrap()).unwrap();
        }
    }

    #[tokio::test]
    async fn a_volume_lives_from_create_to_delete() {
        let (_dir, engine) = engine();
        assert!(engine.volumes().read_all().unwrap().is_empty());
        let data = name("data");
        assert!(matches!(engine.volumes().read(&data), Err(Error::NoSuchVolume { .. })));
        let made = engine.volumes().write(&data, 64).unwrap();
        assert_eq!((made.size_mib, made.attached_to, made.problem), (Some(64), None, None));
        assert!(matches!(engine.volumes().write(&data, 64), Err(Error::VolumeExists { .. })));
        engine.volumes().write(&name("another"), 64).unwrap();
        let names: Vec<_> =
            engine.volumes().read_all().unwrap().into_iter().map(|volume| volume.name).collect();
        assert_eq!(names, [name("another"), data.clone()]);

        assert_eq!(engine.volumes().grow(&data, 256).unwrap().size_mib, Some(256));
        assert_eq!(made.path.metadata().unwrap().len(), 256 * MIB);
        let refused = engine.volumes().grow(&data, 255).unwrap_err();
        assert!(refused.to_string().contains("cannot shrink"), "{refused}");
        assert!(engine.volumes().grow(&name("none"), 256).is_err());

        let held = engine.state().volume(&data).hold().unwrap();
        for refused in [
            engine.volumes().grow(&data, 300).unwrap_err(),
            engine.volumes().delete(&data, VolumeDeleteMode::Unused).await.unwrap_err(),
        ] {
            assert!(refused.is_retryable(), "{refused}");
        }
        drop(held);
        assert!(engine.volumes().delete(&data, VolumeDeleteMode::Unused).await.unwrap().deleted);
        assert!(!engine.volumes().delete(&data, VolumeDeleteMode::Unused).await.unwrap().deleted);
    }

    #[tokio::test]
    async fn a_prune_deletes_what_nobody_uses() {
        let (_dir, engine) = engine();
        let volumes = engine.volumes();
        for free in ["a", "b", "held"] {
            volumes.create(&name(free), 16).await.unwrap();
        }
        let held = engine.state().volume(&name("held")).hold().unwrap();
        let cancelled = Progress::new();
        cancelled.token().cancel();
        assert!(matches!(volumes.prune(&cancelled).await, Err(Error::Cancelled)));
        let pruned = volumes.prune(&Progress::new()).await.unwrap();
        assert_eq!(pruned.volumes, [name("a"), name("b")]);
        assert!(pruned.freed_bytes > 0);
        assert_eq!(volumes.list().await.unwrap().len(), 1);
        drop(held);
        assert_eq!(volumes.prune(&Progress::new()).await.unwrap().volumes, [name("held")]);
    }

    #[test]
    fn every_volume_has_an_identity_of_its_own_and_sizes_have_bounds() {
        let (_dir, engine) = engine();
        let uuid = |volume: &Volume| {
            let mut uuid = [0; 16];
            File::open(&volume.path).unwrap().read_exact_at(&mut uuid, 1024 + 0x68).unwrap();
            uuid
        };
        let [a, b] = ["a", "b"].map(|text| engine.volumes().write(&name(text), 16).unwrap());
        assert_ne!(uuid(&a), uuid(&b));
        for size_mib in [0, 15, 8 * 1024 * 1024 + 1, u64::MAX] {
            let refused = engine.volumes().write(&name("c"), size_mib).unwrap_err();
            assert!(refused.hint().is_some());
        }
    }

    #[test]
    fn a_damaged_record_is_a_row_and_not_an_error() {
        let (_dir, engine) = engine();
        engine.volumes().write(&name("data"), 16).unwrap();
        std::fs::write(engine.state().volume(&name("data")).record(), "{").unwrap();
        let volumes = engine.volumes().read_all().unwrap();
        assert!(volumes[0].problem.as_ref().is_some_and(|problem| problem.contains("damaged")));
        assert_eq!(volumes[0].size_mib, None);
    }
}
