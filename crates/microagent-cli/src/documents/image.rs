//! Images, in JSON.

use std::path::PathBuf;

use jiff::Timestamp;
use microagent::ImageReport;
use microagent::image::{
    DamagedImage, HistoryLayer, HistoryStep, Image, ImageDeletion, ImageHistory, ImageList, ImageSummary,
    Origin, Platform, Pruned, Pushed, Saved, SavedImage, Tagged,
};
use serde::Serialize;

#[cfg(test)]
use crate::documents::schema::Words;

/// The image of what was run or made, in JSON.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ImageDocument {
    pub(crate) reference: String,
    pub(crate) resolved_reference: String,
    pub(crate) digest: String,
    #[cfg_attr(test, schemars(with = "Words<microagent::image::Origin>"))]
    pub(crate) origin: Origin,
}

impl From<ImageReport> for ImageDocument {
    fn from(image: ImageReport) -> ImageDocument {
        let ImageReport { reference, resolved_reference, digest, origin, .. } = image;
        ImageDocument { reference, resolved_reference, digest, origin }
    }
}

document! {
    /// `microagent image pull` and `image import`.
    PulledImageDocument of Image {
        reference: String,
        resolved_reference: String,
        digest: String,
        #[cfg_attr(test, schemars(with = "Words<microagent::image::Origin>"))]
        origin: Origin,
        content_bytes: u64,
        disk: PathBuf,
        disk_id: String,
        disk_bytes: u64,
    }
}

/// `microagent image load`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct LoadedImagesDocument {
    pub(crate) loaded: Vec<PulledImageDocument>,
}

/// `microagent image list`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ImageListDocument {
    images: Vec<ImageSummaryDocument>,
    damaged: Vec<DamagedImageDocument>,
}

document! {
    /// One image in the cache.
    ImageSummaryDocument of ImageSummary {
        reference: String,
        resolved_reference: String,
        digest: String,
        platform: PlatformDocument,
        #[cfg_attr(test, schemars(with = "Words<microagent::image::Origin>"))]
        origin: Origin,
        content_bytes: u64,
        download_bytes: u64,
        disk_bytes: u64,
        disk: PathBuf,
        disk_id: String,
        disk_present: bool,
        created_at: Timestamp,
        last_used_at: Timestamp,
    }
}

/// What an image runs on, in the words of OCI.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct PlatformDocument {
    os: String,
    architecture: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
}

impl From<Platform> for PlatformDocument {
    fn from(platform: Platform) -> PlatformDocument {
        let Platform { os, architecture, variant } = platform;
        PlatformDocument { os, architecture, variant }
    }
}

document! {
    /// A record that cannot be used.
    DamagedImageDocument of DamagedImage {
        path: PathBuf,
        reason: String,
    }
}

document! {
    /// `microagent image tag`.
    TagDocument of Tagged {
        reference: String,
        resolved_reference: String,
        digest: String,
    }
}

/// `microagent image save`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct SaveDocument {
    images: Vec<SavedImageDocument>,
    bytes: u64,
}

document! {
    /// One image of an archive.
    SavedImageDocument of SavedImage {
        name: Option<String>,
        digest: String,
    }
}

document! {
    /// `microagent image push`.
    PushDocument of Pushed {
        resolved_reference: String,
        digest: String,
        blobs_sent: usize,
        blobs_present: usize,
        bytes_sent: u64,
    }
}

/// `microagent image delete`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ImageDeleteDocument {
    deleted: Vec<DeletedImageDocument>,
}

document! {
    /// An image that was deleted.
    DeletedImageDocument of ImageDeletion {
        references: Vec<String>,
        freed_bytes: u64,
    }
}

document! {
    /// `microagent image prune`.
    ImagePruneDocument of Pruned {
        references: Vec<String>,
        damaged_records: usize,
        blobs: usize,
        disks: usize,
        partial_files: usize,
        freed_bytes: u64,
    }
}

impl From<ImageList> for ImageListDocument {
    fn from(list: ImageList) -> ImageListDocument {
        ImageListDocument {
            images: list.images.into_iter().map(ImageSummaryDocument::from).collect(),
            damaged: list.damaged.into_iter().map(DamagedImageDocument::from).collect(),
        }
    }
}

/// `microagent image history`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ImageHistoryDocument {
    resolved_reference: String,
    digest: String,
    steps: Vec<HistoryStepDocument>,
}

/// A step of the build of an image.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct HistoryStepDocument {
    created_at: Option<Timestamp>,
    created_by: String,
    author: Option<String>,
    comment: Option<String>,
    layer: Option<HistoryLayerDocument>,
}

document! {
    /// The layer of a step, as it is stored.
    HistoryLayerDocument of HistoryLayer {
        digest: String,
        bytes: u64,
    }
}

impl From<ImageHistory> for ImageHistoryDocument {
    fn from(history: ImageHistory) -> ImageHistoryDocument {
        ImageHistoryDocument {
            resolved_reference: history.resolved_reference,
            digest: history.digest,
            steps: history.steps.into_iter().map(HistoryStepDocument::from).collect(),
        }
    }
}

impl From<HistoryStep> for HistoryStepDocument {
    fn from(step: HistoryStep) -> HistoryStepDocument {
        HistoryStepDocument {
            created_at: step.created_at,
            created_by: step.created_by,
            author: step.author,
            comment: step.comment,
            layer: step.layer.map(HistoryLayerDocument::from),
        }
    }
}

impl From<Saved> for SaveDocument {
    fn from(saved: Saved) -> SaveDocument {
        SaveDocument {
            images: saved.images.into_iter().map(SavedImageDocument::from).collect(),
            bytes: saved.bytes,
        }
    }
}

impl From<Vec<ImageDeletion>> for ImageDeleteDocument {
    fn from(deleted: Vec<ImageDeletion>) -> ImageDeleteDocument {
        ImageDeleteDocument { deleted: deleted.into_iter().map(DeletedImageDocument::from).collect() }
    }
}
