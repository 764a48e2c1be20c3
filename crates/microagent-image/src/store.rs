//! The image store: what the rest of the program calls.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use microagent_store::{Lock, StateDir, read_limited};
use tokio_util::sync::CancellationToken;

use crate::archive::LocalImage;
use crate::blocking;
use crate::cache::{Cache, LockWait};
use crate::config::{self, CONFIG_LIMIT, ConfigError, ImageConfig};
use crate::digest::Digest;
use crate::disk::{self, Disk};
use crate::environment::Environment;
use crate::error::ImageError;
use crate::fetch::{Fetcher, Source};
use crate::import::ImportSource;
use crate::load;
use crate::manifest::{self, ManifestError, Platform, printable};
use crate::options::{Origin, PullOptions, PullPolicy};
use crate::progress::{ImageEvent, Progress};
use crate::record::{self, ImageRecord, LayerRecord, RECORD_FORMAT, Records};
use crate::reference::{DaemonReference, ImageReference, LocalReference, RegistryReference, Transport};
use crate::registry::{Access, Registry};
use crate::resolve::{Resolution, Start, resolve};

/// How many blobs are fetched at once; Docker and containerd take three.
pub(crate) const PARALLEL_BLOBS: usize = 3;

/// The images of one state directory.
#[derive(Debug, Clone)]
pub struct ImageStore {
    pub(crate) cache: Cache,
    pub(crate) environment: Environment,
}

/// An image whose base disk is ready.
///
/// Until this value is dropped or [`Image::release`] is called, nothing is removed from the cache, also not by this
/// process: drop it when the workspace for which it was fetched has been created.
#[derive(Debug)]
pub struct Image {
    /// Its reference as the caller gave it.
    pub reference: String,
    /// The full reference.
    pub resolved_reference: String,
    /// Digest of the platform's manifest.
    pub digest: String,
    /// Its configuration.
    pub config: ImageConfig,
    /// The base disk: a read-only ext4 image.
    pub disk: PathBuf,
    /// Digest that names the base disk.
    pub disk_id: String,
    /// Size of the base disk.
    pub disk_bytes: u64,
    /// Bytes of files on it.
    pub content_bytes: u64,
    /// Its source in this call.
    pub origin: Origin,
    lease: Option<Lock>,
}

impl Image {
    /// Releases the lock of the cache, so that other commands can remove images. Dropping the value does the same.
    pub fn release(&mut self) {
        self.lease = None;
    }

    pub(crate) fn new(
        reference: &str,
        cache: &Cache,
        record: ImageRecord,
        origin: Origin,
        lease: Lock,
    ) -> Image {
        Image {
            reference: reference.to_owned(),
            resolved_reference: record.resolved_reference,
            digest: record.manifest_digest.into(),
            config: record.config,
            disk: cache.disk(&record.disk_id),
            disk_id: record.disk_id.into(),
            disk_bytes: record.disk_bytes,
            content_bytes: record.content_bytes,
            origin,
            lease: Some(lease),
        }
    }
}

/// One call of [`ImageStore::ensure`] or [`ImageStore::import`].
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) reference: &'a str,
    pub(crate) options: &'a PullOptions,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) cancel: &'a CancellationToken,
}

impl<'a> Request<'a> {
    pub(crate) fn waiting(&self) -> LockWait<'a> {
        LockWait { patience: self.options.lock_patience, progress: self.progress, cancel: self.cancel }
    }
}

impl ImageStore {
    /// The images of a state directory, with no credentials, no proxy and the system's certificates.
    pub fn new(state: StateDir) -> ImageStore {
        ImageStore { cache: Cache::new(state), environment: Environment::default() }
    }

    /// The same with other surroundings.
    #[must_use]
    pub fn with_environment(self, environment: Environment) -> ImageStore {
        ImageStore { environment, ..self }
    }

    /// Where the base disk of that name lies, if it is there.
    pub fn disk_path(&self, disk_id: &str) -> PathBuf {
        let name = disk_id.strip_prefix("sha256:").unwrap_or(disk_id);
        self.cache.disks().join(format!("{name}.ext4"))
    }

    /// Gives an image whose base disk is ready, fetching and unpacking what is missing.
    ///
    /// A cached registry reference costs a few small file reads. Anything else needs a tokio runtime with
    /// time and I/O. Dropped or cancelled, what has arrived stays in the cache's `partial` directory, and the
    /// next call continues from there.
    ///
    /// # Errors
    /// See [`ImageError`]. No record is written unless everything under it is complete.
    pub async fn ensure(
        &self,
        reference: &str,
        options: &PullOptions,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<Image, ImageError> {
        let request = Request { reference, options, progress, cancel };
        // Many paths of archives are no names either, which would be the less helpful thing to say.
        let parsed = parse(reference).map_err(|error| match archive_beside(reference) {
            Some(path) => ImageError::IsAFile { path },
            None => error,
        });
        match parsed? {
            ImageReference::Registry(parsed) => self.ensure_registry(&request, &parsed).await,
            ImageReference::Local(parsed) => self.ensure_local(&request, &parsed).await,
            ImageReference::Daemon(parsed) => {
                let resolved = parsed.to_string();
                self.ensure_daemon(&request, &parsed, resolved).await
            }
        }
    }

    async fn ensure_registry(
        &self,
        request: &Request<'_>,
        parsed: &RegistryReference,
    ) -> Result<Image, ImageError> {
        let Request { options, progress, .. } = *request;
        let resolved = parsed.to_string();
        if options.policy != PullPolicy::Always && self.cache.refs().is_dir() {
            let lease = match self.cache.try_use()? {
                Some(lease) => lease,
                None => self.cache.join(&request.waiting()).await?,
            };
            if let Some(record) = self.cached(&resolved, parsed.digest.as_ref(), request)? {
                return Ok(Image::new(request.reference, &self.cache, record, Origin::Cache, lease));
            }
            if let Some(record) = self.without_disk(&resolved, parsed.digest.as_ref(), request)? {
                let record = self.make_disk(request, &resolved, record).await?;
                return Ok(Image::new(request.reference, &self.cache, record, Origin::Cache, lease));
            }
        }
        if options.policy == PullPolicy::Never {
            return Err(ImageError::NotCached { reference: resolved });
        }
        if options.policy == PullPolicy::Local {
            let name = request.reference.strip_prefix("docker://").unwrap_or(request.reference).to_owned();
            let wanted = DaemonReference { name, full: parsed.clone() };
            return self.ensure_daemon(request, &wanted, resolved).await;
        }
        if let Some(path) = archive_beside(request.reference) {
            return Err(ImageError::IsAFile { path });
        }
        self.cache.prepare()?;
        let lease = self.cache.join(&request.waiting()).await?;
        progress.event(ImageEvent::Resolving { reference: resolved.clone() });
        let source = Source::Registry(Box::new(self.connect(request, parsed, Access::Pull).await?));
        let start = Start::Selector(parsed.selector(), parsed.digest.as_ref());
        let fetcher = self.fetcher(request);
        let resolution = resolve(&fetcher, &source, start, &options.platform, &resolved).await?;
        self.finish(request, resolved, Origin::Registry, &source, resolution, lease).await
    }

    async fn ensure_local(
        &self,
        request: &Request<'_>,
        parsed: &LocalReference,
    ) -> Result<Image, ImageError> {
        let Request { options, cancel, .. } = *request;
        self.cache.prepare()?;
        let lease = self.cache.join(&request.waiting()).await?;
        let (reference, wanted) = (parsed.clone(), options.platform.clone());
        let scratch = self.cache.scratch();
        if parsed.is_standard_input() {
            return self.ensure_standard_input(request, parsed, lease).await;
        }
        let open = move |meter: &blocking::Meter| LocalImage::open(&reference, &wanted, &scratch, meter);
        let image = blocking::run(cancel, |_| {}, open).await?;
        let resolved = image.resolved.clone();
        let start = Start::Descriptor(image.root.clone());
        let source = Source::Local(Arc::new(image));
        let fetcher = self.fetcher(request);
        let resolution = resolve(&fetcher, &source, start, &options.platform, &resolved).await?;
        let origin = match parsed.transport {
            Transport::Oci => Origin::OciLayout,
            Transport::OciArchive => Origin::OciArchive,
            Transport::DockerArchive => Origin::DockerArchive,
        };
        self.finish(request, resolved, origin, &source, resolution, lease).await
    }

    /// Takes an archive from standard input. It cannot be read again, so its layers stay here.
    async fn ensure_standard_input(
        &self,
        request: &Request<'_>,
        parsed: &LocalReference,
        lease: Lock,
    ) -> Result<Image, ImageError> {
        let resolved = parsed.resolved(&parsed.path);
        if request.options.policy == PullPolicy::Never {
            let record = self.recorded(&resolved, &request.options.platform)?;
            return Ok(Image::new(request.reference, &self.cache, record, Origin::Cache, lease));
        }
        drop(lease);
        let input = self.environment.standard_input.clone().ok_or(ImageError::NoStandardInput)?;
        let (reference, wanted) = (parsed.clone(), request.options.platform.clone());
        let scratch = self.cache.scratch();
        let read = move |meter: &blocking::Meter| {
            let archive = load::open(ImportSource::Reader(input.open()), &scratch, meter)?;
            LocalImage::read(&reference, archive, &wanted, meter)
        };
        let report = |done| request.progress.event(ImageEvent::Unpacking { done, total: 0 });
        let image = Arc::new(blocking::run(request.cancel, report, read).await?);
        self.take_as(request, &image, Origin::Load, resolved).await
    }

    /// Finds out how to talk to a registry.
    pub(crate) async fn connect<'a>(
        &'a self,
        request: &Request<'_>,
        parsed: &'a RegistryReference,
        access: Access,
    ) -> Result<Registry<'a>, ImageError> {
        let connect = Registry::connect(parsed, &self.environment, &request.options.network, access);
        request.cancel.run_until_cancelled(connect).await.ok_or(ImageError::Cancelled)?
    }

    pub(crate) fn fetcher<'a>(&'a self, request: &Request<'a>) -> Fetcher<'a> {
        Fetcher { cache: &self.cache, network: &request.options.network, waiting: request.waiting() }
    }

    /// The record of a reference whose disk is here. A digest finds its image whatever name brought it in;
    /// a record of its own makes that quick the next time.
    fn cached(
        &self,
        resolved: &str,
        digest: Option<&Digest>,
        request: &Request<'_>,
    ) -> Result<Option<ImageRecord>, ImageError> {
        let platform = &request.options.platform;
        if let Some((path, found)) = ImageRecord::find(&self.cache, resolved, platform)?
            && found.has_disk(&self.cache)
        {
            record::touch(&path);
            return Ok(Some(found));
        }
        let Some(digest) = digest else { return Ok(None) };
        let records = ImageRecord::load_all(&self.cache)?;
        match records.by_digest(digest, platform, |record| record.has_disk(&self.cache)) {
            Some(found) => self.name(request.reference, resolved, found.clone()).map(Some),
            None => Ok(None),
        }
    }

    /// The record of a reference whose disk is not here and can be made of what is: that of an image that was
    /// committed and never used.
    fn without_disk(
        &self,
        resolved: &str,
        digest: Option<&Digest>,
        request: &Request<'_>,
    ) -> Result<Option<ImageRecord>, ImageError> {
        let platform = &request.options.platform;
        if let Some((_, found)) = ImageRecord::find(&self.cache, resolved, platform)? {
            return Ok(Some(found).filter(|found| found.has_layers(&self.cache)));
        }
        let Some(digest) = digest else { return Ok(None) };
        let records = ImageRecord::load_all(&self.cache)?;
        Ok(records.by_digest(digest, platform, |record| record.has_layers(&self.cache)).cloned())
    }

    /// Makes the disk of an image whose layers are all here, and records that.
    async fn make_disk(
        &self,
        request: &Request<'_>,
        resolved: &str,
        record: ImageRecord,
    ) -> Result<ImageRecord, ImageError> {
        let (manifest, _) = self.manifest(&record.manifest_digest, resolved)?;
        let configuration = read_limited(&self.cache.blob(&manifest.config.digest), CONFIG_LIMIT)
            .map_err(|source| ImageError::Read { source })?;
        let unusable = |source| ImageError::Config { reference: resolved.to_owned(), source };
        let parsed = config::decode(&configuration).map_err(unusable)?;
        let (expected, found) = (manifest.layers.len(), parsed.diff_ids.len());
        if expected != found {
            return Err(unusable(ConfigError::LayerCount { expected, found }));
        }
        let disk = match disk::ready(&self.cache, &disk::id(&parsed.diff_ids, &parsed.config.volumes)) {
            Some(disk) => disk,
            None => {
                let limits = &request.options.limits;
                disk::make(&self.cache, &manifest.layers, &parsed, limits, resolved, &request.waiting())
                    .await?
            }
        };
        let Disk { id, bytes, content_bytes } = disk;
        let record = ImageRecord { disk_id: id, disk_bytes: bytes, content_bytes, ..record };
        self.name(request.reference, resolved, record)
    }

    /// Writes a further name for an image that is here.
    pub(crate) fn name(
        &self,
        reference: &str,
        resolved: &str,
        record: ImageRecord,
    ) -> Result<ImageRecord, ImageError> {
        let record = ImageRecord {
            reference: reference.to_owned(),
            resolved_reference: resolved.to_owned(),
            ..record
        };
        record.save(&self.cache)?;
        Ok(record)
    }

    /// From a manifest to a base disk and a record, skipping whatever is here.
    pub(crate) async fn finish(
        &self,
        request: &Request<'_>,
        resolved: String,
        origin: Origin,
        source: &Source<'_>,
        resolution: Resolution,
        lease: Lock,
    ) -> Result<Image, ImageError> {
        let platform = &request.options.platform;
        if let Some((path, record)) = ImageRecord::find(&self.cache, &resolved, platform)?
            && record.manifest_digest == resolution.digest
            && record.has_disk(&self.cache)
        {
            record::touch(&path);
            return Ok(Image::new(request.reference, &self.cache, record, Origin::Cache, lease));
        }
        let records: Records = ImageRecord::load_all(&self.cache)?;
        if let Some(found) =
            records.by_digest(&resolution.digest, platform, |record| record.has_disk(&self.cache))
        {
            let index_digest = resolution.index.as_ref().map(|(digest, _)| digest.clone());
            let record =
                ImageRecord { index_digest: index_digest.or(found.index_digest.clone()), ..found.clone() };
            let record = self.name(request.reference, &resolved, record)?;
            return Ok(Image::new(request.reference, &self.cache, record, Origin::Cache, lease));
        }
        if request.options.policy == PullPolicy::Never {
            return Err(ImageError::NotCached { reference: resolved });
        }
        let fetcher = self.fetcher(request);
        let parsed = self.configuration(&fetcher, source, &resolution, platform, &resolved).await?;
        let disk = match disk::ready(&self.cache, &disk::id(&parsed.diff_ids, &parsed.config.volumes)) {
            // Another image with the same layers has brought the disk. What cannot be fetched again is kept anyway.
            Some(disk) => {
                if !origin.is_elsewhere() {
                    self.layers(&fetcher, source, &resolution, &resolved).await?;
                }
                disk
            }
            None => {
                self.layers(&fetcher, source, &resolution, &resolved).await?;
                let layers = &resolution.manifest.layers;
                let limits = &request.options.limits;
                disk::make(&self.cache, layers, &parsed, limits, &resolved, &request.waiting()).await?
            }
        };
        self.cache.put_blob(&resolution.digest, &resolution.bytes)?;
        if let Some((digest, bytes)) = &resolution.index {
            self.cache.put_blob(digest, bytes)?;
        }
        let record = new_record(request, resolved, origin, resolution, parsed.config, &disk);
        record.save(&self.cache)?;
        Ok(Image::new(request.reference, &self.cache, record, origin, lease))
    }

    /// Fetches and decodes the configuration, and checks that it goes with the manifest.
    async fn configuration(
        &self,
        fetcher: &Fetcher<'_>,
        source: &Source<'_>,
        resolution: &Resolution,
        wanted: &Platform,
        resolved: &str,
    ) -> Result<config::Parsed, ImageError> {
        let blob = &resolution.manifest.config;
        if blob.size > CONFIG_LIMIT {
            let what = format!("the configuration of image `{resolved}`");
            return Err(ImageError::TooLarge { what, limit: CONFIG_LIMIT });
        }
        let bytes = match source {
            Source::Local(image) if !self.cache.has_blob(&blob.digest, blob.size) => {
                let bytes = image.read_blob(&blob.digest, CONFIG_LIMIT)?;
                crate::fetch::verify(Digest::of(&bytes), &blob.digest, || {
                    format!("the configuration of image `{resolved}`")
                })?;
                self.cache.put_blob(&blob.digest, &bytes)?;
                bytes
            }
            _ => {
                fetcher.blob(source, blob).await?;
                read_limited(&self.cache.blob(&blob.digest), CONFIG_LIMIT)
                    .map_err(|source| ImageError::Read { source })?
            }
        };
        let unusable = |source| ImageError::Config { reference: resolved.to_owned(), source };
        let parsed = config::decode(&bytes).map_err(unusable)?;
        let (expected, found) = (resolution.manifest.layers.len(), parsed.diff_ids.len());
        if expected != found {
            return Err(unusable(ConfigError::LayerCount { expected, found }));
        }
        match &parsed.platform {
            Some(found) if !manifest::fits(found, wanted) => {
                let source = ManifestError::WrongPlatform { wanted: wanted.clone(), found: found.clone() };
                Err(ImageError::manifest(resolved, source))
            }
            _ => Ok(parsed),
        }
    }

    /// Fetches the layers that are missing.
    async fn layers(
        &self,
        fetcher: &Fetcher<'_>,
        source: &Source<'_>,
        resolution: &Resolution,
        resolved: &str,
    ) -> Result<(), ImageError> {
        let mut missing = resolution.manifest.distinct_layers();
        missing.retain(|layer| !self.cache.has_blob(&layer.digest, layer.size));
        self.fetch(fetcher, source, missing, resolved).await
    }

    /// Fetches blobs that are missing, some at a time.
    pub(crate) async fn fetch(
        &self,
        fetcher: &Fetcher<'_>,
        source: &Source<'_>,
        missing: Vec<manifest::Descriptor>,
        resolved: &str,
    ) -> Result<(), ImageError> {
        if missing.is_empty() {
            return Ok(());
        }
        fetcher.waiting.progress.event(ImageEvent::Pulling {
            reference: resolved.to_owned(),
            layers: missing.len(),
            bytes_total: missing.iter().map(|layer| layer.size).fold(0, u64::saturating_add),
        });
        fetcher.check_space(&missing)?;
        // Collected first: as a closure inside the stream they would keep this future from being `Send`.
        let fetches: Vec<_> = missing.iter().map(|layer| fetcher.blob(source, layer)).collect();
        stream::iter(fetches).buffer_unordered(PARALLEL_BLOBS).try_collect().await
    }
}

/// The archive or layout that a person who typed a path in place of a reference means.
fn archive_beside(reference: &str) -> Option<PathBuf> {
    const ENDINGS: [&str; 6] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".oci", ".tzst"];
    let path = Path::new(reference);
    let is_archive = ENDINGS.iter().any(|ending| reference.ends_with(ending)) && path.is_file();
    (is_archive || path.join("oci-layout").is_file()).then(|| path.to_owned())
}

/// Parses a reference as the user gave it.
pub(crate) fn parse(reference: &str) -> Result<ImageReference, ImageError> {
    reference.parse().map_err(|source| ImageError::Reference { reference: printable(reference), source })
}

fn new_record(
    request: &Request<'_>,
    resolved_reference: String,
    origin: Origin,
    resolution: Resolution,
    config: ImageConfig,
    disk: &Disk,
) -> ImageRecord {
    ImageRecord {
        format: RECORD_FORMAT,
        reference: request.reference.to_owned(),
        source: origin.is_elsewhere().then(|| resolved_reference.clone()),
        source_id: None,
        resolved_reference,
        platform: request.options.platform.clone(),
        layers: resolution.manifest.layers.iter().map(LayerRecord::of).collect(),
        manifest_digest: resolution.digest,
        index_digest: resolution.index.map(|(digest, _)| digest),
        config_digest: resolution.manifest.config.digest,
        config,
        disk_id: disk.id.clone(),
        disk_bytes: disk.bytes,
        content_bytes: disk.content_bytes,
        origin,
        created_at: Timestamp::now(),
    }
}
