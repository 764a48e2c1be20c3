//! Work that reads or writes files and may take long, on threads of the runtime that may block.

use crate::Error;

/// Runs the work on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shut down.
            Err(_) => Err(Error::Cancelled),
        },
    }
}
