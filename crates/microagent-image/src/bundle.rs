//! A tar file of a user's as an ext4 disk: what a workspace's bundle is.
//!
//! It is read by the rules of an image's layers ([`crate::rootfs`]), but for whiteouts, which mean nothing in it: nothing
//! is unpacked onto the host's file system, no name leads out of the disk's root, and what it may cost is bounded. The
//! tar is as hostile as any layer.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::compression;
use crate::rootfs::{self, Damage, DiskStats, LayerFile, Limits, RootfsError};

/// What a bundle may cost at most.
pub const BUNDLE_LIMITS: Limits = Limits {
    max_unpacked_bytes: 32 << 30,
    max_entries: 1_000_000,
    max_path_bytes: 4096,
    max_metadata_bytes: 256 << 20,
};

/// What stands for the stream on standard input in place of a path.
const STANDARD_INPUT: &str = "-";

/// Why a tar file could not be converted to a disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// It cannot be read.
    #[error("cannot read {}", named(path))]
    Read {
        /// The tar file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its compression is not supported.
    #[error("{}: {reason}", named(path))]
    Compression {
        /// The tar file.
        path: PathBuf,
        /// Which.
        reason: &'static str,
    },
    /// It is not a tar file, or it is damaged.
    #[error("{} is damaged, or not a tar file", named(path))]
    Damaged {
        /// The tar file.
        path: PathBuf,
        /// What is broken.
        source: Damage,
    },
    /// An entry names a path outside the bundle's root.
    #[error("{} tries to reach outside its root with `{name}`", named(path))]
    Escape {
        /// The tar file.
        path: PathBuf,
        /// The name, escaped.
        name: String,
    },
    /// It exceeds a limit.
    #[error("{} exceeds a limit: {limit}", named(path))]
    Limit {
        /// The tar file.
        path: PathBuf,
        /// The limit, in words.
        limit: String,
    },
    /// An operation of the host failed, or ext4 cannot store the content.
    #[error("cannot make a disk of {}", named(path))]
    Disk {
        /// The tar file.
        path: PathBuf,
        /// Why.
        source: RootfsError,
    },
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// A tar file in messages.
fn named(path: &Path) -> String {
    match path.as_os_str() == STANDARD_INPUT {
        true => "the tar stream on standard input".to_owned(),
        false => format!("bundle `{}`", path.display()),
    }
}

impl BundleError {
    fn new(path: &Path, error: RootfsError) -> BundleError {
        let path = path.to_owned();
        match error {
            RootfsError::Damaged { source, .. } => BundleError::Damaged { path, source },
            RootfsError::Escape { name, .. } => BundleError::Escape { path, name },
            RootfsError::Limit { limit, .. } => BundleError::Limit { path, limit },
            RootfsError::Cancelled => BundleError::Cancelled,
            source @ (RootfsError::Unfit { .. } | RootfsError::Host { .. }) => {
                BundleError::Disk { path, source }
            }
        }
    }

    /// The same, of the stream on standard input that the tar file is a copy of.
    pub fn of_standard_input(mut self) -> BundleError {
        match &mut self {
            BundleError::Read { path, .. }
            | BundleError::Compression { path, .. }
            | BundleError::Damaged { path, .. }
            | BundleError::Escape { path, .. }
            | BundleError::Limit { path, .. }
            | BundleError::Disk { path, .. } => *path = STANDARD_INPUT.into(),
            BundleError::Cancelled => {}
        }
        self
    }

    /// Whether the host's disk is full, so that freeing space helps.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, BundleError::Disk { source, .. } if source.is_disk_full())
    }
}

/// Makes the disk of a bundle in the new file `out`, as [`rootfs::build`] does. Blocks.
///
/// # Errors
/// See [`BundleError`]. Neither `out` nor anything in `scratch` is left then.
pub fn build(
    tar: &Path,
    out: &Path,
    scratch: &Path,
    limits: &Limits,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<DiskStats, BundleError> {
    let read = |source| BundleError::Read { path: tar.to_owned(), source };
    if !tar.metadata().map_err(read)?.is_file() {
        return Err(read(io::Error::other("it is not a regular file")));
    }
    let start = compression::start_of(tar).map_err(read)?;
    if let Some(reason) = compression::unsupported(&start) {
        return Err(BundleError::Compression { path: tar.to_owned(), reason });
    }
    let archive =
        LayerFile { path: tar.to_owned(), compression: rootfs::Compression::sniff(&start), diff_id: None };
    let built = rootfs::build_plain(archive, out, scratch, limits, cancelled).and_then(|stats| {
        let flushed = File::open(out).and_then(|file| file.sync_all());
        flushed
            .map(|()| stats)
            .map_err(|source| RootfsError::Host { doing: format!("store `{}`", out.display()), source })
    });
    built.map_err(|error| BundleError::new(tar, error))
}
