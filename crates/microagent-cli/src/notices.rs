//! Notices of long work that belong to its JSON document.

use std::sync::{Mutex, PoisonError};

use microagent::Event;

/// The notices so far.
#[derive(Debug, Default)]
pub(crate) struct Notices(Mutex<Vec<String>>);

impl Notices {
    /// Keeps the event if it is a notice.
    pub(crate) fn take(&self, event: &Event) {
        if let Event::Notice(notice) = event {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(notice.clone());
        }
    }

    /// Those that were kept.
    pub(crate) fn taken(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
