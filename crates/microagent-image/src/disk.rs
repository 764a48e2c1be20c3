//! Base disks: one per chain of layers, made once, shared by every image and workspace with those layers.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use microagent_ext4::{SUPERBLOCK_LEN, SUPERBLOCK_OFFSET, size_by_superblock};
use microagent_store::{Access, open_file, read_json, write_json};
use serde::{Deserialize, Serialize};

use crate::blocking;
use crate::cache::{Cache, LockWait, remove_file};
use crate::compression;
use crate::config::Parsed;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::manifest::Descriptor;
use crate::progress::ImageEvent;
use crate::rootfs::{self, LayerFile, Limits, Rootfs, RootfsError};

/// Part of each disk's name, so that a builder which writes other bytes makes disks of its own.
const DISK_FORMAT: u32 = 1;

/// A base disk that is ready.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    pub(crate) id: Digest,
    pub(crate) bytes: u64,
    pub(crate) content_bytes: u64,
}

/// `disks/HEX.json`: what the builder said. Written before the disk gets its name.
#[derive(Debug, Serialize, Deserialize)]
struct Built {
    format: u32,
    disk_bytes: u64,
    content_bytes: u64,
}

/// The digest of a tar without entries: two units of zeros. What a workspace without changes is committed as.
const EMPTY_LAYER: &str = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

/// The name of the disk that a chain of uncompressed layers makes, with the directories for volumes. Layers without
/// entries make no other disk.
pub(crate) fn id(diff_ids: &[Digest], volumes: &[String]) -> Digest {
    let mut chain = format!("microagent base disk {DISK_FORMAT}\n");
    for diff_id in diff_ids.iter().filter(|diff_id| diff_id.as_str() != EMPTY_LAYER) {
        chain.push_str(diff_id.as_str());
        chain.push('\n');
    }
    for volume in volumes {
        // As JSON text, which holds no line feed.
        chain.push_str(&format!("volume {}\n", serde_json::json!(volume)));
    }
    Digest::of(chain.as_bytes())
}

/// The disk if it is there and whole.
pub(crate) fn ready(cache: &Cache, id: &Digest) -> Option<Disk> {
    let built: Built = read_json(&notes(cache, id)).ok()?;
    let whole = built.format == DISK_FORMAT && is_whole(cache, id, built.disk_bytes);
    whole.then(|| Disk { id: id.clone(), bytes: built.disk_bytes, content_bytes: built.content_bytes })
}

/// Whether a disk has the size that its builder gave it, and records that itself.
pub(crate) fn is_whole(cache: &Cache, id: &Digest, disk_bytes: u64) -> bool {
    let mut superblock = [0; SUPERBLOCK_LEN];
    open_file(&cache.disk(id), Access::Read).is_ok_and(|file| {
        file.metadata().is_ok_and(|found| found.len() == disk_bytes)
            && file.read_exact_at(&mut superblock, SUPERBLOCK_OFFSET).is_ok()
            && size_by_superblock(&superblock) == Some(disk_bytes)
    })
}

/// Where the builder's word about a disk lies.
pub(crate) fn notes(cache: &Cache, id: &Digest) -> PathBuf {
    cache.disks().join(format!("{}.json", id.hex()))
}

/// Makes a disk from layers that are in the cache, unless another command has just made it.
pub(crate) async fn make(
    cache: &Cache,
    layers: &[Descriptor],
    parsed: &Parsed,
    limits: &Limits,
    reference: &str,
    waiting: &LockWait<'_>,
) -> Result<Disk, ImageError> {
    let (diff_ids, volumes) = (&parsed.diff_ids, &parsed.config.volumes);
    let id = id(diff_ids, volumes);
    let _making = cache.make("disk", &id, waiting).await?;
    if let Some(disk) = ready(cache, &id) {
        return Ok(disk);
    }
    let total = layers.iter().map(|layer| layer.size).fold(0, u64::saturating_add);
    let mut files = Vec::new();
    for (layer, diff_id) in layers.iter().zip(diff_ids) {
        let path = cache.blob(&layer.digest);
        let compression =
            compression::of_file(&path).map_err(|source| ImageError::file("read", &path, source))?;
        files.push(LayerFile { path, compression, diff_id: Some(diff_id.to_string()) });
    }
    let build = Build {
        cache: cache.clone(),
        id: id.clone(),
        layers: files,
        volumes: volumes.clone(),
        limits: *limits,
        reference: reference.to_owned(),
    };
    let report = |done| waiting.progress.event(ImageEvent::Unpacking { done, total });
    report(0);
    let disk = blocking::run(waiting.cancel, report, move |meter| build.run(meter)).await?;
    let (disk_id, disk_bytes) = (id.to_string(), disk.bytes);
    waiting.progress.event(ImageEvent::DiskReady { disk_id, disk_bytes });
    Ok(disk)
}

/// One disk being built. Its files lie in the scratch directory until the end.
struct Build {
    cache: Cache,
    id: Digest,
    layers: Vec<LayerFile>,
    volumes: Vec<String>,
    limits: Limits,
    reference: String,
}

impl Build {
    fn run(&self, meter: &blocking::Meter) -> Result<Disk, ImageError> {
        let scratch = self.cache.scratch().join(self.id.hex());
        // Left by a build that was killed: only the holder of this disk's lock comes here.
        remove_scratch(&scratch)?;
        fs::create_dir(&scratch).map_err(|source| ImageError::file("create", &scratch, source))?;
        let built = self.build(&scratch, meter);
        let removed = remove_scratch(&scratch);
        let disk = built?;
        removed?;
        Ok(disk)
    }

    fn build(&self, scratch: &Path, meter: &blocking::Meter) -> Result<Disk, ImageError> {
        let out = scratch.join("disk.ext4");
        let progress = |done| meter.set(done);
        let cancelled = || meter.is_cancelled();
        let content = Rootfs { layers: &self.layers, volumes: &self.volumes };
        let stats = rootfs::build(&content, &out, scratch, &self.limits, &progress, &cancelled)
            .map_err(|error| self.failed(error))?;
        let failed = |source| ImageError::file("store", &out, source);
        let file = File::open(&out).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        file.set_permissions(Permissions::from_mode(0o400)).map_err(failed)?;
        let built = Built { format: DISK_FORMAT, disk_bytes: bytes, content_bytes: stats.content_bytes };
        write_json(&notes(&self.cache, &self.id), &built)
            .map_err(|source| ImageError::write(source, &self.cache.disks()))?;
        Cache::publish(&file, &out, &self.cache.disk(&self.id))?;
        Ok(Disk { id: self.id.clone(), bytes, content_bytes: stats.content_bytes })
    }

    fn failed(&self, error: RootfsError) -> ImageError {
        match error {
            RootfsError::Cancelled => ImageError::Cancelled,
            error => ImageError::unpack(error, &self.reference, &self.cache.scratch()),
        }
    }
}

fn remove_scratch(dir: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(ImageError::file("remove", dir, e)),
        _ => Ok(()),
    }
}

/// Removes a disk that nothing uses and says how many bytes that freed.
pub(crate) fn remove(cache: &Cache, id: &Digest) -> Result<u64, ImageError> {
    // The disk first: without it, what the builder said of it counts for nothing.
    Ok(remove_file(&cache.disk(id))? + remove_file(&notes(cache, id))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_follows_the_chain() {
        let [a, b] = [Digest::of(b"a"), Digest::of(b"b")];
        assert_eq!(id(&[a.clone(), b.clone()], &[]), id(&[a.clone(), b.clone()], &[]));
        assert_ne!(id(&[a.clone(), b.clone()], &[]), id(&[b, a.clone()], &[]));
        assert_ne!(id(&[], &[]), Digest::of(b""));
        let one = [a.clone()];
        let empty = Digest::of(&[0; 1024]);
        assert_eq!(empty.as_str(), EMPTY_LAYER);
        assert_eq!(id(&[a.clone(), empty], &[]), id(&one, &[]));
        let with = |volumes: &[&str]| id(&one, &volumes.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>());
        assert_eq!(with(&[]), id(&one, &[]));
        assert_ne!(with(&["/data"]), with(&[]));
        assert_ne!(with(&["/a\nvolume \"/b\""]), with(&["/a", "/b"]));
    }
}
