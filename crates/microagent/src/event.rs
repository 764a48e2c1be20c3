//! What long work reports while it runs.

use std::sync::Arc;

use microagent_image::ImageEvent;
use microagent_model::Publish;
use serde::Serialize;

use crate::ImageReport;

/// Something that happened on the way to a result.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case", tag = "event", content = "detail")]
#[non_exhaustive]
pub enum Event {
    /// Bringing in the image.
    Image(ImageEvent),
    /// The image and its base disk are in the cache.
    ImageReady(ImageReport),
    /// The machine is being started.
    Booting {
        /// The workspace.
        workspace: String,
        /// `linux-kvm` or `linux-tcg`.
        backend: String,
    },
    /// These ports of the host are listened at for the guest, with the numbers that were picked.
    Published(Vec<Publish>),
    /// The guest answered; setup and command come next.
    Booted {
        /// Milliseconds from the start of the supervisor.
        elapsed_ms: u64,
    },
    /// A setup step begins.
    Setup {
        /// Its number, from 1.
        step: usize,
        /// How many there are.
        total: usize,
        /// Its text or file name.
        label: String,
    },
    /// The disk of a resting workspace is being compared with its image.
    Comparing {
        /// The workspace.
        workspace: String,
    },
    /// The command begins.
    Command,
    /// Something that the user should know and that is not an error.
    Notice(String),
}

/// Takes events; called from the task that does the work, so it must not block for long.
///
/// Implemented for closures, and for an `Arc` of an observer.
pub trait Observer: Send + Sync {
    /// Takes one event.
    fn event(&self, event: Event);
}

impl<F: Fn(Event) + Send + Sync> Observer for F {
    fn event(&self, event: Event) {
        self(event);
    }
}

impl<T: Observer + ?Sized> Observer for Arc<T> {
    fn event(&self, event: Event) {
        (**self).event(event);
    }
}
