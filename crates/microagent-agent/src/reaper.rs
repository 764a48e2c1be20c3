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

use crate::sys;

/// What a child is to the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// What the machine runs for; asked to end before everything else.
    Service,
    /// Anything else.
    Command,
}

#[derive(Debug)]
struct Watched {
    role: Role,
    waiting: oneshot::Sender<Exit>,
}

/// Knows who waits for which process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reaper {
    watched: Arc<Mutex<BTreeMap<i32, Watched>>>,
    /// Told when no process is left but this one.
    alone: Arc<Notify>,
    /// Told when a service has ended.
    service_ended: Arc<Notify>,
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
    pub(crate) fn watch(&self, pid: Pid, role: Role) -> oneshot::Receiver<Exit> {
        let (waiting, receiver) = oneshot::channel();
        self.table().insert(pid.as_raw_nonzero().get(), Watched { role, waiting });
        receiver
    }

    /// Sends a signal to the process group of a watched child. One that has been taken in already gets
    /// none: its number may be another's by now.
    pub(crate) fn signal(&self, pid: Pid, signal: u8) {
        let pid = pid.as_raw_nonzero().get();
        if self.table().contains_key(&pid) && !sys::kill_group(pid, signal.into()) {
            // Not the leader of a group yet.
            sys::kill_process(pid, signal.into());
        }
    }

    /// Sends a signal to every service's main process.
    pub(crate) fn signal_services(&self, signal: u8) {
        for pid in self.services() {
            sys::kill_process(pid, signal.into());
            // A stopped process takes no signal before it goes on.
            sys::kill_process(pid, libc::SIGCONT);
        }
    }

    /// Waits until no service's main process is left.
    pub(crate) async fn services_ended(&self) {
        loop {
            let ended = self.service_ended.notified();
            if self.services().is_empty() {
                return;
            }
            ended.await;
        }
    }

    fn services(&self) -> Vec<i32> {
        let is_service = |watched: &Watched| watched.role == Role::Service;
        self.table().iter().filter(|(_, watched)| is_service(watched)).map(|(pid, _)| *pid).collect()
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
                    let watched = self.table().remove(&pid.as_raw_nonzero().get());
                    if let (Some(watched), Some(exit)) = (watched, exit(status)) {
                        if watched.role == Role::Service {
                            self.service_ended.notify_waiters();
                        }
                        // Nobody waits any more for a command that was given up.
                        let _ = watched.waiting.send(exit);
                    }
                }
                Ok(None) => return false,
                Err(Errno::INTR) => {}
                // ECHILD, the only other error of this call.
                Err(_) => return true,
            }
        }
    }

    fn table(&self) -> std::sync::MutexGuard<'_, BTreeMap<i32, Watched>> {
        self.watched.lock().expect("no holder of the lock panics")
    }
}

fn exit(status: WaitStatus) -> Option<Exit> {
    let byte = |number: i32| u8::try_from(number & 0xff).expect("masked to a byte");
    status
        .exit_status()
        .map(|code| Exit::Code(byte(code)))
        .or_else(|| status.terminating_signal().map(|signal| Exit::Signal(byte(signal))))
}
