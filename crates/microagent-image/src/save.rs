//! Writes images of the cache into an OCI archive, as `skopeo`, `podman load` and our own `oci-archive:` read it.
//!
//! The archive is a tar of an OCI layout, the same bytes for the same images. Layers go into it as they came;
//! Docker's manifests are rewritten with OCI's media types, because an OCI layout holds nothing else, which
//! gives them another digest. Everything is verified once more on its way out. A file gets its name when it is
//! whole.
//!
//! # Source
//! OCI image specification 1.1, `image-layout.md`; POSIX.1-2024, `pax`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use microagent_store::{Access, open_file};
use microagent_tar::write::{header, padding};
use microagent_tar::{BLOCK, Entry, Kind, Meta};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::blocking::{self, Meter};
use crate::cache::Cache;
use crate::digest::{Digest, Hasher};
use crate::error::ImageError;
use crate::fetch::verify;
use crate::in_use::HeldImage;
use crate::manifest::{Descriptor, IMAGE_NAME, OCI_INDEX, REF_NAME};
use crate::network::NetworkOptions;
use crate::options::PullOptions;
use crate::progress::{ImageEvent, Progress};
use crate::reference::ImageReference;
use crate::store::{ImageStore, Request, parse};

/// Bytes that are copied between two checks for cancellation.
const STEP: usize = 256 * 1024;

/// Destination of an archive.
pub enum SaveTarget {
    /// A file. A regular file is replaced when the new one is complete.
    Path(PathBuf),
    /// A stream, such as standard output.
    Writer(Box<dyn Write + Send>),
}

impl fmt::Debug for SaveTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SaveTarget::Path(path) => f.debug_tuple("Path").field(path).finish(),
            SaveTarget::Writer(_) => f.write_str("Writer"),
        }
    }
}

/// The result of saving images.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Saved {
    /// The images, in the order of the references.
    pub images: Vec<SavedImage>,
    /// Size of the archive.
    pub bytes: u64,
}

/// An image in an archive that was saved.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SavedImage {
    /// Its name in the archive; an image that was read from a file has none.
    pub name: Option<String>,
    /// Digest of its manifest in the archive.
    pub digest: String,
}

/// A file of the archive's layout.
enum Content {
    Bytes(Vec<u8>),
    Blob(Descriptor),
}

impl ImageStore {
    /// Writes images of the cache into one OCI archive. A layer that is missing here is fetched first.
    ///
    /// # Errors
    /// Fails when there is no such image, a layer cannot be had again, or the target cannot be written. No file
    /// is left or changed then; what a stream has been given stays given.
    pub async fn save(
        &self,
        references: &[String],
        target: SaveTarget,
        network: &NetworkOptions,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<Saved, ImageError> {
        let options = PullOptions { network: network.clone(), ..PullOptions::default() };
        let mut held = Vec::new();
        for reference in references {
            let request = Request { reference, options: &options, progress, cancel };
            held.push(self.hold(&request).await?);
        }
        let plan = Plan::of(&held);
        progress.event(ImageEvent::Saving { bytes_total: plan.bytes() });
        let report = |done| progress.event(ImageEvent::SaveProgress { done });
        let cache = self.cache.clone();
        let images = plan.images.clone();
        let write = move |meter: &Meter| plan.write_to(target, &cache, meter);
        let bytes = blocking::run(cancel, report, write).await?;
        Ok(Saved { images, bytes })
    }
}

/// What goes into an archive, by its names there.
struct Plan {
    files: BTreeMap<String, Content>,
    images: Vec<SavedImage>,
}

impl Plan {
    fn of(held: &[HeldImage]) -> Plan {
        let mut plan = Plan { files: BTreeMap::new(), images: Vec::new() };
        let mut entries = Vec::new();
        for image in held {
            let oci = image.manifest.to_oci();
            let bytes = oci.as_ref().map_or_else(|| image.bytes.clone(), |manifest| manifest.encode());
            let manifest = oci.as_ref().unwrap_or(&image.manifest);
            let mut entry = Descriptor::of(&manifest.media_type, &bytes);
            entry.platform = Some(image.record.platform.clone());
            let name = archive_name(&image.record.resolved_reference);
            if let Some(name) = &name {
                entry.annotations.insert(REF_NAME.to_owned(), name.clone());
                entry.annotations.insert(IMAGE_NAME.to_owned(), name.clone());
            }
            plan.images.push(SavedImage { name, digest: entry.digest.to_string() });
            plan.files.insert(blob_name(&entry.digest), Content::Bytes(bytes));
            for blob in image.manifest.blobs() {
                plan.files.insert(blob_name(&blob.digest), Content::Blob(blob));
            }
            if !entries.contains(&entry) {
                entries.push(entry);
            }
        }
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
        let mut small = |name: &str, value: &serde_json::Value| {
            let bytes = serde_json::to_vec(value).expect("a document of strings and numbers has a JSON form");
            plan.files.insert(name.to_owned(), Content::Bytes(bytes));
        };
        small("index.json", &index);
        small("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}));
        plan
    }

    fn bytes(&self) -> u64 {
        let size = |content: &Content| match content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Blob(blob) => blob.size,
        };
        self.files.values().map(size).fold(0, u64::saturating_add)
    }

    /// Writes the archive and gives its size. Blocks.
    fn write_to(self, target: SaveTarget, cache: &Cache, meter: &Meter) -> Result<u64, ImageError> {
        match target {
            SaveTarget::Writer(writer) => self.write(writer, Path::new("standard output"), cache, meter),
            SaveTarget::Path(path) if path.exists() && !path.is_file() => {
                let opened = OpenOptions::new().write(true).open(&path);
                let file = opened.map_err(|source| ImageError::file("open", &path, source))?;
                self.write(file, &path, cache, meter)
            }
            SaveTarget::Path(path) => {
                let failed = |source| ImageError::file("write", &path, source);
                let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let file =
                    tempfile::Builder::new().prefix(".microagent-save-").tempfile_in(dir).map_err(failed)?;
                let bytes = self.write(file.as_file(), &path, cache, meter)?;
                file.as_file().sync_all().map_err(failed)?;
                file.persist(&path).map_err(|error| failed(error.error))?;
                Ok(bytes)
            }
        }
    }

    fn write(self, out: impl Write, path: &Path, cache: &Cache, meter: &Meter) -> Result<u64, ImageError> {
        let mut archive =
            Archive { out: BufWriter::with_capacity(STEP, out), path: path.to_owned(), written: 0 };
        for dir in ["blobs/", "blobs/sha256/"] {
            archive.put(&entry(dir, Kind::Directory))?;
        }
        for (name, content) in &self.files {
            match content {
                Content::Bytes(bytes) => archive.file(name, bytes)?,
                Content::Blob(blob) => archive.blob(name, blob, cache, meter)?,
            }
            meter.set(archive.written);
        }
        archive.finish()
    }
}

/// An archive that is being written.
struct Archive<W: Write> {
    out: BufWriter<W>,
    path: PathBuf,
    written: u64,
}

impl<W: Write> Archive<W> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.out.write_all(bytes).map_err(|source| self.failed(source))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// A stream has no directory whose free space would say more.
    fn failed(&self, source: io::Error) -> ImageError {
        match self.path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => ImageError::file("write", &self.path, source),
            _ => ImageError::File { action: "write", path: self.path.clone(), source },
        }
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<(), ImageError> {
        self.put(&entry(name, Kind::File(bytes.len() as u64)))?;
        self.put(bytes)?;
        self.put(&vec![0; padding(bytes.len() as u64)])
    }

    /// Copies a blob into the archive; what is damaged on disk must not be passed on under its old name.
    fn blob(
        &mut self,
        name: &str,
        blob: &Descriptor,
        cache: &Cache,
        meter: &Meter,
    ) -> Result<(), ImageError> {
        let from = cache.blob(&blob.digest);
        let unreadable = |source| ImageError::file("read", &from, source);
        let mut file = open_file(&from, Access::Read).map_err(unreadable)?;
        self.put(&entry(name, Kind::File(blob.size)))?;
        let (mut hasher, mut left, mut buffer) = (Hasher::new(), blob.size, vec![0; STEP]);
        while left > 0 {
            meter.check()?;
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = match file.read(&mut buffer[..most]) {
                Ok(0) => return Err(unreadable(io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(unreadable(source)),
            };
            hasher.update(&buffer[..read]);
            self.put(&buffer[..read])?;
            left -= read as u64;
            meter.set(self.written);
        }
        verify(hasher.finish(), &blob.digest, || format!("blob {} of the cache", blob.digest))?;
        self.put(&vec![0; padding(blob.size)])
    }

    fn finish(mut self) -> Result<u64, ImageError> {
        self.put(&[0; 2 * BLOCK])?;
        self.out.flush().map_err(|source| self.failed(source))?;
        Ok(self.written)
    }
}

/// The header of an entry without anything that depends on when or by whom it is written.
fn entry(name: &str, kind: Kind<u64>) -> Vec<u8> {
    let mode = if kind == Kind::Directory { 0o755 } else { 0o644 };
    let meta = Meta { mode, uid: 0, gid: 0, mtime: (0, 0) };
    header(&Entry { name: name.as_bytes().to_vec(), kind, meta, attributes: Vec::new() })
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The name under which an archive lists an image; one that came out of a file has only the file's.
fn archive_name(resolved: &str) -> Option<String> {
    match parse(resolved) {
        Ok(ImageReference::Registry(name)) if name.digest.is_none() => Some(resolved.to_owned()),
        _ => None,
    }
}
