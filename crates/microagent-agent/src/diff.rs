//! Tells the host what a workspace's disk has that its image's has not: as a layer, in OCI's form, or as a list of paths.
//!
//! The disk began as a copy of the image's base disk, block by block, so what nobody touched has the same inode on
//! both. The inodes that differ are found first ([`inodes`]); then the tree is walked, and where something differs
//! both trees side by side. Content is read only of what differs, and what is the same is not even looked at. An
//! entry that is gone becomes a whiteout (`.wh.NAME`); directories on the way to a change are told too, because
//! some unpackers make those that a layer does not tell anew.
//!
//! Both trees are looked at through mounts of their own: the base disk read-only, the root without what is
//! mounted in it. Nothing is written to either. What the agent itself writes into a root is left out.
//!
//! # Source
//! OCI image specification 1.1, `layer.md`.

mod inodes;
mod teller;

use std::cmp::Ordering;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use microagent_proto::{Diff, FrameError, GuestError, GuestErrorKind, Stream};
use microagent_tree::PackError;
use microagent_tree::pack::{attributes, by_number, read_error};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};

use self::inodes::ChangedInodes;
use self::teller::Teller;
use crate::disk::{self, DiskError};
use crate::pack;

/// What the host takes for "this name is gone", before the name.
const WHITEOUT: &[u8] = b".wh.";

/// Directories of the root that are the kernel's or the file system's own, whatever the image has there.
const LEFT_OUT_DIRECTORIES: [&[u8]; 4] = [b"dev", b"lost+found", b"proc", b"sys"];

/// Files that say what machine this is: [`crate::configure`] writes them at each start.
const LEFT_OUT_FILES: [&[u8]; 5] =
    [b"etc/hostname", b"etc/hosts", b"etc/machine-id", b"etc/mtab", b"etc/resolv.conf"];

/// Directories whose times say nothing: the agent makes things in them.
const OURS: [&[u8]; 8] =
    [b"", b"etc", b"lib", b"lib/modules", b"run", b"run/secrets", b"usr/lib", b"usr/lib/modules"];

/// Where the index of the guest kernel's modules is mounted, below `lib` or `usr/lib`, and how its name ends.
const MODULES: &[u8] = b"lib/modules/";
const KERNEL: &[u8] = b"-microagent";

/// Why nothing can be told.
#[derive(Debug, thiserror::Error)]
enum DiffError {
    #[error("the image's disk cannot be found")]
    Find(#[source] DiskError),
    #[error("{} cannot be mounted", path.display())]
    Mount { path: PathBuf, source: io::Error },
    #[error("the inodes of {} and of the root's disk cannot be compared", path.display())]
    Inodes { path: PathBuf, source: io::Error },
    #[error("the root cannot be looked at")]
    Root(#[source] io::Error),
    #[error(
        "`{path}` cannot be part of an image: in an image, a name that begins with `.wh.` marks a deleted file"
    )]
    Whiteout { path: String },
    #[error(transparent)]
    Pack(#[from] PackError),
}

impl From<DiffError> for GuestError {
    fn from(error: DiffError) -> GuestError {
        let kind = match error {
            DiffError::Pack(error) => return pack::guest_error(error),
            DiffError::Find(_) | DiffError::Mount { .. } | DiffError::Inodes { .. } | DiffError::Root(_) => {
                GuestErrorKind::Disk
            }
            DiffError::Whiteout { .. } => GuestErrorKind::Invalid,
        };
        GuestError { kind, message: microagent_proto::chain(&error) }
    }
}

/// Packs the root disk for the host, without what is mounted over its directories.
pub(crate) async fn serve_root(stream: Stream) -> Result<(), FrameError> {
    pack::send(stream, |pieces| {
        let root = open_root().map_err(DiffError::Root)?;
        Ok::<_, DiffError>(microagent_tree::pack_directory(root, b".", pieces).map(drop)?)
    })
    .await
}

/// Compares for the host, speaking on this stream.
pub(crate) async fn serve(stream: Stream, asked: Diff) -> Result<(), FrameError> {
    pack::send(stream, move |pieces| {
        let path = disk::device_path(asked.base_scsi_target).map_err(DiffError::Find)?;
        let root_path = disk::device_path(asked.root_scsi_target).map_err(DiffError::Find)?;
        let base = mount_base(&path)?;
        let root = open_root().map_err(DiffError::Root)?;
        let read = |source| DiffError::Inodes { path: path.clone(), source };
        let disks = (File::open(&root_path).map_err(read)?, File::open(&path).map_err(read)?);
        let changed = ChangedInodes::find(&disks.0, &disks.1).map_err(read)?;
        compare(root, base, changed, Teller::new(asked.form, pieces))
    })
    .await
}

/// Mounts the base disk where no path leads to. Its journal is empty, and nothing is written to it.
fn mount_base(path: &Path) -> Result<OwnedFd, DiffError> {
    let mount = || -> io::Result<OwnedFd> {
        let context = fsopen(c"ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(context.as_fd(), c"source", path)?;
        for flag in [c"ro", c"noload", c"no_prefetch_block_bitmaps"] {
            fsconfig_set_flag(context.as_fd(), flag)?;
        }
        fsconfig_create(context.as_fd())?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOATIME;
        Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
    };
    let failed = |source| DiffError::Mount { path: path.to_owned(), source };
    let mounted = mount().map_err(failed)?;
    open_dir(&mounted, c".").map_err(|errno| failed(errno.into()))
}

/// The root as it is on its disk, without what is mounted over its directories.
fn open_root() -> io::Result<OwnedFd> {
    let bare = open_tree(CWD, c"/", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    Ok(open_dir(&bare, c".")?)
}

fn open_dir(dir: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

/// Opens a directory, unless it has been removed or replaced since its name was read.
fn open_if_there(dir: &OwnedFd, name: &CStr) -> Result<Option<OwnedFd>, Errno> {
    match open_dir(dir, name) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// What a directory says of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    inode: u64,
    kind: FileType,
}

/// A name that stands in one of two directories, or in both.
#[derive(Debug, PartialEq, Eq)]
struct Name {
    name: CString,
    here: Option<Seen>,
    base: Option<Seen>,
}

/// A directory on the way.
struct Level {
    here: OwnedFd,
    /// The same directory of the image, if it has one.
    base: Option<OwnedFd>,
    path: Vec<u8>,
    /// Whether the image has anything of this name.
    in_base: bool,
    /// Still to come, last first.
    names: Vec<Name>,
    /// Whether it has been told of.
    told: bool,
}

/// Walks two trees and tells what makes the first of the second.
fn compare(
    here: OwnedFd,
    base: OwnedFd,
    changed: Option<ChangedInodes>,
    teller: Teller,
) -> Result<(), DiffError> {
    let mut walk = Walk { teller, levels: Vec::new(), changed };
    let [here_stat, base_stat] =
        [fstat(&here), fstat(&base)].map(|stat| stat.map_err(|e| read_error(b"/", e)));
    let differs = directory_differs(b"", (&here, &here_stat?), (&base, &base_stat?));
    walk.enter(here, Some(base), Vec::new(), true)?;
    if differs {
        walk.tell()?;
    }
    // The root is there in every unpacker's eyes.
    walk.levels[0].told = true;
    while let Some(level) = walk.levels.last_mut() {
        match level.names.pop() {
            Some(name) => walk.name(&name)?,
            None => drop(walk.levels.pop()),
        }
    }
    Ok(walk.teller.finish()?)
}

struct Walk {
    teller: Teller,
    levels: Vec<Level>,
    /// What is known before anything is looked at, if anything is.
    changed: Option<ChangedInodes>,
}

impl Walk {
    /// Whether a name is known to stand for the same on both sides: the same inode, which nobody has changed.
    fn is_same(&self, name: &Name) -> Option<FileType> {
        let (here, base) = name.here.zip(name.base)?;
        let unchanged = self.changed.as_ref().is_some_and(|changed| !changed.contains(here.inode));
        (here == base && here.kind != FileType::Unknown && unchanged).then_some(here.kind)
    }

    fn level(&self) -> &Level {
        self.levels.last().expect("a name belongs to a directory that is open")
    }

    /// Compares what stands under one name.
    fn name(&mut self, name: &Name) -> Result<(), DiffError> {
        let level = self.level();
        let path = joined(&level.path, name.name.to_bytes());
        if is_left_out(&path) {
            return Ok(());
        }
        if name.here.is_none() {
            self.tell()?;
            return Ok(self.teller.gone(&path)?);
        }
        if self.teller.makes_layer() && name.name.to_bytes().starts_with(WHITEOUT) {
            return Err(DiffError::Whiteout { path: shown(&path) });
        }
        match self.is_same(name) {
            Some(FileType::Directory) => return self.same_directory(name, path),
            Some(_) => return Ok(()),
            None => {}
        }
        let look = |dir: &OwnedFd| match statat(dir, &name.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(read_error(&path, errno)),
        };
        let Some(stat) = look(&level.here)? else { return Ok(()) };
        let base = match &level.base {
            Some(base) if name.base.is_some() => look(base)?,
            _ => None,
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            return self.directory(name, path, base);
        }
        let is_no_part = kind == FileType::Socket && self.teller.makes_layer();
        if is_no_part || base.is_some_and(|base| is_untouched(&stat, &base)) {
            return Ok(());
        }
        self.tell()?;
        let Walk { teller, levels, .. } = self;
        let dir = levels.last().expect("a name belongs to a directory that is open").here.as_fd();
        Ok(teller.leaf((dir, &name.name), &stat, path, base.is_some())?)
    }

    /// Goes into a directory, which is told of at once if it is not as in the image.
    fn directory(&mut self, name: &Name, path: Vec<u8>, base: Option<Stat>) -> Result<(), DiffError> {
        let failed = |errno| read_error(&path, errno);
        let level = self.level();
        let Some(here) = open_if_there(&level.here, &name.name).map_err(failed)? else { return Ok(()) };
        let stat = fstat(&here).map_err(failed)?;
        let in_base = base.is_some();
        let base = base.filter(|base| FileType::from_raw_mode(base.st_mode) == FileType::Directory);
        let (base, differs) = match (&level.base, base) {
            (Some(outer), Some(base_stat)) => {
                let base = open_dir(outer, &name.name).map_err(failed)?;
                let differs = directory_differs(&path, (&here, &stat), (&base, &base_stat));
                (Some(base), differs)
            }
            // One that microagent adds and the image lacks is reported only if it has contents.
            _ => (None, !OURS.contains(&path.as_slice())),
        };
        self.enter(here, base, path, in_base)?;
        if differs { self.tell() } else { Ok(()) }
    }

    /// Goes into a directory with the same names on both sides.
    fn same_directory(&mut self, name: &Name, path: Vec<u8>) -> Result<(), DiffError> {
        let failed = |errno| read_error(&path, errno);
        let level = self.level();
        let Some(here) = open_if_there(&level.here, &name.name).map_err(failed)? else { return Ok(()) };
        let outer =
            level.base.as_ref().expect("a name that both sides have is in a directory that both have");
        let base = open_dir(outer, &name.name).map_err(failed)?;
        // Nearly all names are of files that nobody changed: they are not even kept.
        let matters = |seen: &Seen| match &self.changed {
            Some(changed) => {
                matches!(seen.kind, FileType::Directory | FileType::Unknown) || changed.contains(seen.inode)
            }
            None => true,
        };
        let both = |(name, seen)| Name { name, here: Some(seen), base: Some(seen) };
        let mut names: Vec<Name> = names(&here, matters).map_err(failed)?.into_iter().map(both).collect();
        names.reverse();
        self.levels.push(Level { here, base: Some(base), path, in_base: true, names, told: false });
        Ok(())
    }

    fn enter(
        &mut self,
        here: OwnedFd,
        base: Option<OwnedFd>,
        path: Vec<u8>,
        in_base: bool,
    ) -> Result<(), DiffError> {
        let here_names = names(&here, |_| true).map_err(|errno| read_error(&path, errno))?;
        let base_names = match &base {
            Some(base) => names(base, |_| true).map_err(|errno| read_error(&path, errno))?,
            None => Vec::new(),
        };
        let mut names = merge(here_names, base_names);
        names.reverse();
        self.levels.push(Level { here, base, path, in_base, names, told: false });
        Ok(())
    }

    /// Tells of the directories on the way to here that have not been told of yet.
    fn tell(&mut self) -> Result<(), DiffError> {
        let Walk { teller, levels, .. } = self;
        for level in levels.iter_mut().filter(|level| !level.told) {
            teller.directory(&level.here, &level.path, level.in_base)?;
            level.told = true;
        }
        Ok(())
    }
}

/// Whether a file, link or device is as the image has it: nothing can change one without the kernel noting it
/// in its time of change.
fn is_untouched(here: &Stat, base: &Stat) -> bool {
    let what =
        |stat: &Stat| (stat.st_ino, stat.st_mode, stat.st_uid, stat.st_gid, stat.st_size, stat.st_rdev);
    let when = |stat: &Stat| (stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec);
    what(here) == what(base) && when(here) == when(base)
}

/// Whether a directory itself, whatever is in it, is not as the image has it.
fn directory_differs(path: &[u8], here: (&OwnedFd, &Stat), base: (&OwnedFd, &Stat)) -> bool {
    let ((here, here_stat), (base, base_stat)) = (here, base);
    if is_untouched(here_stat, base_stat) {
        return false;
    }
    let owner = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid);
    let time = |stat: &Stat| (stat.st_mtime, stat.st_mtime_nsec);
    let attributes = |dir: &OwnedFd| {
        let mut all = attributes(&by_number(dir.as_fd()), AtFlags::empty());
        all.sort_unstable();
        all
    };
    owner(here_stat) != owner(base_stat)
        || (time(here_stat) != time(base_stat) && !OURS.contains(&path))
        || attributes(here) != attributes(base)
}

fn is_left_out(path: &[u8]) -> bool {
    let below_usr = path.strip_prefix(b"usr/").unwrap_or(path);
    let is_index = below_usr.strip_prefix(MODULES).is_some_and(|release| release.ends_with(KERNEL));
    LEFT_OUT_DIRECTORIES.contains(&path) || LEFT_OUT_FILES.contains(&path) || is_index
}

fn joined(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

fn shown(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

/// The names in a directory that matter, in order.
fn names(dir: &OwnedFd, matters: impl Fn(&Seen) -> bool) -> Result<Vec<(CString, Seen)>, Errno> {
    let mut names = Vec::new();
    for found in Dir::read_from(dir)? {
        let found = found?;
        let name = found.file_name();
        let seen = Seen { inode: found.ino(), kind: found.file_type() };
        if !matches!(name.to_bytes(), b"." | b"..") && matters(&seen) {
            names.push((name.to_owned(), seen));
        }
    }
    names.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    Ok(names)
}

/// Two ordered lists of names as one.
fn merge(here: Vec<(CString, Seen)>, base: Vec<(CString, Seen)>) -> Vec<Name> {
    let (mut here, mut base) = (here.into_iter().peekable(), base.into_iter().peekable());
    let mut merged = Vec::new();
    loop {
        let order = match (here.peek(), base.peek()) {
            (Some((here, _)), Some((base, _))) => here.cmp(base),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return merged,
        };
        let from_here = here.next_if(|_| order.is_le());
        let from_base = base.next_if(|_| order.is_ge());
        let seen = |side: &Option<(CString, Seen)>| side.as_ref().map(|(_, seen)| *seen);
        let (in_here, in_base) = (seen(&from_here), seen(&from_base));
        let name = from_here.or(from_base).map(|(name, _)| name);
        merged.extend(name.map(|name| Name { name, here: in_here, base: in_base }));
    }
}

#[cfg(test)]
mod tests;
