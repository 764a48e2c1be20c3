//! Where the entries of a tar lie, so that each can be read without the others.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use microagent_store::{Access, open_file};
use microagent_tar::Kind;
use microagent_tar::read::{ReadError, Reader, Source};

use super::{ArchiveError, read_error};

/// Most entries of an archive of images; each image has a few hundred at most.
const ENTRIES_MAX: usize = 100_000;
/// Most links from one name to the next.
const LINKS_MAX: usize = 8;
/// Longest name in an archive of images.
const PATH_MAX: usize = 4096;
/// Bytes that are read at once: a few headers. Contents are jumped over.
const READ_LEN: usize = 4096;

/// The entries of a tar by name, `./` and `/` in front left out.
pub(super) struct TarIndex {
    file: Arc<File>,
    entries: HashMap<String, Node>,
}

enum Node {
    File { offset: u64, size: u64 },
    Link { target: String },
}

/// A file that is read by headers.
struct Headers<'a> {
    file: &'a File,
    /// Of the first byte in the buffer that was not consumed.
    position: u64,
    buffer: [u8; READ_LEN],
    waiting: std::ops::Range<usize>,
}

impl Source for Headers<'_> {
    type Error = io::Error;

    fn fill(&mut self) -> io::Result<&[u8]> {
        if self.waiting.is_empty() {
            let count = self.file.read_at(&mut self.buffer, self.position)?;
            self.waiting = 0..count;
        }
        Ok(&self.buffer[self.waiting.clone()])
    }

    fn consume(&mut self, count: usize) {
        self.waiting.start += count;
        self.position += count as u64;
    }

    fn skip(&mut self, count: u64) -> io::Result<u64> {
        let held = self.waiting.len().min(usize::try_from(count).unwrap_or(usize::MAX));
        self.consume(held);
        let beyond = count - held as u64;
        self.position = self.position.checked_add(beyond).ok_or(io::ErrorKind::InvalidData)?;
        Ok(count)
    }
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
        match open_file(path, Access::ReadFollowing) {
            Ok(file) => Ok(file),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::IsADirectory) =>
            {
                Err(ArchiveError::WrongKind { kind: "an archive", missing: "a tar file".to_owned() })
            }
            Err(source) => Err(ArchiveError::Open { source }),
        }
    }

    /// Walks the headers of a tar.
    pub(super) fn of(file: File) -> Result<TarIndex, ArchiveError> {
        let tar = |source| ArchiveError::Tar { source };
        let len = file.metadata().map_err(tar)?.len();
        let headers = Headers { file: &file, position: 0, buffer: [0; READ_LEN], waiting: 0..0 };
        let mut reader = Reader::new(headers, PATH_MAX);
        let mut entries = HashMap::new();
        while let Some(member) = reader.next_member().map_err(|error| tar(in_words(error)))? {
            if entries.len() == ENTRIES_MAX {
                return Err(ArchiveError::TooManyEntries { limit: ENTRIES_MAX });
            }
            let name = plain(&member.name);
            let node = match member.kind {
                // A sparse file has no place where it can be read at once; images have none.
                Kind::File(extent) if extent.parts.is_none() => {
                    let (offset, size) = (reader.source().position, extent.size);
                    if offset.checked_add(size).is_none_or(|end| end > len) {
                        return Err(tar(io::ErrorKind::UnexpectedEof.into()));
                    }
                    Node::File { offset, size }
                }
                Kind::Symlink(target) => {
                    Node::Link { target: beside(&name, &String::from_utf8_lossy(&target)) }
                }
                Kind::HardLink(target) => Node::Link { target: plain(&target) },
                _ => continue,
            };
            entries.insert(name, node);
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

/// What the reader says, as an error of the file.
fn in_words(error: ReadError<io::Error>) -> io::Error {
    match error {
        ReadError::Source(error) => error,
        error => io::Error::new(io::ErrorKind::InvalidData, error),
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
    use microagent_tar::write::{header, padding};
    use microagent_tar::{Entry, Meta};
    use rustix::fs::{CWD, FileType, Mode, mknodat};

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
        let mut stream = Vec::new();
        let mut add = |name: &str, kind: Kind<u64>, data: &[u8]| {
            let meta = Meta { mode: 0o644, uid: 0, gid: 0, mtime: (0, 0) };
            let entry = Entry { name: name.as_bytes().to_vec(), kind, meta, attributes: Vec::new() };
            stream.extend(header(&entry));
            stream.extend_from_slice(data);
            stream.resize(stream.len() + padding(data.len() as u64), 0);
        };
        let large = vec![7; 3 * READ_LEN];
        add("large", Kind::File(large.len() as u64), &large);
        add("./a/file", Kind::File(5), b"hello");
        add("a/link", Kind::Symlink(b"file".to_vec()), b"");
        add("hard", Kind::HardLink(b"a/file".to_vec()), b"");
        add("loop", Kind::Symlink(b"loop".to_vec()), b"");
        add("last", Kind::File(large.len() as u64), &large);
        let cut = stream.len() - 1;
        stream.resize(stream.len() + 1024, 0);
        std::fs::write(&path, &stream).unwrap();

        let index = open(&path).unwrap();
        for name in ["a/file", "a/link", "hard"] {
            let (mut reader, size) = index.open_entry(name).unwrap();
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!((text.as_str(), size), ("hello", 5), "{name}");
        }
        for name in ["large", "last"] {
            let mut content = Vec::new();
            index.open_entry(name).unwrap().0.read_to_end(&mut content).unwrap();
            assert!(content == large, "{name}");
        }
        assert!(!index.has("loop"));
        assert!(index.open_entry("missing").is_err());
        std::fs::write(&path, &stream[..cut]).unwrap();
        assert!(matches!(open(&path), Err(ArchiveError::Tar { .. })), "its last entry is cut off");
    }

    #[test]
    fn names_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, [b'x'; 1024]).unwrap();
        assert!(matches!(open(&path), Err(ArchiveError::Tar { .. })));
        let fifo = dir.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(matches!(open(&fifo), Err(ArchiveError::WrongKind { .. })), "and nothing waits");
        assert!(matches!(open(dir.path()), Err(ArchiveError::WrongKind { .. })));
        assert!(matches!(open(&dir.path().join("none")), Err(ArchiveError::Open { .. })));
    }
}
