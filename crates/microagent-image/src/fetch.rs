//! Brings blobs into the cache: verified, resumed where they broke off, each once however many ask.
//!
//! A blob arrives in `partial/` and gets its name only when size and digest are right. What has arrived
//! stays there when a pull ends early, whatever ended it, and the next pull continues after its last byte.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Arc;

use microagent_store::{Access, open_file};
use tokio_util::sync::CancellationToken;

use crate::archive::LocalImage;
use crate::blocking;
use crate::cache::{Cache, LockWait};
use crate::digest::{Digest, Hasher};
use crate::error::{ImageError, free_bytes};
use crate::manifest::Descriptor;
use crate::network::NetworkOptions;
use crate::progress::{ImageEvent, Progress};
use crate::registry::Registry;

/// Bytes that are read from a file between two checks for cancellation.
const STEP: usize = 256 * 1024;
/// So much arriving between two failures counts as progress: the count of attempts starts again.
const PROGRESS_BYTES: u64 = 1024 * 1024;
/// Progress of a layer is told each time so much has arrived.
const REPORT_BYTES: u64 = 256 * 1024;

/// Where blobs come from.
pub(crate) enum Source<'a> {
    Registry(Box<Registry<'a>>),
    Local(Arc<LocalImage>),
    /// Everything is in the cache already.
    Cache,
}

/// What fetching needs besides a source.
#[derive(Clone, Copy)]
pub(crate) struct Fetcher<'a> {
    pub(crate) cache: &'a Cache,
    pub(crate) network: &'a NetworkOptions,
    pub(crate) waiting: LockWait<'a>,
}

/// Counts failures that may pass, and pauses between them.
pub(crate) struct Attempts<'a> {
    network: &'a NetworkOptions,
    progress: &'a dyn Progress,
    cancel: &'a CancellationToken,
    failures: u32,
    /// Whether the registry has answered before. A first connection that fails is not tried again: a
    /// wrong name or a registry that is down should be told at once.
    contacted: bool,
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(fetcher: &Fetcher<'a>, contacted: bool) -> Attempts<'a> {
        let LockWait { progress, cancel, .. } = fetcher.waiting;
        Attempts { network: fetcher.network, progress, cancel, failures: 0, contacted }
    }

    /// Starts counting anew.
    fn progressed(&mut self) {
        self.failures = 0;
    }

    /// Takes a failure: pauses if it makes sense to try again, gives it back if not.
    pub(crate) async fn failed(&mut self, what: &str, error: ImageError) -> Result<(), ImageError> {
        let first_contact = match &error {
            ImageError::Unreachable { source, .. } => !self.contacted && source.is_connect(),
            _ => false,
        };
        self.failures += 1;
        if first_contact || !error.is_transient() || self.failures >= self.network.attempts {
            return Err(error);
        }
        let Some(pause) = self.network.pause_asked(self.failures, error.retry_after()) else {
            return Err(error);
        };
        self.progress.event(ImageEvent::Retrying {
            what: what.to_owned(),
            attempt: self.failures + 1,
            pause_ms: u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
        });
        let pause = tokio::time::sleep(pause);
        self.cancel.run_until_cancelled(pause).await.ok_or(ImageError::Cancelled)
    }
}

/// A blob on its way in.
struct Arriving {
    path: PathBuf,
    file: File,
    hasher: Hasher,
    received: u64,
    told: u64,
}

impl<'a> Fetcher<'a> {
    /// Refuses at once what cannot fit.
    pub(crate) fn check_space(&self, blobs: &[Descriptor]) -> Result<(), ImageError> {
        let missing = |blob: &Descriptor| {
            let here = self.cache.partial(&blob.digest).metadata().map_or(0, |metadata| metadata.len());
            blob.size.saturating_sub(here)
        };
        let needed = blobs.iter().map(missing).fold(0, u64::saturating_add);
        let dir = self.cache.root().to_owned();
        let free = free_bytes(&dir);
        if needed > free { Err(ImageError::DiskFull { dir, free, needed: Some(needed) }) } else { Ok(()) }
    }

    /// Makes sure that a blob is in the cache.
    pub(crate) async fn blob(&self, source: &Source<'_>, blob: &Descriptor) -> Result<(), ImageError> {
        let is_here = || self.cache.has_blob(&blob.digest, blob.size);
        if !is_here() {
            let _making = self.cache.make("blob", &blob.digest, &self.waiting).await?;
            // Whoever held the lock before may have fetched it.
            if !is_here() {
                match source {
                    Source::Registry(registry) => self.download(registry, blob).await?,
                    Source::Local(image) => self.copy(image, blob).await?,
                    Source::Cache => {
                        let path = self.cache.blob(&blob.digest);
                        return Err(ImageError::file("find", &path, io::ErrorKind::NotFound.into()));
                    }
                }
            }
        }
        self.waiting.progress.event(ImageEvent::LayerDone { digest: blob.digest.to_string() });
        Ok(())
    }

    /// Fetches a blob from a registry. The caller holds the lock on making it.
    async fn download(&self, registry: &Registry<'_>, blob: &Descriptor) -> Result<(), ImageError> {
        let mut arriving = self.open_partial(blob).await?;
        let mut resumed = arriving.received > 0;
        loop {
            self.receive(registry, blob, &mut arriving).await?;
            let (actual, path) = (arriving.hasher.clone().finish(), arriving.path.clone());
            if actual == blob.digest {
                return self.publish(arriving, blob).await;
            }
            if !resumed {
                crate::cache::remove_file(&path)?;
                let what = "a blob from the registry".to_owned();
                return Err(ImageError::WrongDigest { what, expected: blob.digest.clone(), actual });
            }
            // What was kept from an earlier pull may have been damaged by a crash: once more from the start.
            resumed = false;
            arriving.restart().map_err(|source| ImageError::file("empty", &path, source))?;
        }
    }

    /// Opens what has arrived of a blob before, and counts it into its digest.
    async fn open_partial(&self, blob: &Descriptor) -> Result<Arriving, ImageError> {
        let (path, size) = (self.cache.partial(&blob.digest), blob.size);
        blocking::run(
            self.waiting.cancel,
            |_| {},
            move |meter| {
                let failed = |source| ImageError::file("open", &path, source);
                let mut file = open_file(&path, Access::ModifyOrCreate).map_err(failed)?;
                if file.metadata().map_err(failed)?.len() > size {
                    file.set_len(0).map_err(failed)?;
                }
                let (mut hasher, mut received, mut buffer) = (Hasher::new(), 0, vec![0; STEP]);
                loop {
                    meter.check()?;
                    let read = file.read(&mut buffer).map_err(failed)?;
                    if read == 0 {
                        break;
                    }
                    hasher.update(&buffer[..read]);
                    received += read as u64;
                }
                Ok(Arriving { path, file, hasher, received, told: 0 })
            },
        )
        .await
    }

    /// Receives until the blob has its size, across connections that break.
    async fn receive(
        &self,
        registry: &Registry<'_>,
        blob: &Descriptor,
        arriving: &mut Arriving,
    ) -> Result<(), ImageError> {
        let mut attempts = Attempts::new(self, true);
        let what = format!("download of {}", blob.digest);
        while arriving.received < blob.size {
            let before = arriving.received;
            let outcome =
                self.waiting.cancel.run_until_cancelled(self.connection(registry, blob, arriving)).await;
            let failure = match outcome.ok_or(ImageError::Cancelled)? {
                Ok(()) if arriving.received == blob.size => break,
                // Closed early, and cleanly: as bad as a broken connection.
                Ok(()) => ImageError::ClosedEarly { registry: registry.name().to_owned() },
                Err(error) => error,
            };
            if arriving.received.saturating_sub(before) >= PROGRESS_BYTES {
                attempts.progressed();
            }
            attempts.failed(&what, failure).await.map_err(|error| match error {
                error if error.is_transient() => ImageError::Interrupted {
                    digest: blob.digest.clone(),
                    received: arriving.received,
                    size: blob.size,
                    source: Box::new(error),
                },
                error => error,
            })?;
        }
        Ok(())
    }

    /// Receives over one connection, until it ends.
    async fn connection(
        &self,
        registry: &Registry<'_>,
        blob: &Descriptor,
        arriving: &mut Arriving,
    ) -> Result<(), ImageError> {
        let path = arriving.path.clone();
        let failed = |source| ImageError::file("write", &path, source);
        let body = match registry.blob(&blob.digest, arriving.received).await? {
            Some(body) => Some(body),
            None => registry.blob(&blob.digest, 0).await?,
        };
        let Some(mut body) = body else { return Ok(()) };
        if body.offset != arriving.received {
            arriving.restart().map_err(failed)?;
        }
        while let Some(chunk) = body.chunk().await? {
            let chunk = chunk.as_ref();
            if chunk.len() as u64 > blob.size - arriving.received {
                crate::cache::remove_file(&arriving.path)?;
                let what = format!("blob {}", blob.digest);
                return Err(ImageError::WrongSize { what, expected: blob.size, longer: true });
            }
            arriving.take(chunk).map_err(failed)?;
            if arriving.received - arriving.told >= REPORT_BYTES {
                arriving.told = arriving.received;
                self.waiting.progress.event(ImageEvent::LayerProgress {
                    digest: blob.digest.to_string(),
                    done: arriving.received,
                    total: blob.size,
                });
            }
        }
        Ok(())
    }

    /// Gives a verified blob its name. Flushing it may take long, so not on this thread.
    async fn publish(&self, arriving: Arriving, blob: &Descriptor) -> Result<(), ImageError> {
        let to = self.cache.blob(&blob.digest);
        blocking::run(
            self.waiting.cancel,
            |_| {},
            move |_| Cache::publish(&arriving.file, &arriving.path, &to),
        )
        .await
    }

    /// Copies a blob from a local image. The caller holds the lock on making it.
    async fn copy(&self, image: &Arc<LocalImage>, blob: &Descriptor) -> Result<(), ImageError> {
        let (image, wanted) = (image.clone(), blob.clone());
        let (from, to) = (self.cache.partial(&blob.digest), self.cache.blob(&blob.digest));
        let report = |done| {
            let digest = blob.digest.to_string();
            self.waiting.progress.event(ImageEvent::LayerProgress { digest, done, total: blob.size });
        };
        blocking::run(self.waiting.cancel, report, move |meter| {
            let copied = copy_verified(&image, &wanted, &from, &to, meter);
            if copied.is_err() {
                // A copy is quick to make again, so nothing of it is kept.
                crate::cache::remove_file(&from)?;
            }
            copied
        })
        .await
    }
}

fn copy_verified(
    image: &LocalImage,
    blob: &Descriptor,
    from: &std::path::Path,
    to: &std::path::Path,
    meter: &blocking::Meter,
) -> Result<(), ImageError> {
    let what = || format!("blob {} in `{}`", blob.digest, image.path().display());
    let failed = |source| ImageError::file("write", from, source);
    let mut reader = image.open_blob(&blob.digest)?;
    let mut file = open_file(from, Access::Replace).map_err(failed)?;
    let (mut hasher, mut copied, mut buffer) = (Hasher::new(), 0, vec![0; STEP]);
    loop {
        meter.check()?;
        let read = reader.read(&mut buffer).map_err(|source| ImageError::File {
            action: "read",
            path: image.path().to_owned(),
            source,
        })?;
        if read == 0 {
            break;
        }
        copied += read as u64;
        if copied > blob.size {
            return Err(ImageError::WrongSize { what: what(), expected: blob.size, longer: true });
        }
        hasher.update(&buffer[..read]);
        file.write_all(&buffer[..read]).map_err(failed)?;
        meter.set(copied);
    }
    if copied < blob.size {
        return Err(ImageError::WrongSize { what: what(), expected: blob.size, longer: false });
    }
    verify(hasher.finish(), &blob.digest, what)?;
    Cache::publish(&file, from, to)
}

impl Arriving {
    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.received += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.hasher = Hasher::new();
        (self.received, self.told) = (0, 0);
        Ok(())
    }
}

/// Compares a digest with the one it should be.
pub(crate) fn verify(
    actual: Digest,
    expected: &Digest,
    what: impl FnOnce() -> String,
) -> Result<(), ImageError> {
    if actual == *expected {
        return Ok(());
    }
    Err(ImageError::WrongDigest { what: what(), expected: expected.clone(), actual })
}
