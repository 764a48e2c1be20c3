//! Takes in every process that ends: those that were started here, whose end somebody waits for, and the
//! orphans that PID 1 inherits.
//!
//! One task does all the waiting, so nobody's child is taken by somebody else. A child is entered in the
//! table right after it was made, on the same thread, so its end cannot come before its entry.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use microagent_proto::Exit;
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, oneshot};

/// Knows who waits for which process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reaper {
    waiting: Arc<Mutex<BTreeMap<i32, oneshot::Sender<Exit>>>>,
    /// Told when no process is left but this one.
    alone: Arc<Notify>,
}

impl Reaper {
    /// Starts the task that reaps, on the running event loop.
    pub(crate) fn start() -> io::Result<Reaper> {
        let reaper = Reaper::default();
        let signals = signal(SignalKind::child())?;
        tokio::spawn(reaper.clone().run(signals));
        Ok(reaper)
    }

    /// Gives the end of a process that was made just now.
    pub(crate) fn watch(&self, pid: Pid) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        self.table().insert(pid.as_raw_nonzero().get(), sender);
        receiver
    }

    /// Waits until no other process exists. Every process descends from this one, so having no children
    /// means being alone.
    pub(crate) async fn alone(&self) {
        let notified = self.alone.notified();
        if !self.reap() {
            notified.await;
        }
    }

    async fn run(self, mut signals: Signal) {
        loop {
            if self.reap() {
                self.alone.notify_waiters();
            }
            if signals.recv().await.is_none() {
                return;
            }
        }
    }

    /// Takes in all that have ended; `true` when none is left.
    fn reap(&self) -> bool {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let waiting = self.table().remove(&pid.as_raw_nonzero().get());
                    if let (Some(waiting), Some(exit)) = (waiting, exit(status)) {
                        // Nobody waits any more for a command that was given up.
                        let _ = waiting.send(exit);
                    }
                }
                Ok(None) => return false,
                Err(Errno::INTR) => {}
                // ECHILD, the only other error of this call.
                Err(_) => return true,
            }
        }
    }

    fn table(&self) -> std::sync::MutexGuard<'_, BTreeMap<i32, oneshot::Sender<Exit>>> {
        self.waiting.lock().expect("no holder of the lock panics")
    }
}

fn exit(status: WaitStatus) -> Option<Exit> {
    let byte = |number: i32| u8::try_from(number & 0xff).expect("masked to a byte");
    status
        .exit_status()
        .map(|code| Exit::Code(byte(code)))
        .or_else(|| status.terminating_signal().map(|signal| Exit::Signal(byte(signal))))
}
