//! Files that are either old or new, never torn; reads that never exceed a bound.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::open::{Access, open_file};

/// Largest JSON record that is written and read back, in bytes; ours are a few kilobytes.
pub const RECORD_LIMIT: u64 = 4 * 1024 * 1024;

/// Why a file could not be replaced. The old content, if any, is still there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The new content could not be written beside the old.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file that was to be replaced.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The value is larger than what is read back from there.
    #[error("`{}` would be larger than {limit} bytes", path.display())]
    TooLarge {
        /// The file that was to be replaced.
        path: PathBuf,
        /// The bound, in bytes.
        limit: u64,
    },
    /// The value has no JSON form.
    #[error("cannot encode `{}`", path.display())]
    Encode {
        /// The file that was to be replaced.
        path: PathBuf,
        /// What the encoder said.
        source: serde_json::Error,
    },
}

impl WriteError {
    /// The system error underneath, if there is one (`ENOSPC` matters to callers).
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            WriteError::Write { source, .. } => Some(source),
            WriteError::TooLarge { .. } | WriteError::Encode { .. } => None,
        }
    }
}

impl From<WriteError> for io::Error {
    fn from(error: WriteError) -> io::Error {
        match error {
            WriteError::Write { source, .. } => source,
            other => io::Error::other(other),
        }
    }
}

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file could not be opened or read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is larger than anything that is written there.
    #[error("`{}` is larger than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound, in bytes.
        limit: u64,
    },
    /// The content is not what is written there.
    #[error("`{}` is damaged", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        source: serde_json::Error,
    },
}

impl ReadError {
    /// Whether the file simply is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, ReadError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// What a written file survives. Readers see the old content or the new one with both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// A loss of power: contents and name are flushed to the disk.
    Flushed,
    /// The death of any process: the host's kernel has the contents, and writes them when it wants.
    Cached,
}

/// Replaces `path` with `bytes`, mode 0600: temporary file, fsync, rename, fsync of the directory.
///
/// # Errors
/// Fails when any step fails; the old content is then still in place and no temporary file is left.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    write_atomic_as(path, bytes, Durability::Flushed)
}

/// The same, with this durability.
pub(crate) fn write_atomic_as(path: &Path, bytes: &[u8], durability: Durability) -> Result<(), WriteError> {
    replace(path, bytes, durability).map_err(|source| WriteError::Write { path: path.to_owned(), source })
}

fn replace(path: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".tmp-")
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(dir)?;
    file.write_all(bytes)?;
    if durability == Durability::Flushed {
        file.as_file().sync_all()?;
    }
    file.persist(path).map_err(|e| e.error)?;
    durability.flush_dir(dir)
}

impl Durability {
    /// Flushes the names in a directory, if they have to survive a loss of power.
    pub(crate) fn flush_dir(self, dir: &Path) -> io::Result<()> {
        match self {
            Durability::Flushed => fsync_dir(dir),
            Durability::Cached => Ok(()),
        }
    }
}

/// Makes the names in a directory durable.
///
/// # Errors
/// Fails when the directory cannot be opened or flushed.
pub fn fsync_dir(dir: &Path) -> io::Result<()> {
    // Of a type that opens without waiting.
    let flags = (OFlags::DIRECTORY | OFlags::NONBLOCK).bits() as i32;
    File::options().read(true).custom_flags(flags).open(dir)?.sync_all()
}

/// Replaces `path` with the JSON of `value`, as [`write_atomic`] does.
///
/// # Errors
/// As [`write_atomic`], and when the value has no JSON form or one that [`read_json`] would refuse.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), WriteError> {
    write_json_limited(path, value, RECORD_LIMIT, Durability::Flushed)
}

/// Replaces `path` with the JSON of `value`, of at most `limit` bytes.
///
/// # Errors
/// As [`write_json`].
pub(crate) fn write_json_limited<T: Serialize>(
    path: &Path,
    value: &T,
    limit: u64,
    durability: Durability,
) -> Result<(), WriteError> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|source| WriteError::Encode { path: path.to_owned(), source })?;
    bytes.push(b'\n');
    if bytes.len() as u64 > limit {
        return Err(WriteError::TooLarge { path: path.to_owned(), limit });
    }
    write_atomic_as(path, &bytes, durability)
}

/// Reads a JSON record of at most 4 MiB.
///
/// # Errors
/// Fails when the file is missing, larger than that, or not the JSON of a `T`.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ReadError> {
    read_json_limited(path, RECORD_LIMIT)
}

/// Reads a JSON record of at most `limit` bytes.
///
/// # Errors
/// As [`read_json`].
pub(crate) fn read_json_limited<T: DeserializeOwned>(path: &Path, limit: u64) -> Result<T, ReadError> {
    let bytes = read_limited(path, limit)?;
    serde_json::from_slice(&bytes).map_err(|source| ReadError::Decode { path: path.to_owned(), source })
}

/// Reads a JSON file that the user named, of at most 4 MiB; symbolic links lead to it as usual.
///
/// # Errors
/// As [`read_json`].
pub fn read_json_following<T: DeserializeOwned>(path: &Path) -> Result<T, ReadError> {
    let bytes = read_opened(path, Access::ReadFollowing, RECORD_LIMIT)?;
    serde_json::from_slice(&bytes).map_err(|source| ReadError::Decode { path: path.to_owned(), source })
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// Fails when the file is missing, unreadable, larger, or of another type.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    read_opened(path, Access::Read, limit)
}

/// Reads a regular file of the host's system, of at most `limit` bytes; symbolic links lead to it as usual.
///
/// # Errors
/// As [`read_limited`].
pub fn read_limited_following(path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    read_opened(path, Access::ReadFollowing, limit)
}

fn read_opened(path: &Path, access: Access, limit: u64) -> Result<Vec<u8>, ReadError> {
    let read = |source| ReadError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    open_file(path, access).map_err(read)?.take(limit + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > limit {
        return Err(ReadError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_content_and_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        write_atomic(&path, b"old").unwrap();
        write_atomic(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_failed_write_keeps_the_old_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::create_dir(&path).unwrap();
        assert!(write_atomic(&path, b"x").is_err());
        assert!(path.is_dir());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn nothing_is_written_that_would_not_be_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        // Quotes and a line feed come on top.
        let largest = "x".repeat(RECORD_LIMIT as usize - 3);
        write_json(&path, &largest).unwrap();
        let refused = write_json(&path, &format!("{largest}x")).unwrap_err();
        assert!(matches!(refused, WriteError::TooLarge { limit: RECORD_LIMIT, .. }));
        assert_eq!(read_json::<String>(&path).unwrap(), largest);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn refuses_what_is_too_large() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big");
        fs::write(&path, [0; 11]).unwrap();
        assert!(matches!(read_limited(&path, 10), Err(ReadError::TooLarge { .. })));
        assert_eq!(read_limited(&path, 11).unwrap().len(), 11);
    }
}
