//! A session at the serial console: it receives what is written to the log, and its input is sent to the guest.
//!
//! Whoever sits there is trusted like every client, and no more than one does. Neither a guest that does not read
//! what is typed nor a client that does not read what is shown holds anybody up: what they do not take is lost to
//! them.

use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};
use tokio::time::timeout;

use super::Shared;
use crate::bounded_log::BoundedLog;

/// Deadline for the guest to read input.
const TYPING_PATIENCE: Duration = Duration::from_secs(2);

/// Bytes that are typed at once.
const TYPING_BYTES: usize = 4096;

/// The console of one machine.
#[derive(Clone)]
pub(super) struct Console {
    keys: std::sync::Arc<Mutex<OwnedWriteHalf>>,
    log: Shared<BoundedLog>,
}

/// Another session uses the console.
pub(super) struct ConsoleSession {
    keys: OwnedMutexGuard<OwnedWriteHalf>,
    shown: mpsc::Receiver<Vec<u8>>,
}

impl Console {
    /// The console that types here and whose log this is.
    pub(super) fn new(keys: OwnedWriteHalf, log: Shared<BoundedLog>) -> Console {
        Console { keys: std::sync::Arc::new(Mutex::new(keys)), log }
    }

    /// Starts a session, unless there is one.
    pub(super) fn open(&self) -> Option<ConsoleSession> {
        let keys = std::sync::Arc::clone(&self.keys).try_lock_owned().ok()?;
        Some(ConsoleSession { keys, shown: Rc::clone(&self.log).borrow_mut().watch() })
    }
}

impl ConsoleSession {
    /// Passes output and input on until the client disconnects.
    pub(super) async fn hold(mut self, client: UnixStream) {
        let (mut typed, mut screen) = client.into_split();
        let showing = async {
            while let Some(bytes) = self.shown.recv().await {
                if screen.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        };
        let typing = async {
            let mut buffer = [0; TYPING_BYTES];
            while let Ok(count @ 1..) = typed.read(&mut buffer).await {
                // A machine that is gone shows by the end of what is shown.
                let _ = timeout(TYPING_PATIENCE, self.keys.write_all(&buffer[..count])).await;
            }
        };
        tokio::select! {
            () = showing => {}
            () = typing => {}
        }
    }
}
