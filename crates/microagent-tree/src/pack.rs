//! Packs files into a tar stream, in pieces of limited size.
//!
//! Directories are opened relative to their parent, so paths of any length work. Links below the start are not
//! followed. File systems of the kernel below the start are packed as empty directories. Sockets are omitted, because
//! a tar stream cannot contain them.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use microagent_tar::write::{header, padding, sparse_header};
use microagent_tar::{Attribute, BLOCK, Entry, Kind, Meta, shown};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, fstatfs, getxattr, lgetxattr, listxattr,
    llistxattr, major, minor, openat, readlinkat, statat,
};
use rustix::io::Errno;

use crate::holes;

/// Longest piece of a stream, in bytes.
pub const PIECE_LIMIT: usize = 64 * 1024;

/// The kernel's limit for a list of attribute names and for a value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const ATTRIBUTE_LIMIT: usize = 65_536;

/// Magic numbers of file systems whose files are made by the kernel (linux/magic.h): proc, sysfs, cgroup2, devpts,
/// mqueue, debugfs, tracefs, securityfs, bpf, configfs, binfmt_misc.
const KERNEL_FILE_SYSTEMS: [u32; 11] = [
    0x9fa0,
    0x6265_6572,
    0x6367_7270,
    0x1cd1,
    0x1980_0202,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xcafe_4a11,
    0x6265_6570,
    0x4249_4e4d,
];

/// Most bytes of a file whose content the kernel makes as it is read. Its size is not known before.
const MADE_LIMIT: usize = 8 << 20;

/// Why packing stopped.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A file or directory cannot be opened. Nothing of it was packed.
    #[error("cannot read `{path}`")]
    Open {
        /// Its path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A file or directory cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// Its path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The receiver accepts no more pieces.
    #[error("nobody takes the pieces")]
    Unwanted,
}

impl PackError {
    /// Names a file by where it is, and not by its name in the stream, which begins with `name` instead of `start`.
    fn found_at(self, name: &[u8], start: &CStr) -> PackError {
        let start = shown(start.to_bytes());
        let found = |path: String| match path.strip_prefix(&shown(name)) {
            Some("") => start.clone(),
            Some(rest) if rest.starts_with('/') => {
                format!("{}{rest}", start.strip_suffix("/.").unwrap_or(&start).trim_end_matches('/'))
            }
            _ => path,
        };
        match self {
            PackError::Open { path, source } => PackError::Open { path: found(path), source },
            PackError::Read { path, source } => PackError::Read { path: found(path), source },
            PackError::Unwanted => PackError::Unwanted,
        }
    }
}

/// Splits a stream into pieces of at most [`PIECE_LIMIT`] bytes and passes them on.
pub struct Pieces {
    buffer: Vec<u8>,
    take: Box<dyn FnMut(Vec<u8>) -> bool + Send>,
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pieces").field("waiting", &self.buffer.len()).finish_non_exhaustive()
    }
}

impl Pieces {
    /// Passes pieces to `take`, which may block, and returns whether it accepts more.
    pub fn new(take: impl FnMut(Vec<u8>) -> bool + Send + 'static) -> Pieces {
        Pieces { buffer: Vec::with_capacity(PIECE_LIMIT), take: Box::new(take) }
    }

    /// Passes bytes on.
    ///
    /// # Errors
    /// Fails if the receiver accepts no more.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), PackError> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE_LIMIT - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == PIECE_LIMIT {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Passes on what is left.
    ///
    /// # Errors
    /// As [`Pieces::write`].
    pub fn end(mut self) -> Result<(), PackError> {
        if self.buffer.is_empty() { Ok(()) } else { self.flush() }
    }

    fn zeros(&mut self, mut count: u64) -> Result<(), PackError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while count > 0 {
            let now = usize::try_from(count).unwrap_or(usize::MAX).min(ZEROS.len());
            self.write(&ZEROS[..now])?;
            count -= now as u64;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), PackError> {
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE_LIMIT));
        if (self.take)(piece) { Ok(()) } else { Err(PackError::Unwanted) }
    }
}

/// What is copied if the source of a copy is a symbolic link. Links below a source are always copied as links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SymlinkMode {
    /// The link.
    #[default]
    Keep,
    /// The target of the link.
    Follow,
}

/// Packs a file, or a directory with everything below it. Returns the number of omitted sockets.
///
/// `name` replaces `start` in the names of the stream. `links` decides what is packed if the start is a symbolic link.
///
/// # Errors
/// Fails if a file cannot be read or `pieces` accepts no more. Files that are removed during the walk are omitted.
pub fn pack(start: &CStr, name: &[u8], links: SymlinkMode, pieces: Pieces) -> Result<u64, PackError> {
    let follow = match links {
        SymlinkMode::Follow => AtFlags::empty(),
        SymlinkMode::Keep => AtFlags::SYMLINK_NOFOLLOW,
    };
    let mut walker = Walker::new(pieces);
    let failed = |errno: Errno| open_error(start.to_bytes(), errno);
    let stat = statat(CWD, start, follow).map_err(failed)?;
    let packed = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        let dir = openat(CWD, start, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed)?;
        walker.directory_tree(dir, name.to_vec())
    } else {
        walker.leaf(CWD, start, &stat, name.to_vec(), follow).map(drop)
    };
    packed.map_err(|error| error.found_at(name, start))?;
    let sockets = walker.sockets;
    walker.finish().map(|()| sockets)
}

/// Packs an open directory with everything below it, under this name. Returns the number of omitted sockets.
///
/// # Errors
/// As [`pack`].
pub fn pack_directory(dir: OwnedFd, name: &[u8], pieces: Pieces) -> Result<u64, PackError> {
    let mut walker = Walker::new(pieces);
    walker.directory_tree(dir, name.to_vec())?;
    let sockets = walker.sockets;
    walker.finish().map(|()| sockets)
}

/// Returns the last part of a path; `.` for the root and for paths that end in dots.
pub fn base_name(path: &[u8]) -> &[u8] {
    match path.split(|byte| *byte == b'/').rfind(|part| !part.is_empty()) {
        None | Some(b"." | b"..") => b".",
        Some(name) => name,
    }
}

/// A directory that is being packed.
#[derive(Debug)]
struct Level {
    dir: OwnedFd,
    path: Vec<u8>,
    device: u64,
    /// Remaining names, in reverse order.
    names: Vec<CString>,
}

/// Writes entries of a tar stream.
#[derive(Debug)]
pub struct Walker {
    pieces: Pieces,
    /// Device number of the kernel's `/dev`, which has the same magic number as any tmpfs.
    device_nodes: u64,
    /// First path of each file with several hard links.
    seen: BTreeMap<(u64, u64), Vec<u8>>,
    /// Device number of the last file, and whether the kernel makes its files.
    last_device: Option<(u64, bool)>,
    buffer: Vec<u8>,
    /// Number of omitted sockets.
    sockets: u64,
}

impl Walker {
    /// Writes entries to these pieces, with their owners and times.
    pub fn new(pieces: Pieces) -> Walker {
        let device_nodes = statat(CWD, c"/dev", AtFlags::empty()).map_or(0, |stat| stat.st_dev);
        let buffer = vec![0; PIECE_LIMIT];
        Walker { pieces, device_nodes, seen: BTreeMap::new(), last_device: None, buffer, sockets: 0 }
    }

    /// Ends the stream.
    pub fn finish(mut self) -> Result<(), PackError> {
        self.pieces.zeros(2 * BLOCK as u64)?;
        self.pieces.flush()
    }

    /// Writes an entry that the caller has made.
    pub fn write(&mut self, blocks: &[u8]) -> Result<(), PackError> {
        self.pieces.write(blocks)
    }

    fn directory_tree(&mut self, dir: OwnedFd, path: Vec<u8>) -> Result<(), PackError> {
        let mut levels = vec![self.enter(dir, path, None)?];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.pop() else {
                levels.pop();
                continue;
            };
            let path = [level.path.as_slice(), b"/", name.to_bytes()].concat();
            let failed = |errno| read_error(&path, errno);
            let stat = match statat(&level.dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // Removed since the directory was read.
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(failed(errno)),
            };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match openat(&level.dir, &name, flags, Mode::empty()) {
                    Ok(dir) => {
                        let outer = Some(level.device);
                        let inner = self.enter(dir, path, outer)?;
                        levels.push(inner);
                    }
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(errno) => return Err(open_error(&path, errno)),
                }
            } else {
                let dir = level.dir.as_fd();
                self.leaf(dir, &name, &stat, path, AtFlags::SYMLINK_NOFOLLOW)?;
            }
        }
        Ok(())
    }

    /// Writes a directory's header and reads its names, in order.
    fn enter(&mut self, dir: OwnedFd, path: Vec<u8>, outer: Option<u64>) -> Result<Level, PackError> {
        let failed = |errno| read_error(&path, errno);
        let stat = self.directory_header(&dir, &path)?;
        let mut names = Vec::new();
        let crosses = outer.is_some_and(|outer| outer != stat.st_dev);
        if !(crosses && (stat.st_dev == self.device_nodes || is_kernel_file_system(&dir))) {
            for found in Dir::read_from(&dir).map_err(failed)? {
                let name = found.map_err(failed)?.file_name().to_owned();
                if !matches!(name.to_bytes(), b"." | b"..") {
                    names.push(name);
                }
            }
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Level { dir, path, device: stat.st_dev, names })
    }

    /// Writes a directory's header and returns its metadata.
    pub fn directory_header(&mut self, dir: &OwnedFd, path: &[u8]) -> Result<Stat, PackError> {
        let stat = fstat(dir).map_err(|errno| read_error(path, errno))?;
        let attributes = attributes(&by_number(dir.as_fd()), AtFlags::empty());
        let path = [path, b"/"].concat();
        self.pieces.write(&header(&entry(path, Kind::Directory, &stat, attributes)))?;
        Ok(stat)
    }

    /// Writes anything but a directory. Returns the metadata that was written; `None` if the file is omitted.
    pub fn leaf(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
        path: Vec<u8>,
        follow: AtFlags,
    ) -> Result<Option<Stat>, PackError> {
        let inode = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1 {
            if let Some(first) = self.seen.get(&inode) {
                let kind = Kind::HardLink(first.clone());
                self.pieces.write(&header(&entry(path, kind, stat, Vec::new())))?;
                return Ok(Some(*stat));
            }
            self.seen.insert(inode, path.clone());
        }
        let device = || (major(stat.st_rdev), minor(stat.st_rdev));
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => return self.file(dir, name, path, follow),
            FileType::Symlink => match readlinkat(dir, name, Vec::new()) {
                Ok(target) => Kind::Symlink(target.into_bytes()),
                Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
                Err(errno) => return Err(read_error(&path, errno)),
            },
            FileType::CharacterDevice => {
                let (major, minor) = device();
                Kind::CharacterDevice { major, minor }
            }
            FileType::BlockDevice => {
                let (major, minor) = device();
                Kind::BlockDevice { major, minor }
            }
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => {
                self.sockets += 1;
                return Ok(None);
            }
            _ => return Ok(None),
        };
        let attributes = attributes(&at(dir, name), follow);
        self.pieces.write(&header(&entry(path, kind, stat, attributes)))?;
        Ok(Some(*stat))
    }

    /// Writes a file with its content. The size is that at the time of opening, even if the file changes.
    fn file(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        path: Vec<u8>,
        follow: AtFlags,
    ) -> Result<Option<Stat>, PackError> {
        let no_follow =
            if follow.contains(AtFlags::SYMLINK_NOFOLLOW) { OFlags::NOFOLLOW } else { OFlags::empty() };
        // Not to hang on a FIFO that has taken the file's place.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY | no_follow;
        let failed = |errno| open_error(&path, errno);
        let file = match openat(dir, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::LOOP) => return Ok(None),
            Err(errno) => return Err(failed(errno)),
        };
        let stat = fstat(&file).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        let attributes = attributes(&by_number(file.as_fd()), AtFlags::empty());
        let file = File::from(file);
        if self.is_made_by_kernel(&file, &stat) {
            let content = made_content(&file, &path)?;
            let len = content.len() as u64;
            self.pieces.write(&header(&entry(path, Kind::File(len), &stat, attributes)))?;
            self.pieces.write(&content)?;
            self.pieces.zeros(padding(len) as u64)?;
            return Ok(Some(stat));
        }
        let len = u64::try_from(stat.st_size).unwrap_or(0);
        let entry = entry(path.clone(), Kind::File(len), &stat, attributes);
        match holes::stored_parts(&file, &stat) {
            None => {
                self.pieces.write(&header(&entry))?;
                self.content(&file, &path, 0, len)?;
                self.pieces.zeros(padding(len) as u64)?;
            }
            Some(parts) => {
                self.pieces.write(&sparse_header(&entry, &parts))?;
                for (offset, len) in &parts {
                    self.content(&file, &path, *offset, *len)?;
                }
                self.pieces.zeros(padding(parts.iter().map(|part| part.1).sum()) as u64)?;
            }
        }
        Ok(Some(stat))
    }

    /// Whether the content of a file is made as it is read, so that its size says nothing.
    fn is_made_by_kernel(&mut self, file: &File, stat: &Stat) -> bool {
        match self.last_device {
            Some((device, made)) if device == stat.st_dev => made,
            _ => {
                let made = is_kernel_file_system(file);
                self.last_device = Some((stat.st_dev, made));
                made
            }
        }
    }

    /// Writes a part of a file; zeros if the file has become shorter.
    fn content(&mut self, file: &File, path: &[u8], mut offset: u64, len: u64) -> Result<(), PackError> {
        let mut left = len;
        while left > 0 {
            let most = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = match file.read_at(&mut self.buffer[..most], offset) {
                Ok(0) => break,
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(PackError::Read { path: shown(path), source }),
            };
            self.pieces.write(&self.buffer[..count])?;
            offset += count as u64;
            left -= count as u64;
        }
        self.pieces.zeros(left)
    }
}

/// Reads a file that the kernel makes, up to its end or until it would wait.
fn made_content(file: &File, path: &[u8]) -> Result<Vec<u8>, PackError> {
    let failed = |source| PackError::Open { path: shown(path), source };
    let mut content = Vec::new();
    // Some files take only whole records.
    let mut buffer = vec![0; PIECE_LIMIT];
    loop {
        match (&*file).read(&mut buffer) {
            Ok(0) => return Ok(content),
            Ok(count) if content.len() + count > MADE_LIMIT => {
                let most = format!(
                    "the kernel makes it as it is read, and it has more than {} MiB",
                    MADE_LIMIT >> 20
                );
                return Err(failed(io::Error::other(most)));
            }
            Ok(count) => content.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(content),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(failed(source)),
        }
    }
}

/// Returns an error about a path of which nothing was packed.
pub(crate) fn open_error(path: &[u8], errno: Errno) -> PackError {
    PackError::Open { path: shown(path), source: errno.into() }
}

/// Returns an error about a path.
pub fn read_error(path: &[u8], errno: Errno) -> PackError {
    PackError::Read { path: shown(path), source: errno.into() }
}

fn entry(name: Vec<u8>, kind: Kind<u64>, stat: &Stat, attributes: Vec<Attribute>) -> Entry<u64> {
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    let mode = u16::try_from(stat.st_mode & 0o7777).expect("masked to twelve bits");
    let meta = Meta { mode, uid: stat.st_uid, gid: stat.st_gid, mtime: (stat.st_mtime, nanoseconds) };
    Entry { name, kind, meta, attributes }
}

/// Whether the kernel makes the files of a directory: those of its own file systems, and of `/dev`.
pub(crate) fn is_made_by_kernel(dir: &OwnedFd, stat: &Stat) -> bool {
    is_kernel_file_system(dir)
        || statat(CWD, c"/dev", AtFlags::empty()).is_ok_and(|nodes| nodes.st_dev == stat.st_dev)
}

fn is_kernel_file_system(file: impl AsFd) -> bool {
    fstatfs(file).is_ok_and(|found| {
        u32::try_from(found.f_type).is_ok_and(|magic| KERNEL_FILE_SYSTEMS.contains(&magic))
    })
}

/// Returns a path that leads to the file of an open descriptor if it is followed.
pub fn by_number(fd: BorrowedFd<'_>) -> CString {
    let prefix = DESCRIPTORS.get().copied().unwrap_or("/proc/self/fd");
    CString::new(format!("{prefix}/{}", fd.as_raw_fd())).expect("a number has no NUL")
}

/// Directory of the process's own open descriptors; `/proc/self/fd` by default.
static DESCRIPTORS: OnceLock<&str> = OnceLock::new();

/// Sets the directory of the process's own open descriptors, for processes without a visible `/proc`: a path relative
/// to the working directory of the thread that packs or unpacks. To be called once, before any other function.
pub fn descriptors_are_in(path: &'static str) {
    DESCRIPTORS.get_or_init(|| path);
}

/// Returns a path to a name in an open directory.
fn at(dir: BorrowedFd<'_>, name: &CStr) -> CString {
    if dir.as_raw_fd() == CWD.as_raw_fd() {
        return name.to_owned();
    }
    let path = [by_number(dir).as_bytes(), b"/", name.to_bytes()].concat();
    CString::new(path).expect("parts without NUL")
}

/// Returns names and values of the extended attributes of a file; none if the file has been removed or its file
/// system has no attributes.
pub fn attributes(path: &CStr, follow: AtFlags) -> Vec<Attribute> {
    let follow = !follow.contains(AtFlags::SYMLINK_NOFOLLOW);
    let list = |buffer: &mut [u8]| if follow { listxattr(path, buffer) } else { llistxattr(path, buffer) };
    // Nearly all files have none, and those that have any have few.
    let mut names = vec![0; 256];
    let len = match list(&mut names) {
        Err(Errno::RANGE) => {
            names.resize(ATTRIBUTE_LIMIT, 0);
            list(&mut names)
        }
        found => found,
    };
    names.truncate(len.unwrap_or(0));
    if names.is_empty() {
        return Vec::new();
    }
    let mut value = vec![0; ATTRIBUTE_LIMIT];
    let names =
        names.split_inclusive(|byte| *byte == 0).filter_map(|name| CStr::from_bytes_with_nul(name).ok());
    names
        .filter_map(|name| {
            let get =
                if follow { getxattr(path, name, &mut value) } else { lgetxattr(path, name, &mut value) };
            Some((name.to_bytes().to_vec(), value[..get.ok()?].to_vec()))
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests;
