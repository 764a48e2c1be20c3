//! `microagent volume`, in JSON.

use microagent::VolumeName;
use microagent::volume::{Deletion, Volume};
use serde::Serialize;

/// `microagent volume list`.
#[derive(Debug, Serialize)]
pub(crate) struct VolumeListDocument {
    pub(crate) volumes: Vec<Volume>,
}

/// `microagent volume delete`.
#[derive(Debug, Serialize)]
pub(crate) struct VolumeDeleteDocument {
    pub(crate) volumes: Vec<DeletedVolume>,
}

/// A volume that was named for deletion.
#[derive(Debug, Serialize)]
pub(crate) struct DeletedVolume {
    pub(crate) name: VolumeName,
    #[serde(flatten)]
    pub(crate) deletion: Deletion,
}
