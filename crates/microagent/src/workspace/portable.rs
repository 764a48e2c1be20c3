//! Snapshots as one file, to use them on another host.
//!
//! The file is a tar, compressed with zstd, of regular files in this order: the [`Header`] as JSON; the base disk, what
//! the disk layers change of it, and the memory, in [`parts`](PART_BYTES); and the SHA-256 of all of that. No file of
//! QEMU's formats but the memory is in it: an import writes the disk anew, so nothing of another host's tables is read.
//!
//! Nothing in the file decides what of this host a workspace may reach: what names paths, ports, secrets, networks and
//! servers is left out of an export, and an import knows no such fields.

mod export;
mod extents;
mod import;
mod stream;

use jiff::Timestamp;
use microagent_model::{GuestSettings, ImageIdentity, NetworkMode, Resources, SnapshotTag, WorkspaceName};
use microagent_store::{WORKLOAD_LIMIT, Workload};
use serde::{Deserialize, Serialize};

use super::memory::MemoryRecord;
use crate::error::{Error, SnapshotError};

pub use import::SnapshotImport;

/// Newest format that this build reads and the one that it writes.
const FORMAT: u32 = 1;

/// Names of the files in the tar; parts have a number after that of theirs.
const HEADER: &str = "microagent-snapshot.json";
const BASE: &str = "base";
const DISK: &str = "disk";
const MEMORY: &str = "memory";
const SUM: &str = "sha256";

/// Longest header, in bytes.
const HEADER_MAX: u64 = WORKLOAD_LIMIT + (1 << 20);

/// Bytes of data after which a part ends, and most that one can have.
const PART_BYTES: usize = 4 << 20;
const PART_MAX: u64 = 2 * PART_BYTES as u64;

/// What a memory has beside the guest's pages, at most: states of devices.
const DEVICE_STATE_MAX: u64 = 64 << 20;

/// What the snapshot is, and how large its parts are.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: u32,
    /// The release that wrote it.
    version: String,
    created_at: Timestamp,
    workspace: WorkspaceName,
    tag: SnapshotTag,
    image: ImageIdentity,
    profile: String,
    resources: Resources,
    network: NetworkMode,
    settings: GuestSettings,
    workload: Workload,
    /// Length of the base disk.
    base_bytes: u64,
    /// More bytes than all parts together have.
    parts_bytes: u64,
    memory: Option<MemoryRecord>,
    /// What of the workspace is not in the file.
    left_out: Vec<String>,
}

/// The error of a file that is not as an export writes it.
fn unusable(reason: impl Into<String>) -> Error {
    SnapshotError::Archive { reason: reason.into() }.into()
}

#[cfg(feature = "fuzzing")]
pub(crate) use import::read_for_fuzzing;
