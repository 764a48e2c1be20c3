//! What a pull tells while it works.

use serde::Serialize;

/// Takes events as they happen. Called from the task that pulls; must not block.
pub trait Progress: Send + Sync {
    /// Takes one event.
    fn event(&self, event: ImageEvent);
}

/// An event of work on an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ImageEvent {
    /// The reference is being looked up at its source.
    Resolving {
        /// The full reference.
        reference: String,
    },
    /// The download of blobs begins.
    Pulling {
        /// The full reference.
        reference: String,
        /// How many layers are missing here.
        layers: usize,
        /// Their bytes together, as they will be transferred.
        bytes_total: u64,
    },
    /// Progress of a layer.
    LayerProgress {
        /// The layer.
        digest: String,
        /// Bytes that are here.
        done: u64,
        /// Bytes it has.
        total: u64,
    },
    /// A layer was fetched and verified.
    LayerDone {
        /// The layer.
        digest: String,
    },
    /// The base disk is being written.
    Unpacking {
        /// Bytes of layers that have been read.
        done: u64,
        /// Bytes of layers there are.
        total: u64,
    },
    /// The base disk is complete.
    DiskReady {
        /// Digest that names it.
        disk_id: String,
        /// Its size.
        disk_bytes: u64,
    },
    /// The writing of an archive begins.
    Saving {
        /// Bytes of what goes into it.
        bytes_total: u64,
    },
    /// Progress of the archive.
    SaveProgress {
        /// Bytes that are written.
        done: u64,
    },
    /// A push begins.
    Pushing {
        /// The full reference.
        reference: String,
        /// How many blobs it has.
        blobs: usize,
        /// Their bytes together.
        bytes_total: u64,
    },
    /// Progress of a blob that is being pushed.
    PushProgress {
        /// The blob.
        digest: String,
        /// Bytes that are there.
        done: u64,
    },
    /// A blob was pushed.
    PushDone {
        /// The blob.
        digest: String,
        /// Whether it had to be sent; else the registry had it.
        sent: bool,
    },
    /// Another command does this work; its result will be used.
    Waiting {
        /// What it is doing.
        what: String,
    },
    /// An attempt failed and is repeated.
    Retrying {
        /// What failed, for a person.
        what: String,
        /// Which attempt comes next, from 2 on.
        attempt: u32,
        /// Milliseconds until then.
        pause_ms: u64,
    },
}

/// Drops every event.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn event(&self, _event: ImageEvent) {}
}
