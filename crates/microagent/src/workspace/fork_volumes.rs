//! Copies of volumes for forks: two machines cannot write to one volume, so that each fork gets copies of those that its
//! source can write to. Volumes that the source only reads are shared.
//!
//! The volumes of a running source are copied once, while it is stopped for its capture; each fork gets a copy of that. A copy
//! shares the blocks of its original if the file system can, and otherwise has its data without its holes. The copies
//! are made in the directory of the new workspace, and get their places when that has its name.

use std::collections::HashSet;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use microagent_model::{Attachment, DiskSource, VolumeName, WorkspaceName};
use microagent_store::{VolumeDir, VolumeRecord, WorkspaceDir, WorkspaceRecord};
use tokio_util::sync::CancellationToken;

use super::Workspace;
use crate::disks::{Flush, copy_disk_unless_cancelled, unplaced_volume};
use crate::error::SnapshotError;
use crate::volume::{VolumeDeleteMode, hold};
use crate::{Engine, Error};

/// What forks get of the volumes that their source can write to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ForkVolumes {
    /// The same ones. One machine can write to a volume, so a running source is refused.
    #[default]
    Shared,
    /// Copies of their own, and of the disks of bundles. The copy of volume `data` for fork `kid` is called `data-kid`; a
    /// `.` in the name of the fork becomes `-`.
    Copied,
}

/// A volume of a fork.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopiedVolume {
    /// The volume of the source.
    pub volume: VolumeName,
    /// That of the fork.
    pub copy: VolumeName,
}

/// Where the contents of copies come from.
#[derive(Debug, Clone)]
pub(super) enum CopiedFrom {
    /// The volumes, which no machine has.
    Volumes,
    /// What a capture has copied of them, each in a directory of its name.
    Capture(PathBuf),
}

/// The volumes that machines of this record can write to.
fn written(record: &WorkspaceRecord) -> impl Iterator<Item = &VolumeName> {
    record.disks.iter().filter(|disk| !disk.read_only).filter_map(|disk| match &disk.source {
        DiskSource::Volume(name) => Some(name),
        DiskSource::Image(_) | DiskSource::Bundle(_) => None,
    })
}

/// The copies that a fork of this record gets.
pub(super) fn copies_for(record: &WorkspaceRecord, fork: &WorkspaceName) -> Result<Vec<CopiedVolume>, Error> {
    let copy = |volume: &VolumeName| {
        let copy = format!("{volume}-{}", fork.as_str().replace('.', "-")).parse();
        copy.map(|copy| CopiedVolume { volume: volume.clone(), copy })
            .map_err(|_| SnapshotError::LongCopyName { volume: volume.clone(), fork: fork.clone() }.into())
    };
    written(record).map(copy).collect()
}

/// Has a record attach the copies in place of their originals.
pub(super) fn attach_copies(record: &mut WorkspaceRecord, copies: &[CopiedVolume]) {
    for disk in &mut record.disks {
        if let DiskSource::Volume(name) = &mut disk.source
            && let Some(copied) = copies.iter().find(|copied| !disk.read_only && copied.volume == *name)
        {
            name.clone_from(&copied.copy);
        }
    }
}

impl Workspace {
    /// Fails if one of the forks could not get its copies.
    pub(super) fn check_copies(
        &self,
        record: &WorkspaceRecord,
        forks: &[WorkspaceName],
    ) -> Result<(), Error> {
        let image = |disk: &&Attachment| !disk.read_only && matches!(disk.source, DiskSource::Image(_));
        if let Some(disk) = record.disks.iter().find(image) {
            let (workspace, mount_point) = (self.name.clone(), disk.mount_point.clone());
            return Err(SnapshotError::CopiedImage { workspace, mount_point }.into());
        }
        let mut names = HashSet::new();
        for fork in forks {
            for CopiedVolume { copy, .. } in copies_for(record, fork)? {
                if self.engine.state().volume(&copy).path().exists() || !names.insert(copy.clone()) {
                    return Err(Error::VolumeExists { name: copy });
                }
            }
        }
        Ok(())
    }

    /// Copies what the stopped machine can write to besides its root disk: volumes to `volumes`, bundles to `files`.
    pub(super) fn copy_written_disks(
        &self,
        record: &WorkspaceRecord,
        volumes: &Path,
        files: &WorkspaceDir,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        for name in written(record) {
            let to = VolumeDir::at(volumes.join(name));
            copy_volume(&self.engine.state().volume(name), &to, name, (Flush::Never, cancel))?;
        }
        let bundles = record.disks.iter().filter(|disk| matches!(disk.source, DiskSource::Bundle(_)));
        for (number, _) in bundles.enumerate().filter(|(_, disk)| !disk.read_only) {
            let path = self.dir().bundle(number);
            copy_disk_unless_cancelled(&path, &files.bundle(number), Flush::Never, cancel)
                .map_err(|source| not_copied(path, source, cancel))?;
        }
        Ok(())
    }
}

impl Engine {
    /// Makes copies of volumes in the directory of a new workspace.
    pub(super) fn make_copies(
        &self,
        copies: &[CopiedVolume],
        from: &CopiedFrom,
        dir: &WorkspaceDir,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        for CopiedVolume { volume, copy } in copies {
            let to = VolumeDir::at(dir.new_volumes().join(copy));
            match from {
                CopiedFrom::Capture(captured) => {
                    let from = VolumeDir::at(captured.join(volume));
                    copy_volume(&from, &to, copy, (Flush::AtEnd, cancel))?;
                }
                CopiedFrom::Volumes => {
                    let from = self.state().volume(volume);
                    let _held = hold(volume, &from)?;
                    copy_volume(&from, &to, copy, (Flush::AtEnd, cancel))?;
                }
            }
        }
        Ok(())
    }

    /// Gives the copies of a new workspace their places, or removes all of it.
    pub(super) async fn place_copies(&self, fork: &Workspace, copies: &[CopiedVolume]) -> Result<(), Error> {
        if copies.is_empty() {
            return Ok(());
        }
        let dir = fork.dir();
        let Err(unplaced) = self.state().place_volumes(&dir) else { return Ok(()) };
        // Nothing uses the workspace yet. What cannot be removed is not the error to report.
        let _ = self.remove(&fork.name, &dir).await;
        for name in &unplaced.placed {
            let _ = self.volumes().delete(name, VolumeDeleteMode::Unused).await;
        }
        Err(unplaced_volume(self, unplaced))
    }

    /// Removes copies whose workspace is removed again.
    pub(super) async fn remove_copies(&self, copies: &[CopiedVolume]) {
        for CopiedVolume { copy, .. } in copies {
            let _ = self.volumes().delete(copy, VolumeDeleteMode::Unused).await;
        }
    }
}

/// Copies a volume that nobody writes to, to a directory that does not exist.
fn copy_volume(
    from: &VolumeDir,
    to: &VolumeDir,
    name: &VolumeName,
    (flush, cancel): (Flush, &CancellationToken),
) -> Result<(), Error> {
    let record = VolumeRecord::load(from).map_err(|e| Error::from_volume(name, e))?;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(to.path());
    made.map_err(|source| Error::File { action: "make", path: to.path().to_owned(), source })?;
    let path = from.disk();
    copy_disk_unless_cancelled(&path, &to.disk(), flush, cancel)
        .map_err(|source| not_copied(path, source, cancel))?;
    let record = VolumeRecord { name: name.clone(), created_at: Timestamp::now(), ..record };
    Ok(record.save(to)?)
}

fn not_copied(path: PathBuf, source: io::Error, cancel: &CancellationToken) -> Error {
    match cancel.is_cancelled() {
        true => Error::Cancelled,
        false => Error::File { action: "copy", path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record_with(disks: &[(&str, bool)]) -> WorkspaceRecord {
        let (_dir, web) = super::super::tests::halted();
        let disks = disks.iter().map(|(name, read_only)| {
            let source = match name.strip_prefix('/') {
                Some(_) => DiskSource::Image(name.into()),
                None => DiskSource::Volume(name.parse().unwrap()),
            };
            Attachment { source, mount_point: format!("/{name}"), read_only: *read_only }
        });
        WorkspaceRecord { disks: disks.collect(), ..web.observe().unwrap() }
    }

    #[test]
    fn a_copy_has_the_names_of_volume_and_fork() {
        let mut record = record_with(&[("data", false), ("seed", true), ("/x.img", true)]);
        let fork: WorkspaceName = "lab.1".parse().unwrap();
        let copies = copies_for(&record, &fork).unwrap();
        let names: Vec<_> = copies.iter().map(|c| (c.volume.as_str(), c.copy.as_str())).collect();
        assert_eq!(names, [("data", "data-lab-1")]);
        attach_copies(&mut record, &copies);
        let attached: Vec<_> = record.disks.iter().map(|disk| disk.source.clone()).collect();
        let volume = |name: &str| DiskSource::Volume(name.parse().unwrap());
        assert_eq!(attached, [volume("data-lab-1"), volume("seed"), DiskSource::Image("/x.img".into())]);
        let long = "x".repeat(60).parse().unwrap();
        let refused = copies_for(&record, &long).unwrap_err();
        assert!(matches!(refused, Error::Snapshot(SnapshotError::LongCopyName { .. })), "{refused:?}");
    }

    #[tokio::test]
    async fn what_a_fork_could_not_get_is_missed_before_there_is_one() {
        let (_dir, web) = super::super::tests::halted();
        let check = |disks: &[(&str, bool)], forks: &[&str]| {
            let forks: Vec<_> = forks.iter().map(|name| name.parse().unwrap()).collect();
            web.check_copies(&record_with(disks), &forks)
        };
        web.engine().volumes().create(&"data-kid".parse().unwrap(), 16).await.unwrap();
        check(&[("data", false)], &["a", "b"]).unwrap();
        check(&[("data", true)], &["kid"]).unwrap();
        for (disks, forks) in
            [(&[("data", false)][..], &["kid"][..]), (&[("a", false), ("a-b", false)], &["b-c", "c"])]
        {
            let taken = check(disks, forks).unwrap_err();
            assert!(matches!(taken, Error::VolumeExists { .. }), "{taken:?}");
        }
        let image = check(&[("/x.img", false)], &["a"]).unwrap_err();
        assert!(matches!(image, Error::Snapshot(SnapshotError::CopiedImage { .. })), "{image:?}");
    }

    #[tokio::test]
    async fn copies_are_whole_and_leave_no_workspace_without_its_place() {
        let (_dir, web) = super::super::tests::halted();
        let engine = web.engine().clone();
        let data: VolumeName = "data".parse().unwrap();
        engine.volumes().create(&data, 16).await.unwrap();
        let copies = copies_for(&record_with(&[("data", false)]), &web.name).unwrap();
        let make =
            |from: &CopiedFrom| engine.make_copies(&copies, from, &web.dir(), &CancellationToken::new());
        make(&CopiedFrom::Volumes).unwrap();
        engine.place_copies(&web, &copies).await.unwrap();
        let copy = engine.state().volume(&copies[0].copy);
        let bytes = |dir: &VolumeDir| std::fs::read(dir.disk()).unwrap();
        assert!(bytes(&copy) == bytes(&engine.state().volume(&data)));
        assert_eq!(VolumeRecord::load(&copy).unwrap().name, copies[0].copy);
        // A name that was taken in the meantime costs the fork.
        make(&CopiedFrom::Capture(engine.state().volumes())).unwrap();
        let taken = engine.place_copies(&web, &copies).await.unwrap_err();
        assert!(matches!(taken, Error::VolumeExists { .. }), "{taken:?}");
        assert!(!web.dir().path().exists() && copy.path().exists());
        // One that a machine has, is not copied.
        let _held = engine.state().volume(&data).hold().unwrap();
        assert!(matches!(make(&CopiedFrom::Volumes), Err(Error::DiskBusy { .. })));
    }
}
