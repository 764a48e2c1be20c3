//! Extracts the entries of a tar stream below one directory.
//!
//! Processes of the guest may change the tree at any moment, also to gain access to other files. Therefore every step
//! starts from an open directory, the kernel resolves names with `RESOLVE_BENEATH`, which never leaves the
//! destination, and the last part of a name is never followed. A file is written under a temporary name and renamed
//! when it is complete, so no process sees a part of it, and an existing link or running program is replaced, not
//! written through.

use std::error::Error;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use microagent_tar::read::{Extent, Member, ReadError, Reader, Source};
use microagent_tar::{Attribute, Kind, Meta};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid,
    XattrFlags, chmod, chownat, fstat, ftruncate, linkat, makedev, mkdirat, mknodat, openat, openat2,
    readlinkat, renameat, setxattr, stat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::{Errno, pwrite, retry_on_intr};

use crate::pack::by_number;
use crate::unpack::{Feed, FeedError, Rules, SymlinkRule, Unpacked};

/// How often a name is resolved again if the tree changes at the same time.
const RESOLVE_TRIES: usize = 100;

/// How many temporary names are tried for a file.
const NAME_TRIES: usize = 1000;

/// Most bytes of attributes of unfinished directories. It limits the memory for a stream that nests directories with
/// large attributes.
const WAITING_ATTRIBUTES_LIMIT: usize = 16 * 1024 * 1024;

/// Mode of directories that the stream does not contain, and of unfinished ones.
const PARENT_MODE: Mode = Mode::from_raw_mode(0o755);
const UNFINISHED_MODE: Mode = Mode::from_raw_mode(0o700);

/// Why an entry could not be extracted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// The name contains `..`.
    #[error("its name leads out of the destination")]
    Climbs,
    /// The entry would replace the destination directory.
    #[error("only a directory can replace the destination itself")]
    Destination,
    /// A file cannot replace a directory.
    #[error("a directory exists there")]
    DirectoryThere,
    /// A directory cannot replace a file.
    #[error("something other than a directory exists there")]
    NoDirectoryThere,
    /// A parent of the entry is a file.
    #[error("a parent of it is not a directory")]
    NoDirectoryAbove,
    /// A link in the path leads out of the destination.
    #[error("a link on the way to it leads out of the destination")]
    LeadsOut,
    /// The attributes of the entry and of its parent directories exceed the limit.
    #[error("its attributes, and those of the directories above it, are too large")]
    AttributesTooLarge,
    /// Another process keeps changing the tree.
    #[error("another process has replaced it")]
    Exchanged,
    /// A system call failed.
    #[error("cannot {doing}")]
    System {
        /// What the call was for.
        doing: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// An extended attribute could not be set.
    #[error("cannot set its attribute `{name}`")]
    Attribute {
        /// Name of the attribute.
        name: String,
        /// The kernel's error.
        source: io::Error,
    },
}

/// Cause of a failure: the entry or the stream.
#[derive(Debug)]
pub(crate) enum Failure<E: Error + 'static> {
    Place(PlaceError),
    Stream(ReadError<FeedError<E>>),
}

impl<E: Error + 'static> From<PlaceError> for Failure<E> {
    fn from(error: PlaceError) -> Failure<E> {
        Failure::Place(error)
    }
}

impl<E: Error + 'static> Failure<E> {
    /// Whether a file of that name exists.
    fn is_taken_name(&self) -> bool {
        use io::ErrorKind::AlreadyExists;
        matches!(self, Failure::Place(PlaceError::System { source, .. }) if source.kind() == AlreadyExists)
    }
}

fn system(doing: &'static str) -> impl FnOnce(Errno) -> PlaceError {
    move |errno| PlaceError::System { doing, source: errno.into() }
}

/// A directory whose owner, mode and time are set after everything below it is extracted.
#[derive(Debug)]
struct Unfinished {
    path: Vec<u8>,
    dir: Rc<OwnedFd>,
    meta: Meta,
    attributes: Vec<Attribute>,
}

/// Extracts entries below a directory, one after the other.
#[derive(Debug)]
pub(crate) struct Placer<'a> {
    root: &'a OwnedFd,
    rules: Rules,
    resolve: ResolveFlags,
    /// The directory of the last entry, which is probably that of the next one.
    last_parent: Option<(Vec<u8>, Rc<OwnedFd>)>,
    /// Unfinished directories, outermost first; each is below the previous one.
    unfinished: Vec<Unfinished>,
    done: Unpacked,
}

impl<'a> Placer<'a> {
    /// Extracts below this directory.
    pub(crate) fn new(root: &'a OwnedFd, rules: Rules) -> Placer<'a> {
        let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        let own = fstat(root).map(identity);
        // Nothing is outside the root of everything, so links to absolute paths do no harm there.
        let is_whole = own.is_ok() && own == stat(c"/").map(identity);
        let bound = if is_whole { ResolveFlags::IN_ROOT } else { ResolveFlags::BENEATH };
        let resolve = bound | ResolveFlags::NO_MAGICLINKS;
        let done = Unpacked::default();
        Placer { root, rules, resolve, last_parent: None, unfinished: Vec::new(), done }
    }

    /// Extracts one entry; reads a file's content from the reader.
    pub(crate) fn place<S: Source>(
        &mut self,
        member: &Member,
        reader: &mut Reader<Feed<S>>,
    ) -> Result<(), Failure<S::Error>> {
        let path = normal(&member.name)?;
        self.finish_all_but_parents(&path).map_err(|(_, error)| error)?;
        let Some((parent, name)) = split(&path) else {
            // The destination keeps its own owner, mode and time: it is not what the stream is about.
            let is_directory = member.kind == Kind::Directory;
            return if is_directory { Ok(()) } else { Err(PlaceError::Destination.into()) };
        };
        let is_special =
            matches!(member.kind, Kind::CharacterDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo);
        if is_special && !self.rules.special {
            self.done.special_skipped += 1;
            return Ok(());
        }
        let parent_path = parent;
        let parent = self.parent(parent_path)?;
        let name = c_string(name);
        if let Kind::Symlink(target) = &member.kind
            && self.rules.links == SymlinkRule::Inside
            && !self.stays_inside(parent_path, target)
        {
            self.done.links_skipped += 1;
            return Ok(());
        }
        match &member.kind {
            Kind::Directory => Ok(self.directory(path, &parent, &name, member)?),
            Kind::HardLink(target) => self.hard_link(parent_path, &parent, &name, target),
            Kind::File(extent) => self.replace(&parent, &name, |placer, temporary| {
                let made = file(&parent, temporary, extent, reader)?;
                Ok(placer.set_metadata(made.as_fd(), member)?)
            }),
            Kind::Symlink(_) | Kind::CharacterDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => self
                .replace(&parent, &name, |placer, temporary| {
                    make_special(&parent, temporary, &member.kind)?;
                    let made = reopen(&parent, temporary, &member.kind)?;
                    Ok(placer.set_metadata(made.as_fd(), member)?)
                }),
        }
    }

    /// Finishes the remaining directories. An error has the name of the directory.
    pub(crate) fn finish(mut self) -> Result<Unpacked, (Vec<u8>, PlaceError)> {
        while let Some(directory) = self.unfinished.pop() {
            self.complete(directory)?;
        }
        Ok(self.done)
    }

    /// Finishes the directories that do not contain a path.
    fn finish_all_but_parents(&mut self, path: &[u8]) -> Result<(), (Vec<u8>, PlaceError)> {
        let is_below = |dir: &[u8]| path.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'));
        while let Some(directory) = self.unfinished.pop_if(|last| !is_below(&last.path)) {
            self.complete(directory)?;
        }
        Ok(())
    }

    fn complete(&mut self, directory: Unfinished) -> Result<(), (Vec<u8>, PlaceError)> {
        self.set(directory.dir.as_fd(), &directory.meta, &directory.attributes, true)
            .map_err(|error| (directory.path, error))
    }

    /// Opens the parent directory of a path; creates missing directories.
    fn parent(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, PlaceError> {
        if let Some((last, dir)) = &self.last_parent
            && last == path
        {
            return Ok(Rc::clone(dir));
        }
        let known = self.unfinished.iter().rev().find(|directory| directory.path == path);
        let dir = match known {
            Some(directory) => Rc::clone(&directory.dir),
            None => self.open_or_make(path)?,
        };
        self.last_parent = Some((path.to_vec(), Rc::clone(&dir)));
        Ok(dir)
    }

    fn open_or_make(&self, path: &[u8]) -> Result<Rc<OwnedFd>, PlaceError> {
        match self.resolve(path) {
            Err(Errno::NOENT) => {}
            opened => return opened.map_err(on_the_way),
        }
        let mut dir = self.resolve(b"").map_err(on_the_way)?;
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in ends.chain([path.len()]) {
            let (_, name) = split(&path[..end]).expect("a part of a path has a name");
            dir = match self.resolve(&path[..end]) {
                Err(Errno::NOENT) => {
                    match mkdirat(&dir, c_string(name), PARENT_MODE) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(errno) => return Err(system("make its parent directory")(errno)),
                    }
                    self.resolve(&path[..end]).map_err(on_the_way)?
                }
                opened => opened.map_err(on_the_way)?,
            };
        }
        Ok(dir)
    }

    /// Opens a directory below the destination. Links in the path are followed within the destination.
    fn resolve(&self, path: &[u8]) -> Result<Rc<OwnedFd>, Errno> {
        let path = if path.is_empty() { c".".to_owned() } else { c_string(path) };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = || openat2(self.root, &path, flags, Mode::empty(), self.resolve);
        // The kernel cannot tell whether a path stays inside while others rename parts of it.
        for _ in 1..RESOLVE_TRIES {
            match open() {
                Err(Errno::AGAIN | Errno::INTR) => {}
                opened => return opened.map(Rc::new),
            }
        }
        open().map(Rc::new)
    }

    fn directory(
        &mut self,
        path: Vec<u8>,
        parent: &OwnedFd,
        name: &CStr,
        member: &Member,
    ) -> Result<(), PlaceError> {
        let len = |(name, value): &Attribute| name.len() + value.len();
        let above = self.unfinished.iter().flat_map(|directory| &directory.attributes);
        if above.chain(&member.attributes).map(len).sum::<usize>() > WAITING_ATTRIBUTES_LIMIT {
            return Err(PlaceError::AttributesTooLarge);
        }
        match mkdirat(parent, name, UNFINISHED_MODE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(system("make the directory")(errno)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(parent, name, flags, Mode::empty()) {
            Ok(dir) => {
                let dir = Rc::new(dir);
                self.last_parent = Some((path.clone(), Rc::clone(&dir)));
                let attributes = member.attributes.clone();
                self.unfinished.push(Unfinished { path, dir, meta: member.meta, attributes });
                Ok(())
            }
            // A link to a directory (`/lib` of a merged system) serves as one, and stays what it is.
            Err(Errno::LOOP | Errno::NOTDIR) => {
                let dir = self.resolve(&path).map_err(|errno| match errno {
                    Errno::XDEV => PlaceError::LeadsOut,
                    _ => PlaceError::NoDirectoryThere,
                })?;
                self.last_parent = Some((path, dir));
                Ok(())
            }
            Err(errno) => Err(system("open the directory")(errno)),
        }
    }

    fn hard_link<E: Error + 'static>(
        &mut self,
        parent_path: &[u8],
        parent: &OwnedFd,
        name: &CStr,
        target: &[u8],
    ) -> Result<(), Failure<E>> {
        let target = normal(target)?;
        let (target_parent, target_name) = split(&target).ok_or(PlaceError::Destination)?;
        let target_parent = self.resolve(target_parent).map_err(on_the_way)?;
        let target_name = c_string(target_name);
        let is_missing =
            || matches!(statat(&target_parent, &target_name, AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT));
        if self.done.links_skipped > 0 && is_missing() {
            // A further name of a link that was left out.
            self.done.links_skipped += 1;
            return Ok(());
        }
        // A further name of a symbolic link may stand in another directory, from where the link leads elsewhere.
        if self.rules.links == SymlinkRule::Inside
            && let Ok(text) = readlinkat(&target_parent, &target_name, Vec::new())
            && !self.stays_inside(parent_path, text.as_bytes())
        {
            self.done.links_skipped += 1;
            return Ok(());
        }
        self.replace(parent, name, |_, temporary| {
            linkat(&target_parent, &target_name, parent, temporary, AtFlags::empty())
                .map_err(|errno| system("link it to the file that it names")(errno).into())
        })
    }

    /// Whether the target of a link is below the first directory of the stream. Names in the target can be links
    /// themselves, which are checked in the same way. `..` is accepted only after directories, which no later link
    /// replaces. So later entries do not change the answer.
    fn stays_inside(&self, directory: &[u8], target: &[u8]) -> bool {
        let mut parts = target.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
        let up = parts.by_ref().take_while(|part| *part == b"..").count();
        if target.first() == Some(&b'/') || parts.any(|part| part == b"..") {
            return false;
        }
        let end = directory.iter().position(|byte| *byte == b'/').unwrap_or(directory.len());
        let (first, below) = directory.split_at(end);
        if first.is_empty() {
            return false;
        }
        let path = [b".", below, "/..".repeat(up).as_bytes()].concat();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let bound = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        self.resolve(first)
            .and_then(|first| openat2(&first, c_string(&path), flags, Mode::empty(), bound))
            .is_ok()
    }

    /// Creates a file under a temporary name with `make` and renames it. A failure leaves no file.
    fn replace<E: Error + 'static>(
        &mut self,
        parent: &OwnedFd,
        name: &CStr,
        mut make: impl FnMut(&mut Placer<'a>, &CStr) -> Result<(), Failure<E>>,
    ) -> Result<(), Failure<E>> {
        for _ in 0..NAME_TRIES {
            let temporary = temporary_name();
            let placed = match make(self, &temporary) {
                Err(error) if error.is_taken_name() => continue,
                made => made.and_then(|()| {
                    renameat(parent, &temporary, parent, name).map_err(|errno| match errno {
                        Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST => PlaceError::DirectoryThere.into(),
                        errno => system("give it its name")(errno).into(),
                    })
                }),
            };
            // After a success it is there only if both names were the same file's already.
            let _ = unlinkat(parent, &temporary, AtFlags::empty());
            return placed;
        }
        Err(system("find a name for it while it is written")(Errno::EXIST).into())
    }

    /// Sets owner, attributes, mode and time of a new file.
    fn set_metadata(&mut self, made: BorrowedFd<'_>, member: &Member) -> Result<(), PlaceError> {
        let has_mode = !matches!(member.kind, Kind::Symlink(_));
        self.set(made, &member.meta, &member.attributes, has_mode)
    }

    /// The order matters: a change of the owner clears capabilities and set-id bits, and a change of an access list
    /// changes the mode.
    fn set(
        &mut self,
        fd: BorrowedFd<'_>,
        meta: &Meta,
        attributes: &[Attribute],
        has_mode: bool,
    ) -> Result<(), PlaceError> {
        if self.rules.owners {
            let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
            chownat(fd, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH).map_err(system("set its owner"))?;
        }
        // Through this path the calls reach what is open, whatever its name stands for by now.
        let path = by_number(fd);
        for (name, value) in attributes {
            if !self.rules.all_attributes && !name.starts_with(b"user.") {
                self.done.attributes_dropped += 1;
                continue;
            }
            match setxattr(&path, name.as_slice(), value, XattrFlags::empty()) {
                Ok(()) => {}
                // No such attributes on this file system, or on this kind of file.
                Err(Errno::NOTSUP | Errno::PERM) => self.done.attributes_dropped += 1,
                Err(errno) => {
                    let name = name.escape_ascii().to_string();
                    return Err(PlaceError::Attribute { name, source: errno.into() });
                }
            }
        }
        if has_mode {
            // Set-id bits mean somebody else's rights where the owner is not the stream's.
            let bits = if self.rules.owners { 0o7777 } else { 0o1777 };
            chmod(&path, Mode::from_raw_mode((meta.mode & bits).into())).map_err(system("set its mode"))?;
        }
        let (tv_sec, nanoseconds) = meta.mtime;
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec, tv_nsec: nanoseconds.into() },
        };
        utimensat(CWD, &path, &times, AtFlags::empty()).map_err(system("set its time"))
    }
}

/// Returns a name without empty parts and dots; absolute names are relative to the destination.
fn normal(name: &[u8]) -> Result<Vec<u8>, PlaceError> {
    let mut path = Vec::with_capacity(name.len());
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(PlaceError::Climbs),
            part => {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(part);
            }
        }
    }
    Ok(path)
}

/// Splits off the last part of a normalized path; an empty path has none.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    Some(match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    })
}

fn c_string(name: &[u8]) -> CString {
    CString::new(name).expect("the reader refuses names with NUL")
}

fn temporary_name() -> CString {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    let name = format!(".microagent-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    CString::new(name).expect("a number has no NUL")
}

/// Converts an error of opening a parent directory.
fn on_the_way(errno: Errno) -> PlaceError {
    match errno {
        Errno::XDEV => PlaceError::LeadsOut,
        Errno::NOTDIR => PlaceError::NoDirectoryAbove,
        errno => system("open its directory")(errno),
    }
}

/// Creates a file with its content.
fn file<S: Source>(
    parent: &OwnedFd,
    name: &CStr,
    extent: &Extent,
    reader: &mut Reader<Feed<S>>,
) -> Result<OwnedFd, Failure<S::Error>> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = openat(parent, name, flags, Mode::RUSR | Mode::WUSR).map_err(system("make the file"))?;
    let whole = [(0, extent.size)];
    for (offset, len) in extent.parts.as_deref().unwrap_or(&whole) {
        let mut at = *offset;
        let written = reader.data(*len, |bytes| {
            write_at(&made, bytes, at).map_err(FeedError::Write)?;
            at += bytes.len() as u64;
            Ok(())
        });
        written.map_err(Failure::Stream)?;
    }
    if extent.parts.is_some() {
        ftruncate(&made, extent.size).map_err(system("set its size"))?;
    }
    Ok(made)
}

fn write_at(file: &OwnedFd, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = retry_on_intr(|| pwrite(file, bytes, at))?;
        bytes = &bytes[count..];
        at += count as u64;
    }
    Ok(())
}

/// Creates a link, a device or a FIFO.
fn make_special(parent: &OwnedFd, name: &CStr, kind: &Kind<Extent>) -> Result<(), PlaceError> {
    let mode = Mode::RUSR | Mode::WUSR;
    match kind {
        Kind::Symlink(target) => symlinkat(c_string(target), parent, name),
        Kind::CharacterDevice { major, minor } => {
            mknodat(parent, name, FileType::CharacterDevice, mode, makedev(*major, *minor))
        }
        Kind::BlockDevice { major, minor } => {
            mknodat(parent, name, FileType::BlockDevice, mode, makedev(*major, *minor))
        }
        Kind::Fifo => mknodat(parent, name, FileType::Fifo, mode, 0),
        Kind::File(_) | Kind::Directory | Kind::HardLink(_) => {
            unreachable!("these are made in their own ways")
        }
    }
    .map_err(system("make it"))
}

/// Opens a new file to set its attributes. A process with write access to the directory could have replaced it by
/// now, so a file with several hard links is refused.
fn reopen(parent: &OwnedFd, name: &CStr, kind: &Kind<Extent>) -> Result<OwnedFd, PlaceError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = openat(parent, name, flags, Mode::empty()).map_err(system("open it again"))?;
    let found = fstat(&made).map_err(system("look at it"))?;
    let wanted = match kind {
        Kind::Symlink(_) => FileType::Symlink,
        Kind::CharacterDevice { .. } => FileType::CharacterDevice,
        Kind::BlockDevice { .. } => FileType::BlockDevice,
        _ => FileType::Fifo,
    };
    if FileType::from_raw_mode(found.st_mode) != wanted || found.st_nlink != 1 {
        return Err(PlaceError::Exchanged);
    }
    Ok(made)
}
