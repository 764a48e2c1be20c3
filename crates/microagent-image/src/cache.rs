//! The image cache: where its files lie, how they come to be there, who may touch them.
//!
//! ```text
//! images/
//! ├── lock               shared by whoever uses the cache, exclusive for delete and prune
//! ├── refs/KEY.json      one record per full reference and platform; written last
//! ├── blobs/sha256/HEX   manifests, configurations, layers as they came; complete and verified
//! ├── partial/HEX        downloads that were interrupted or are in progress
//! ├── disks/HEX.ext4     base disks, read-only, named by the chain of their layers
//! ├── disks/HEX.json     what the builder says about the disk
//! ├── scratch/           work files of disks being built
//! └── locks/             one lock per blob and disk that is being made
//! ```
//!
//! A file under its final name is whole: it was written elsewhere, flushed and renamed. A process that is
//! killed leaves files in `partial`, `scratch` and `locks` only; its locks end with it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use microagent_store::{Lock, LockError, StateDir, fsync_dir};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::digest::Digest;
use crate::error::ImageError;
use crate::progress::{ImageEvent, Progress};

/// How often a waiting command looks whether the other one has finished.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long delete and prune wait for commands that use the cache.
const EXCLUSIVE_PATIENCE: Duration = Duration::from_secs(2);
/// How long a command that uses the cache waits for delete and prune, which take moments.
const SHARED_PATIENCE: Duration = Duration::from_secs(60);

/// Paths and locks of the image cache.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    state: StateDir,
    root: PathBuf,
}

impl Cache {
    pub(crate) fn new(state: StateDir) -> Cache {
        let root = state.images();
        Cache { state, root }
    }

    /// Makes the directories that are missing.
    pub(crate) fn prepare(&self) -> Result<(), ImageError> {
        self.state.prepare().map_err(|source| ImageError::State { source })?;
        let dirs = [self.refs(), self.blobs(), self.partials(), self.disks(), self.scratch(), self.locks()];
        for dir in dirs {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(|source| ImageError::file("create", &dir, source))?;
        }
        Ok(())
    }

    pub(crate) fn state(&self) -> &StateDir {
        &self.state
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn refs(&self) -> PathBuf {
        self.root.join("refs")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    pub(crate) fn partials(&self) -> PathBuf {
        self.root.join("partial")
    }

    pub(crate) fn disks(&self) -> PathBuf {
        self.root.join("disks")
    }

    pub(crate) fn scratch(&self) -> PathBuf {
        self.root.join("scratch")
    }

    pub(crate) fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    pub(crate) fn partial(&self, digest: &Digest) -> PathBuf {
        self.partials().join(digest.hex())
    }

    pub(crate) fn disk(&self, id: &Digest) -> PathBuf {
        self.disks().join(format!("{}.ext4", id.hex()))
    }

    /// Whether a blob is here; its content was verified before it got its name.
    pub(crate) fn has_blob(&self, digest: &Digest, size: u64) -> bool {
        self.blob(digest)
            .symlink_metadata()
            .is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
    }

    /// Puts a small blob in place.
    pub(crate) fn put_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), ImageError> {
        if self.has_blob(digest, bytes.len() as u64) {
            return Ok(());
        }
        microagent_store::write_atomic(&self.blob(digest), bytes)
            .map_err(|source| ImageError::write(source, &self.blobs()))
    }

    /// Gives a finished file its final name: flushes it, renames it, flushes the directory. Blocks.
    pub(crate) fn publish(file: &File, from: &Path, to: &Path) -> Result<(), ImageError> {
        let published = (|| {
            file.sync_all()?;
            fs::rename(from, to)?;
            fsync_dir(to.parent().unwrap_or(Path::new(".")))
        })();
        published.map_err(|source| ImageError::file("store", to, source))
    }

    /// Joins the users of the cache, at once or not at all; `None` while somebody removes things.
    pub(crate) fn try_use(&self) -> Result<Option<Lock>, ImageError> {
        match Lock::try_shared(&self.root.join("lock")) {
            Ok(lock) => Ok(Some(lock)),
            Err(LockError::Held { .. }) => Ok(None),
            Err(source) => Err(ImageError::Lock { source }),
        }
    }

    /// Joins the users of the cache for a moment's work. Blocks while somebody removes things.
    pub(crate) fn share(&self) -> Result<Lock, ImageError> {
        match Lock::shared(&self.root.join("lock"), SHARED_PATIENCE) {
            Ok(lock) => Ok(lock),
            Err(LockError::Held { .. }) => Err(ImageError::Busy { what: "removing images".to_owned() }),
            Err(source) => Err(ImageError::Lock { source }),
        }
    }

    /// Joins the users of the cache, waiting for delete and prune.
    pub(crate) async fn join(&self, waiting: &LockWait<'_>) -> Result<Lock, ImageError> {
        let path = self.root.join("lock");
        let waiting = LockWait { patience: waiting.patience.min(SHARED_PATIENCE), ..*waiting };
        waiting.until("removing images", || Lock::try_shared(&path)).await
    }

    /// Takes the lock on making a blob or disk, waiting for the command that makes it now.
    pub(crate) async fn make(
        &self,
        what: &str,
        digest: &Digest,
        waiting: &LockWait<'_>,
    ) -> Result<Lock, ImageError> {
        let path = self.locks().join(format!("{what}-{}", digest.hex()));
        let text = match what {
            "disk" => "unpacking the same layers",
            _ => "fetching the same layer",
        };
        waiting.until(text, || Lock::try_exclusive(&path)).await
    }

    /// Keeps everybody else out, to remove things. Blocks for a moment.
    pub(crate) fn exclude(&self) -> Result<Lock, ImageError> {
        match Lock::exclusive(&self.root.join("lock"), EXCLUSIVE_PATIENCE) {
            Ok(lock) => Ok(lock),
            Err(LockError::Held { .. }) => Err(ImageError::Busy { what: "using images".to_owned() }),
            Err(source) => Err(ImageError::Lock { source }),
        }
    }
}

/// Bytes that a file takes on the disk; a missing one takes none.
pub(crate) fn blocks_of(path: &Path) -> u64 {
    path.symlink_metadata().map_or(0, |metadata| metadata.blocks() * 512)
}

/// Removes a file and says how many bytes that freed; a missing one frees none.
pub(crate) fn remove_file(path: &Path) -> Result<u64, ImageError> {
    let freed = blocks_of(path);
    match fs::remove_file(path) {
        Ok(()) => Ok(freed),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(source) => Err(ImageError::file("remove", path, source)),
    }
}

/// How a command waits for another one.
#[derive(Clone, Copy)]
pub(crate) struct LockWait<'a> {
    pub(crate) patience: Duration,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) cancel: &'a CancellationToken,
}

impl LockWait<'_> {
    async fn until(
        &self,
        what: &str,
        mut attempt: impl FnMut() -> Result<Lock, LockError>,
    ) -> Result<Lock, ImageError> {
        let deadline = Instant::now() + self.patience;
        let mut told = false;
        loop {
            match attempt() {
                Ok(lock) => return Ok(lock),
                Err(LockError::Held { .. }) if Instant::now() < deadline => {
                    if !std::mem::replace(&mut told, true) {
                        self.progress.event(ImageEvent::Waiting { what: what.to_owned() });
                    }
                    let paused = self.cancel.run_until_cancelled(sleep(POLL_INTERVAL)).await;
                    paused.ok_or(ImageError::Cancelled)?;
                }
                Err(LockError::Held { .. }) => return Err(ImageError::Busy { what: what.to_owned() }),
                Err(source) => return Err(ImageError::Lock { source }),
            }
        }
    }
}
