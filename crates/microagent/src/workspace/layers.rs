//! The files under a root disk, and disks of bundles: what is made, copied, checked and removed of them.

use std::fs;
use std::io;
use std::path::Path;

use microagent_model::DiskSource;
use microagent_store::{Lock, LockError, SnapshotDir, WorkspaceDir, WorkspaceRecord};
use microagent_vm::{Backing, create_overlay};

use crate::blocking::blocking;
use crate::disks::copy_disk;
use crate::error::SnapshotError;
use crate::{Engine, Error};

impl Engine {
    /// Removes the layers that no workspace and no snapshot needs, and returns how many bytes on disk this frees. Deleting
    /// a snapshot or a workspace does this too; what is left is of commands that were killed. What else these have left half
    /// made is removed as well.
    ///
    /// # Errors
    /// Fails if a record cannot be read, and then removes nothing; or if a file cannot be removed.
    pub async fn free_layers(&self) -> Result<u64, Error> {
        let engine = self.clone();
        blocking(move || {
            engine.prepare()?;
            engine.remove_unneeded_layers()
        })
        .await
    }

    /// As [`Engine::free_layers`], on this thread.
    pub(crate) fn remove_unneeded_layers(&self) -> Result<u64, Error> {
        Ok(self.state().free_layers().map_err(SnapshotError::from)?)
    }

    /// Bytes on disk that the layers of all workspaces and snapshots use, and the memory of snapshots.
    ///
    /// # Errors
    /// Fails if a directory of them exists and cannot be read.
    pub async fn snapshot_bytes(&self) -> Result<u64, Error> {
        let state = self.state().clone();
        blocking(move || {
            state.snapshot_bytes().map_err(|source| Error::File {
                action: "read",
                path: state.layers(),
                source,
            })
        })
        .await
    }

    /// Keeps layers from being freed.
    pub(crate) fn hold_layers(&self) -> Result<Lock, Error> {
        self.state().hold_layers().map_err(|error| match error {
            LockError::Open { path, source } => Error::File { action: "lock", path, source },
            held => {
                Error::File { action: "lock", path: self.state().layers(), source: io::Error::other(held) }
            }
        })
    }
}

impl Engine {
    /// Makes an empty overlay on the layers of this record.
    pub(crate) fn create_disk(&self, path: &Path, record: &WorkspaceRecord) -> Result<(), Error> {
        let (layer, base);
        let backing = match record.layers.last() {
            Some(top) => {
                layer = self.state().layer(&top.id);
                Backing::Layer(&layer)
            }
            None => {
                base = self.image_store().disk_path(&record.image.disk);
                Backing::Base(&base)
            }
        };
        create_overlay(path, backing, record.resources.disk_bytes()).map_err(|e| Error::File {
            action: "create",
            path: e.path,
            source: e.source,
        })
    }

    /// What is missing or damaged of the files below a record's overlay.
    pub(super) fn missing_part(&self, record: &WorkspaceRecord, files: &WorkspaceDir) -> Option<String> {
        let base = self.image_store().disk_path(&record.image.disk);
        if !base.is_file() {
            let image = &record.image.resolved_reference;
            return Some(format!("the base disk of its image `{image}` is missing"));
        }
        for layer in &record.layers {
            let path = self.state().layer(&layer.id);
            match fs::metadata(&path) {
                Ok(found) if found.len() == layer.bytes || !layer.is_sealed() => {}
                Ok(found) => {
                    let (path, found, bytes) = (path.display(), found.len(), layer.bytes);
                    return Some(format!("layer `{path}` has {found} bytes of {bytes}"));
                }
                Err(error) => return Some(format!("layer `{}`: {error}", path.display())),
            }
        }
        let bundle =
            (0..bundle_count(record)).map(|number| files.bundle(number)).find(|path| !path.is_file());
        bundle.map(|path| format!("`{}` is missing", path.display()))
    }
}

/// How many disks of bundles a workspace has.
pub(super) fn bundle_count(record: &WorkspaceRecord) -> usize {
    record.disks.iter().filter(|disk| matches!(disk.source, DiskSource::Bundle(_))).count()
}

/// Copies the disks of bundles that are not there yet.
pub(super) fn copy_bundles(
    record: &WorkspaceRecord,
    from: &WorkspaceDir,
    to: &WorkspaceDir,
) -> Result<(), Error> {
    for number in 0..bundle_count(record) {
        let (path, copy) = (from.bundle(number), to.bundle(number));
        if copy.exists() {
            continue;
        }
        copy_disk(&path, &copy).map_err(|source| Error::File { action: "copy", path, source })?;
    }
    Ok(())
}

/// Replaces the disks of the workspace's bundles by those of the snapshot.
pub(super) fn restore_bundles(snapshot: &SnapshotDir, dir: &WorkspaceDir) -> Result<(), Error> {
    for number in 0.. {
        let (from, to) = (snapshot.files().bundle(number), dir.bundle(number));
        if !from.exists() || !to.exists() {
            break;
        }
        let fresh = to.with_extension("new");
        let restored = remove_if_there(&fresh)
            .and_then(|()| copy_disk(&from, &fresh))
            .and_then(|()| fs::rename(&fresh, &to));
        restored.map_err(|source| Error::File { action: "restore", path: to, source })?;
    }
    Ok(())
}

/// Removes a file that may be missing.
pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
