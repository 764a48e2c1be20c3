//! Events that long operations report while they run.

use std::sync::Arc;

use microagent_image::ImageEvent;
use microagent_model::Publish;
use serde::Serialize;

use crate::ImageReport;

/// An event of a long operation.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case", tag = "event", content = "detail")]
#[non_exhaustive]
pub enum Event {
    /// Progress of fetching an image.
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
    /// The machine is being started with the memory of a snapshot.
    Restoring {
        /// The workspace.
        workspace: String,
        /// `linux-kvm` or `linux-tcg`.
        backend: String,
    },
    /// The supervisor listens on these published ports, with picked host ports.
    Published(Vec<Publish>),
    /// The guest answered and is set up. [`Event::Setup`] and [`Event::Command`] follow.
    Booted {
        /// Milliseconds from the start of the supervisor.
        elapsed_ms: u64,
    },
    /// A setup step begins.
    Setup {
        /// Its number, from 1.
        step: usize,
        /// Number of steps.
        total: usize,
        /// Its text or file name.
        label: String,
    },
    /// The disk of a resting workspace is being compared with its image.
    Comparing {
        /// The workspace.
        workspace: String,
    },
    /// Files pass between the host and a guest.
    Copying {
        /// Bytes of the tar stream that have passed so far.
        bytes: u64,
    },
    /// The command begins.
    Command,
    /// A notice for the user that is not an error.
    Notice(String),
}

/// Receives events. It is called in the task that does the work, so it must not block for long.
///
/// Implemented for closures, and for an `Arc` of an observer.
///
/// ```
/// use std::sync::Mutex;
///
/// use microagent::{Event, Observer, Progress};
///
/// /// Collects the notices.
/// #[derive(Default)]
/// struct Notices(Mutex<Vec<String>>);
///
/// impl Observer for Notices {
///     fn event(&self, event: Event) {
///         if let Event::Notice(text) = event {
///             self.0.lock().expect("no observer panics").push(text);
///         }
///     }
/// }
///
/// let notices = std::sync::Arc::new(Notices::default());
/// let progress = Progress::new().observer(notices.clone());
/// ```
pub trait Observer: Send + Sync {
    /// Receives one event.
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
