//! Takes in every process that ends: those that were started here, whose end somebody waits for, and the
//! orphans that PID 1 inherits.
//!
//! One task does all the waiting, so nobody's child is taken by somebody else. A child is entered in the
//! table right after it was made, on the same thread, so its end cannot come before its entry.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use microagent_proto::{Exit, GuestEvent};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, oneshot};

use crate::events::Events;
use crate::init::{Disposition, Init};
use crate::sys;

/// What a child is to the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// What the machine runs for; asked to end before everything else.
    Main,
    /// Anything else.
    Command,
}

#[derive(Debug)]
struct Watched {
    role: Role,
    waiting: oneshot::Sender<Exit>,
    /// The signal that ends it, when the kernel has to be told another one for that.
    killed_as_if_by: Option<u8>,
}

/// Knows who waits for which process.
#[derive(Debug, Clone)]
pub(crate) struct Reaper {
    init: Arc<Init>,
    events: Events,
    watched: Arc<Mutex<BTreeMap<i32, Watched>>>,
    /// Told when no process is left but this one.
    alone: Arc<Notify>,
    /// Told when the main program has ended.
    main_ended: Arc<Notify>,
}

impl Reaper {
    /// Starts the task that reaps, on the running event loop.
    pub(crate) fn start(init: Arc<Init>, events: Events) -> io::Result<Reaper> {
        let reaper = Reaper {
            init,
            events,
            watched: Arc::default(),
            alone: Arc::default(),
            main_ended: Arc::default(),
        };
        let signals = signal(SignalKind::child())?;
        tokio::spawn(reaper.clone().run(signals));
        Ok(reaper)
    }

    /// Gives the end of a process that was made just now.
    pub(crate) fn watch(&self, pid: Pid, role: Role) -> oneshot::Receiver<Exit> {
        let (waiting, receiver) = oneshot::channel();
        let watched = Watched { role, waiting, killed_as_if_by: None };
        self.table().insert(pid.as_raw_nonzero().get(), watched);
        receiver
    }

    /// Sends a signal to the process group of a watched child. One that has been taken in already gets
    /// none: its number may be another's by now.
    pub(crate) fn signal(&self, pid: Pid, signal: u8) {
        let number = pid.as_raw_nonzero().get();
        if !self.table().contains_key(&number) {
            return;
        }
        // A process 1 is spared what ends any other process: what a user expects is done for the kernel.
        if pid == self.init.pid() && self.init.disposition(signal) == Disposition::Ends {
            self.kill_as_if_by(number, signal);
        } else if !sys::kill_group(number, signal.into()) {
            // Not the leader of a group yet.
            sys::kill_process(number, signal.into());
        }
    }

    /// The main program's process, until it ends.
    pub(crate) fn main(&self) -> Option<Pid> {
        let table = self.table();
        let main = table.iter().find(|(_, watched)| watched.role == Role::Main);
        main.and_then(|(pid, _)| Pid::from_raw(*pid))
    }

    /// Sends a signal to the main program's process.
    pub(crate) fn signal_main(&self, signal: u8) {
        if let Some(main) = self.main() {
            sys::kill_process(main.as_raw_nonzero().get(), signal.into());
            // A stopped process takes no signal before it continues.
            sys::kill_process(main.as_raw_nonzero().get(), libc::SIGCONT);
        }
    }

    /// Kills the main program; it counts as ended by this signal.
    pub(crate) fn kill_main_as_if_by(&self, signal: u8) {
        if let Some(main) = self.main() {
            self.kill_as_if_by(main.as_raw_nonzero().get(), signal);
        }
    }

    fn kill_as_if_by(&self, pid: i32, signal: u8) {
        if let Some(watched) = self.table().get_mut(&pid) {
            watched.killed_as_if_by = Some(signal);
            sys::kill_process(pid, libc::SIGKILL);
        }
    }

    /// Waits until the main program has ended.
    pub(crate) async fn main_ended(&self) {
        loop {
            let ended = self.main_ended.notified();
            if self.main().is_none() {
                return;
            }
            ended.await;
        }
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
                Ok(Some((pid, status))) => self.take_in(pid, status),
                Ok(None) => return false,
                Err(Errno::INTR) => {}
                // ECHILD, the only other error of this call.
                Err(_) => return true,
            }
        }
    }

    fn take_in(&self, pid: Pid, status: WaitStatus) {
        let watched = self.table().remove(&pid.as_raw_nonzero().get());
        let Some(mut exit) = exit(status) else { return };
        if pid == self.init.pid()
            && let Some((event, of_main)) = machine_end(exit, watched.is_some())
        {
            self.events.ended(event);
            exit = of_main;
        }
        let Some(watched) = watched else { return };
        if let (Some(signal), Exit::Signal(9)) = (watched.killed_as_if_by, exit) {
            exit = Exit::Signal(signal);
        }
        // Nobody waits any more for a command that was given up.
        let _ = watched.waiting.send(exit);
        if watched.role == Role::Main {
            self.main_ended.notify_waiters();
        }
    }

    fn table(&self) -> std::sync::MutexGuard<'_, BTreeMap<i32, Watched>> {
        self.watched.lock().expect("no holder of the lock panics")
    }
}

/// What the end of the guest's process 1 means, unless it is that of its program: the kernel turns `reboot(2)` into one of
/// two signals by which it cannot end otherwise (`reboot(2)`). One that was still waiting takes the machine with it.
fn machine_end(exit: Exit, is_program: bool) -> Option<(GuestEvent, Exit)> {
    match exit {
        Exit::Signal(1) => Some((GuestEvent::Restarted, Exit::Restarted)),
        Exit::Signal(2) => Some((GuestEvent::PoweredOff, Exit::PoweredOff)),
        _ if !is_program => Some((GuestEvent::PoweredOff, Exit::PoweredOff)),
        _ => None,
    }
}

fn exit(status: WaitStatus) -> Option<Exit> {
    let byte = |number: i32| u8::try_from(number & 0xff).expect("masked to a byte");
    status
        .exit_status()
        .map(|code| Exit::Code(byte(code)))
        .or_else(|| status.terminating_signal().map(|signal| Exit::Signal(byte(signal))))
}
