//! Images of the cache with all their blobs, for whatever sends them on: save, push, commit.
//!
//! A record promises a base disk, not layers: an image whose disk another one had brought already came in
//! without fetching them. They are fetched when they are needed, from where the image came from, and verified
//! as ever. An image that was made here has them all.

use std::sync::Arc;

use microagent_store::{Lock, read_limited};

use crate::archive::LocalImage;
use crate::blocking;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::fetch::Source;
use crate::manifest::{self, Descriptor, Document, MANIFEST_LIMIT, Manifest, ManifestError};
use crate::record::ImageRecord;
use crate::reference::ImageReference;
use crate::registry::Access;
use crate::store::{ImageStore, Request, parse};

/// An image, and the lock that keeps its blobs where they are.
pub(crate) struct HeldImage {
    pub(crate) record: ImageRecord,
    pub(crate) manifest: Manifest,
    /// The manifest as it came.
    pub(crate) bytes: Vec<u8>,
    pub(crate) _lease: Lock,
}

impl ImageStore {
    /// The record that a reference or a digest, which may be shortened, names.
    pub(crate) fn named(&self, reference: &str) -> Result<ImageRecord, ImageError> {
        let records = ImageRecord::load_all(&self.cache)?;
        let (found, _) = self.split(records, reference)?;
        let (_, record) = found
            .into_iter()
            .next()
            .ok_or_else(|| ImageError::NoSuchImage { reference: reference.to_owned() })?;
        Ok(record)
    }

    /// Holds an image of the cache, with every blob of it here.
    pub(crate) async fn hold(&self, request: &Request<'_>) -> Result<HeldImage, ImageError> {
        if !self.cache.refs().is_dir() {
            return Err(ImageError::NoSuchImage { reference: request.reference.to_owned() });
        }
        let lease = self.cache.join(&request.waiting()).await?;
        let record = self.named(request.reference)?;
        let (manifest, bytes) = self.manifest(&record.manifest_digest, &record.resolved_reference)?;
        self.complete(request, &manifest, &record.resolved_reference, record.place()).await?;
        Ok(HeldImage { record, manifest, bytes, _lease: lease })
    }

    /// A manifest of the cache, and its bytes.
    pub(crate) fn manifest(
        &self,
        digest: &Digest,
        reference: &str,
    ) -> Result<(Manifest, Vec<u8>), ImageError> {
        let bytes = read_limited(&self.cache.blob(digest), MANIFEST_LIMIT).ok();
        let bytes = bytes.filter(|bytes| Digest::of(bytes) == *digest).ok_or_else(|| {
            ImageError::MissingBlob { reference: reference.to_owned(), digest: digest.clone() }
        })?;
        match manifest::decode(&bytes, None) {
            Ok(Document::Image(manifest)) => Ok((manifest, bytes)),
            Ok(Document::Index(_)) => {
                let media_type = "an index in place of an image manifest".to_owned();
                Err(ImageError::manifest(reference, ManifestError::NotAnImage { media_type }))
            }
            Err(source) => Err(ImageError::manifest(reference, source)),
        }
    }

    /// Makes sure that every blob of an image is here; `place` is where those can be had that are not.
    pub(crate) async fn complete(
        &self,
        request: &Request<'_>,
        manifest: &Manifest,
        reference: &str,
        place: Option<&str>,
    ) -> Result<(), ImageError> {
        let absent: Vec<Descriptor> = manifest
            .blobs()
            .into_iter()
            .filter(|blob| !self.cache.has_blob(&blob.digest, blob.size))
            .collect();
        match (absent.first(), place) {
            (None, _) => Ok(()),
            (Some(_), Some(place)) => self.bring_back(request, place, absent, reference).await,
            (Some(blob), None) => {
                let digest = blob.digest.clone();
                Err(ImageError::MissingBlob { reference: reference.to_owned(), digest })
            }
        }
    }

    /// Fetches blobs of an image from where it came from.
    async fn bring_back(
        &self,
        request: &Request<'_>,
        place: &str,
        absent: Vec<Descriptor>,
        reference: &str,
    ) -> Result<(), ImageError> {
        let place = parse(place)?;
        let source = match &place {
            ImageReference::Registry(parsed) => {
                Source::Registry(Box::new(self.connect(request, parsed, Access::Pull).await?))
            }
            // Its layers are kept when it comes in, because the daemon may not have it any more.
            ImageReference::Daemon(_) => {
                return Err(ImageError::MissingBlob {
                    reference: reference.to_owned(),
                    digest: absent[0].digest.clone(),
                });
            }
            ImageReference::Local(parsed) => {
                let (parsed, wanted) = (parsed.clone(), request.options.platform.clone());
                let scratch = self.cache.scratch();
                let open = move |meter: &blocking::Meter| LocalImage::open(&parsed, &wanted, &scratch, meter);
                Source::Local(Arc::new(blocking::run(request.cancel, |_| {}, open).await?))
            }
        };
        self.fetch(&self.fetcher(request), &source, absent, reference).await
    }
}
