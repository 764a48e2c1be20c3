//! Blocking work beside the async task that waits for it: progress comes out, cancellation goes in.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::error::ImageError;

/// How often progress is passed on; a person sees no more.
const TICK: Duration = Duration::from_millis(100);

/// What the worker and the one who waits share.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    done: AtomicU64,
    cancelled: AtomicBool,
}

impl Meter {
    /// Says how far the work is, in whatever unit it counts.
    pub(crate) fn set(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
    }

    /// Whether the work is to end; the worker asks between small steps.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Ends the work with [`ImageError::Cancelled`] if it is to end.
    pub(crate) fn check(&self) -> Result<(), ImageError> {
        if self.is_cancelled() { Err(ImageError::Cancelled) } else { Ok(()) }
    }
}

/// Tells the worker when nobody waits for it any more.
struct CancelOnDrop(Arc<Meter>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
    }
}

/// Runs blocking work to its end. Cancelled, it still waits until the worker has let go of its files.
pub(crate) async fn run<T: Send + 'static>(
    cancel: &CancellationToken,
    on_progress: impl Fn(u64),
    work: impl FnOnce(&Meter) -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    let guard = CancelOnDrop(Arc::new(Meter::default()));
    let meter = guard.0.clone();
    let mut worker = spawn_blocking(move || work(&meter));
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = 0;
    loop {
        tokio::select! {
            outcome = &mut worker => {
                return outcome.unwrap_or_else(|error| match error.try_into_panic() {
                    Ok(panic) => resume_unwind(panic),
                    // The runtime is shutting down.
                    Err(_) => Err(ImageError::Cancelled),
                });
            }
            () = cancel.cancelled(), if !guard.0.is_cancelled() => {
                guard.0.cancelled.store(true, Ordering::Relaxed);
            }
            _ = ticks.tick() => {
                let done = guard.0.done.load(Ordering::Relaxed);
                if done != told {
                    told = done;
                    on_progress(done);
                }
            }
        }
    }
}
