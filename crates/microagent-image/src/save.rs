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
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use microagent_store::{Access, open_file};
use serde::Serialize;
use serde_json::json;
use tar::{Builder, EntryType, Header};
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;
use crate::digest::{Digest, Hasher};
use crate::error::ImageError;
use crate::fetch::verify;
use crate::held::Held;
use crate::manifest::{Descriptor, OCI_INDEX, REF_NAME};
use crate::network::NetworkOptions;
use crate::progress::{ImageEvent, Progress};
use crate::reference::ImageReference;
use crate::store::{ImageStore, PullOptions, Request, parse};
use crate::work::{self, Meter};

/// Bytes that are copied between two looks at whether to go on.
const STEP: usize = 256 * 1024;
/// What podman and containerd name an image by when they load it.
const IMAGE_NAME: &str = "io.containerd.image.name";

/// Where an archive goes.
pub enum SaveTarget {
    /// A file; a regular one is replaced when the new one is whole.
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

/// What was saved.
#[derive(Debug, Clone, Serialize)]
pub struct Saved {
    /// One per reference, in their order.
    pub images: Vec<SavedImage>,
    /// Size of the archive.
    pub bytes: u64,
}

/// One image of an archive.
#[derive(Debug, Clone, Serialize)]
pub struct SavedImage {
    /// The name that it has in the archive; an image that came out of a file has none.
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
        let bytes = work::run(cancel, report, write).await?;
        Ok(Saved { images, bytes })
    }
}

/// What goes into an archive, by its names there.
struct Plan {
    files: BTreeMap<String, Content>,
    images: Vec<SavedImage>,
}

impl Plan {
    fn of(held: &[Held]) -> Plan {
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
        let failed = |source| ImageError::file("write", path, source);
        let mut archive = Builder::new(Counter { out: BufWriter::with_capacity(STEP, out), written: 0 });
        for dir in ["blobs/", "blobs/sha256/"] {
            let mut header = header(EntryType::Directory, 0);
            archive.append_data(&mut header, dir, io::empty()).map_err(failed)?;
        }
        for (name, content) in &self.files {
            match content {
                Content::Bytes(bytes) => {
                    let mut header = header(EntryType::Regular, bytes.len() as u64);
                    archive.append_data(&mut header, name, bytes.as_slice()).map_err(failed)?;
                }
                Content::Blob(blob) => append_blob(&mut archive, name, blob, path, cache, meter)?,
            }
            meter.set(archive.get_ref().written);
        }
        let mut counter = archive.into_inner().map_err(failed)?;
        counter.flush().map_err(failed)?;
        Ok(counter.written)
    }
}

/// Copies a blob into the archive; what is damaged on disk must not go on its way under its old name.
fn append_blob<W: Write>(
    archive: &mut Builder<Counter<W>>,
    name: &str,
    blob: &Descriptor,
    path: &Path,
    cache: &Cache,
    meter: &Meter,
) -> Result<(), ImageError> {
    let from = cache.blob(&blob.digest);
    let file = open_file(&from, Access::Read).map_err(|source| ImageError::file("open", &from, source))?;
    let done = archive.get_ref().written;
    let mut reader = Verified { file, hasher: Hasher::new(), meter, done, left: blob.size, failure: None };
    let mut header = header(EntryType::Regular, blob.size);
    let appended = archive.append_data(&mut header, name, &mut reader);
    meter.check()?;
    if let Some(source) = reader.failure.take() {
        return Err(ImageError::file("read", &from, source));
    }
    appended.map_err(|source| ImageError::file("write", path, source))?;
    verify(reader.hasher.finish(), &blob.digest, || format!("blob {} of the cache", blob.digest))
}

/// Reads a blob, hashes it on the way, and keeps its own failures apart from the archive's.
struct Verified<'a> {
    file: File,
    hasher: Hasher,
    meter: &'a Meter,
    /// Bytes of the archive before this blob.
    done: u64,
    left: u64,
    failure: Option<io::Error>,
}

impl Read for Verified<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.meter.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        match self.file.read(buffer) {
            Ok(0) if self.left > 0 && !buffer.is_empty() => {
                let cut = io::ErrorKind::UnexpectedEof;
                self.failure = Some(cut.into());
                Err(io::Error::other("the blob is cut off"))
            }
            Ok(read) => {
                self.hasher.update(&buffer[..read]);
                self.left = self.left.saturating_sub(read as u64);
                self.done += read as u64;
                self.meter.set(self.done);
                Ok(read)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let kind = error.kind();
                self.failure = Some(error);
                Err(kind.into())
            }
        }
    }
}

/// Counts what is written.
struct Counter<W> {
    out: W,
    written: u64,
}

impl<W: Write> Write for Counter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A header without anything that depends on when or by whom it is written.
fn header(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
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
