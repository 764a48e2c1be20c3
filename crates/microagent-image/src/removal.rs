//! Listing, deleting and pruning. Listing changes nothing.
//!
//! What stays is what a record or a workspace needs: the disk that a workspace lies on, and every blob of a
//! recorded image or of a workspace's image, layers included, because `commit` and `push` build on them and
//! images share them. Everything else is rubbish, and [`ImageStore::prune`] takes it away.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use microagent_store::{WorkspaceDir, WorkspaceRecord, read_limited};

use crate::cache::{Cache, blocks_of, remove_file};
use crate::digest::Digest;
use crate::disk;
use crate::error::{ImageError, chain};
use crate::manifest::{self, Document, MANIFEST_LIMIT, Platform};
use crate::options::Origin;
use crate::record::{self, ImageRecord, Records};
use crate::reference::{ImageReference, LocalReference};
use crate::store::{ImageStore, parse};

/// Fewest hex digits that are taken as a shortened digest.
const PREFIX_MIN: usize = 6;

/// All images in the cache.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ImageList {
    /// In the order of their references.
    pub images: Vec<ImageSummary>,
    /// Records that cannot be used; prune removes them.
    pub damaged: Vec<DamagedImage>,
}

/// An image in the cache.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ImageSummary {
    /// Its reference as the user gave it.
    pub reference: String,
    /// The full reference.
    pub resolved_reference: String,
    /// Digest of the platform's manifest.
    pub digest: String,
    /// Its platform.
    pub platform: Platform,
    /// Its source.
    pub origin: Origin,
    /// Bytes of files on the base disk.
    pub content_bytes: u64,
    /// Bytes of its layers as they were fetched.
    pub download_bytes: u64,
    /// Size of the base disk; it is sparse.
    pub disk_bytes: u64,
    /// The base disk.
    pub disk: PathBuf,
    /// Digest that names the base disk.
    pub disk_id: String,
    /// Whether the base disk exists. If not, the next use of the image makes it again.
    pub disk_present: bool,
    /// When it was added to the cache.
    pub created_at: Timestamp,
    /// When it was last used.
    pub last_used_at: Timestamp,
}

/// A record that cannot be used.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DamagedImage {
    /// The record.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// The result of deleting an image.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ImageDeletion {
    /// Full references that were removed.
    pub references: Vec<String>,
    /// Bytes that were freed.
    pub freed_bytes: u64,
}

/// Which data a prune removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImagePrune {
    /// Data that no image and no workspace needs.
    Unused,
    /// Also every image that no workspace uses, and every name of an image that no workspace was created by, while
    /// another name is left.
    All,
}

/// The result of a prune.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Pruned {
    /// Full references that were removed.
    pub references: Vec<String>,
    /// Number of damaged records that were removed.
    pub damaged_records: usize,
    /// Number of blobs that were removed.
    pub blobs: usize,
    /// Number of base disks that were removed.
    pub disks: usize,
    /// Number of incomplete downloads and temporary files that were removed.
    pub partial_files: usize,
    /// Bytes that were freed.
    pub freed_bytes: u64,
}

/// What workspaces need.
#[derive(Default)]
struct InUse {
    /// Workspaces and snapshots by the disk they lie on.
    disks: BTreeMap<String, Vec<String>>,
    /// Manifests of their images.
    manifests: HashSet<String>,
    /// Full references of the images that they were created from.
    names: HashSet<String>,
}

impl ImageStore {
    /// Lists the images in the cache. Creates and repairs nothing.
    ///
    /// # Errors
    /// Fails when the directory of records is there and cannot be read.
    pub fn list(&self) -> Result<ImageList, ImageError> {
        let records = ImageRecord::load_all(&self.cache)?;
        let images = records.good.into_iter().map(|(path, record)| self.summary(&path, record)).collect();
        let reason = |error: &ImageError| {
            let causes: Vec<String> = chain(error).map(ToString::to_string).collect();
            causes.join(": ")
        };
        let damaged = records.damaged.into_iter();
        let damaged = damaged.map(|d| DamagedImage { reason: reason(&d.error), path: d.path }).collect();
        Ok(ImageList { images, damaged })
    }

    /// Returns how many bytes of the host's disk the cache takes: each layer and base disk once, however many images have
    /// it.
    ///
    /// # Errors
    /// Fails when a directory is there and cannot be read.
    pub fn stored_bytes(&self) -> Result<u64, ImageError> {
        let mut bytes = 0_u64;
        for dir in [self.cache.blobs(), self.cache.disks(), self.cache.partials()] {
            bytes += files(&dir)?.iter().map(|path| blocks_of(path)).sum::<u64>();
        }
        Ok(bytes)
    }

    fn summary(&self, path: &Path, record: ImageRecord) -> ImageSummary {
        ImageSummary {
            disk_present: record.has_disk(&self.cache),
            disk: self.cache.disk(&record.disk_id),
            download_bytes: record.layers.iter().map(|layer| layer.size).fold(0, u64::saturating_add),
            last_used_at: record::last_used(path).unwrap_or(record.created_at),
            reference: record.reference,
            resolved_reference: record.resolved_reference,
            digest: record.manifest_digest.into(),
            platform: record.platform,
            origin: record.origin,
            content_bytes: record.content_bytes,
            disk_bytes: record.disk_bytes,
            disk_id: record.disk_id.into(),
            created_at: record.created_at,
        }
    }

    /// Removes an image by reference, or all names of it by digest (which may be shortened), and what only
    /// it needed. While another name for it remains, only the given one goes.
    ///
    /// # Errors
    /// Fails when there is no such image, a workspace's disk lies on it, or another command uses the cache.
    /// Nothing is removed then.
    pub fn delete(&self, reference_or_digest: &str) -> Result<ImageDeletion, ImageError> {
        let no_such = || ImageError::NoSuchImage { reference: reference_or_digest.to_owned() };
        if !self.cache.refs().is_dir() {
            return Err(no_such());
        }
        let _alone = self.cache.exclude()?;
        let records = ImageRecord::load_all(&self.cache)?;
        let (doomed, kept) = self.split(records, reference_or_digest)?;
        if doomed.is_empty() {
            return Err(no_such());
        }
        let in_use = InUse::find(&self.cache)?;
        for (_, record) in &doomed {
            let disk_stays = kept.iter().any(|(_, other)| other.disk_id == record.disk_id);
            if let (false, Some(workspaces)) = (disk_stays, in_use.disks.get(record.disk_id.as_str())) {
                let (reference, workspaces) = (reference_or_digest.to_owned(), workspaces.clone());
                return Err(ImageError::InUse { reference, workspaces });
            }
        }
        let mut freed_bytes = 0;
        // Records first: killed in between, prune finds the rest.
        for (path, _) in &doomed {
            freed_bytes += remove_file(path)?;
        }
        let needed = Needed::by(&self.cache, kept.iter().map(|(_, record)| record), &in_use);
        for (_, record) in &doomed {
            if !needed.disks.contains(record.disk_id.as_str()) {
                freed_bytes += disk::remove(&self.cache, &record.disk_id)?;
            }
            for blob in record.blobs().filter(|blob| !needed.blobs.contains(blob.hex())) {
                freed_bytes += remove_file(&self.cache.blob(blob))?;
            }
        }
        let references = doomed.into_iter().map(|(_, record)| record.resolved_reference).collect();
        Ok(ImageDeletion { references, freed_bytes })
    }

    /// Records that a reference or digest names, and the others. A name is tried before a digest, as Docker
    /// does.
    pub(crate) fn split(
        &self,
        records: Records,
        wanted: &str,
    ) -> Result<(Vec<Entry>, Vec<Entry>), ImageError> {
        let resolved = match parse(wanted) {
            Ok(ImageReference::Registry(name)) => Some(name.to_string()),
            Ok(ImageReference::Local(local)) => Some(resolved_local(&local)),
            Ok(ImageReference::Daemon(daemon)) => Some(daemon.to_string()),
            Err(_) => None,
        };
        let is_resolved = |record: &ImageRecord| resolved.as_ref() == Some(&record.resolved_reference);
        if records.good.iter().any(|(_, record)| is_resolved(record)) {
            return Ok(records.good.into_iter().partition(|(_, record)| is_resolved(record)));
        }
        // A relative path that was given elsewhere: taken as `list` shows it, if that is clear.
        let is_spelled = |record: &ImageRecord| record.reference == wanted;
        if records.good.iter().filter(|(_, record)| is_spelled(record)).count() == 1 {
            return Ok(records.good.into_iter().partition(|(_, record)| is_spelled(record)));
        }
        let hex = wanted.strip_prefix("sha256:").unwrap_or(wanted);
        let is_prefix = (PREFIX_MIN..=64).contains(&hex.len()) && hex.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_prefix {
            // Not a digest: if it is no reference either, that is the error to show.
            parse(wanted)?;
            return Ok((Vec::new(), records.good));
        }
        let fits = |record: &ImageRecord| {
            let digests = [Some(&record.manifest_digest), record.index_digest.as_ref()];
            digests.into_iter().flatten().any(|digest| digest.hex().starts_with(hex))
        };
        let (doomed, kept): (Vec<Entry>, Vec<Entry>) = records.good.into_iter().partition(|(_, r)| fits(r));
        let images: HashSet<&Digest> = doomed.iter().map(|(_, record)| &record.manifest_digest).collect();
        if images.len() > 1 {
            return Err(ImageError::Ambiguous { prefix: wanted.to_owned(), count: images.len() });
        }
        Ok((doomed, kept))
    }

    /// Removes unused data.
    ///
    /// # Errors
    /// Fails if another command uses the cache, the record of a workspace cannot be read, or the record of an image
    /// is of a newer release. Then nothing is removed.
    pub fn prune(&self, which: ImagePrune) -> Result<Pruned, ImageError> {
        if !self.cache.refs().is_dir() {
            return Ok(Pruned::default());
        }
        let _alone = self.cache.exclude()?;
        let Records { good, damaged } = ImageRecord::load_all(&self.cache)?;
        let in_use = InUse::find(&self.cache)?;
        let (damaged, unknown): (Vec<_>, Vec<_>) = damaged
            .into_iter()
            .partition(|entry| matches!(&entry.error, ImageError::Read { source } if !is_unread(source)));
        if let Some(entry) = unknown.into_iter().next() {
            return Err(entry.error);
        }
        let named = in_use.named_disks(&good);
        let is_doomed = |record: &ImageRecord| {
            let disk = record.disk_id.as_str();
            let is_needed = match named.contains(disk) {
                true => in_use.names.contains(&record.resolved_reference),
                false => in_use.disks.contains_key(disk),
            };
            which == ImagePrune::All && !is_needed
        };
        let (doomed, kept): (Vec<Entry>, Vec<Entry>) =
            good.into_iter().partition(|(_, record)| is_doomed(record));

        let mut pruned = Pruned { damaged_records: damaged.len(), ..Pruned::default() };
        for path in doomed.iter().map(|(path, _)| path).chain(damaged.iter().map(|entry| &entry.path)) {
            pruned.freed_bytes += remove_file(path)?;
        }
        pruned.references = doomed.into_iter().map(|(_, record)| record.resolved_reference).collect();
        let needed = Needed::by(&self.cache, kept.iter().map(|(_, record)| record), &in_use);
        self.sweep(&needed, &mut pruned)?;
        Ok(pruned)
    }

    /// Removes every file that is not needed. The caller is alone in the cache.
    fn sweep(&self, needed: &Needed, pruned: &mut Pruned) -> Result<(), ImageError> {
        for path in files(&self.cache.blobs())? {
            if !stem(&path).is_some_and(|hex| needed.blobs.contains(hex)) {
                pruned.freed_bytes += remove_file(&path)?;
                pruned.blobs += 1;
            }
        }
        for path in files(&self.cache.disks())? {
            let id = stem(&path).map(|hex| format!("sha256:{hex}"));
            if !id.is_some_and(|id| needed.disks.contains(&id)) {
                pruned.freed_bytes += remove_file(&path)?;
                pruned.disks += usize::from(path.extension() == Some(OsStr::new("ext4")));
            }
        }
        for path in files(&self.cache.partials())? {
            pruned.freed_bytes += remove_file(&path)?;
            pruned.partial_files += 1;
        }
        // Records on their way in, of commands that were killed.
        let unfinished = |path: &PathBuf| path.extension().is_none_or(|extension| extension != "json");
        for path in files(&self.cache.refs())?.into_iter().filter(unfinished) {
            pruned.freed_bytes += remove_file(&path)?;
            pruned.partial_files += 1;
        }
        for dir in files(&self.cache.scratch())? {
            for path in files(&dir)? {
                pruned.freed_bytes += remove_file(&path)?;
                pruned.partial_files += 1;
            }
            fs::remove_dir_all(&dir).map_err(|source| ImageError::file("remove", &dir, source))?;
        }
        // Nobody holds any of them: whoever makes something uses the cache, and we are alone.
        for path in files(&self.cache.locks())? {
            remove_file(&path)?;
        }
        Ok(())
    }
}

type Entry = (PathBuf, ImageRecord);

/// Whether the record is there and could not be read, so that it may well be good.
fn is_unread(error: &microagent_store::ReadError) -> bool {
    matches!(error, microagent_store::ReadError::Read { .. })
}

/// The path of a local image may be gone; then it is taken as it stands.
fn resolved_local(local: &LocalReference) -> String {
    if local.is_standard_input() {
        return local.resolved(&local.path);
    }
    let absolute = local.path.canonicalize().or_else(|_| std::path::absolute(&local.path));
    local.resolved(absolute.as_deref().unwrap_or(&local.path))
}

impl InUse {
    fn find(cache: &Cache) -> Result<InUse, ImageError> {
        let state = cache.state();
        let names = state
            .workspace_names()
            .map_err(|source| ImageError::ListWorkspaces { dir: state.workspaces(), source })?;
        let mut in_use = InUse::default();
        for name in names {
            let dir = state.workspace(&name);
            let tags = dir
                .snapshot_tags()
                .map_err(|source| ImageError::ListWorkspaces { dir: dir.snapshots(), source })?;
            in_use.add(name.to_string(), &dir)?;
            for tag in tags {
                in_use.add(format!("{name}:{tag}"), dir.snapshot(&tag).files())?;
            }
        }
        Ok(in_use)
    }

    /// The disks in use whose image still has a name that a workspace was created by.
    fn named_disks(&self, records: &[Entry]) -> HashSet<String> {
        let is_named = |record: &ImageRecord| {
            self.disks.contains_key(record.disk_id.as_str())
                && self.names.contains(&record.resolved_reference)
        };
        let named = records.iter().filter(|(_, record)| is_named(record));
        named.map(|(_, record)| record.disk_id.to_string()).collect()
    }

    /// Adds what a workspace or a snapshot of one needs.
    fn add(&mut self, owner: String, dir: &WorkspaceDir) -> Result<(), ImageError> {
        match WorkspaceRecord::load(dir) {
            Ok(record) => {
                self.disks.entry(record.image.disk).or_default().push(owner);
                self.manifests.insert(record.image.digest);
                self.names.insert(record.image.resolved_reference);
                Ok(())
            }
            // Given up before it had a record: whoever makes one holds the cache until it is written.
            Err(error) if error.is_not_found() => Ok(()),
            Err(source) => {
                Err(ImageError::UnreadableWorkspace { workspace: owner, source: Box::new(source) })
            }
        }
    }
}

/// What has to stay.
struct Needed {
    /// Full digests.
    disks: HashSet<String>,
    /// Hex digits.
    blobs: HashSet<String>,
}

impl Needed {
    fn by<'a>(cache: &Cache, records: impl Iterator<Item = &'a ImageRecord>, in_use: &InUse) -> Needed {
        let disks = in_use.disks.keys().cloned().collect();
        let mut needed = Needed { disks, blobs: HashSet::new() };
        for record in records {
            needed.disks.insert(record.disk_id.to_string());
            needed.blobs.extend(record.blobs().map(|blob| blob.hex().to_owned()));
        }
        // The tag of a workspace's image may have moved on; what the workspace was made from stays.
        for digest in in_use.manifests.iter().filter_map(|digest| digest.parse::<Digest>().ok()) {
            needed.blobs.insert(digest.hex().to_owned());
            let bytes = read_limited(&cache.blob(&digest), MANIFEST_LIMIT).unwrap_or_default();
            if let Ok(Document::Image(manifest)) = manifest::decode(&bytes, None) {
                let blobs = manifest.layers.iter().chain([&manifest.config]);
                needed.blobs.extend(blobs.map(|blob| blob.digest.hex().to_owned()));
            }
        }
        needed
    }
}

/// What lies in a directory; a missing one is empty.
fn files(dir: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let failed = |source| ImageError::file("list", dir, source);
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(failed(e)),
    }
}

fn stem(path: &Path) -> Option<&str> {
    path.file_stem().and_then(OsStr::to_str)
}
