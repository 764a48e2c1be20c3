//! The secrets of a start: files in memory, seen at `/run/secrets`.
//!
//! Their file system is filled while no path leads to it, and mounted only then: whatever links an image has at that
//! place, nothing is written through one. On the disk there is no more of them than the directory under the mount.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use microagent_proto::Secret;
use rustix::fs::{CWD, Mode, OFlags, fchown, fstat, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};
use rustix::process::{Gid, Uid};

use crate::disk::real_directory;
use crate::user::{self, Identity, UserError};

/// Where programs look for them.
const PLACE: &str = "/run/secrets";

/// What the file system may hold beyond the secrets, in bytes and in inodes.
const SPARE_BYTES: usize = 64 * 1024;
const SPARE_INODES: usize = 8;

/// Memory is given in pages of so many bytes.
const PAGE: usize = 4096;

/// Why the secrets are not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretsError {
    #[error("cannot find out the owner of the secrets")]
    Owner(#[source] UserError),
    #[error("cannot make a file system for secrets")]
    Make(#[source] io::Error),
    #[error("cannot write secret `{name}`")]
    Write { name: String, source: io::Error },
    #[error("cannot mount the secrets on {PLACE}")]
    Mount(#[source] io::Error),
}

/// Makes the secrets files of this user; nothing when there are none. The root must be the workspace's by now.
pub(crate) fn deliver(secrets: &[Secret], owner: &str) -> Result<(), SecretsError> {
    if secrets.is_empty() {
        return Ok(());
    }
    let owner = user::resolve(owner).map_err(SecretsError::Owner)?;
    let mounted = make(secrets, &owner).map_err(SecretsError::Make)?;
    for secret in secrets {
        write(&mounted, secret, &owner)
            .map_err(|source| SecretsError::Write { name: secret.name.clone(), source })?;
    }
    attach(&mounted).map_err(SecretsError::Mount)
}

/// A file system in memory with room for the secrets, mounted where no path leads to.
fn make(secrets: &[Secret], owner: &Identity) -> io::Result<OwnedFd> {
    let bytes: usize = secrets.iter().map(|secret| secret.value.0.len().next_multiple_of(PAGE)).sum();
    let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (option, value) in [
        (c"source", "secrets".to_owned()),
        (c"mode", "0700".to_owned()),
        (c"uid", owner.uid.to_string()),
        (c"gid", owner.gid.to_string()),
        (c"size", (bytes + SPARE_BYTES).to_string()),
        (c"nr_inodes", (secrets.len() + SPARE_INODES).to_string()),
    ] {
        fsconfig_set_string(context.as_fd(), option, value)?;
    }
    // A guest may have swap on its disk. Kernels before 6.4, which somebody may bring along, know no such option.
    let _ = fsconfig_set_flag(context.as_fd(), c"noswap");
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn write(dir: &OwnedFd, secret: &Secret, owner: &Identity) -> io::Result<()> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if secret.name.is_empty() || !secret.name.bytes().all(is_plain) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(dir, secret.name.as_str(), flags, Mode::RUSR)?);
    file.write_all(&secret.value.0)?;
    Ok(fchown(&file, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?)
}

/// Mounts the file system at its place, and makes sure that it is what one finds there.
fn attach(mounted: &OwnedFd) -> io::Result<()> {
    // Where an image has `/run` elsewhere, its link is right; one to nowhere would keep the secrets out.
    if !fs::metadata("/run").is_ok_and(|found| found.is_dir()) {
        real_directory(Path::new("/run"))?;
    }
    real_directory(Path::new(PLACE))?;
    move_mount(mounted, "", CWD, PLACE, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat(CWD, PLACE, flags, Mode::empty())?;
    if fstat(&found)?.st_dev == fstat(mounted)?.st_dev {
        Ok(())
    } else {
        Err(io::Error::other("something else is found there"))
    }
}
