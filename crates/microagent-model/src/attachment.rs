//! Further disks of a machine.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::VolumeName;

/// A disk that the guest finds mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// What is attached.
    pub source: DiskSource,
    /// Absolute path in the guest.
    pub mount_point: String,
    /// Whether the guest can only read it. QEMU enforces this, whatever the guest does.
    pub read_only: bool,
}

/// Where an attached disk comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskSource {
    /// A named volume.
    Volume(VolumeName),
    /// An ext4 image of the user's: an absolute path.
    Image(PathBuf),
    /// A tar file of the user's: an absolute path. The disk that is made of it belongs to the workspace.
    Bundle(PathBuf),
}
