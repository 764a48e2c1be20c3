//! Base disks that come from elsewhere than an image.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use microagent_store::Lock;

use crate::cache::Cache;
use crate::error::ImageError;
use crate::store::ImageStore;

/// Keeps base disks from being removed until it is dropped: until a workspace's record names the disk.
#[derive(Debug)]
pub struct DiskLease {
    _lock: Lock,
}

impl ImageStore {
    /// Keeps all base disks for now.
    ///
    /// # Errors
    /// Fails if images are being removed for a long time.
    pub fn keep_disks(&self) -> Result<DiskLease, ImageError> {
        self.cache.prepare()?;
        Ok(DiskLease { _lock: self.cache.share()? })
    }

    /// Moves a file to the base disks, under an id that follows from its content, so that a disk of this id is this one.
    /// Until the lease is dropped it is not removed.
    ///
    /// # Errors
    /// Fails if the file cannot be moved.
    pub fn adopt_disk(&self, file: &Path, disk_id: &str) -> Result<DiskLease, ImageError> {
        let lease = self.keep_disks()?;
        let to = self.disk_path(disk_id);
        if to.exists() {
            let removed = fs::remove_file(file);
            return removed.map(|()| lease).map_err(|source| ImageError::file("remove", file, source));
        }
        let failed = |source| ImageError::file("store", &to, source);
        let opened = File::open(file).map_err(failed)?;
        opened.set_permissions(Permissions::from_mode(0o400)).map_err(failed)?;
        Cache::publish(&opened, file, &to)?;
        Ok(lease)
    }
}

#[cfg(test)]
mod tests {
    use microagent_store::StateDir;

    use super::*;

    #[test]
    fn a_disk_gets_its_name_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::new(StateDir::at(dir.path().join("state")));
        let id = format!("sha256:{}", "a".repeat(64));
        for content in ["one", "two"] {
            let file = dir.path().join("disk");
            fs::write(&file, content).unwrap();
            store.keep_disks().unwrap();
            let _lease = store.adopt_disk(&file, &id).unwrap();
            assert!(!file.exists());
        }
        assert_eq!(fs::read_to_string(store.disk_path(&id)).unwrap(), "one");
    }
}
