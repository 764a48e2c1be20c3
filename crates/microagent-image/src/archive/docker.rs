//! What `docker save` writes: `manifest.json` with configuration and layers by file name.
//!
//! Such an archive has no manifest of the registry kind. One is made for it, from the configuration and
//! the layers, the same each time, so that the image has a digest like any other.

use std::io::Read;

use serde::Deserialize;

use super::{ArchiveError, FoundImage, LocalImage, NAMES_SHOWN, read_error};
use crate::blocking::Meter;
use crate::compression::{self, MAGIC_LEN};
use crate::config::{self, CONFIG_LIMIT};
use crate::digest::{Digest, Hasher};
use crate::error::ImageError;
use crate::manifest::{Descriptor, MANIFEST_LIMIT, Manifest, printable};
use crate::reference::ImageReference;
use crate::rootfs::Compression;

/// Bytes that are hashed between two checks for cancellation.
const STEP: usize = 256 * 1024;

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The file that lists the images.
pub(super) const MANIFEST: &str = "manifest.json";

/// Finds an image in the archive and makes its manifest.
pub(super) fn find(image: &mut LocalImage, selector: Option<&str>, meter: &Meter) -> Result<(), ImageError> {
    let entry = choose(entries(image)?, selector).map_err(|source| image.error(source))?;
    make_manifest(image, &entry, meter)
}

/// All images of an archive with their names; `archive` stands for none of them.
pub(super) fn all(archive: &LocalImage, meter: &Meter) -> Result<Vec<FoundImage>, ImageError> {
    let mut found = Vec::new();
    for entry in entries(archive)? {
        let mut image = archive.clone();
        make_manifest(&mut image, &entry, meter)?;
        found.push(FoundImage { image, names: entry.repo_tags.unwrap_or_default() });
    }
    if found.is_empty() { Err(archive.error(ArchiveError::Empty)) } else { Ok(found) }
}

fn entries(image: &LocalImage) -> Result<Vec<Entry>, ImageError> {
    if !image.store.has(MANIFEST) {
        let missing = MANIFEST.to_owned();
        return Err(image.error(ArchiveError::WrongKind { kind: "a `docker save` archive", missing }));
    }
    let bytes = image.store.read(MANIFEST, MANIFEST_LIMIT).map_err(|source| image.error(source))?;
    serde_json::from_slice(&bytes)
        .map_err(|source| image.error(ArchiveError::Decode { name: MANIFEST.to_owned(), source }))
}

fn make_manifest(image: &mut LocalImage, entry: &Entry, meter: &Meter) -> Result<(), ImageError> {
    let configuration =
        image.store.read(&entry.config, CONFIG_LIMIT).map_err(|source| image.error(source))?;
    let diff_ids = match config::decode(&configuration) {
        Ok(parsed) => parsed.diff_ids,
        Err(source) => return Err(ImageError::Config { reference: image.resolved.clone(), source }),
    };
    let mut layers = Vec::new();
    for (at, name) in entry.layers.iter().enumerate() {
        let layer = describe(image, name, diff_ids.get(at), meter)?;
        image.filed.insert(layer.digest.clone(), name.clone());
        layers.push(layer);
    }
    let manifest = Manifest::new(&configuration, layers);
    let bytes = manifest.encode();
    image.root = Descriptor::of("", &bytes);
    image.made.insert(image.root.digest.clone(), bytes);
    image.made.insert(manifest.config.digest.clone(), configuration);
    Ok(())
}

/// Picks the image that has the name, or the only one there is.
fn choose(mut entries: Vec<Entry>, selector: Option<&str>) -> Result<Entry, ArchiveError> {
    let tags = |entry: &Entry| entry.repo_tags.clone().unwrap_or_default();
    let mut found: Vec<String> = entries.iter().flat_map(tags).map(|tag| printable(&tag)).collect();
    found.truncate(NAMES_SHOWN);
    match (selector, entries.len()) {
        (_, 0) => Err(ArchiveError::Empty),
        (None, 1) => Ok(entries.remove(0)),
        (None, _) => Err(ArchiveError::NeedsSelector { found }),
        (Some(selector), _) => {
            let wanted = completed(selector);
            let fits = |entry: &Entry| {
                tags(entry)
                    .iter()
                    .any(|tag| tag == selector || (wanted.is_some() && completed(tag) == wanted))
            };
            let selector = printable(selector);
            entries.into_iter().find(fits).ok_or(ArchiveError::NoSuchSelector { selector, found })
        }
    }
}

/// The full form of a name; `None` for what is no name, which fits nothing but itself.
fn completed(name: &str) -> Option<String> {
    match name.parse() {
        Ok(ImageReference::Registry(reference)) => Some(reference.to_string()),
        _ => None,
    }
}

/// Digest and size of a layer. A plain layer's digest is the one in the configuration, checked when the
/// layer is copied; a compressed one has to be read to know it.
fn describe(
    image: &LocalImage,
    name: &str,
    diff_id: Option<&Digest>,
    meter: &Meter,
) -> Result<Descriptor, ImageError> {
    let (mut reader, size) = image.store.open(name).map_err(|source| image.error(source))?;
    let failed = |source| image.error(read_error(name, source));
    let mut magic = Vec::new();
    (&mut reader).take(MAGIC_LEN).read_to_end(&mut magic).map_err(failed)?;
    let compression = Compression::sniff(&magic);
    let digest = match (compression, diff_id) {
        (Compression::None, Some(diff_id)) => diff_id.clone(),
        _ => {
            let mut hasher = Hasher::new();
            hasher.update(&magic);
            let mut buffer = vec![0; STEP];
            loop {
                meter.check()?;
                match reader.read(&mut buffer).map_err(failed)? {
                    0 => break hasher.finish(),
                    read => hasher.update(&buffer[..read]),
                }
            }
        }
    };
    let media_type = compression::media_type(compression).to_owned();
    Ok(Descriptor { media_type, digest, size, ..Descriptor::of("", b"") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tags: &[&str]) -> Entry {
        let repo_tags = Some(tags.iter().map(|&tag| tag.to_owned()).collect());
        Entry { config: tags.join("+"), repo_tags, layers: Vec::new() }
    }

    #[test]
    fn chooses_by_name_however_it_is_spelled() {
        let two = || vec![entry(&["busybox:latest", "b:1"]), entry(&["docker.io/team/app:v1"])];
        for (selector, config) in [
            ("busybox", "busybox:latest+b:1"),
            ("docker.io/library/b:1", "busybox:latest+b:1"),
            ("team/app:v1", "docker.io/team/app:v1"),
        ] {
            assert_eq!(choose(two(), Some(selector)).unwrap().config, config, "{selector}");
        }
        assert!(matches!(choose(two(), None), Err(ArchiveError::NeedsSelector { .. })));
        assert!(matches!(choose(two(), Some("busybox:2")), Err(ArchiveError::NoSuchSelector { .. })));
        assert!(matches!(choose(Vec::new(), None), Err(ArchiveError::Empty)));
        assert!(choose(vec![entry(&[])], None).is_ok());
    }
}
