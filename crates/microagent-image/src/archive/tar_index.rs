//! Where the entries of a tar lie, so that each can be read without the others.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use microagent_store::{Access, open_file};
use tar::{Archive, EntryType};

use super::{ArchiveError, read_error};

/// Most entries of an archive of images; each image has a few hundred at most.
const ENTRIES_MAX: usize = 100_000;
/// Most links from one name to the next.
const LINKS_MAX: usize = 8;

/// The entries of a tar by name, `./` and `/` in front left out.
pub(super) struct TarIndex {
    file: Arc<File>,
    entries: HashMap<String, Node>,
}

enum Node {
    File { offset: u64, size: u64 },
    Link { target: String },
}

/// Reads one entry; several may be read at once.
struct EntryReader {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for EntryReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..most], self.offset)?;
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

impl TarIndex {
    /// Opens a file that may be a tar.
    pub(super) fn open_file(path: &Path) -> Result<File, ArchiveError> {
        open_file(path, Access::ReadFollowing).map_err(|source| match source.kind() {
            io::ErrorKind::InvalidInput | io::ErrorKind::IsADirectory => {
                ArchiveError::WrongKind { kind: "archive", missing: "a tar file".to_owned() }
            }
            _ => ArchiveError::Open { source },
        })
    }

    /// Walks the headers of a tar.
    pub(super) fn of(mut file: File) -> Result<TarIndex, ArchiveError> {
        file.rewind().map_err(|source| ArchiveError::Tar { source })?;
        let mut entries = HashMap::new();
        let tar = |source| ArchiveError::Tar { source };
        let mut archive = Archive::new(&file);
        for entry in archive.entries_with_seek().map_err(tar)? {
            let entry = entry.map_err(tar)?;
            if entries.len() == ENTRIES_MAX {
                return Err(ArchiveError::TooManyEntries { limit: ENTRIES_MAX });
            }
            let name = plain(&entry.path_bytes());
            let target =
                || entry.link_name_bytes().map(|target| String::from_utf8_lossy(&target).into_owned());
            let node = match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => {
                    Some(Node::File { offset: entry.raw_file_position(), size: entry.size() })
                }
                EntryType::Symlink => target().map(|target| Node::Link { target: beside(&name, &target) }),
                EntryType::Link => target().map(|target| Node::Link { target: plain(target.as_bytes()) }),
                _ => None,
            };
            if let Some(node) = node {
                entries.insert(name, node);
            }
        }
        Ok(TarIndex { file: Arc::new(file), entries })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Opens an entry; gives its size too.
    pub(super) fn open_entry(&self, name: &str) -> Result<(Box<dyn Read + Send>, u64), ArchiveError> {
        let missing = || read_error(name, io::ErrorKind::NotFound.into());
        let (offset, size) = self.find(name).ok_or_else(missing)?;
        Ok((Box::new(EntryReader { file: self.file.clone(), offset, left: size }), size))
    }

    fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = plain(name.as_bytes());
        for _ in 0..LINKS_MAX {
            match self.entries.get(&name)? {
                Node::File { offset, size } => return Some((*offset, *size)),
                Node::Link { target } => name.clone_from(target),
            }
        }
        None
    }
}

/// A name without what changes nothing about it.
fn plain(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    let parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    parts.join("/")
}

/// Where a symbolic link beside `name` points to, as a name from the root of the tar.
fn beside(name: &str, target: &str) -> String {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    if target.starts_with('/') {
        parts.clear();
    }
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Result<TarIndex, ArchiveError> {
        TarIndex::of(TarIndex::open_file(path)?)
    }

    #[test]
    fn follows_links_inside_the_tar() {
        for (name, target, expected) in [
            ("id/layer.tar", "../sum.tar", "sum.tar"),
            ("id/layer.tar", "sum.tar", "id/sum.tar"),
            ("a/b/c", "../../../../d", "d"),
            ("a/b", "/x/y", "x/y"),
        ] {
            assert_eq!(beside(name, target), expected);
        }
        assert_eq!(plain(b"./blobs//sha256/x"), "blobs/sha256/x");
    }

    #[test]
    fn reads_entries_and_survives_a_link_that_points_to_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar");
        let mut builder = tar::Builder::new(File::create(&path).unwrap());
        let mut add = |name: &str, kind: EntryType, link: Option<&str>, data: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            if let Some(link) = link {
                header.set_link_name(link).unwrap();
            }
            header.set_cksum();
            builder.append_data(&mut header, name, data).unwrap();
        };
        add("./a/file", EntryType::Regular, None, b"hello");
        add("a/link", EntryType::Symlink, Some("file"), b"");
        add("hard", EntryType::Link, Some("a/file"), b"");
        add("loop", EntryType::Symlink, Some("loop"), b"");
        builder.into_inner().unwrap();

        let index = open(&path).unwrap();
        for name in ["a/file", "a/link", "hard"] {
            let (mut reader, size) = index.open_entry(name).unwrap();
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!((text.as_str(), size), ("hello", 5), "{name}");
        }
        assert!(!index.has("loop"));
        assert!(index.open_entry("missing").is_err());
    }

    #[test]
    fn names_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, [b'x'; 1024]).unwrap();
        assert!(matches!(open(&path), Err(ArchiveError::Tar { .. })));
        assert!(matches!(open(dir.path()), Err(ArchiveError::WrongKind { .. })));
        assert!(matches!(open(&dir.path().join("none")), Err(ArchiveError::Open { .. })));
    }
}
