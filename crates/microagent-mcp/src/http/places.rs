//! Places for connections. Whoever can connect could take all of them, so a connection that has not shown the token yet
//! gives its place to a newer one when there is none left.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// All places.
pub(super) struct Places {
    free: Arc<Semaphore>,
    unproven: Mutex<Unproven>,
}

/// Connections that have not shown the token, by their order.
#[derive(Default)]
struct Unproven {
    next: u64,
    connections: BTreeMap<u64, CancellationToken>,
}

/// The place of one connection. Dropping it frees the place.
pub(super) struct Place {
    number: u64,
    displaced: CancellationToken,
    places: Arc<Places>,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    /// So many places.
    pub(super) fn new(count: usize) -> Arc<Places> {
        Arc::new(Places { free: Arc::new(Semaphore::new(count)), unproven: Mutex::default() })
    }

    /// Takes a place: a free one, or that of the oldest connection without the token. Waits if all have shown it.
    pub(super) async fn take(self: &Arc<Self>) -> Place {
        if self.free.available_permits() == 0
            && let Some((_, oldest)) = self.unproven().connections.pop_first()
        {
            oldest.cancel();
        }
        let permit = Arc::clone(&self.free).acquire_owned().await.expect("the semaphore is never closed");
        let displaced = CancellationToken::new();
        let mut unproven = self.unproven();
        let number = unproven.next;
        unproven.next += 1;
        unproven.connections.insert(number, displaced.clone());
        drop(unproven);
        Place { number, displaced, places: Arc::clone(self), _permit: permit }
    }

    fn unproven(&self) -> MutexGuard<'_, Unproven> {
        self.unproven.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The connection has shown the token: it keeps its place.
    pub(super) fn keep(&self) {
        self.places.unproven().connections.remove(&self.number);
    }

    /// Waits until a newer connection takes the place.
    pub(super) async fn displaced(&self) {
        self.displaced.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.keep();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// The clock is paused: it advances when nothing else can happen.
    const MOMENT: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn the_oldest_without_the_token_gives_its_place_to_a_newer_one() {
        let places = Places::new(2);
        let (first, second) = (places.take().await, places.take().await);
        first.keep();
        // The second one is told to end, and the third one has its place when it has.
        let third = tokio::spawn({
            let places = Arc::clone(&places);
            async move { places.take().await }
        });
        second.displaced().await;
        drop(second);
        let third = third.await.unwrap();
        assert!(timeout(MOMENT, first.displaced()).await.is_err());
        third.keep();
        // All have shown it: the next one waits.
        assert!(timeout(MOMENT, places.take()).await.is_err());
        drop(first);
        assert!(timeout(MOMENT, places.take()).await.is_ok());
    }
}
