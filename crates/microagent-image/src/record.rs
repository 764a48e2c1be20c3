//! Image records: which reference stands for which manifest and base disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;
use microagent_store::{ReadError, read_json, write_json};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT};
use serde::{Deserialize, Serialize};

use crate::cache::Cache;
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::disk;
use crate::error::ImageError;
use crate::manifest::{Descriptor, Platform};
use crate::options::Origin;

/// Format of the records that this build writes.
pub(crate) const RECORD_FORMAT: u32 = 1;

/// Most records that are looked through; a cache has tens.
const RECORDS_MAX: usize = 100_000;

/// `refs/KEY.json`. When the image was last used is the file's modification time, so that a use is one
/// small system call and never rewrites the record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) format: u32,
    /// As the user gave it when it was brought in.
    pub(crate) reference: String,
    pub(crate) resolved_reference: String,
    /// The full reference of the place that it was fetched from; it keeps that when it is tagged.
    #[serde(default)]
    pub(crate) source: Option<String>,
    /// What the daemon that it came from calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) source_id: Option<String>,
    pub(crate) platform: Platform,
    pub(crate) manifest_digest: Digest,
    /// Digest of the index that led to the manifest.
    pub(crate) index_digest: Option<Digest>,
    pub(crate) config_digest: Digest,
    pub(crate) layers: Vec<LayerRecord>,
    pub(crate) config: ImageConfig,
    pub(crate) disk_id: Digest,
    pub(crate) disk_bytes: u64,
    pub(crate) content_bytes: u64,
    pub(crate) origin: Origin,
    pub(crate) created_at: Timestamp,
}

/// A layer as the manifest has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

impl LayerRecord {
    pub(crate) fn of(layer: &Descriptor) -> LayerRecord {
        LayerRecord { digest: layer.digest.clone(), size: layer.size }
    }
}

/// A record that cannot be used, and why.
#[derive(Debug)]
pub(crate) struct Damaged {
    pub(crate) path: PathBuf,
    pub(crate) error: ImageError,
}

/// All records there are.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) good: Vec<(PathBuf, ImageRecord)>,
    pub(crate) damaged: Vec<Damaged>,
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

impl ImageRecord {
    /// The file of a reference's record.
    pub(crate) fn path(cache: &Cache, resolved_reference: &str, platform: &Platform) -> PathBuf {
        let key = Digest::of(format!("{resolved_reference} {platform}").as_bytes());
        cache.refs().join(format!("{}.json", key.hex()))
    }

    /// Reads the record of a reference; `None` when there is none, or none that can be used: a fresh pull
    /// replaces a damaged one.
    pub(crate) fn find(
        cache: &Cache,
        resolved_reference: &str,
        platform: &Platform,
    ) -> Result<Option<(PathBuf, ImageRecord)>, ImageError> {
        let path = Self::path(cache, resolved_reference, platform);
        match Self::load(&path) {
            Ok(record) if record.resolved_reference == resolved_reference => Ok(Some((path, record))),
            Ok(_) => Ok(None),
            Err(ImageError::Read { source: ReadError::Decode { .. } | ReadError::TooLarge { .. } }) => {
                Ok(None)
            }
            Err(ImageError::Read { source }) if source.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn load(path: &Path) -> Result<ImageRecord, ImageError> {
        let newer = |found| ImageError::TooNew { path: path.to_owned(), found };
        match read_json::<ImageRecord>(path) {
            Ok(record) if record.format > RECORD_FORMAT => Err(newer(record.format)),
            Ok(record) => Ok(record),
            // A newer record may lack or change fields; "too new" is the true answer then.
            Err(source) => match read_json::<FormatOnly>(path) {
                Ok(FormatOnly { format }) if format > RECORD_FORMAT => Err(newer(format)),
                _ => Err(ImageError::Read { source }),
            },
        }
    }

    /// Reads all records, good and damaged, in the order of their references. No cache has none.
    pub(crate) fn load_all(cache: &Cache) -> Result<Records, ImageError> {
        let dir = cache.refs();
        let failed = |source| ImageError::file("list", &dir, source);
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Records::default()),
            Err(e) => return Err(failed(e)),
        };
        let mut records = Records::default();
        for entry in entries.take(RECORDS_MAX) {
            let path = entry.map_err(failed)?.path();
            // Anything else is a record on its way in.
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match Self::load(&path) {
                Ok(record) => records.good.push((path, record)),
                // Removed while we looked.
                Err(ImageError::Read { source }) if source.is_not_found() => {}
                Err(error) => records.damaged.push(Damaged { path, error }),
            }
        }
        records.good.sort_by(|(_, a), (_, b)| a.resolved_reference.cmp(&b.resolved_reference));
        records.damaged.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(records)
    }

    /// Writes the record, atomically.
    pub(crate) fn save(&self, cache: &Cache) -> Result<PathBuf, ImageError> {
        let path = Self::path(cache, &self.resolved_reference, &self.platform);
        write_json(&path, self).map_err(|source| ImageError::write(source, &cache.refs()))?;
        Ok(path)
    }

    /// Where its blobs can be fetched again. Records of the first release do not say it.
    pub(crate) fn place(&self) -> Option<&str> {
        let own = self.origin.is_elsewhere().then_some(self.resolved_reference.as_str());
        self.source.as_deref().or(own)
    }

    /// Whether the base disk is there and whole.
    pub(crate) fn has_disk(&self, cache: &Cache) -> bool {
        disk::is_whole(cache, &self.disk_id, self.disk_bytes)
    }

    /// Whether its disk can be made of what is here.
    pub(crate) fn has_layers(&self, cache: &Cache) -> bool {
        self.layers.iter().all(|layer| cache.has_blob(&layer.digest, layer.size))
    }

    /// Whether a digest names this image, directly or through its index.
    pub(crate) fn is_named_by(&self, digest: &Digest) -> bool {
        self.manifest_digest == *digest || self.index_digest.as_ref() == Some(digest)
    }

    /// All blobs that belong to the image.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Digest> {
        let own = [&self.manifest_digest, &self.config_digest];
        own.into_iter().chain(&self.index_digest).chain(self.layers.iter().map(|layer| &layer.digest))
    }
}

impl Records {
    /// An image that a digest names, for a platform, and that `is_usable` for what the caller wants.
    pub(crate) fn by_digest(
        &self,
        digest: &Digest,
        platform: &Platform,
        is_usable: impl Fn(&ImageRecord) -> bool,
    ) -> Option<&ImageRecord> {
        let mut records = self.good.iter().map(|(_, record)| record);
        records.find(|r| r.is_named_by(digest) && r.platform == *platform && is_usable(r))
    }
}

/// Notes that an image is being used. Failing to do so harms nobody.
pub(crate) fn touch(record: &Path) {
    let now = Timestamp::now();
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: now.as_second(), tv_nsec: now.subsec_nanosecond().into() },
    };
    let _ = rustix::fs::utimensat(CWD, record, &times, AtFlags::empty());
}

/// When an image was last used.
pub(crate) fn last_used(record: &Path) -> Option<Timestamp> {
    let modified: SystemTime = record.metadata().ok()?.modified().ok()?;
    Timestamp::try_from(modified).ok()
}
