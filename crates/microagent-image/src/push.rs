//! Sends an image of the cache to a registry: what is missing there, some blobs at a time, the manifest last.
//!
//! Until the manifest is there, the registry has no image of that name, or the one that it had: a push that
//! breaks off changes nothing that anybody sees, and the next one skips what has arrived.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use futures::{StreamExt, TryStreamExt, stream};
use tokio_util::sync::CancellationToken;

use crate::error::ImageError;
use crate::fetch::Attempts;
use crate::in_use::HeldImage;
use crate::manifest::Descriptor;
use crate::network::NetworkOptions;
use crate::options::PullOptions;
use crate::progress::{ImageEvent, Progress};
use crate::record::ImageRecord;
use crate::reference::{ImageReference, RegistryReference};
use crate::registry::{Access, Arrival, Registry};
use crate::store::{ImageStore, PARALLEL_BLOBS, Request, parse};
use crate::tag::target;

/// The result of a push.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Pushed {
    /// The full reference.
    pub resolved_reference: String,
    /// Digest of the manifest, by which the registry serves it.
    pub digest: String,
    /// Number of blobs that were sent.
    pub blobs_sent: usize,
    /// Number of blobs that the registry had already.
    pub blobs_present: usize,
    /// Bytes of the blobs that were sent.
    pub bytes_sent: u64,
}

impl ImageStore {
    /// Sends an image of the cache to the registry that its name says. A layer that is missing here is fetched
    /// first.
    ///
    /// # Errors
    /// Fails when there is no such image, its name is no tag at a registry, or the registry cannot be reached
    /// or refuses it. The registry then has no new image, and perhaps some of its layers.
    pub async fn push(
        &self,
        reference: &str,
        network: &NetworkOptions,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<Pushed, ImageError> {
        let name = target(reference)?;
        let options = PullOptions { network: network.clone(), ..PullOptions::default() };
        // By its full name: what looks like a name must not be taken for the start of a digest.
        let full = name.to_string();
        let request = Request { reference: &full, options: &options, progress, cancel };
        let held = self.hold(&request).await?;
        let registry = self.connect(&request, &name, Access::Push).await?;
        let blobs = held.manifest.blobs();
        progress.event(ImageEvent::Pushing {
            reference: full.clone(),
            blobs: blobs.len(),
            bytes_total: blobs.iter().map(|blob| blob.size).fold(0, u64::saturating_add),
        });
        let neighbours = self.neighbours(&name)?;
        let push = Push { store: self, request: &request, registry: &registry, neighbours: &neighbours };
        let (sent, bytes_sent) = (AtomicUsize::new(0), AtomicU64::new(0));
        let sends: Vec<_> = blobs
            .iter()
            .map(|blob| async {
                if push.blob(blob).await? == Arrival::Sent {
                    sent.fetch_add(1, Ordering::Relaxed);
                    bytes_sent.fetch_add(blob.size, Ordering::Relaxed);
                }
                Ok::<(), ImageError>(())
            })
            .collect();
        stream::iter(sends).buffer_unordered(PARALLEL_BLOBS).try_collect::<()>().await?;
        push.manifest(&held, name.selector()).await?;
        let blobs_sent = sent.into_inner();
        Ok(Pushed {
            resolved_reference: full,
            digest: held.record.manifest_digest.to_string(),
            blobs_sent,
            blobs_present: blobs.len() - blobs_sent,
            bytes_sent: bytes_sent.into_inner(),
        })
    }

    /// Images that came from other repositories of the same registry, which can give their layers on there.
    fn neighbours(&self, name: &RegistryReference) -> Result<Vec<(String, ImageRecord)>, ImageError> {
        let records = ImageRecord::load_all(&self.cache)?.good.into_iter();
        let neighbour = |record: ImageRecord| match parse(record.place()?).ok()? {
            ImageReference::Registry(place)
                if place.registry == name.registry && place.repository != name.repository =>
            {
                Some((place.repository, record))
            }
            _ => None,
        };
        Ok(records.filter_map(|(_, record)| neighbour(record)).collect())
    }
}

/// One push under way.
struct Push<'a> {
    store: &'a ImageStore,
    request: &'a Request<'a>,
    registry: &'a Registry<'a>,
    neighbours: &'a [(String, ImageRecord)],
}

impl Push<'_> {
    /// Sends a blob, again when the connection breaks.
    async fn blob(&self, blob: &Descriptor) -> Result<Arrival, ImageError> {
        let Request { options, progress, cancel, .. } = *self.request;
        let has = |record: &ImageRecord| record.blobs().any(|digest| *digest == blob.digest);
        let elsewhere = self.neighbours.iter().find(|(_, record)| has(record));
        let elsewhere = elsewhere.map(|(repository, _)| repository.as_str());
        let file = self.store.cache.blob(&blob.digest);
        let told = |done| progress.event(ImageEvent::PushProgress { digest: blob.digest.to_string(), done });
        let mut attempts = Attempts::new(&self.store.fetcher(self.request), false);
        loop {
            let stall = options.network.read_timeout;
            let put = self.registry.put_blob(blob, &file, elsewhere, stall, told);
            match cancel.run_until_cancelled(put).await.ok_or(ImageError::Cancelled)? {
                Ok(arrival) => {
                    let (digest, sent) = (blob.digest.to_string(), arrival == Arrival::Sent);
                    progress.event(ImageEvent::PushDone { digest, sent });
                    return Ok(arrival);
                }
                Err(error) => attempts.failed(&format!("upload of {}", blob.digest), error).await?,
            }
        }
    }

    /// Sends the manifest as it is, so that it keeps its digest.
    async fn manifest(&self, held: &HeldImage, tag: &str) -> Result<(), ImageError> {
        let mut attempts = Attempts::new(&self.store.fetcher(self.request), true);
        loop {
            let put = self.registry.put_manifest(tag, &held.manifest.media_type, &held.bytes);
            match self.request.cancel.run_until_cancelled(put).await.ok_or(ImageError::Cancelled)? {
                Ok(()) => return Ok(()),
                Err(error) => attempts.failed("manifest", error).await?,
            }
        }
    }
}
