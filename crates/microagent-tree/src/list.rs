//! Lists what is below a directory: names, kinds, sizes, modes and times, without content.
//!
//! Directories are opened relative to their parent, and no link is followed. File systems of the kernel below the start
//! are listed as empty directories.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use rustix::io::Errno;

use crate::pack::{PackError, is_made_by_kernel, open_error, read_error};

/// Longest path below a directory: the kernel's limit for paths (`PATH_MAX`).
pub(crate) const PATH_LIMIT: usize = 4096;

/// A file, directory or link below a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Path from the directory, without leading slash and dots.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: ItemKind,
    /// Permissions with the setuid, setgid and sticky bits.
    pub mode: u16,
    /// Time of the last change of the content: seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
}

/// Kind of an [`Item`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ItemKind {
    /// A regular file of this length.
    File(u64),
    /// A directory.
    Directory,
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// A device, a FIFO or a socket.
    Special,
}

/// Receives the items of a listing, each directory before what is in it.
pub trait Visitor {
    /// Why a listing stops.
    type Error: From<PackError>;

    /// Receives an item. Returns whether a directory is entered.
    ///
    /// # Errors
    /// An error ends the listing.
    fn item(&mut self, item: Item) -> Result<bool, Self::Error>;

    /// Receives a directory before its names are read. The path of the start is empty.
    ///
    /// # Errors
    /// An error ends the listing.
    fn enter(&mut self, path: &[u8], dir: BorrowedFd<'_>) -> Result<(), Self::Error>;

    /// Receives a path that cannot be examined, or a directory that cannot be read, and why. The path of the start is
    /// empty.
    ///
    /// # Errors
    /// An error ends the listing. By default it does.
    fn unreadable(&mut self, path: &[u8], error: PackError) -> Result<(), Self::Error> {
        let _ = path;
        Err(error.into())
    }
}

/// A directory whose items are being listed.
struct Level {
    dir: OwnedFd,
    path: Vec<u8>,
    device: u64,
    /// Remaining names, in reverse order.
    names: Vec<CString>,
}

/// Lists everything below an open directory. Names are in the order of their bytes.
///
/// # Errors
/// Fails if a path is longer than 4096 bytes, or the visitor fails. Files that are removed meanwhile are omitted.
pub fn list<V: Visitor>(root: &OwnedFd, visitor: &mut V) -> Result<(), V::Error> {
    let start = open_dir(root.as_fd(), c".").map_err(|errno| read_error(b".", errno))?;
    let mut levels = Vec::new();
    levels.extend(enter(visitor, start, Vec::new(), None)?);
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.pop() else {
            levels.pop();
            continue;
        };
        let path = joined(&level.path, name.to_bytes());
        if path.len() > PATH_LIMIT {
            return Err(read_error(&path, Errno::NAMETOOLONG).into());
        }
        let item = match item_at(level.dir.as_fd(), &name, path.clone()) {
            Ok(Some(item)) => item,
            Ok(None) => continue,
            Err(errno) => {
                visitor.unreadable(&path, open_error(&path, errno))?;
                continue;
            }
        };
        let is_directory = item.kind == ItemKind::Directory;
        if visitor.item(item)? && is_directory {
            match open_dir(level.dir.as_fd(), &name) {
                Ok(dir) => {
                    let outer = Some(level.device);
                    let inner = enter(visitor, dir, path, outer)?;
                    levels.extend(inner);
                }
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => visitor.unreadable(&path, open_error(&path, errno))?,
            }
        }
    }
    Ok(())
}

/// Enters a directory; `None` if its names cannot be read, which the visitor was told.
fn enter<V: Visitor>(
    visitor: &mut V,
    dir: OwnedFd,
    path: Vec<u8>,
    outer: Option<u64>,
) -> Result<Option<Level>, V::Error> {
    let stat = fstat(&dir).map_err(|errno| read_error(&path, errno))?;
    let mut names = Vec::new();
    let crosses = outer.is_some_and(|outer| outer != stat.st_dev);
    if !(crosses && is_made_by_kernel(&dir, &stat)) {
        // Before the names are read, so that nobody misses what is added meanwhile.
        visitor.enter(&path, dir.as_fd())?;
        names = match names_in(&dir) {
            Ok(names) => names,
            Err(errno) => {
                visitor.unreadable(&path, open_error(&path, errno))?;
                return Ok(None);
            }
        };
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(Some(Level { dir, path, device: stat.st_dev, names }))
}

fn names_in(dir: &OwnedFd) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for found in Dir::read_from(dir)? {
        let name = found?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}

fn open_dir(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

/// What a name in an open directory is, if it exists.
pub(crate) fn item_at(dir: BorrowedFd<'_>, name: &CStr, path: Vec<u8>) -> Result<Option<Item>, Errno> {
    let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let target = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => match readlinkat(dir, name, Vec::new()) {
            Ok(target) => Some(target.into_bytes()),
            // Removed or replaced since.
            Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
            Err(errno) => return Err(errno),
        },
        _ => None,
    };
    Ok(Some(item_of(&stat, target, path)))
}

/// Describes a file; `target` is that of a link.
pub(crate) fn item_of(stat: &Stat, target: Option<Vec<u8>>, path: Vec<u8>) -> Item {
    let kind = match (FileType::from_raw_mode(stat.st_mode), target) {
        (_, Some(target)) => ItemKind::Symlink(target),
        (FileType::RegularFile, None) => ItemKind::File(u64::try_from(stat.st_size).unwrap_or(0)),
        (FileType::Directory, None) => ItemKind::Directory,
        _ => ItemKind::Special,
    };
    let mode = u16::try_from(stat.st_mode & 0o7777).expect("masked to twelve bits");
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    Item { path, kind, mode, mtime: (stat.st_mtime, nanoseconds) }
}

fn joined(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[derive(Default)]
    struct Everything {
        items: Vec<Item>,
        entered: Vec<Vec<u8>>,
    }

    impl Visitor for Everything {
        type Error = PackError;

        fn item(&mut self, item: Item) -> Result<bool, PackError> {
            let enters = !item.path.ends_with(b"closed");
            self.items.push(item);
            Ok(enters)
        }

        fn enter(&mut self, path: &[u8], _dir: BorrowedFd<'_>) -> Result<(), PackError> {
            self.entered.push(path.to_vec());
            Ok(())
        }
    }

    #[test]
    fn everything_is_listed_once_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("a/closed/inner")).unwrap();
        fs::write(root.join("a/file"), "12345").unwrap();
        fs::set_permissions(root.join("a/file"), fs::Permissions::from_mode(0o4750)).unwrap();
        symlink("..", root.join("a/up")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        let open = openat(rustix::fs::CWD, root, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let mut all = Everything::default();
        list(&open, &mut all).unwrap();
        let shown: Vec<_> = all
            .items
            .iter()
            .map(|item| (String::from_utf8_lossy(&item.path).into_owned(), item.kind.clone()))
            .collect();
        let is = |path: &str, kind: ItemKind| (path.to_owned(), kind);
        assert_eq!(
            shown,
            [
                is("a", ItemKind::Directory),
                is("a/closed", ItemKind::Directory),
                is("a/file", ItemKind::File(5)),
                is("a/up", ItemKind::Symlink(b"..".to_vec())),
                is("socket", ItemKind::Special),
            ]
        );
        assert_eq!(all.items[2].mode, 0o4750);
        assert_eq!(all.entered, [&b""[..], b"a"]);
    }
}
