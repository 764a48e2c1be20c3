//! From a tag, digest or layout entry to the manifest of one platform.

use tokio_util::sync::CancellationToken;

use crate::digest::Digest;
use crate::error::ImageError;
use crate::fetch::{Attempts, Fetcher, Source, verify};
use crate::manifest::{
    self, Descriptor, Document, INDEX_DEPTH_MAX, MANIFEST_LIMIT, Manifest, ManifestError, Platform,
};
use crate::registry::Registry;

/// A manifest, verified, and how it was found.
#[derive(Debug, Clone)]
pub(crate) struct Resolution {
    pub(crate) digest: Digest,
    pub(crate) bytes: Vec<u8>,
    pub(crate) manifest: Manifest,
    /// The first index on the way, with its bytes.
    pub(crate) index: Option<(Digest, Vec<u8>)>,
}

/// Where to start.
pub(crate) enum Start<'a> {
    /// A tag or digest at a registry.
    Selector(&'a str, Option<&'a Digest>),
    /// An entry of a local index.
    Descriptor(Descriptor),
}

/// Walks from the start to the manifest for a platform.
pub(crate) async fn resolve(
    fetcher: &Fetcher<'_>,
    source: &Source<'_>,
    start: Start<'_>,
    wanted: &Platform,
    reference: &str,
) -> Result<Resolution, ImageError> {
    let unusable = |source| ImageError::manifest(reference, source);
    let (selector, mut expected) = match start {
        Start::Selector(selector, digest) => {
            (selector.to_owned(), digest.map(|digest| (digest.clone(), None)))
        }
        Start::Descriptor(entry) => (entry.digest.to_string(), Some((entry.digest, Some(entry.size)))),
    };
    let mut selector = selector;
    let mut index = None;
    for _ in 0..=INDEX_DEPTH_MAX {
        let (bytes, content_type) = document(fetcher, source, &selector, expected.as_ref()).await?;
        let digest = Digest::of(&bytes);
        check(&bytes, &digest, expected.as_ref())?;
        match manifest::decode(&bytes, content_type.as_deref()).map_err(unusable)? {
            Document::Image(manifest) => return Ok(Resolution { digest, bytes, manifest, index }),
            Document::Index(list) => {
                let entry = manifest::select(&list, wanted).map_err(unusable)?;
                selector = entry.digest.to_string();
                expected = Some((entry.digest.clone(), Some(entry.size)));
                index = index.or(Some((digest, bytes)));
            }
        }
    }
    Err(unusable(ManifestError::TooDeep))
}

type Expected = (Digest, Option<u64>);

fn check(bytes: &[u8], digest: &Digest, expected: Option<&Expected>) -> Result<(), ImageError> {
    let Some((expected, size)) = expected else { return Ok(()) };
    let what = || "a manifest".to_owned();
    if let Some(size) = *size
        && size != bytes.len() as u64
    {
        let longer = bytes.len() as u64 > size;
        return Err(ImageError::WrongSize { what: format!("manifest {expected}"), expected: size, longer });
    }
    verify(digest.clone(), expected, what)
}

/// Reads a manifest or index: from the cache if its digest is known and it is there, else from the source.
async fn document(
    fetcher: &Fetcher<'_>,
    source: &Source<'_>,
    selector: &str,
    expected: Option<&Expected>,
) -> Result<(Vec<u8>, Option<String>), ImageError> {
    if let Some((digest, _)) = expected {
        let cached = microagent_store::read_limited(&fetcher.cache.blob(digest), MANIFEST_LIMIT);
        if let Some(bytes) = cached.ok().filter(|bytes| Digest::of(bytes) == *digest) {
            return Ok((bytes, None));
        }
    }
    match (source, expected) {
        (Source::Registry(registry), _) => from_registry(fetcher, registry, selector).await,
        (Source::Local(image), Some((digest, _))) => Ok((image.read_blob(digest, MANIFEST_LIMIT)?, None)),
        (Source::Local(_) | Source::Cache, _) => unreachable!("a local image starts at a descriptor"),
    }
}

async fn from_registry(
    fetcher: &Fetcher<'_>,
    registry: &Registry<'_>,
    selector: &str,
) -> Result<(Vec<u8>, Option<String>), ImageError> {
    let cancel: &CancellationToken = fetcher.waiting.cancel;
    let mut attempts = Attempts::new(fetcher, false);
    loop {
        match cancel.run_until_cancelled(registry.manifest(selector)).await.ok_or(ImageError::Cancelled)? {
            Ok(raw) => return Ok((raw.bytes, raw.content_type)),
            Err(error) => attempts.failed("manifest", error).await?,
        }
    }
}
