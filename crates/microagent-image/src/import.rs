//! Makes an image out of a root file system tar, as `docker import` does.
//!
//! The tar becomes the one layer of an ordinary image, with a configuration and manifest of our making:
//! the same tar and changes give the same digest each time.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use flate2::write::MultiGzDecoder;
use microagent_store::{Access, Lock, open_file};
use microagent_tar::read::{ReadSource, Reader};
use tokio_util::sync::CancellationToken;
use zstd::stream::write::Decoder as ZstdDecoder;

use crate::archive::ArchiveError;
use crate::blocking::{self, Meter};
use crate::cache::Cache;
use crate::compression::{self, MAGIC_LEN};
use crate::config::{self, ConfigChanges};
use crate::digest::{Digest, Hasher};
use crate::error::ImageError;
use crate::fetch::Source;
use crate::manifest::{Descriptor, Manifest};
use crate::options::{Origin, PullOptions, PullPolicy};
use crate::progress::{ImageEvent, Progress};
use crate::resolve::Resolution;
use crate::rootfs::Compression;
use crate::store::{Image, ImageStore, Request};
use crate::tag::target;

/// Longest name of a first entry that is looked at.
const NAME_MAX: usize = 4096;
/// Bytes that are read between two checks for cancellation.
const STEP: usize = 256 * 1024;

/// Source of a tar file: plain, or compressed with gzip or zstd, which is recognised by its content.
pub enum ImportSource {
    /// A file.
    Path(PathBuf),
    /// A stream that is read to its end, such as standard input.
    Reader(Box<dyn Read + Send>),
}

impl fmt::Debug for ImportSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImportSource::Path(path) => f.debug_tuple("Path").field(path).finish(),
            ImportSource::Reader(_) => f.write_str("Reader"),
        }
    }
}

/// A layer that has come in.
struct Layer {
    blob: Descriptor,
    diff_id: Digest,
}

impl ImageStore {
    /// Makes an image out of a root file system tar and files it under a registry-like name.
    ///
    /// # Errors
    /// Fails when the name is no plain tag, the source is no tar, or as [`ImageStore::ensure`] does.
    pub async fn import(
        &self,
        source: ImportSource,
        reference: &str,
        changes: &ConfigChanges,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<Image, ImageError> {
        let resolved = target(reference)?.to_string();
        let options = PullOptions { policy: PullPolicy::Missing, ..PullOptions::default() };
        let request = Request { reference, options: &options, progress, cancel };
        self.cache.prepare()?;
        let lease: Lock = self.cache.join(&request.waiting()).await?;
        let (cache, limit) = (self.cache.clone(), options.limits.max_unpacked_bytes);
        let report = |done| progress.event(ImageEvent::Unpacking { done, total: 0 });
        let layer = blocking::run(cancel, report, move |meter| take_in(source, &cache, limit, meter)).await?;

        let configuration = config::encode_import(&options.platform, changes, &layer.diff_id);
        let manifest = Manifest::new(&configuration, vec![layer.blob]);
        let bytes = manifest.encode();
        self.cache.put_blob(&manifest.config.digest, &configuration)?;
        let resolution = Resolution { digest: Digest::of(&bytes), bytes, manifest, index: None };
        self.finish(&request, resolved, Origin::Import, &Source::Cache, resolution, lease).await
    }
}

/// Reads the source once: stores it as it is, and hashes it as it is and uncompressed. Blocks.
fn take_in(source: ImportSource, cache: &Cache, limit: u64, meter: &Meter) -> Result<Layer, ImageError> {
    let (name, reader): (PathBuf, Box<dyn Read + Send>) = match source {
        ImportSource::Reader(reader) => (PathBuf::from("standard input"), reader),
        ImportSource::Path(path) => {
            let file = open_file(&path, Access::ReadFollowing)
                .map_err(|source| ImageError::archive(&path, ArchiveError::Open { source }))?;
            (path, Box::new(file))
        }
    };
    let temporary = tempfile::Builder::new().prefix("import-").make_in(cache.partials(), |path| {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
    });
    let (mut file, path) =
        temporary.map_err(|source| ImageError::file("create", &cache.partials(), source))?.into_parts();
    let layer = copy(reader, &name, &mut file, &path, limit, meter)?;
    if is_archive_of_images(&path) {
        return Err(ImageError::IsAnArchive { path: name });
    }
    if cache.has_blob(&layer.blob.digest, layer.blob.size) {
        return Ok(layer);
    }
    let to = cache.blob(&layer.blob.digest);
    Cache::publish(&file, &path, &to)?;
    // Renamed: there is nothing left to remove under the old name.
    path.keep().map_err(|error| ImageError::file("store", &to, error.error)).map(|_| layer)
}

/// Whether the tar's first entry is one that archives of images begin with, and root file systems do not.
fn is_archive_of_images(path: &Path) -> bool {
    let (Ok(file), Ok(compression)) = (open_file(path, Access::Read), compression::of_file(path)) else {
        return false;
    };
    let reader: Box<dyn Read> = match compression {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(file)),
        Compression::Zstd => match zstd::stream::read::Decoder::new(file) {
            Ok(decoder) => Box::new(decoder),
            Err(_) => return false,
        },
    };
    let first = Reader::new(ReadSource::new(reader), NAME_MAX).next_member();
    matches!(first, Ok(Some(member)) if begins_archive(&member.name))
}

/// Docker and podman begin with a blob or layer under its digest, or with one of the files that describe images.
fn begins_archive(name: &[u8]) -> bool {
    let name = name.strip_prefix(b"./").unwrap_or(name);
    let first = name.split(|byte| *byte == b'/').next().unwrap_or_default();
    let stem = first.strip_suffix(b".tar").or(first.strip_suffix(b".json")).unwrap_or(first);
    let is_digest = stem.len() == 64 && stem.iter().all(u8::is_ascii_hexdigit);
    is_digest
        || matches!(name, b"oci-layout" | b"index.json" | b"manifest.json" | b"blobs/" | b"blobs")
        || name.starts_with(b"blobs/sha256")
}

fn copy(
    mut reader: Box<dyn Read + Send>,
    name: &Path,
    file: &mut File,
    path: &Path,
    limit: u64,
    meter: &Meter,
) -> Result<Layer, ImageError> {
    let read_failed = |source| ImageError::File { action: "read", path: name.to_owned(), source };
    let write_failed = |source| ImageError::file("write", path, source);
    let mut start = Vec::new();
    (&mut reader).take(MAGIC_LEN).read_to_end(&mut start).map_err(read_failed)?;
    if start.is_empty() {
        return Err(ImageError::NotATar { reason: "it is empty" });
    }
    if let Some(reason) = compression::unsupported(&start) {
        return Err(ImageError::NotATar { reason });
    }
    let compression = Compression::sniff(&start);
    let mut plain = PlainHasher::new(compression, limit).map_err(read_failed)?;
    let (mut hasher, mut size, mut buffer) = (Hasher::new(), 0, start);
    loop {
        meter.check()?;
        hasher.update(&buffer);
        size += buffer.len() as u64;
        meter.set(size);
        plain.write_all(&buffer).map_err(|error| not_a_tar(compression, &error, limit))?;
        file.write_all(&buffer).map_err(write_failed)?;
        buffer.resize(STEP, 0);
        let read = loop {
            match reader.read(&mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome.map_err(read_failed)?,
            }
        };
        if read == 0 {
            break;
        }
        buffer.truncate(read);
    }
    let diff_id = plain.finish().map_err(|error| not_a_tar(compression, &error, limit))?;
    let blob = Descriptor {
        digest: hasher.finish(),
        size,
        ..Descriptor::of(compression::media_type(compression), b"")
    };
    Ok(Layer { blob, diff_id })
}

fn not_a_tar(compression: Compression, error: &io::Error, limit: u64) -> ImageError {
    if error.kind() == io::ErrorKind::FileTooLarge {
        return ImageError::TooLarge { what: "the unpacked root file system".to_owned(), limit };
    }
    ImageError::NotATar {
        reason: match compression {
            Compression::Gzip => "its gzip data is damaged or cut off",
            Compression::Zstd => "its zstd data is damaged or cut off",
            Compression::None => "it cannot be read",
        },
    }
}

/// Takes a layer as it comes and gives the digest of its uncompressed form.
enum PlainHasher {
    None(Bounded),
    Gzip(Box<MultiGzDecoder<Bounded>>),
    Zstd(Box<ZstdDecoder<'static, Bounded>>),
}

/// Hashes what is written, and refuses more than a bound: a few kilobytes can unpack to terabytes.
struct Bounded {
    hasher: Hasher,
    left: u64,
}

impl PlainHasher {
    fn new(compression: Compression, limit: u64) -> io::Result<PlainHasher> {
        let sink = Bounded { hasher: Hasher::new(), left: limit };
        Ok(match compression {
            Compression::None => PlainHasher::None(sink),
            Compression::Gzip => PlainHasher::Gzip(Box::new(MultiGzDecoder::new(sink))),
            Compression::Zstd => PlainHasher::Zstd(Box::new(ZstdDecoder::new(sink)?)),
        })
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            PlainHasher::None(sink) => sink.write_all(bytes),
            PlainHasher::Gzip(decoder) => decoder.write_all(bytes),
            PlainHasher::Zstd(decoder) => decoder.write_all(bytes),
        }
    }

    fn finish(self) -> io::Result<Digest> {
        let sink = match self {
            PlainHasher::None(sink) => sink,
            PlainHasher::Gzip(decoder) => decoder.finish()?,
            PlainHasher::Zstd(mut decoder) => {
                decoder.flush()?;
                decoder.into_inner()
            }
        };
        Ok(sink.hasher.finish())
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or(io::ErrorKind::FileTooLarge)?;
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(compression: Compression, limit: u64, bytes: &[u8]) -> io::Result<Digest> {
        let mut plain = PlainHasher::new(compression, limit)?;
        for piece in bytes.chunks(7) {
            plain.write_all(piece)?;
        }
        plain.finish()
    }

    #[test]
    fn hashes_what_is_inside() {
        let content = b"some content, repeated, repeated, repeated";
        let expected = Digest::of(content);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(content).unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(&content[..], 3).unwrap();
        let size = content.len() as u64;
        assert_eq!(hash(Compression::None, size, content).unwrap(), expected);
        assert_eq!(hash(Compression::Gzip, size, &gzip).unwrap(), expected);
        assert_eq!(hash(Compression::Zstd, size, &zstd).unwrap(), expected);
        for (compression, bytes) in [(Compression::Gzip, &gzip), (Compression::Zstd, &zstd)] {
            let error = hash(compression, size - 1, bytes).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        }
        assert!(hash(Compression::Gzip, size, &gzip[..gzip.len() - 9]).is_err());
    }
}
