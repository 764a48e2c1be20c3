//! Makes an image out of another one and a layer with a workspace's changes.
//!
//! Three steps, so that whoever boots a machine for the changes knows first that an image can be made of them:
//! [`ImageStore::begin_commit`] checks the name and holds the image below, [`Commit::take_layer`] takes the tar
//! stream, [`Commit::finish`] names the result. The stream comes from a guest: it is bounded, read once more as
//! the builder of base disks reads layers, and never unpacked here. The base disk of the new image is made
//! when it is first used, so that a commit takes as long as the changes are large.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use flate2::write::GzEncoder;
use jiff::Timestamp;
use microagent_store::{Lock, read_limited};
use tempfile::TempPath;
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;
use crate::config::{self, CONFIG_LIMIT, ConfigChanges, History};
use crate::digest::{Digest, DigestError, Hasher};
use crate::disk;
use crate::error::ImageError;
use crate::manifest::{Descriptor, LAYER_GZIP, Manifest, Platform};
use crate::options::{Origin, PullOptions};
use crate::progress::Progress;
use crate::record::{ImageRecord, LayerRecord, RECORD_FORMAT};
use crate::rootfs::{self, Compression, LayerFile, Limits};
use crate::store::{ImageStore, Request};
use crate::tag::target;

/// Bytes that are read between two checks for cancellation.
const STEP: usize = 256 * 1024;

/// Settings of a commit.
#[derive(Debug, Clone, Default)]
pub struct CommitDetails {
    /// Changes of the configuration.
    pub changes: ConfigChanges,
    /// Message for the image's history.
    pub message: Option<String>,
    /// Author for the image's history.
    pub author: Option<String>,
    /// Command for the image's history.
    pub created_by: String,
}

/// A commit that can be made.
#[derive(Debug)]
pub struct Commit {
    store: ImageStore,
    reference: String,
    resolved: String,
    base: Manifest,
    base_config: Vec<u8>,
    place: Option<String>,
    platform: Platform,
    base_content_bytes: u64,
    _lease: Lock,
}

/// A layer that has come in, in a file of its own that goes with it.
#[derive(Debug)]
pub struct Layer {
    file: File,
    path: TempPath,
    blob: Descriptor,
    diff_id: Digest,
    content_bytes: u64,
}

/// The image that a commit made.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Committed {
    /// Its reference as the caller gave it.
    pub reference: String,
    /// The full reference that it stands for.
    pub resolved_reference: String,
    /// Digest of its manifest.
    pub digest: String,
    /// Digest of the new layer without compression. That of an empty layer is always the same.
    pub diff_id: String,
    /// Digest of the new layer as it is stored.
    pub layer_digest: String,
    /// Size of the new layer as it is stored.
    pub layer_bytes: u64,
    /// Bytes of the files in it.
    pub content_bytes: u64,
}

impl ImageStore {
    /// Prepares to make an image on top of the one with this manifest digest, on which a workspace's disk lies.
    /// Layers of it that are missing here are fetched.
    ///
    /// # Errors
    /// Fails when the new name is no plain tag, or blobs of the image below cannot be had.
    pub async fn begin_commit(
        &self,
        base_digest: &str,
        reference: &str,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<Commit, ImageError> {
        let resolved = target(reference)?.to_string();
        let options = PullOptions::default();
        let request = Request { reference, options: &options, progress, cancel };
        self.cache.prepare()?;
        let lease = self.cache.join(&request.waiting()).await?;
        let digest = digest(base_digest, reference)?;
        let records = ImageRecord::load_all(&self.cache)?.good;
        // Its name may be gone meanwhile; the workspace keeps its blobs.
        let record = records.into_iter().map(|(_, record)| record).find(|r| r.manifest_digest == digest);
        let place = record.as_ref().and_then(|record| record.place().map(str::to_owned));
        let base_name = record.map_or_else(|| base_digest.to_owned(), |record| record.resolved_reference);
        let (base, _) = self.manifest(&digest, &base_name)?;
        self.complete(&request, &base, &base_name, place.as_deref()).await?;
        let base_config = read_limited(&self.cache.blob(&base.config.digest), CONFIG_LIMIT)
            .map_err(|source| ImageError::Read { source })?;
        let parsed = config::decode(&base_config)
            .map_err(|source| ImageError::Config { reference: base_name, source })?;
        let base_disk = disk::ready(&self.cache, &disk::id(&parsed.diff_ids, &parsed.config.volumes));
        Ok(Commit {
            store: self.clone(),
            reference: reference.to_owned(),
            resolved,
            base: base.to_oci().unwrap_or(base),
            base_config,
            place,
            platform: parsed.platform.unwrap_or_default(),
            base_content_bytes: base_disk.map_or(0, |disk| disk.content_bytes),
            _lease: lease,
        })
    }
}

fn digest(text: &str, reference: &str) -> Result<Digest, ImageError> {
    text.parse().map_err(|source: DigestError| ImageError::Config {
        reference: reference.to_owned(),
        source: config::ConfigError::DiffId { source },
    })
}

impl Commit {
    /// Takes the layer: an uncompressed tar stream of at most `limit` bytes, read to its end. Blocks.
    ///
    /// # Errors
    /// Fails when the stream is longer or no layer, or the cache cannot take it. Nothing of it is left then.
    pub fn take_layer(
        &self,
        stream: impl Read,
        limit: u64,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<Layer, ImageError> {
        let cache = &self.store.cache;
        let failed = |source| ImageError::file("create", &cache.partials(), source);
        let temporary = tempfile::Builder::new().prefix("commit-").make_in(cache.partials(), |path| {
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
        });
        let (mut file, path) = temporary.map_err(failed)?.into_parts();
        let (blob, diff_id) = compress(stream, limit, &mut file, &path, cancelled)?;
        let layer = LayerFile {
            path: path.to_path_buf(),
            compression: Compression::Gzip,
            diff_id: Some(diff_id.to_string()),
        };
        let limits = Limits { max_unpacked_bytes: limit, ..Limits::default() };
        let content_bytes = rootfs::check(&layer, &limits, cancelled).map_err(|error| match error {
            rootfs::RootfsError::Cancelled => ImageError::Cancelled,
            error => ImageError::unpack(error, &self.resolved, &cache.partials()),
        })?;
        Ok(Layer { file, path, blob, diff_id, content_bytes })
    }

    /// Gives the image its name. Blocks for a moment.
    ///
    /// # Errors
    /// Fails when the cache cannot be written; there is no new image then.
    pub fn finish(self, layer: Layer, options: &CommitDetails) -> Result<Committed, ImageError> {
        let cache = &self.store.cache;
        let Layer { file, path, blob, diff_id, content_bytes: layer_content } = layer;
        keep(cache, &file, path, &blob)?;
        let now = Timestamp::now();
        let history = History {
            created: &now.to_string(),
            created_by: &options.created_by,
            author: options.author.as_deref(),
            message: options.message.as_deref(),
        };
        let unusable = |source| ImageError::Config { reference: self.resolved.clone(), source };
        let configuration = config::encode_commit(&self.base_config, &options.changes, &diff_id, history)
            .map_err(unusable)?;
        let parsed = config::decode(&configuration).map_err(unusable)?;
        let layers: Vec<Descriptor> = self.base.layers.iter().chain([&blob]).cloned().collect();
        let manifest = Manifest::new(&configuration, layers);
        let bytes = manifest.encode();
        let manifest_digest = Digest::of(&bytes);
        cache.put_blob(&manifest.config.digest, &configuration)?;
        cache.put_blob(&manifest_digest, &bytes)?;
        let disk_id = disk::id(&parsed.diff_ids, &parsed.config.volumes);
        // An image without changes has the disk of the one below.
        let disk = disk::ready(cache, &disk_id);
        let content_bytes = self.base_content_bytes.saturating_add(layer_content);
        let record = ImageRecord {
            format: RECORD_FORMAT,
            reference: self.reference.clone(),
            resolved_reference: self.resolved.clone(),
            source: self.place,
            source_id: None,
            platform: self.platform,
            layers: manifest.layers.iter().map(LayerRecord::of).collect(),
            manifest_digest: manifest_digest.clone(),
            index_digest: None,
            config_digest: manifest.config.digest,
            config: parsed.config,
            disk_id,
            disk_bytes: disk.as_ref().map_or(0, |disk| disk.bytes),
            content_bytes: disk.map_or(content_bytes, |disk| disk.content_bytes),
            origin: Origin::Commit,
            created_at: now,
        };
        record.save(cache)?;
        Ok(Committed {
            reference: self.reference,
            resolved_reference: self.resolved,
            digest: manifest_digest.into(),
            diff_id: diff_id.into(),
            layer_digest: blob.digest.into(),
            layer_bytes: blob.size,
            content_bytes: layer_content,
        })
    }
}

/// Gives a layer its place among the blobs.
fn keep(cache: &Cache, file: &File, path: TempPath, blob: &Descriptor) -> Result<(), ImageError> {
    if cache.has_blob(&blob.digest, blob.size) {
        return Ok(());
    }
    let to = cache.blob(&blob.digest);
    Cache::publish(file, &path, &to)?;
    // Renamed: there is nothing left to remove under the old name.
    path.keep().map(drop).map_err(|error| ImageError::file("store", &to, error.error))
}

/// Writes the stream compressed; gives the blob that it is then, and the digest of what it was before.
fn compress(
    mut stream: impl Read,
    limit: u64,
    file: &mut File,
    path: &Path,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<(Descriptor, Digest), ImageError> {
    let failed = |source| ImageError::file("write", path, source);
    let sink = Hashed { file, hasher: Hasher::new(), written: 0 };
    // No name and no date in the header: the same changes give the same blob.
    let mut encoder = GzEncoder::new(sink, flate2::Compression::default());
    let (mut plain, mut buffer, mut taken) = (Hasher::new(), vec![0; STEP], 0);
    loop {
        if cancelled() {
            return Err(ImageError::Cancelled);
        }
        let read = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => {
                let path = "the changes of the workspace".into();
                return Err(ImageError::File { action: "read", path, source });
            }
        };
        taken += read as u64;
        if taken > limit {
            return Err(ImageError::TooLarge { what: "the changes of the workspace".to_owned(), limit });
        }
        plain.update(&buffer[..read]);
        encoder.write_all(&buffer[..read]).map_err(failed)?;
    }
    let sink = encoder.finish().map_err(failed)?;
    let blob =
        Descriptor { digest: sink.hasher.finish(), size: sink.written, ..Descriptor::of(LAYER_GZIP, b"") };
    Ok((blob, plain.finish()))
}

/// Hashes and counts what goes into a file.
struct Hashed<'a> {
    file: &'a mut File,
    hasher: Hasher,
    written: u64,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
