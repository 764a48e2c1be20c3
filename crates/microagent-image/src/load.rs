//! Brings in the images of an archive under the names that they have in it, as `docker load` does.
//!
//! What `docker save`, `podman save` and builders write is told apart by content. Blobs are verified as always, and
//! what is in the cache already is not copied again.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::archive::{Archive, FoundImage, LocalImage};
use crate::blocking::{self, Meter};
use crate::error::ImageError;
use crate::fetch::Source;
use crate::import::ImportSource;
use crate::manifest::Platform;
use crate::options::{Origin, PullOptions};
use crate::progress::{ImageEvent, Progress};
use crate::record::ImageRecord;
use crate::resolve::{Start, resolve};
use crate::rootfs::Limits;
use crate::store::{Image, ImageStore, Request};
use crate::tag::target;

/// Bytes that are copied between two checks for cancellation.
const STEP: usize = 256 * 1024;

/// Options of loading an archive.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct LoadOptions {
    /// The name of an image that has none in the archive.
    pub name: Option<String>,
}

impl LoadOptions {
    /// Creates options for an archive whose images have names.
    pub fn new() -> LoadOptions {
        LoadOptions::default()
    }

    /// Sets the name of an image that has none in the archive.
    #[must_use]
    pub fn name(self, name: impl Into<String>) -> LoadOptions {
        LoadOptions { name: Some(name.into()) }
    }
}

impl ImageStore {
    /// Brings in every image of an archive, and makes their base disks.
    ///
    /// # Errors
    /// Fails when the source is no archive of images, an image of it has no name and none is given, or as
    /// [`ImageStore::ensure`] does. Images that were complete by then stay.
    pub async fn load(
        &self,
        source: ImportSource,
        options: &LoadOptions,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<Vec<Image>, ImageError> {
        let pull = PullOptions::default();
        let waiting = Request { reference: "", options: &pull, progress, cancel };
        self.cache.prepare()?;
        let _lease = self.cache.join(&waiting.waiting()).await?;
        let (scratch, platform) = (self.cache.scratch(), pull.platform.clone());
        let report = |done| progress.event(ImageEvent::Unpacking { done, total: 0 });
        let found = blocking::run(cancel, report, move |meter| {
            open(source, &scratch, meter)?.images(&platform, meter)
        })
        .await?;
        let mut named = Vec::new();
        for image in found {
            let names = names(&image, options)?;
            named.push((Arc::new(image.image), names));
        }
        let mut images = Vec::new();
        for (image, names) in named {
            for reference in &names {
                let request = Request { reference, ..waiting };
                images.push(self.take(&request, &image, Origin::Load).await?);
            }
        }
        Ok(images)
    }

    /// Brings in one image of an archive under the request's name.
    pub(crate) async fn take(
        &self,
        request: &Request<'_>,
        image: &Arc<LocalImage>,
        origin: Origin,
    ) -> Result<Image, ImageError> {
        let resolved = target(request.reference)?.to_string();
        self.take_as(request, image, origin, resolved).await
    }

    /// The same under a full reference.
    pub(crate) async fn take_as(
        &self,
        request: &Request<'_>,
        image: &Arc<LocalImage>,
        origin: Origin,
        resolved: String,
    ) -> Result<Image, ImageError> {
        let lease = self.cache.join(&request.waiting()).await?;
        let source = Source::Local(Arc::clone(image));
        let start = Start::Descriptor(image.root.clone());
        let fetcher = self.fetcher(request);
        let resolution = resolve(&fetcher, &source, start, &request.options.platform, &resolved).await?;
        self.finish(request, resolved, origin, &source, resolution, lease).await
    }
}

/// The names that an image gets.
fn names(image: &FoundImage, options: &LoadOptions) -> Result<Vec<String>, ImageError> {
    match (&image.names[..], &options.name) {
        ([], Some(name)) => Ok(vec![name.clone()]),
        ([], None) => Err(ImageError::Unnamed { path: image.image.path().to_owned() }),
        (names, _) => Ok(names.to_vec()),
    }
}

/// Opens an archive; a stream is kept in a temporary file without a name.
pub(crate) fn open(source: ImportSource, scratch: &Path, meter: &Meter) -> Result<Archive, ImageError> {
    match source {
        ImportSource::Path(path) => Archive::open(&path, scratch, meter),
        ImportSource::Reader(reader) => {
            let path = PathBuf::from("standard input");
            let file = spool(reader, &path, scratch, meter)?;
            Archive::of(file, path, scratch, meter)
        }
    }
}

/// Writes a stream into a temporary file without a name.
pub(crate) fn spool(
    mut reader: impl Read,
    name: &Path,
    scratch: &Path,
    meter: &Meter,
) -> Result<File, ImageError> {
    let limit = Limits::default().max_unpacked_bytes;
    let inside = scratch.join("archive");
    let failed = |source| ImageError::file("write into", &inside, source);
    let mut file = tempfile::tempfile_in(scratch).map_err(failed)?;
    let (mut buffer, mut written) = (vec![0; STEP], 0);
    loop {
        meter.check()?;
        let read = match reader.read(&mut buffer) {
            Ok(0) => {
                file.rewind().map_err(failed)?;
                return Ok(file);
            }
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(ImageError::File { action: "read", path: name.to_owned(), source }),
        };
        written += read as u64;
        if written > limit {
            return Err(ImageError::TooLarge { what: format!("the archive `{}`", name.display()), limit });
        }
        file.write_all(&buffer[..read]).map_err(failed)?;
        meter.set(written);
    }
}

impl ImageStore {
    /// The record of a place that cannot be asked again, for who may not ask.
    pub(crate) fn recorded(&self, resolved: &str, platform: &Platform) -> Result<ImageRecord, ImageError> {
        let found = ImageRecord::find(&self.cache, resolved, platform)?.map(|(_, record)| record);
        let found = found.filter(|record| record.has_disk(&self.cache));
        found.ok_or_else(|| ImageError::NotCached { reference: resolved.to_owned() })
    }
}
