//! Images in the local file system: OCI layouts, tars of them, and what `docker save` writes.
//!
//! All three become the same thing, a [`LocalImage`]: an index or manifest to start from, and blobs by
//! digest. Tars are not unpacked: their headers are walked once, and entries read where they lie. Nothing
//! is verified here; whoever asks for content compares size and digest.
//!
//! # Source
//! OCI image specification 1.1, `image-layout.md`; Docker image specification 1.2 for `manifest.json`.

mod docker;
mod layout;
mod tar_index;
mod unpacked;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::blocking::Meter;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::manifest::{
    self, Descriptor, Document, IMAGE_NAME, Index, MANIFEST_LIMIT, ManifestError, Platform, printable,
};
use crate::reference::{ImageReference, LocalReference, Transport};

use self::layout::Layout;
use self::tar_index::TarIndex;

/// Most names that an error lists.
const NAMES_SHOWN: usize = 20;

/// Why a layout or archive cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The file or directory itself could not be opened.
    #[error("it cannot be opened")]
    Open {
        /// What the system said.
        source: io::Error,
    },
    /// A file could not be opened or read.
    #[error("cannot read `{name}`")]
    Read {
        /// The file or entry.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// It is not of the format that the reference names.
    #[error("it is not {kind}: `{missing}` is missing")]
    WrongKind {
        /// What it should have been.
        kind: &'static str,
        /// The file that shows it is not.
        missing: String,
    },
    /// The tar is damaged.
    #[error("the tar is damaged or cut off")]
    Tar {
        /// What the reader said.
        source: io::Error,
    },
    /// The whole archive is compressed, and damaged.
    #[error("it cannot be decompressed")]
    Decompress {
        /// What the decoder said.
        source: io::Error,
    },
    /// The compression of the archive is not supported.
    #[error("the archive is compressed with {format}")]
    Compressed {
        /// The format.
        format: &'static str,
    },
    /// It has too many entries.
    #[error("the tar has more than {limit} entries")]
    TooManyEntries {
        /// The bound.
        limit: usize,
    },
    /// An entry is too large.
    #[error("`{name}` is larger than {limit} bytes")]
    TooLarge {
        /// The file or entry.
        name: String,
        /// The bound.
        limit: u64,
    },
    /// `manifest.json` is not what `docker save` writes.
    #[error("`{name}` cannot be decoded")]
    Decode {
        /// The entry.
        name: String,
        /// What the decoder said.
        source: serde_json::Error,
    },
    /// The index cannot be used.
    #[error("its index cannot be used")]
    Index {
        /// Why.
        source: ManifestError,
    },
    /// It contains no image.
    #[error("it contains no image")]
    Empty,
    /// It contains several images, and the reference names none of them.
    #[error("it contains several images: {}", found.join(", "))]
    NeedsSelector {
        /// Their names.
        found: Vec<String>,
    },
    /// It does not contain the image that the reference names.
    #[error("it contains no image `{selector}`; there is {}", if found.is_empty() { "none with a name".to_owned() } else { found.join(", ") })]
    NoSuchSelector {
        /// What was asked for.
        selector: String,
        /// The names that are there.
        found: Vec<String>,
    },
}

impl ArchiveError {
    /// Whether the file or directory is not of the kind that its transport takes.
    pub(crate) fn is_of_another_kind(&self) -> bool {
        matches!(self, ArchiveError::WrongKind { .. })
    }

    /// Whether the file or directory does not exist, or has no such image.
    pub fn is_not_found(&self) -> bool {
        match self {
            ArchiveError::Open { source } => source.kind() == io::ErrorKind::NotFound,
            ArchiveError::NoSuchSelector { .. } | ArchiveError::Empty => true,
            _ => false,
        }
    }

    /// Returns what a user can do about the error.
    pub(crate) fn hint(&self) -> Option<String> {
        Some(match self {
            ArchiveError::Open { source } if source.kind() == io::ErrorKind::NotFound => {
                "check the path of the archive".to_owned()
            }
            ArchiveError::Compressed { format } => format!("unpack it first with {format} -d"),
            ArchiveError::NeedsSelector { found } => {
                format!(
                    "add the name, for example `oci:PATH:{}`",
                    found.first().map_or("NAME", String::as_str)
                )
            }
            _ => return None,
        })
    }
}

/// A local image, found but not yet read.
#[derive(Clone)]
pub(crate) struct LocalImage {
    /// The full reference, with the true path.
    pub(crate) resolved: String,
    /// What to start from.
    pub(crate) root: Descriptor,
    path: PathBuf,
    store: Store,
    /// Content that has no file of its own (manifests we made).
    made: HashMap<Digest, Vec<u8>>,
    /// Files of content that is not filed by digest.
    filed: HashMap<Digest, String>,
}

/// Files by name.
#[derive(Clone)]
enum Store {
    Directory(Arc<Layout>),
    Tar(Arc<TarIndex>),
}

/// A tar with images.
pub(crate) struct Archive {
    path: PathBuf,
    tar: Arc<TarIndex>,
}

/// An image of an archive, with the names that it has there.
pub(crate) struct FoundImage {
    pub(crate) image: LocalImage,
    pub(crate) names: Vec<String>,
}

impl Archive {
    /// Opens a file. Blocks.
    pub(crate) fn open(path: &Path, scratch: &Path, meter: &Meter) -> Result<Archive, ImageError> {
        let open = || {
            let path = path.canonicalize().map_err(|source| ArchiveError::Open { source })?;
            Ok((TarIndex::open_file(&path)?, path))
        };
        let (file, path) = open().map_err(|source| ImageError::archive(path, source))?;
        Archive::of(file, path, scratch, meter)
    }

    /// Reads the index of an open file. Blocks.
    pub(crate) fn of(
        file: File,
        path: PathBuf,
        scratch: &Path,
        meter: &Meter,
    ) -> Result<Archive, ImageError> {
        let plain = unpacked::plain(file, &path, scratch, meter)?;
        let tar = TarIndex::of(plain).map_err(|source| ImageError::archive(&path, source))?;
        Ok(Archive { path, tar: Arc::new(tar) })
    }

    /// All of its images. What Docker writes holds both forms; its own says the names as people know them.
    pub(crate) fn images(&self, wanted: &Platform, meter: &Meter) -> Result<Vec<FoundImage>, ImageError> {
        let mut image =
            LocalImage::new(self.path.display().to_string(), &self.path, Store::Tar(Arc::clone(&self.tar)));
        if image.store.has(docker::MANIFEST) {
            return docker::all(&image, meter);
        }
        let failed = |source| ImageError::archive(&self.path, source);
        let index = image.layout_index().map_err(failed)?;
        let mut names: Vec<Option<String>> = index.manifests.iter().map(full_name).collect();
        names.sort();
        names.dedup();
        let mut found = Vec::new();
        for name in names {
            let manifests =
                index.manifests.iter().filter(|entry| full_name(entry) == name).cloned().collect();
            image.root = choose(Index { manifests }, None, wanted).map_err(failed)?;
            found.push(FoundImage { image: image.clone(), names: name.into_iter().collect() });
        }
        if found.is_empty() { Err(failed(ArchiveError::Empty)) } else { Ok(found) }
    }
}

/// The name of an entry that says registry or repository too; a tag alone names nothing outside its archive.
fn full_name(entry: &Descriptor) -> Option<String> {
    let known = entry.annotations.get(IMAGE_NAME).map(String::as_str);
    let name = known.or(entry.ref_name())?;
    let is_name = name.contains([':', '/']) && name.parse::<ImageReference>().is_ok();
    is_name.then(|| name.to_owned())
}

impl LocalImage {
    /// Finds the image that a reference names. Blocks.
    pub(crate) fn open(
        reference: &LocalReference,
        wanted: &Platform,
        scratch: &Path,
        meter: &Meter,
    ) -> Result<LocalImage, ImageError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| ImageError::archive(&path, source)
        };
        let path = reference
            .path
            .canonicalize()
            .map_err(|source| ArchiveError::Open { source })
            .map_err(at(&reference.path))?;
        let store = match reference.transport {
            Transport::Oci => Store::Directory(Arc::new(Layout::open(&path).map_err(at(&path))?)),
            Transport::OciArchive | Transport::DockerArchive => {
                Store::Tar(Archive::open(&path, scratch, meter)?.tar)
            }
        };
        LocalImage::new(reference.resolved(&path), &path, store).chosen(reference, wanted, meter)
    }

    /// Finds the image that a reference names in an archive that came in a stream. Blocks.
    pub(crate) fn read(
        reference: &LocalReference,
        archive: Archive,
        wanted: &Platform,
        meter: &Meter,
    ) -> Result<LocalImage, ImageError> {
        let resolved = reference.resolved(&reference.path);
        LocalImage::new(resolved, &archive.path, Store::Tar(archive.tar)).chosen(reference, wanted, meter)
    }

    fn new(resolved: String, path: &Path, store: Store) -> LocalImage {
        LocalImage {
            resolved,
            root: Descriptor::of("", b""),
            path: path.to_owned(),
            store,
            made: HashMap::new(),
            filed: HashMap::new(),
        }
    }

    fn chosen(
        mut self,
        reference: &LocalReference,
        wanted: &Platform,
        meter: &Meter,
    ) -> Result<LocalImage, ImageError> {
        let selector = reference.selector.as_deref();
        match reference.transport {
            Transport::Oci | Transport::OciArchive => {
                let found = self.layout_index().and_then(|index| choose(index, selector, wanted));
                self.root = found.map_err(|source| self.error(source))?;
            }
            Transport::DockerArchive => docker::find(&mut self, selector, meter)?,
        }
        Ok(self)
    }

    /// The true path of the file or directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a small blob.
    pub(crate) fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, ImageError> {
        if let Some(bytes) = self.made.get(digest) {
            return Ok(bytes.clone());
        }
        let name = self.blob_name(digest);
        self.store.read(&name, limit).map_err(|source| self.error(source))
    }

    /// Opens a blob for reading.
    pub(crate) fn open_blob(&self, digest: &Digest) -> Result<Box<dyn Read + Send>, ImageError> {
        let name = self.blob_name(digest);
        let (reader, _size) = self.store.open(&name).map_err(|source| self.error(source))?;
        Ok(reader)
    }

    fn blob_name(&self, digest: &Digest) -> String {
        self.filed.get(digest).cloned().unwrap_or_else(|| format!("blobs/sha256/{}", digest.hex()))
    }

    fn error(&self, source: ArchiveError) -> ImageError {
        ImageError::archive(&self.path, source)
    }

    fn layout_index(&self) -> Result<Index, ArchiveError> {
        for needed in ["oci-layout", "index.json"] {
            if !self.store.has(needed) {
                return Err(ArchiveError::WrongKind { kind: "an OCI layout", missing: needed.to_owned() });
            }
        }
        let bytes = self.store.read("index.json", MANIFEST_LIMIT)?;
        match manifest::decode(&bytes, None).map_err(|source| ArchiveError::Index { source })? {
            Document::Index(index) => Ok(index),
            Document::Image(_) => {
                let media_type = "an image manifest in place of an index".to_owned();
                Err(ArchiveError::Index { source: ManifestError::NotAnImage { media_type } })
            }
        }
    }
}

/// Picks the entry of a layout's index that has the name, or the only one there is.
fn choose(index: Index, selector: Option<&str>, wanted: &Platform) -> Result<Descriptor, ArchiveError> {
    let name_of = |entry: &Descriptor| entry.ref_name().map(str::to_owned);
    let mut names: Vec<String> =
        index.manifests.iter().filter_map(name_of).map(|name| printable(&name)).collect();
    names.sort();
    names.dedup();
    let several_names = names.len() > 1;
    names.truncate(NAMES_SHOWN);
    let candidates: Vec<Descriptor> = match selector {
        Some(selector) => {
            let fitting = |entry: &Descriptor| entry.ref_name() == Some(selector);
            index.manifests.into_iter().filter(fitting).collect()
        }
        None if several_names => return Err(ArchiveError::NeedsSelector { found: names }),
        None => index.manifests,
    };
    match (&candidates[..], selector) {
        ([only], _) => Ok(only.clone()),
        ([], Some(selector)) => {
            Err(ArchiveError::NoSuchSelector { selector: printable(selector), found: names })
        }
        ([], None) => Err(ArchiveError::Empty),
        // Several under one name or none: the platforms of one image.
        _ => manifest::select(&Index { manifests: candidates }, wanted)
            .cloned()
            .map_err(|source| ArchiveError::Index { source }),
    }
}

impl Store {
    fn has(&self, name: &str) -> bool {
        match self {
            Store::Directory(layout) => layout.file(name).is_ok(),
            Store::Tar(index) => index.has(name),
        }
    }

    fn open(&self, name: &str) -> Result<(Box<dyn Read + Send>, u64), ArchiveError> {
        match self {
            Store::Directory(layout) => {
                let (file, size) = layout.file(name).map_err(|source| read_error(name, source))?;
                Ok((Box::new(file), size))
            }
            Store::Tar(index) => index.open_entry(name),
        }
    }

    fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, ArchiveError> {
        let (reader, size) = self.open(name)?;
        if size > limit {
            return Err(ArchiveError::TooLarge { name: name.to_owned(), limit });
        }
        let mut bytes = Vec::new();
        reader.take(limit).read_to_end(&mut bytes).map_err(|source| read_error(name, source))?;
        Ok(bytes)
    }
}

fn read_error(name: &str, source: io::Error) -> ArchiveError {
    ArchiveError::Read { name: printable(name), source }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn index(names: &[Option<&str>]) -> Index {
        let entry = |(at, name): (usize, &Option<&str>)| {
            let mut entry = json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": Digest::of(&[u8::try_from(at).unwrap()]), "size": 1,
            });
            if let Some(name) = name {
                entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
            }
            entry
        };
        let entries: Vec<_> = names.iter().enumerate().map(entry).collect();
        match manifest::decode(&serde_json::to_vec(&json!({"manifests": entries})).unwrap(), None) {
            Ok(Document::Index(index)) => index,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn chooses_by_name() {
        let wanted = Platform::default();
        let digest = |at: u8| Digest::of(&[at]);
        let two = || index(&[Some("a"), Some("b")]);
        assert_eq!(choose(two(), Some("b"), &wanted).unwrap().digest, digest(1));
        assert_eq!(choose(index(&[Some("a")]), None, &wanted).unwrap().digest, digest(0));
        assert_eq!(choose(index(&[None]), None, &wanted).unwrap().digest, digest(0));
        let error = choose(two(), None, &wanted).unwrap_err();
        assert_eq!(error.to_string(), "it contains several images: a, b");
        let error = choose(two(), Some("c"), &wanted).unwrap_err();
        assert_eq!(error.to_string(), "it contains no image `c`; there is a, b");
        assert!(matches!(choose(index(&[]), None, &wanted), Err(ArchiveError::Empty)));
    }
}
