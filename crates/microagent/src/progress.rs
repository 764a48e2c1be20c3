//! How long work reports and how it is cancelled: one argument of every operation that may take a while.

use std::fmt;
use std::sync::Arc;

use microagent_image::ImageEvent;
use tokio_util::sync::CancellationToken;

use crate::{Event, Observer};

/// An observer and a cancellation token. Cheap to clone.
///
/// ```
/// use microagent::{CancellationToken, Progress};
///
/// let cancel = CancellationToken::new();
/// let progress = Progress::new().observer(|event| println!("{event:?}")).cancel(cancel.clone());
/// ```
#[derive(Clone, Default)]
pub struct Progress {
    observer: Option<Arc<dyn Observer>>,
    cancel: CancellationToken,
}

impl Progress {
    /// Nobody observes, and nothing cancels.
    pub fn new() -> Progress {
        Progress::default()
    }

    /// Events go to this observer.
    #[must_use]
    pub fn observer(self, observer: impl Observer + 'static) -> Progress {
        Progress { observer: Some(Arc::new(observer)), ..self }
    }

    /// The work ends with [`Error::Cancelled`](crate::Error::Cancelled) when this token is cancelled.
    #[must_use]
    pub fn cancel(self, cancel: CancellationToken) -> Progress {
        Progress { cancel, ..self }
    }

    /// Reports an event.
    pub(crate) fn event(&self, event: Event) {
        if let Some(observer) = &self.observer {
            observer.event(event);
        }
    }

    /// The token.
    pub(crate) fn token(&self) -> &CancellationToken {
        &self.cancel
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress")
            .field("is_observed", &self.observer.is_some())
            .field("is_cancelled", &self.cancel.is_cancelled())
            .finish()
    }
}

/// Events of images are events.
impl microagent_image::Progress for Progress {
    fn event(&self, event: ImageEvent) {
        Progress::event(self, Event::Image(event));
    }
}

impl Observer for Progress {
    fn event(&self, event: Event) {
        Progress::event(self, event);
    }
}
