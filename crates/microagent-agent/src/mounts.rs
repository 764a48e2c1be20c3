//! The further disks: found, mounted where they belong, grown.
//!
//! Paths are resolved as every program of the guest would: the agent's root is the guest's root by then. A volume
//! that nobody has used yet takes over owner and mode of the directory that it covers, so that a database of the
//! image's own user can write where the image meant it to.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use microagent_proto::{Mount, UNUSED_SINCE};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::disk::{self, Disk, DiskError};

/// File systems of the kernel's, which nothing may cover.
const KERNELS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Why a disk is not where it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    #[error("the disk for `{}` cannot be used", path.display())]
    Disk { path: PathBuf, source: DiskError },
    #[error("cannot make the directory `{}` to mount on", path.display())]
    Point { path: PathBuf, source: io::Error },
    #[error("`{}` leads to `{}`, where nothing can be mounted", path.display(), real.display())]
    Place { path: PathBuf, real: PathBuf },
    #[error("the disk for `{}` was not unmounted cleanly, and must be mounted for writing once before it can be mounted read-only", path.display())]
    Unclean { path: PathBuf },
    #[error("the disk for `{}` cannot be mounted: it is damaged, or has features that the guest's kernel lacks", path.display())]
    Mount { path: PathBuf, source: io::Error },
    #[error("the volume for `{}` cannot take over the owner of the directory that it covers", path.display())]
    TakeOver { path: PathBuf, source: io::Error },
}

/// Mounts all of them, in their order.
pub(crate) fn mount_all(mounts: &[Mount]) -> Result<(), MountError> {
    mounts.iter().try_for_each(mount_one)
}

fn mount_one(wanted: &Mount) -> Result<(), MountError> {
    let path = Path::new(std::ffi::OsStr::from_bytes(&wanted.path));
    let unusable = |source| MountError::Disk { path: path.to_owned(), source };
    let disk = disk::find(wanted.scsi_target).map_err(unusable)?;
    disk::file_system(&disk).map_err(unusable)?;
    let covered = fs::metadata(path).ok();
    let point = mount_point(path)?;
    mount_disk(&disk, &point, path, wanted.read_only)?;
    if wanted.grow {
        disk::grow(&disk, &point).map_err(unusable)?;
    }
    match covered {
        Some(covered) if !wanted.read_only => take_over(&point, &covered)
            .map_err(|source| MountError::TakeOver { path: path.to_owned(), source }),
        _ => Ok(()),
    }
}

/// The directory to mount on, made if it is missing, without links in its path.
pub(crate) fn mount_point(path: &Path) -> Result<PathBuf, MountError> {
    let failed = |source| MountError::Point { path: path.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(failed)?;
    let real = path.canonicalize().map_err(failed)?;
    if real == Path::new("/") || KERNELS.iter().any(|kernels| real.starts_with(kernels)) {
        return Err(MountError::Place { path: path.to_owned(), real });
    }
    Ok(real)
}

fn mount_disk(disk: &Disk, point: &Path, path: &Path, read_only: bool) -> Result<(), MountError> {
    let read_only_flag = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    match mount(&disk.path, point, "ext4", MountFlags::NOATIME | read_only_flag, disk::MOUNT_OPTIONS) {
        Ok(()) => Ok(()),
        // Its journal cannot be replayed on a disk that cannot be written.
        Err(Errno::ROFS) if read_only => Err(MountError::Unclean { path: path.to_owned() }),
        Err(errno) => Err(MountError::Mount { path: path.to_owned(), source: errno.into() }),
    }
}

/// Owner and mode of what is covered, if the disk is a volume that nobody has used.
fn take_over(point: &Path, covered: &fs::Metadata) -> io::Result<()> {
    let root = fs::metadata(point)?;
    if (root.ctime(), root.ctime_nsec()) != (UNUSED_SINCE.0, i64::from(UNUSED_SINCE.1)) {
        return Ok(());
    }
    // The mode last: a change of the owner takes set-id bits away.
    std::os::unix::fs::chown(point, Some(covered.uid()), Some(covered.gid()))?;
    fs::set_permissions(point, fs::Permissions::from_mode(covered.mode() & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_is_made_and_links_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        assert_eq!(mount_point(&base.join("a/b/c")).unwrap(), base.join("a/b/c"));
        std::os::unix::fs::symlink(base.join("a"), base.join("link")).unwrap();
        assert_eq!(mount_point(&base.join("link/d")).unwrap(), base.join("a/d"));
        fs::write(base.join("file"), "").unwrap();
        assert!(matches!(mount_point(&base.join("file")), Err(MountError::Point { .. })));
        std::os::unix::fs::symlink("/proc/self", base.join("kernel")).unwrap();
        assert!(matches!(mount_point(&base.join("kernel")), Err(MountError::Place { .. })));
        std::os::unix::fs::symlink("/", base.join("root")).unwrap();
        assert!(matches!(mount_point(&base.join("root")), Err(MountError::Place { .. })));
    }

    #[test]
    fn what_was_used_keeps_its_owner_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        let before = fs::metadata(dir.path()).unwrap().mode();
        fs::create_dir(dir.path().join("other")).unwrap();
        take_over(dir.path(), &fs::metadata(dir.path().join("other")).unwrap()).unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().mode(), before);
    }
}
