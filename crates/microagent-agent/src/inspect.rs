//! Answers small questions about the root file system: what stands at a path, how full it is.

use std::ffi::CString;
use std::fs;
use std::io::{self, Read};

use microagent_proto::{Chunk, FsUsage, GuestError, GuestErrorKind, PathInfo, PathKind, Stat};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatVfs, openat, readlinkat, statat, statvfs};
use rustix::io::Errno;

use crate::init::agent_proc;

/// A disk with less room than this, in bytes, is full: what did not fit may have been larger than a block.
const FULL_BELOW: u64 = 64 * 1024;

/// Most bytes of the mount table that are read.
const MOUNTS_LIMIT: u64 = 256 * 1024;

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
enum InspectError {
    #[error("`{path}` is not an absolute path")]
    NotAbsolute { path: String },
    #[error("cannot look at `{path}`")]
    Look { path: String, source: io::Error },
}

impl From<InspectError> for GuestError {
    fn from(error: InspectError) -> GuestError {
        let kind = match &error {
            InspectError::NotAbsolute { .. } => GuestErrorKind::Invalid,
            InspectError::Look { source, .. } => kind_of(source),
        };
        GuestError { kind, message: microagent_proto::chain(&error) }
    }
}

/// What an error of the file system means for the host.
pub(crate) fn kind_of(error: &io::Error) -> GuestErrorKind {
    match Errno::from_io_error(error) {
        Some(Errno::NOENT) => GuestErrorKind::NotFound,
        Some(Errno::NOTDIR | Errno::ISDIR) => GuestErrorKind::Mismatch,
        Some(Errno::IO | Errno::NOSPC | Errno::DQUOT | Errno::ROFS) => GuestErrorKind::Disk,
        _ => GuestErrorKind::Other,
    }
}

/// An absolute path of the host's as the kernel takes it; `None` when it is not one.
pub(crate) fn absolute(path: &[u8]) -> Option<CString> {
    CString::new(path).ok().filter(|path| path.as_bytes().first() == Some(&b'/'))
}

/// A disk that has no room left, by its mount point. Nothing but ext4 is looked at: its answer waits for nobody.
pub(crate) fn full_disk() -> Option<String> {
    let mounts =
        openat(agent_proc(), c"self/mounts", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut table = String::new();
    fs::File::from(mounts).take(MOUNTS_LIMIT).read_to_string(&mut table).ok()?;
    let mut mounts = table.lines().filter_map(ext4_mount).map(str::to_owned);
    mounts.find(|mount| statvfs(mount.as_str()).is_ok_and(|usage| is_full(&usage)))
}

/// The mount point of a line of the kernel's mount table, if it is a writable ext4.
fn ext4_mount(line: &str) -> Option<&str> {
    let mut fields = line.split(' ').skip(1);
    let (mount, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
    (kind == "ext4" && options.split(',').any(|option| option == "rw")).then_some(mount)
}

fn is_full(usage: &StatVfs) -> bool {
    usage.f_bavail.saturating_mul(usage.f_frsize) < FULL_BELOW || (usage.f_files > 0 && usage.f_favail == 0)
}

/// Says what stands at a path.
pub(crate) fn stat(asked: &Stat) -> Result<PathInfo, GuestError> {
    Ok(inspect_path(&asked.path, asked.follow)?)
}

fn inspect_path(path: &[u8], follow: bool) -> Result<PathInfo, InspectError> {
    let shown = || String::from_utf8_lossy(path).into_owned();
    let failed = |errno: Errno| InspectError::Look { path: shown(), source: errno.into() };
    let path = absolute(path).ok_or_else(|| InspectError::NotAbsolute { path: shown() })?;
    let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
    let stat = statat(CWD, &path, flags).map_err(failed)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => PathKind::File,
        FileType::Directory => PathKind::Directory,
        FileType::Symlink => {
            let target = readlinkat(CWD, &path, Vec::new()).map_err(failed)?;
            PathKind::Symlink { target: Chunk::from(target.into_bytes()) }
        }
        _ => PathKind::Special,
    };
    let len = u64::try_from(stat.st_size).unwrap_or(0);
    Ok(PathInfo { kind, mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, len })
}

/// Says how full the root file system is.
pub(crate) fn fs_usage() -> Result<FsUsage, GuestError> {
    let found =
        statvfs(c"/").map_err(|errno| InspectError::Look { path: "/".to_owned(), source: errno.into() })?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(FsUsage {
        total: bytes(found.f_blocks),
        used: bytes(found.f_blocks.saturating_sub(found.f_bfree)),
        available: bytes(found.f_bavail),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn paths_are_described_and_links_followed_on_demand() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).as_os_str().as_encoded_bytes().to_vec();
        std::fs::write(dir.path().join("file"), b"12345").unwrap();
        symlink("file", dir.path().join("link")).unwrap();
        symlink("nowhere", dir.path().join("dangling")).unwrap();
        let file = inspect_path(&at("file"), false).unwrap();
        assert_eq!((&file.kind, file.len), (&PathKind::File, 5));
        assert_eq!(inspect_path(&at("link"), true).unwrap(), file);
        let link = inspect_path(&at("link"), false).unwrap();
        assert_eq!(link.kind, PathKind::Symlink { target: b"file".to_vec().into() });
        assert_eq!(inspect_path(&at(""), false).unwrap().kind, PathKind::Directory);
        assert_eq!(inspect_path(b"/dev/null", false).unwrap().kind, PathKind::Special);
        let kind = |path: &[u8]| GuestError::from(inspect_path(path, true).unwrap_err()).kind;
        assert_eq!(kind(&at("dangling")), GuestErrorKind::NotFound);
        assert_eq!(kind(&at("file/below")), GuestErrorKind::Mismatch);
        assert_eq!(kind(b"file"), GuestErrorKind::Invalid);
        assert_eq!(kind(b"/a\0b"), GuestErrorKind::Invalid);
    }

    #[test]
    fn a_file_system_has_a_size() {
        let usage = fs_usage().unwrap();
        assert!(usage.total >= usage.used + usage.available && usage.total > 0, "{usage:?}");
    }
}
