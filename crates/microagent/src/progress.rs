//! Observer and cancellation of long operations, as one argument.

use std::fmt;
use std::sync::Arc;

use microagent_image::ImageEvent;
use tokio_util::sync::CancellationToken;

use crate::{Error, Event, Observer};

/// An observer and a cancellation token, for operations that take long. Cheap to clone.
///
/// ```
/// use microagent::{CancellationToken, Progress};
///
/// let cancel = CancellationToken::new();
/// let progress = Progress::new().observer(|event| println!("{event:?}")).cancel(cancel.clone());
/// ```
///
/// One token can cancel many operations. Each run that is cancelled is removed before its future ends:
///
/// ```no_run
/// use microagent::{CancellationToken, Engine, Error, ErrorKind, Progress, RunOptions};
///
/// # async fn example(engine: Engine) -> Result<(), Error> {
/// let cancel = CancellationToken::new();
/// let mut runs = tokio::task::JoinSet::new();
/// for number in 0..4 {
///     let (engine, progress) = (engine.clone(), Progress::new().cancel(cancel.clone()));
///     let options = RunOptions::new("busybox").shell(format!("test {number} = 2 || sleep 60"));
///     runs.spawn(async move { engine.run(options, &progress).await });
/// }
/// while let Some(Ok(ended)) = runs.join_next().await {
///     match ended {
///         // The first result is enough.
///         Ok(report) => {
///             println!("{} exited with {}", report.workspace, report.result.exit_code);
///             cancel.cancel();
///         }
///         Err(error) if error.kind() == ErrorKind::Cancelled => {}
///         Err(error) => return Err(error),
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Progress {
    observer: Option<Arc<dyn Observer>>,
    cancel: CancellationToken,
}

impl Progress {
    /// Creates a value without observer and cancellation.
    pub fn new() -> Progress {
        Progress::default()
    }

    /// Sets the observer of events.
    #[must_use]
    pub fn observer(self, observer: impl Observer + 'static) -> Progress {
        Progress { observer: Some(Arc::new(observer)), ..self }
    }

    /// Sets the token whose cancellation ends the operation with [`Error::Cancelled`] (that of a run with
    /// [`Error::RunCancelled`], once its machine exists). An operation whose token is already cancelled has no effect.
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

    /// Returns the observer for the image store.
    pub(crate) fn images(&self) -> ImageEvents<'_> {
        ImageEvents(self)
    }

    /// Fails if the operation was cancelled before it began, so that it has no effect.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Returns the token.
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

/// Passes events of images on.
pub(crate) struct ImageEvents<'a>(&'a Progress);

impl microagent_image::Progress for ImageEvents<'_> {
    fn event(&self, event: ImageEvent) {
        self.0.event(Event::Image(event));
    }
}

impl Observer for Progress {
    fn event(&self, event: Event) {
        Progress::event(self, event);
    }
}
