//! Gives images further names. Names of our own giving are tags, never digests or places.

use microagent_store::Lock;

use crate::error::ImageError;
use crate::record::ImageRecord;
use crate::reference::{ImageReference, RegistryReference};
use crate::store::{ImageStore, parse};

/// The result of adding a name to an image.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Tagged {
    /// The new name as the caller gave it.
    pub reference: String,
    /// The full reference.
    pub resolved_reference: String,
    /// Digest of the image's manifest.
    pub digest: String,
}

impl ImageStore {
    /// Gives an image of the cache, named by reference or by digest, which may be shortened, a further name.
    /// A name that another image has moves.
    ///
    /// # Errors
    /// Fails when there is no such image, or the new name is no plain tag. Nothing has changed then.
    pub fn tag(&self, image: &str, reference: &str) -> Result<Tagged, ImageError> {
        let resolved = target(reference)?.to_string();
        if !self.cache.refs().is_dir() {
            return Err(ImageError::NoSuchImage { reference: image.to_owned() });
        }
        let _lease: Lock = self.cache.share()?;
        let found = self.named(image)?;
        let source = found.place().map(str::to_owned);
        let record = self.name(reference, &resolved, ImageRecord { source, ..found })?;
        Ok(Tagged {
            reference: record.reference,
            resolved_reference: record.resolved_reference,
            digest: record.manifest_digest.into(),
        })
    }
}

/// A name that an image may be given.
pub(crate) fn target(reference: &str) -> Result<RegistryReference, ImageError> {
    let refuse = |reason| Err(ImageError::TargetName { reference: reference.to_owned(), reason });
    match parse(reference)? {
        ImageReference::Registry(name) if name.digest.is_none() => Ok(name),
        ImageReference::Registry(_) => refuse("the digest is decided by the content"),
        ImageReference::Local(_) | ImageReference::Daemon(_) => refuse("it names a place, not an image"),
    }
}
