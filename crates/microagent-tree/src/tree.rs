//! Access to named files below one directory.
//!
//! The names come from a listing and may be outdated, or wrong because somebody has replaced a directory by a link
//! since. The kernel resolves them with `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS`: a path with a link in it counts as
//! one that does not exist. So nothing outside of the directory is read, changed or removed.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, chmod, fstat, mkdirat, openat, openat2, renameat, statat,
    unlinkat,
};
use rustix::io::Errno;

use crate::list::{Item, item_at, item_of};
use crate::pack::{PackError, Pieces, Walker, by_number, open_error, read_error};

/// How often a path is resolved again if the tree changes at the same time.
const RESOLVE_TRIES: usize = 100;

/// Why a tree could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The directory of a path cannot be opened.
    #[error(transparent)]
    Read(#[from] PackError),
    /// A file or directory cannot be written.
    #[error("cannot write `{path}`")]
    Write {
        /// Its path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A file or directory cannot be removed.
    #[error("cannot remove `{path}`")]
    Remove {
        /// Its path.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// What became of a path in a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It is removed, or did not exist.
    Gone,
    /// A directory that is not empty, or that a file has replaced; or a file that a directory has replaced.
    Kept,
}

/// Files below an open directory.
#[derive(Debug)]
pub struct Tree<'a> {
    root: &'a OwnedFd,
    /// The directory of the last path, which is probably that of the next one.
    last: Option<(Vec<u8>, Rc<OwnedFd>)>,
}

impl<'a> Tree<'a> {
    /// Gives access to what is below this directory.
    pub fn new(root: &'a OwnedFd) -> Tree<'a> {
        Tree { root, last: None }
    }

    /// Describes what is at a path; `None` if nothing is there.
    ///
    /// # Errors
    /// Fails if the directory of the path cannot be opened, or the kernel does not describe the file.
    pub fn item(&mut self, path: &[u8]) -> Result<Option<Item>, PackError> {
        let failed = |errno| read_error(path, errno);
        let Some((dir, name)) = self.parent(path)? else { return Ok(None) };
        item_at(dir.as_fd(), &name, path.to_vec()).map_err(failed)
    }

    /// Opens a regular file for reading, and describes it; `None` if none is there.
    ///
    /// # Errors
    /// Fails if the file cannot be opened.
    pub fn open(&mut self, path: &[u8]) -> Result<Option<(File, Item)>, PackError> {
        let failed = |errno| read_error(path, errno);
        let Some((dir, name)) = self.parent(path)? else { return Ok(None) };
        // Not to hang on a FIFO that has taken the file's place.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW;
        let file = match openat(&dir, &name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(None),
            Err(errno) => return Err(open_error(path, errno)),
        };
        let stat = fstat(&file).map_err(failed)?;
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        Ok(is_file.then(|| (File::from(file), item_of(&stat, None, path.to_vec()))))
    }

    /// Packs these paths, in their order: a directory without what is in it. Returns what was packed, as it was then.
    /// Paths that do not exist are omitted, and those that cannot be opened if `unreadable` accepts it.
    ///
    /// # Errors
    /// Fails if `unreadable` does, a file cannot be read after it was opened, or `pieces` accepts no more.
    pub fn pack<'p>(
        &mut self,
        paths: impl IntoIterator<Item = &'p [u8]>,
        pieces: Pieces,
        mut unreadable: impl FnMut(&[u8], PackError) -> Result<(), PackError>,
    ) -> Result<Vec<Item>, PackError> {
        let mut walker = Walker::new(pieces);
        let mut packed = Vec::new();
        for path in paths {
            match self.pack_one(path, &mut walker) {
                Ok(item) => packed.extend(item),
                Err(error @ PackError::Open { .. }) => unreadable(path, error)?,
                Err(error) => return Err(error),
            }
        }
        walker.finish()?;
        Ok(packed)
    }

    fn pack_one(&mut self, path: &[u8], walker: &mut Walker) -> Result<Option<Item>, PackError> {
        let failed = |errno| open_error(path, errno);
        let Some((dir, name)) = self.parent(path)? else { return Ok(None) };
        let Some(item) = item_at(dir.as_fd(), &name, path.to_vec()).map_err(failed)? else { return Ok(None) };
        let stat = match statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(failed(errno)),
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            return match openat(&dir, &name, flags, Mode::empty()) {
                Ok(opened) => {
                    let stat = walker.directory_header(&opened, path)?;
                    Ok(Some(item_of(&stat, None, path.to_vec())))
                }
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
                Err(errno) => Err(failed(errno)),
            };
        }
        let written = walker.leaf(dir.as_fd(), &name, &stat, path.to_vec(), AtFlags::SYMLINK_NOFOLLOW)?;
        let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        Ok(written.map(|stat| if is_link { item } else { item_of(&stat, None, path.to_vec()) }))
    }

    /// Removes a file or link, or an empty directory.
    ///
    /// # Errors
    /// Fails if the kernel does not remove it.
    pub fn remove(&mut self, path: &[u8], is_directory: bool) -> Result<Removal, TreeError> {
        let Some((dir, name)) = self.parent(path)? else { return Ok(Removal::Gone) };
        let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        if is_directory {
            // An open directory of this name would be found again.
            self.last = None;
        }
        match unlinkat(&dir, &name, flags) {
            Ok(()) | Err(Errno::NOENT) => Ok(Removal::Gone),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR | Errno::ISDIR | Errno::BUSY) => {
                Ok(Removal::Kept)
            }
            // What Linux says of a directory that is unlinked like a file.
            Err(Errno::PERM) if !is_directory && self.is_directory(path)? => Ok(Removal::Kept),
            Err(errno) => Err(TreeError::Remove { path: microagent_tar::shown(path), source: errno.into() }),
        }
    }

    /// Creates a directory, or changes the mode of the one that exists.
    ///
    /// # Errors
    /// Fails if the directory of the path does not exist, or something else has this name.
    pub fn make_directory(&mut self, path: &[u8], mode: u16) -> Result<(), TreeError> {
        let failed =
            |errno: Errno| TreeError::Write { path: microagent_tar::shown(path), source: errno.into() };
        let (dir, name) = self.parent(path)?.ok_or_else(|| failed(Errno::NOENT))?;
        match mkdirat(&dir, &name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat(&dir, &name, flags, Mode::empty()).map_err(failed)?;
        chmod(by_number(made.as_fd()), Mode::from_raw_mode((mode & 0o1777).into())).map_err(failed)
    }

    /// Moves what another tree has at a path to the same path of this one; a file or link there is replaced. Returns
    /// whether the other tree had it.
    ///
    /// # Errors
    /// Fails if the directory of the path does not exist here, or a directory is at the path.
    pub fn take(&mut self, from: &mut Tree<'_>, path: &[u8]) -> Result<bool, TreeError> {
        let failed =
            |errno: Errno| TreeError::Write { path: microagent_tar::shown(path), source: errno.into() };
        let Some((source, name)) = from.parent(path)? else { return Ok(false) };
        let (dir, _) = self.parent(path)?.ok_or_else(|| failed(Errno::NOENT))?;
        match renameat(&source, &name, &dir, &name) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(failed(errno)),
        }
    }

    fn is_directory(&mut self, path: &[u8]) -> Result<bool, PackError> {
        Ok(self.item(path)?.is_some_and(|item| item.kind == crate::list::ItemKind::Directory))
    }

    /// Opens the directory of a path, and returns it with the name in it. `None`: no such directory, or a link is on
    /// the way to it.
    fn parent(&mut self, path: &[u8]) -> Result<Option<(Rc<OwnedFd>, CString)>, PackError> {
        let failed = |errno| read_error(path, errno);
        let (dir, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b"."[..], path),
        };
        if matches!(name, b"" | b"." | b"..") {
            return Err(failed(Errno::INVAL));
        }
        let name = CString::new(name).map_err(|_| failed(Errno::INVAL))?;
        if let Some((last, opened)) = &self.last
            && last == dir
        {
            return Ok(Some((Rc::clone(opened), name)));
        }
        let dir_name = CString::new(dir).map_err(|_| failed(Errno::INVAL))?;
        match resolve(self.root, &dir_name) {
            Ok(opened) => {
                let opened = Rc::new(opened);
                self.last = Some((dir.to_vec(), Rc::clone(&opened)));
                Ok(Some((opened, name)))
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(None),
            Err(errno) => Err(open_error(path, errno)),
        }
    }
}

fn resolve(root: &OwnedFd, path: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let bound = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let open = || openat2(root, path, flags, Mode::empty(), bound);
    // The kernel cannot tell whether a path stays inside while others rename parts of it.
    for _ in 1..RESOLVE_TRIES {
        match open() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened,
        }
    }
    open()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use rustix::fs::CWD;

    use super::*;
    use crate::list::ItemKind;

    fn open(path: &Path) -> OwnedFd {
        openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn a_path_with_a_link_in_it_does_not_exist() {
        let outer = tempfile::tempdir().unwrap();
        fs::create_dir_all(outer.path().join("root/dir")).unwrap();
        fs::create_dir(outer.path().join("other")).unwrap();
        fs::write(outer.path().join("other/file"), "secret").unwrap();
        fs::write(outer.path().join("root/dir/file"), "own").unwrap();
        symlink("../other", outer.path().join("root/out")).unwrap();
        symlink("dir", outer.path().join("root/in")).unwrap();
        symlink("dir/file", outer.path().join("root/link")).unwrap();
        let root = open(&outer.path().join("root"));
        let mut tree = Tree::new(&root);
        for path in [&b"out/file"[..], b"in/file", b"none/file", b"dir/file/x"] {
            assert_eq!(tree.item(path).unwrap(), None);
            assert!(tree.open(path).unwrap().is_none());
            assert_eq!(tree.remove(path, false).unwrap(), Removal::Gone);
            assert!(tree.make_directory(path, 0o755).is_err());
        }
        for path in [&b"../other/file"[..], b"dir/../../other/file"] {
            assert_eq!(tree.item(path).unwrap(), None);
            assert_eq!(tree.remove(path, false).unwrap(), Removal::Gone);
        }
        assert!(
            tree.item(b"dir/..").is_err() && tree.item(b"").is_err() && tree.remove(b"..", true).is_err()
        );
        assert!(tree.open(b"link").unwrap().is_none());
        assert_eq!(tree.item(b"link").unwrap().unwrap().kind, ItemKind::Symlink(b"dir/file".to_vec()));
        assert_eq!(tree.item(b"dir/file").unwrap().unwrap().kind, ItemKind::File(3));
        assert_eq!(fs::read_to_string(outer.path().join("other/file")).unwrap(), "secret");
        assert_eq!(fs::read_to_string(outer.path().join("root/dir/file")).unwrap(), "own");
    }

    #[test]
    fn removing_takes_only_what_is_of_the_kind_that_was_listed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("full/inner")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        symlink("full", dir.path().join("link")).unwrap();
        let root = open(dir.path());
        let mut tree = Tree::new(&root);
        assert_eq!(tree.remove(b"full", true).unwrap(), Removal::Kept);
        assert_eq!(tree.remove(b"full", false).unwrap(), Removal::Kept);
        assert_eq!(tree.remove(b"file", true).unwrap(), Removal::Kept);
        assert_eq!(tree.remove(b"link", true).unwrap(), Removal::Kept);
        for (path, is_directory) in
            [(&b"link"[..], false), (b"file", false), (b"full/inner", true), (b"full", true)]
        {
            assert_eq!(tree.remove(path, is_directory).unwrap(), Removal::Gone);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn only_named_paths_are_packed_and_moved() {
        let outer = tempfile::tempdir().unwrap();
        let (from, to) = (outer.path().join("from"), outer.path().join("to"));
        fs::create_dir_all(from.join("dir")).unwrap();
        fs::create_dir(&to).unwrap();
        for name in ["dir/a", "dir/b", "c"] {
            fs::write(from.join(name), name).unwrap();
        }
        let (from, root) = (open(&from), open(&to));
        let tar = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&tar);
        let pieces = Pieces::new(move |piece| {
            taken.lock().unwrap().extend(piece);
            true
        });
        let paths = [&b"dir"[..], b"dir/a", b"missing", b"c"];
        let packed = Tree::new(&from).pack(paths, pieces, |_, error| Err(error)).unwrap();
        let names: Vec<_> = packed.iter().map(|item| item.path.as_slice()).collect();
        assert_eq!(names, [&b"dir"[..], b"dir/a", b"c"]);
        let tar = tar.lock().unwrap().clone();
        let mut archive = tar::Archive::new(&tar[..]);
        let entries: Vec<_> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path_bytes().into_owned()).collect();
        assert_eq!(entries, [&b"dir/"[..], b"dir/a", b"c"]);

        let (mut source, mut target) = (Tree::new(&from), Tree::new(&root));
        assert!(target.take(&mut source, b"dir/a").is_err());
        target.make_directory(b"dir", 0o750).unwrap();
        assert!(target.take(&mut source, b"dir/a").unwrap());
        assert!(!target.take(&mut source, b"dir/a").unwrap());
        assert_eq!(fs::read_to_string(to.join("dir/a")).unwrap(), "dir/a");
    }
}
