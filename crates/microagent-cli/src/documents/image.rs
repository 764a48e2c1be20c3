//! Images, in JSON.

use std::path::PathBuf;

use microagent::ImageReport;
use microagent::image::{Deletion, Origin};
use serde::Serialize;

/// The image of what was run or made, in JSON.
#[derive(Debug, Serialize)]
pub(crate) struct ImageDocument {
    reference: String,
    resolved_reference: String,
    digest: String,
    origin: Origin,
}

impl From<ImageReport> for ImageDocument {
    fn from(image: ImageReport) -> ImageDocument {
        let ImageReport { reference, resolved_reference, digest, origin, .. } = image;
        ImageDocument { reference, resolved_reference, digest, origin }
    }
}

/// What came in.
#[derive(Debug, Serialize)]
pub(crate) struct PulledImageDocument {
    pub(crate) reference: String,
    pub(crate) resolved_reference: String,
    pub(crate) digest: String,
    pub(crate) origin: microagent::image::Origin,
    pub(crate) content_bytes: u64,
    pub(crate) disk: PathBuf,
    pub(crate) disk_id: String,
    pub(crate) disk_bytes: u64,
}

/// `microagent image load`.
#[derive(Debug, Serialize)]
pub(crate) struct LoadedImagesDocument {
    pub(crate) loaded: Vec<PulledImageDocument>,
}

/// `microagent image delete`.
#[derive(Debug, Serialize)]
pub(crate) struct ImageDeleteDocument {
    pub(crate) deleted: Vec<Deletion>,
}
