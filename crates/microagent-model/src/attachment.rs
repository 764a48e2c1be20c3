//! Further disks of a machine.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::VolumeName;

/// A disk in addition to the root disk, which is mounted in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// What is attached.
    pub source: DiskSource,
    /// Where it is mounted: an absolute path of the guest.
    pub mount_point: String,
    /// Whether the guest can only read it. QEMU enforces this.
    pub read_only: bool,
}

/// The source of an attached disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskSource {
    /// A named volume.
    Volume(VolumeName),
    /// A file of the host with an ext4 file system: its absolute path.
    Image(PathBuf),
    /// A tar file of the host: its absolute path. A disk with its content is made, which belongs to the workspace.
    Bundle(PathBuf),
}
