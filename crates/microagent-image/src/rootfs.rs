//! Turns the layers of an image into a base disk: one ext4 file that all workspaces of the image share.
//!
//! Layers are decompressed in parallel, each once. What a layer says about its files is kept in memory,
//! what they contain goes to a nameless temporary file; then the layers are merged into one tree, lowest
//! first, the tree gets its place on the disk, and contents are copied there. The same layers give the
//! same bytes, on any machine.
//!
//! Nothing is ever unpacked onto the host's file system, so no layer can name a path of the host, and no
//! privilege is needed for owners, devices or attributes. A broken or hostile layer costs at most what
//! [`Limits`] say, and leaves nothing behind.

mod disk;
mod error;
mod layer;
mod spool;
mod stream;
mod tree;

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

pub use error::{Damage, RootfsError};

use layer::Unpacked;
use stream::Shared;
use tree::Tree;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A plain tar archive.
    None,
    /// gzip, of one or more members.
    Gzip,
    /// Zstandard, of one or more frames, with a window of up to 128 MiB.
    Zstd,
}

impl Compression {
    /// What the first bytes of a blob show; at least four should be given.
    pub fn sniff(start: &[u8]) -> Compression {
        match start {
            [0x1F, 0x8B, ..] => Compression::Gzip,
            [0x28, 0xB5, 0x2F, 0xFD, ..] | [0x50..=0x5F, 0x2A, 0x4D, 0x18, ..] => Compression::Zstd,
            _ => Compression::None,
        }
    }
}

/// One layer, compressed or not, in a file whose own digest has been verified.
#[derive(Debug, Clone)]
pub struct LayerFile {
    /// Where it lies.
    pub path: PathBuf,
    /// How it is compressed, by its media type or [`Compression::sniff`].
    pub compression: Compression,
    /// Digest of the uncompressed archive (`sha256:…`), verified while unpacking.
    pub diff_id: Option<String>,
}

/// What a base disk is made of.
#[derive(Debug, Clone, Copy)]
pub struct Rootfs<'a> {
    /// The layers, lowest first.
    pub layers: &'a [LayerFile],
    /// Paths that are made directories (0755, of root) where no layer has anything, as Docker makes those of `VOLUME`.
    pub volumes: &'a [String],
}

/// What an image may cost at most; all its layers count together. The defaults hold the largest images
/// in use several times over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Uncompressed bytes. They need as much space for a while. Default: 64 GiB.
    pub max_unpacked_bytes: u64,
    /// Entries. Each takes some 300 bytes of memory. Default: 4 million.
    pub max_entries: u64,
    /// Bytes of a path or of what a link points to. Default: 4096, as for Linux.
    pub max_path_bytes: usize,
    /// Bytes of names, link targets, attributes and sparse maps, which are held in memory. Default: 512 MiB.
    pub max_metadata_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_unpacked_bytes: 64 << 30,
            max_entries: 4_000_000,
            max_path_bytes: 4096,
            max_metadata_bytes: 512 << 20,
        }
    }
}

/// What became of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskStats {
    /// Bytes of all files, each counted once, holes not counted.
    pub content_bytes: u64,
    /// Size of the file system, and of the sparse file that it lies in.
    pub disk_bytes: u64,
    /// Inodes in use.
    pub inodes: u64,
}

/// Builds the base disk of `rootfs` in the new file `out` (0600, sparse, not synced: that
/// is for the caller to do before it renames the file to its lasting name).
///
/// Blocks; needs room for the uncompressed layers in `scratch`, in temporary files without names.
/// `progress` gets the number of compressed bytes read so far, over all layers, from several threads;
/// `cancelled` is asked often.
///
/// # Errors
///
/// See [`RootfsError`]. Neither `out` nor anything in `scratch` is left then.
pub fn build(
    rootfs: &Rootfs<'_>,
    out: &Path,
    scratch: &Path,
    limits: &Limits,
    progress: &(dyn Fn(u64) + Sync),
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<DiskStats, RootfsError> {
    let shared = Shared::new(limits, progress, cancelled);
    build_in(Tree::new(), rootfs, out, scratch, &shared)
}

/// Builds the disk of one archive that is no layer, in the same way; nothing in it is a whiteout.
pub(crate) fn build_plain(
    archive: LayerFile,
    out: &Path,
    scratch: &Path,
    limits: &Limits,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<DiskStats, RootfsError> {
    let shared = Shared::new(limits, &|_| {}, cancelled);
    let rootfs = Rootfs { layers: &[archive], volumes: &[] };
    build_in(Tree::without_whiteouts(), &rootfs, out, scratch, &shared)
}

fn build_in(
    mut tree: Tree,
    rootfs: &Rootfs<'_>,
    out: &Path,
    scratch: &Path,
    shared: &Shared<'_>,
) -> Result<DiskStats, RootfsError> {
    let unpacked = unpack_all(rootfs.layers, scratch, shared)?;
    let (mut digests, mut spools) = (Vec::new(), Vec::new());
    for (index, Unpacked { entries, spool, digest }) in unpacked.into_iter().enumerate() {
        for (count, entry) in entries.into_iter().enumerate() {
            if count % 1024 == 0 {
                shared.check_cancelled()?;
            }
            tree.apply(index, entry)?;
        }
        digests.push(digest);
        spools.push(spool);
    }
    for volume in rootfs.volumes {
        tree.add_volume(rootfs.layers.len(), volume.as_bytes());
    }
    disk::write(&tree, &digests, &spools, out, shared)
}

/// Reads a layer as [`build`] does, alone and without keeping anything of it, and gives the bytes of its files.
///
/// # Errors
///
/// See [`RootfsError`]: whatever this takes, a build takes, as far as one layer can tell.
pub fn check(
    layer: &LayerFile,
    limits: &Limits,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<u64, RootfsError> {
    let shared = Shared::new(limits, &|_| {}, cancelled);
    thread::scope(|scope| layer::check(scope, layer, &shared))
}

/// Unpacks all layers, as many at once as there are processors, the largest first.
fn unpack_all(
    layers: &[LayerFile],
    scratch: &Path,
    shared: &Shared<'_>,
) -> Result<Vec<Unpacked>, RootfsError> {
    let mut order: Vec<usize> = (0..layers.len()).collect();
    // A file that cannot be examined cannot be opened either, and that is reported then.
    let sizes: Vec<u64> = layers.iter().map(|layer| layer.path.metadata().map_or(0, |m| m.len())).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(sizes[index]));

    let results: Vec<Mutex<Option<Result<Unpacked, RootfsError>>>> =
        layers.iter().map(|_| Mutex::new(None)).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(&index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = thread::scope(|scope| layer::unpack(scope, index, &layers[index], scratch, shared));
            if result.is_err() {
                shared.fail();
            }
            *results[index].lock().expect("no thread panics with the lock held") = Some(result);
        }
    };
    let workers = thread::available_parallelism().map_or(1, NonZero::get).min(layers.len());
    thread::scope(|scope| {
        for _ in 1..workers {
            scope.spawn(work);
        }
        work();
    });

    let results = results.into_iter().map(|result| {
        result.into_inner().expect("no thread panics with the lock held").expect("every layer has its turn")
    });
    let (unpacked, mut errors): (Vec<_>, Vec<_>) = results.partition(Result::is_ok);
    // Of several errors the lowest layer's; one that failed stopped the others, which are not worth telling.
    errors.sort_by_key(|error| matches!(error, Err(RootfsError::Cancelled)));
    errors.into_iter().next().into_iter().chain(unpacked).collect()
}
