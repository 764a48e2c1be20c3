//! Single files of a workspace, running or resting, held in memory: for programs that have no file of the host to copy.

use std::io::{self, Cursor, Read};

use jiff::Timestamp;
use microagent_proto::{Pack, PathKind, Request};
use microagent_tar::read::{Extent, ReadError, ReadSource, Reader};
use microagent_tar::write::{header, padding};
use microagent_tar::{BLOCK, Entry, Kind, Meta};

use super::Workspace;
use super::copy::{COPY_TIMEOUT, absolute, stat};
use crate::error::{ConnectionFault, InvalidRequest};
use crate::guest::GuestConnection;
use crate::{CopySource, Error, Progress, SymlinkMode};

/// Longest path that a guest's stream may have, as the kernel has it.
const PATH_LIMIT: usize = 4096;

/// The part of a file that [`Workspace::read_file`] reads. Create with [`FileRange::new`] and change with its methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileRange {
    /// Number of bytes at the beginning that are left out.
    pub offset: u64,
    /// Most bytes that are read.
    pub limit: usize,
}

impl FileRange {
    /// Creates a range of at most `limit` bytes from the beginning of the file.
    pub fn new(limit: usize) -> FileRange {
        FileRange { offset: 0, limit }
    }

    /// Sets the number of bytes at the beginning that are left out.
    #[must_use]
    pub fn offset(self, offset: u64) -> FileRange {
        FileRange { offset, ..self }
    }
}

/// A part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileContent {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Size of the whole file in bytes.
    pub size: u64,
}

impl Workspace {
    /// Reads a part of a regular file of the workspace, which is running or
    /// [resting](microagent_model::State::is_resting) (then its disk is booted). Symbolic links are followed. A relative
    /// path begins at `/`. The cost grows with the offset, because the guest sends the bytes before the part, too.
    ///
    /// # Errors
    /// Fails if the path does not exist ([`NotFound`](crate::ErrorKind::NotFound)) or is not a regular file
    /// ([`Invalid`](crate::ErrorKind::Invalid)), the guest cannot read it or be reached
    /// ([`RunFailed`](crate::ErrorKind::RunFailed)), or `progress` is cancelled.
    pub async fn read_file(
        &self,
        guest_path: &str,
        range: FileRange,
        progress: &Progress,
    ) -> Result<FileContent, Error> {
        let guest_path = absolute(guest_path);
        let limits = self.tar_limits(COPY_TIMEOUT)?;
        let guest = self.guest(progress).await?;
        let found = expect(&guest, &guest_path, PathKind::File, "a regular file").await;
        if let Err(error) = found {
            guest.leave().await?;
            return Err(error);
        }
        let request = Request::Pack(Pack { path: guest_path.into_bytes().into(), follow: true });
        let name = self.name.clone();
        let consume = move |stream| {
            let torn = |source| Error::GuestGone {
                workspace: name,
                source: ConnectionFault::Tar(io::Error::other(source)),
            };
            first_file(stream, range).map_err(torn)
        };
        guest.fetch_tar(&request, limits, consume, progress).await
    }

    /// Writes a file of the workspace, which is running or [resting](microagent_model::State::is_resting) (then its disk is
    /// booted), with this mode and root as its owner. Missing parent directories are created. A relative path begins at
    /// `/`. An existing file is replaced when the new one is complete.
    ///
    /// # Errors
    /// Fails if the path does not name a file, is a directory, the guest cannot write it or be reached, or `progress`
    /// is cancelled. Then an existing file is not changed.
    pub async fn write_file(
        &self,
        guest_path: &str,
        content: Vec<u8>,
        mode: u16,
        progress: &Progress,
    ) -> Result<(), Error> {
        let path = absolute(guest_path);
        let Some(name) = entry_name(&path) else {
            return Err(Error::Invalid(InvalidRequest::FilePath { path }));
        };
        let tar = tar_of(name.into_bytes(), content, mode);
        self.copy_in(CopySource::tar(tar), "/", progress).await
    }
}

/// Checks that a path of the guest leads to what is wanted, which `name` says with its article.
pub(super) async fn expect(
    guest: &GuestConnection,
    path: &str,
    kind: PathKind,
    name: &'static str,
) -> Result<(), Error> {
    match stat(guest, path, SymlinkMode::Follow).await? {
        Some(info) if info.kind == kind => Ok(()),
        Some(_) => Err(InvalidRequest::FileKind { path: path.to_owned(), wanted: name }.into()),
        None => Err(Error::GuestRefused {
            workspace: guest.name().clone(),
            not_found: true,
            message: format!("`{path}` does not exist"),
        }),
    }
}

/// The name, in a tar stream for the root directory, of the file at a path; `None` when it names none.
fn entry_name(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let is_name = |part: &&str| !matches!(*part, "." | "..") && !part.contains('\0');
    let names_file = !path.ends_with('/') && !parts.is_empty() && parts.iter().all(is_name);
    names_file.then(|| parts.join("/")).filter(|name| name.len() < PATH_LIMIT)
}

/// A tar stream of one file.
fn tar_of(name: Vec<u8>, content: Vec<u8>, mode: u16) -> impl Read + Send + 'static {
    let len = content.len() as u64;
    let mtime = (Timestamp::now().as_second(), 0);
    let meta = Meta { mode: mode & 0o7777, uid: 0, gid: 0, mtime };
    let header = header(&Entry { name, kind: Kind::File(len), meta, attributes: Vec::new() });
    let end = vec![0; padding(len) + 2 * BLOCK];
    Cursor::new(header).chain(Cursor::new(content)).chain(Cursor::new(end))
}

/// A part of the file that a tar stream begins with. The rest of the stream is not read.
fn first_file(stream: impl Read, range: FileRange) -> Result<FileContent, ReadError<io::Error>> {
    let mut reader = Reader::new(ReadSource::new(stream), PATH_LIMIT);
    let extent = match reader.next_member()? {
        Some(Entry { kind: Kind::File(extent), .. }) => extent,
        // It was a file when it was looked at.
        _ => return Err(ReadError::Malformed { what: "no regular file", after: Vec::new() }),
    };
    let Extent { size, parts } = extent;
    let end = range.offset.saturating_add(range.limit as u64).min(size);
    let wanted = usize::try_from(end.saturating_sub(range.offset)).unwrap_or(range.limit);
    let mut bytes = vec![0; wanted];
    for (start, len) in parts.unwrap_or_else(|| vec![(0, size)]) {
        if start >= end {
            break;
        }
        let mut at = start;
        let needed = len.min(end - start);
        reader.data(needed, |piece| {
            place(&mut bytes, range.offset, at, piece);
            at += piece.len() as u64;
            Ok(())
        })?;
    }
    Ok(FileContent { bytes, size })
}

/// Copies what lies in the part, which begins at `offset`, of a piece of the file that begins at `at`.
fn place(bytes: &mut [u8], offset: u64, at: u64, piece: &[u8]) {
    let skipped = usize::try_from(offset.saturating_sub(at)).unwrap_or(usize::MAX).min(piece.len());
    let piece = &piece[skipped..];
    let to = usize::try_from(at.saturating_sub(offset)).unwrap_or(usize::MAX).min(bytes.len());
    let count = piece.len().min(bytes.len() - to);
    bytes[to..to + count].copy_from_slice(&piece[..count]);
}

#[cfg(test)]
mod tests {
    use microagent_tar::write::sparse_header;

    use super::*;

    fn read(stream: impl Read, offset: u64, limit: usize) -> (String, u64) {
        let content = first_file(stream, FileRange::new(limit).offset(offset)).unwrap();
        (String::from_utf8(content.bytes).unwrap(), content.size)
    }

    #[test]
    fn a_part_of_a_file_is_read_wherever_it_lies() {
        let stream = || tar_of(b"srv/made".to_vec(), b"0123456789".to_vec(), 0o644);
        for (offset, limit, text) in [
            (0, 100, "0123456789"),
            (0, 3, "012"),
            (4, 3, "456"),
            (8, 5, "89"),
            (10, 5, ""),
            (99, 1, ""),
            (0, 0, ""),
        ] {
            assert_eq!(read(stream(), offset, limit), (text.to_owned(), 10), "{offset} {limit}");
        }
    }

    #[test]
    fn a_path_names_a_file_or_none() {
        assert_eq!(entry_name("/srv//a.py").as_deref(), Some("srv/a.py"));
        assert_eq!(entry_name("/.profile").as_deref(), Some(".profile"));
        for path in ["/", "/srv/", "/srv/.", "/srv/../etc/passwd", "/a\0b", "//", &"/x".repeat(PATH_LIMIT)] {
            assert_eq!(entry_name(path), None, "{path:?}");
        }
    }

    #[test]
    fn holes_are_zeros() {
        let entry = Entry {
            name: b"file".to_vec(),
            kind: Kind::File(10),
            meta: Meta { mode: 0o644, uid: 0, gid: 0, mtime: (0, 0) },
            attributes: Vec::new(),
        };
        let mut tar = sparse_header(&entry, &[(2, 2), (6, 3)]);
        tar.extend(b"abxyz");
        tar.resize(tar.len() + padding(5) + 2 * BLOCK, 0);
        assert_eq!(read(&tar[..], 0, 100), ("\0\0ab\0\0xyz\0".to_owned(), 10));
        assert_eq!(read(&tar[..], 3, 4), ("b\0\0x".to_owned(), 10));
    }

    #[test]
    fn a_stream_that_lies_is_an_error() {
        let tar = |len: usize| {
            let mut tar = Vec::new();
            tar_of(b"f".to_vec(), vec![b'x'; 1000], 0o644).read_to_end(&mut tar).unwrap();
            tar.truncate(len);
            tar
        };
        assert!(first_file(&tar(BLOCK + 10)[..], FileRange::new(1000)).is_err());
        assert!(first_file(&b""[..], FileRange::new(1000)).is_err());
        assert!(first_file(&tar(100)[..], FileRange::new(1000)).is_err());
    }
}
