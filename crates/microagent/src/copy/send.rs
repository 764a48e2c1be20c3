//! The host's side of a copy into a workspace: files of the host as a tar stream.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use microagent_proto::INPUT_CHUNK_LIMIT;
use microagent_tar::write::{header, padding};
use microagent_tar::{Attribute, BLOCK, Entry, Kind, Meta};
use rustix::fs::{lgetxattr, llistxattr};
use tokio::sync::mpsc;

use super::chunked;
use crate::Error;

/// Longest list of attribute names, and longest value, that the kernel knows (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const ATTRIBUTE_LIMIT: usize = 65_536;

/// Passes a tar stream on as it comes.
pub(super) fn pass_on(stream: impl Read, chunks: mpsc::Sender<Vec<u8>>) -> Result<(), Error> {
    chunked(stream, |bytes| chunks.blocking_send(bytes).is_ok()).map_err(|source| Error::File {
        action: "read",
        path: "standard input".into(),
        source,
    })
}

/// Packs a file or directory under this name; without one, the content of a directory.
pub(super) fn pack(
    path: &Path,
    follow: bool,
    name: Option<&str>,
    chunks: mpsc::Sender<Vec<u8>>,
) -> Result<(), Error> {
    let mut packer = Packer { buffer: Vec::new(), chunks, seen: BTreeMap::new() };
    let bytes = path.as_os_str().as_bytes();
    let follow = follow || bytes.ends_with(b"/") || bytes.ends_with(b"/.");
    let found = if follow { fs::metadata(path) } else { fs::symlink_metadata(path) };
    let found = found.map_err(|source| unreadable(path, source))?;
    // A link that is followed is packed as what it leads to.
    let path =
        if follow { fs::canonicalize(path).map_err(|e| unreadable(path, e))? } else { path.to_owned() };
    packer.tree(path, name.unwrap_or(".").as_bytes().to_vec(), found)?;
    packer.write(&[0; 2 * BLOCK])?;
    packer.flush()
}

fn unreadable(path: &Path, source: io::Error) -> Error {
    Error::File { action: "read", path: path.to_owned(), source }
}

struct Packer {
    buffer: Vec<u8>,
    chunks: mpsc::Sender<Vec<u8>>,
    /// Name of each file that has several.
    seen: BTreeMap<(u64, u64), Vec<u8>>,
}

impl Packer {
    /// Everything from a path on, each directory before what is in it.
    fn tree(&mut self, path: PathBuf, name: Vec<u8>, found: Metadata) -> Result<(), Error> {
        let mut todo = vec![(path, name, found)];
        while let Some((path, name, found)) = todo.pop() {
            if !found.is_dir() {
                self.leaf(&path, name, &found)?;
                continue;
            }
            let entry_name = [name.as_slice(), b"/"].concat();
            self.write(&header(&entry(&path, entry_name, Kind::Directory, &found)))?;
            let mut names = Vec::new();
            for inner in fs::read_dir(&path).map_err(|e| unreadable(&path, e))? {
                names.push(inner.map_err(|e| unreadable(&path, e))?.file_name());
            }
            names.sort_unstable_by(|a, b| b.cmp(a));
            for inner in names {
                let (path, name) = (path.join(&inner), [name.as_slice(), b"/", inner.as_bytes()].concat());
                match fs::symlink_metadata(&path) {
                    Ok(found) => todo.push((path, name, found)),
                    // Removed since the directory was read.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(unreadable(&path, error)),
                }
            }
        }
        Ok(())
    }

    /// Anything but a directory. Sockets are no files.
    fn leaf(&mut self, path: &Path, name: Vec<u8>, found: &Metadata) -> Result<(), Error> {
        let inode = (found.dev(), found.ino());
        if found.nlink() > 1 {
            if let Some(first) = self.seen.get(&inode) {
                let kind = Kind::HardLink(first.clone());
                return self.write(&header(&entry(path, name, kind, found)));
            }
            self.seen.insert(inode, name.clone());
        }
        let kind = found.file_type();
        let device = || (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()));
        let kind = if kind.is_file() {
            return self.file(path, name);
        } else if kind.is_symlink() {
            let target = fs::read_link(path).map_err(|e| unreadable(path, e))?;
            Kind::Symlink(OsString::from(target).into_vec())
        } else if kind.is_char_device() {
            let (major, minor) = device();
            Kind::CharacterDevice { major, minor }
        } else if kind.is_block_device() {
            let (major, minor) = device();
            Kind::BlockDevice { major, minor }
        } else if kind.is_fifo() {
            Kind::Fifo
        } else {
            return Ok(());
        };
        self.write(&header(&entry(path, name, kind, found)))
    }

    /// A file with its content: as long as it was when it was opened, whatever happens to it.
    fn file(&mut self, path: &Path, name: Vec<u8>) -> Result<(), Error> {
        let failed = |source| unreadable(path, source);
        let file = File::open(path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        let len = found.len();
        self.write(&header(&entry(path, name, Kind::File(len), &found)))?;
        let mut content = file.take(len);
        let mut buffer = vec![0; INPUT_CHUNK_LIMIT];
        loop {
            match content.read(&mut buffer).map_err(failed)? {
                0 => break,
                count => self.write(&buffer[..count])?,
            }
        }
        let mut missing = content.limit();
        while missing > 0 {
            let count = usize::try_from(missing).unwrap_or(usize::MAX).min(buffer.len());
            buffer[..count].fill(0);
            self.write(&buffer[..count])?;
            missing -= count as u64;
        }
        self.write(&[0; BLOCK][..padding(len)])
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(INPUT_CHUNK_LIMIT - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == INPUT_CHUNK_LIMIT {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// A guest that takes no more says why itself.
    fn flush(&mut self) -> Result<(), Error> {
        let bytes = std::mem::take(&mut self.buffer);
        self.chunks.blocking_send(bytes).map_err(|_| Error::Cancelled)
    }
}

fn entry(path: &Path, name: Vec<u8>, kind: Kind<u64>, found: &Metadata) -> Entry<u64> {
    let meta = Meta {
        mode: u16::try_from(found.mode() & 0o7777).expect("masked to twelve bits"),
        uid: found.uid(),
        gid: found.gid(),
        mtime: (found.mtime(), u32::try_from(found.mtime_nsec()).unwrap_or(0)),
    };
    let attributes = if matches!(kind, Kind::HardLink(_)) { Vec::new() } else { attributes(path) };
    Entry { name, kind, meta, attributes }
}

/// Extended attributes; a file system without any has none.
fn attributes(path: &Path) -> Vec<Attribute> {
    let mut names = vec![0; ATTRIBUTE_LIMIT];
    let len = llistxattr(path, &mut names).unwrap_or(0);
    names.truncate(len);
    let mut value = vec![0; if names.is_empty() { 0 } else { ATTRIBUTE_LIMIT }];
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .filter_map(|name| {
            let len = lgetxattr(path, name, &mut value).ok()?;
            Some((name.to_vec(), value[..len].to_vec()))
        })
        .collect()
}
