//! The host's side of a sync: its listing, and hashes of its files.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use microagent_tree::{Item, ItemKind, PackError, Tree, Visitor};
use rustix::fs::{Mode, OFlags, fstat, stat};
use sha2::{Digest, Sha256};

use super::ignore::Ignore;
use super::plan::{Base, Found, Listing, TreePath};
use crate::Error;
use crate::error::SyncError;

/// Most files of one side.
pub(super) const FILES_MAX: usize = 1_000_000;

/// Most bytes of the paths and targets of one side.
pub(super) const PATH_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Bytes of a file that are hashed at a time.
const HASH_BUFFER: usize = 256 * 1024;

/// The synced directory of the host.
#[derive(Debug)]
pub(super) struct HostDir {
    /// Its path without links.
    pub(super) path: PathBuf,
    /// The open directory.
    pub(super) dir: OwnedFd,
    /// Path of the state directory below it, if it is there: the disks and keys in it belong to no guest.
    own_state: Option<Vec<u8>>,
}

impl HostDir {
    /// Opens a directory. A link that names it is followed.
    pub(super) fn open(path: &Path, state: &Path) -> Result<HostDir, Error> {
        let failed = |source| Error::File { action: "read", path: path.to_owned(), source };
        let path = std::fs::canonicalize(path).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        let state = std::fs::canonicalize(state).unwrap_or_else(|_| state.to_owned());
        if path.starts_with(&state) {
            return Err(SyncError::OwnState { path }.into());
        }
        let own_state = state.strip_prefix(&path).ok().map(|below| below.as_os_str().as_bytes().to_vec());
        Ok(HostDir { path, dir, own_state })
    }

    /// Fails if the directory was removed or replaced since it was opened: it would look empty.
    pub(super) fn check(&self) -> Result<(), Error> {
        let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        match (fstat(&self.dir), stat(&self.path)) {
            (Ok(opened), Ok(named)) if identity(opened) == identity(named) => Ok(()),
            _ => Err(SyncError::Replaced { path: self.path.clone() }.into()),
        }
    }
}

/// Paths of the host that could not be read, each with the reason. They are not part of the sync, nor what is below them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Unreadable(BTreeMap<TreePath, String>);

impl Unreadable {
    /// Adds a path.
    pub(super) fn add(&mut self, path: TreePath, error: &PackError) {
        let reason = match error {
            PackError::Open { source, .. } | PackError::Read { source, .. } => source.to_string(),
            PackError::Unwanted => error.to_string(),
        };
        self.0.insert(path, reason);
    }

    /// Whether a path or a directory that it is in could not be read.
    pub(super) fn covers(&self, path: &TreePath) -> bool {
        // Between a directory and a path in it there is none: what cannot be read is not entered.
        self.0.range(..=path).next_back().is_some_and(|(last, _)| last == path || path.is_below(last))
    }

    /// The paths with the reasons.
    pub(super) fn paths(&self) -> impl Iterator<Item = (&TreePath, &String)> {
        self.0.iter()
    }

    /// Removes what could not be read from a listing of either side, in which its directories are kept.
    pub(super) fn leave_out_of(&self, listing: &mut Listing) {
        for path in self.0.keys() {
            listing.pin(path);
        }
        if !self.0.is_empty() {
            listing.items.retain(|path, _| !self.covers(path));
        }
    }

    /// The same of what the last sync left.
    pub(super) fn leave_out_of_base(&self, base: &mut Base) {
        if !self.0.is_empty() {
            base.retain(|path, _| !self.covers(path));
        }
    }
}

/// Collects a listing within limits.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pub(super) listing: Listing,
    bytes: usize,
}

impl Collected {
    /// Adds an item. `false`: there are too many.
    pub(super) fn add(&mut self, path: TreePath, found: Option<Found>) -> bool {
        self.bytes += path.0.len();
        match found {
            Some(found) => {
                if let Found::Symlink { target } = &found {
                    self.bytes += target.len();
                }
                self.listing.items.insert(path, found);
            }
            None => {
                self.listing.special += 1;
                self.listing.pin(&path);
            }
        }
        self.listing.items.len() <= FILES_MAX && self.bytes <= PATH_BYTES_MAX
    }
}

/// A walk through the host's directory.
struct HostWalk<'a, F> {
    own_state: Option<&'a [u8]>,
    ignore: &'a mut Ignore,
    collected: Collected,
    /// Directories that are not part of the sync.
    closed: Vec<Vec<u8>>,
    unreadable: Unreadable,
    entered: F,
}

/// What is in the host's directory.
pub(super) struct HostListing {
    /// What can be synced.
    pub(super) listing: Listing,
    /// Directories that are not part of the sync.
    pub(super) closed: Vec<Vec<u8>>,
    /// What could not be read.
    pub(super) unreadable: Unreadable,
}

/// Why the walk ended: a type of this module, so that [`Error`] has no public conversion from the walk's errors.
struct WalkError(Error);

impl From<PackError> for WalkError {
    fn from(error: PackError) -> WalkError {
        WalkError(unread(error))
    }
}

/// A file or directory that could not be read, with its path below the directory that is synced.
pub(super) fn unread(error: PackError) -> Error {
    match error {
        PackError::Open { path, source } | PackError::Read { path, source } => {
            Error::File { action: "read", path: path.into(), source }
        }
        PackError::Unwanted => Error::Cancelled,
    }
}

impl<F: FnMut(BorrowedFd<'_>) -> Result<(), Error>> Visitor for HostWalk<'_, F> {
    type Error = WalkError;

    fn item(&mut self, item: Item) -> Result<bool, WalkError> {
        let path = TreePath(item.path);
        let is_directory = item.kind == ItemKind::Directory;
        if self.own_state == Some(&path.0[..]) || self.ignore.leaves_out(&path.0, is_directory) {
            self.collected.listing.pin(&path);
            if is_directory {
                self.closed.push(path.0);
            }
            return Ok(false);
        }
        if !self.collected.add(path, found(item.kind, item.mode, item.mtime)) {
            return Err(WalkError(SyncError::TooManyFiles { max: FILES_MAX }.into()));
        }
        Ok(true)
    }

    fn enter(&mut self, path: &[u8], dir: BorrowedFd<'_>) -> Result<(), WalkError> {
        (self.entered)(dir).map_err(WalkError)?;
        self.ignore.enter(path, dir);
        Ok(())
    }

    fn unreadable(&mut self, path: &[u8], error: PackError) -> Result<(), WalkError> {
        if path.is_empty() {
            return Err(error.into());
        }
        let path = TreePath(path.to_vec());
        self.closed.push(path.0.clone());
        let is_listed = self.collected.listing.items.contains_key(&path);
        // Of what is not listed it is not known whether it is a directory.
        let ignores = |is_directory| self.ignore.leaves_out(&path.0, is_directory);
        if is_listed || !(ignores(true) || ignores(false)) {
            self.unreadable.add(path, &error);
        } else {
            self.collected.listing.pin(&path);
        }
        Ok(())
    }
}

/// Lists the host's directory. `entered` receives each directory before its names are read.
pub(super) fn list(
    dir: &HostDir,
    ignore: &mut Ignore,
    entered: impl FnMut(BorrowedFd<'_>) -> Result<(), Error>,
) -> Result<HostListing, Error> {
    dir.check()?;
    let mut walk = HostWalk {
        own_state: dir.own_state.as_deref(),
        ignore,
        collected: Collected::default(),
        closed: Vec::new(),
        unreadable: Unreadable::default(),
        entered,
    };
    microagent_tree::list(&dir.dir, &mut walk).map_err(|WalkError(error)| below(&dir.path, error))?;
    let HostWalk { collected: Collected { mut listing, .. }, closed, unreadable, .. } = walk;
    unreadable.leave_out_of(&mut listing);
    Ok(HostListing { listing, closed, unreadable })
}

/// An error about a path below the directory, with its whole path.
pub(super) fn below(dir: &Path, error: Error) -> Error {
    match error {
        Error::File { action, path, source } => Error::File { action, path: dir.join(path), source },
        other => other,
    }
}

/// What an item is for a sync; `None` for sockets, FIFOs and devices.
pub(super) fn found(kind: ItemKind, mode: u16, mtime: (i64, u32)) -> Option<Found> {
    Some(match kind {
        ItemKind::File(len) => Found::File { len, mode, mtime },
        ItemKind::Directory => Found::Directory { mode },
        ItemKind::Symlink(target) => Found::Symlink { target },
        ItemKind::Special => return None,
    })
}

/// Hashes these files. Those that do not exist any more, or cannot be opened, are missing.
pub(super) fn hashes(dir: &HostDir, paths: &[TreePath]) -> Result<BTreeMap<TreePath, [u8; 32]>, Error> {
    let mut tree = Tree::new(&dir.dir);
    let mut hashes = BTreeMap::new();
    let mut buffer = vec![0; HASH_BUFFER];
    for path in paths {
        let (mut file, item) = match tree.open(&path.0) {
            Ok(Some(found)) => found,
            Ok(None) | Err(PackError::Open { .. }) => continue,
            Err(error) => return Err(below(&dir.path, unread(error))),
        };
        let mut hash = Sha256::new();
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => hash.update(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => {
                    let path = PathBuf::from(microagent_tar::shown(&item.path));
                    return Err(below(&dir.path, Error::File { action: "read", path, source }));
                }
            }
        }
        hashes.insert(path.clone(), hash.finalize().into());
    }
    Ok(hashes)
}

/// Those of two sets of hashes that are equal.
pub(super) fn equal(
    host: &BTreeMap<TreePath, [u8; 32]>,
    guest: &BTreeMap<TreePath, [u8; 32]>,
) -> BTreeSet<TreePath> {
    host.iter().filter(|(path, hash)| guest.get(path) == Some(hash)).map(|(path, _)| path.clone()).collect()
}
