//! One advisory lock per thing that two commands must not do at once.
//!
//! A lock is a `flock(2)` on a file of its own, opened close-on-exec so that no child holds it, and
//! released by the kernel when its holder dies. A lock file may lie inside a directory that its holder
//! removes: whoever gets a lock makes sure that the file still has that name, so two holders never lock
//! two files of one name.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::open::{Access, open_file};

/// How often a waiting lock looks again: short against any wait a person notices.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// How often a lock file may be replaced under us before that counts as being held.
const REPLACED_ATTEMPTS: usize = 16;

/// A held lock; dropping it (or dying) releases it.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another process holds it; trying again later can help.
    #[error("`{}` is locked by another process", path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
    },
    /// The lock file could not be opened or locked.
    #[error("cannot lock `{}`", path.display())]
    Open {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Lock {
    /// Takes the lock now or fails with [`LockError::Held`].
    ///
    /// # Errors
    /// Fails when another process holds it or the file cannot be opened.
    pub fn try_exclusive(path: &Path) -> Result<Lock, LockError> {
        Self::take(path, FlockOperation::NonBlockingLockExclusive)
    }

    /// Takes the lock together with other readers, now or not at all.
    ///
    /// # Errors
    /// Fails when a writer holds it or the file cannot be opened.
    pub fn try_shared(path: &Path) -> Result<Lock, LockError> {
        Self::take(path, FlockOperation::NonBlockingLockShared)
    }

    /// Takes the lock, waiting at most `patience` for the present holder. Blocks the thread.
    ///
    /// # Errors
    /// Fails with [`LockError::Held`] when the time is up.
    pub fn exclusive(path: &Path, patience: Duration) -> Result<Lock, LockError> {
        wait(patience, || Self::try_exclusive(path))
    }

    /// Takes the lock together with other readers, waiting at most `patience`. Blocks the thread.
    ///
    /// # Errors
    /// Fails with [`LockError::Held`] when the time is up.
    pub fn shared(path: &Path, patience: Duration) -> Result<Lock, LockError> {
        wait(patience, || Self::try_shared(path))
    }

    fn take(path: &Path, operation: FlockOperation) -> Result<Lock, LockError> {
        let open = |source| LockError::Open { path: path.to_owned(), source };
        for _ in 0..REPLACED_ATTEMPTS {
            let file = Self::open(path).map_err(open)?;
            match flock(&file, operation) {
                Ok(()) if still_named(&file, path).map_err(open)? => return Ok(Lock { _file: file }),
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(LockError::Held { path: path.to_owned() }),
                Err(errno) => return Err(open(errno.into())),
            }
        }
        Err(LockError::Held { path: path.to_owned() })
    }

    fn open(path: &Path) -> io::Result<File> {
        open_file(path, Access::ModifyOrCreate)
    }
}

fn still_named(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match path.symlink_metadata() {
        Ok(named) => Ok((held.dev(), held.ino()) == (named.dev(), named.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

fn wait(patience: Duration, mut attempt: impl FnMut() -> Result<Lock, LockError>) -> Result<Lock, LockError> {
    let deadline = Instant::now() + patience;
    loop {
        match attempt() {
            Err(LockError::Held { .. }) if Instant::now() < deadline => sleep(POLL_INTERVAL),
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = Lock::try_exclusive(&path).unwrap();
        assert!(matches!(Lock::try_exclusive(&path), Err(LockError::Held { .. })));
        assert!(matches!(Lock::exclusive(&path, Duration::from_millis(20)), Err(LockError::Held { .. })));
        drop(held);
        Lock::try_exclusive(&path).unwrap();
    }

    #[test]
    fn a_removed_directory_gives_an_error_and_not_a_lock() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("thing");
        std::fs::create_dir(&home).unwrap();
        let _held = Lock::try_exclusive(&home.join("lock")).unwrap();
        std::fs::remove_dir_all(&home).unwrap();
        assert!(matches!(Lock::try_exclusive(&home.join("lock")), Err(LockError::Open { .. })));
    }

    #[test]
    fn readers_share_and_keep_a_writer_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let (_a, _b) = (Lock::try_shared(&path).unwrap(), Lock::try_shared(&path).unwrap());
        assert!(matches!(Lock::try_exclusive(&path), Err(LockError::Held { .. })));
    }
}
