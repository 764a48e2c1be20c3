//! What happens to the machine as a whole, for whoever asks: its end by its own programs, and memory that ran out.
//!
//! That memory ran out is read from the kernel's log, which tells who was killed. Records that programs write there
//! themselves are told apart by their facility.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use microagent_proto::GuestEvent;
use rustix::fs::{CWD, Mode, OFlags, SeekFrom, openat, seek};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::broadcast;

use crate::console;
use crate::sys;

const KERNEL_LOG: &str = "/dev/kmsg";

/// Longest record that the kernel gives, in bytes (`PRINTK_MESSAGE_MAX`).
const RECORD_LIMIT: usize = 2048;

/// Most events that wait for somebody who is slow; older ones are dropped.
const EVENTS_MAX: usize = 64;

/// Most records that are read at a time, so that a program that fills the log holds up nobody.
const RECORDS_AT_ONCE: usize = 64;

/// Passes events on.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    sender: broadcast::Sender<GuestEvent>,
    /// How the machine ended, for those who ask afterwards.
    end: Arc<Mutex<Option<GuestEvent>>>,
    log: Option<Arc<AsyncFd<OwnedFd>>>,
}

/// Events from now on.
#[derive(Debug)]
pub(crate) struct Watcher {
    receiver: broadcast::Receiver<GuestEvent>,
    end: Option<GuestEvent>,
}

impl Events {
    /// Watches the kernel's log from here on. Must be called on an event loop.
    pub(crate) fn start() -> Events {
        let log = open_log()
            .inspect_err(|error| console::say_error("cannot read the kernel's log", error))
            .ok()
            .map(Arc::new);
        let events = Events { sender: broadcast::Sender::new(EVENTS_MAX), end: Arc::default(), log };
        if let Some(log) = events.log.clone() {
            tokio::spawn(events.clone().follow(log));
        }
        events
    }

    /// Tells of the machine's end.
    pub(crate) fn ended(&self, end: GuestEvent) {
        self.lock_end().get_or_insert(end.clone());
        // Nobody may be listening.
        let _ = self.sender.send(end);
    }

    /// Whether the machine's own programs have ended it.
    pub(crate) fn has_ended(&self) -> bool {
        self.lock_end().is_some()
    }

    /// Everything from now on, and the end if that was before.
    pub(crate) fn watch(&self) -> Watcher {
        let receiver = self.sender.subscribe();
        Watcher { receiver, end: self.lock_end().clone() }
    }

    /// Takes in what the kernel has said up to now.
    pub(crate) fn catch_up(&self) {
        if let Some(log) = &self.log {
            self.read_records(log.get_ref());
        }
    }

    async fn follow(self, log: Arc<AsyncFd<OwnedFd>>) {
        loop {
            let Ok(mut ready) = log.ready(Interest::READABLE).await else { return };
            if self.read_records(log.get_ref()) {
                ready.clear_ready();
            }
            tokio::task::yield_now().await;
        }
    }

    /// Reads some records; `true` when there is none left.
    fn read_records(&self, log: &OwnedFd) -> bool {
        let mut record = [0; RECORD_LIMIT];
        for _ in 0..RECORDS_AT_ONCE {
            match rustix::io::read(log, &mut record) {
                Ok(len) => {
                    if let Some(program) = killed_for_memory(&record[..len]) {
                        let _ = self.sender.send(GuestEvent::OutOfMemory { program });
                    }
                }
                // Records were overwritten before they were read, or something asked for our attention.
                Err(Errno::PIPE | Errno::INTR) => {}
                Err(_) => return true,
            }
        }
        false
    }

    fn lock_end(&self) -> MutexGuard<'_, Option<GuestEvent>> {
        self.end.lock().expect("no holder of the lock panics")
    }
}

impl Watcher {
    /// The next event; nothing after the machine's end.
    pub(crate) async fn next(&mut self) -> Option<GuestEvent> {
        if let Some(end) = self.end.take() {
            return Some(end);
        }
        loop {
            match self.receiver.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    /// A program that the kernel has killed meanwhile, because memory ran out.
    pub(crate) fn killed_for_memory(&mut self) -> Option<String> {
        loop {
            match self.receiver.try_recv() {
                Ok(GuestEvent::OutOfMemory { program }) => return Some(program),
                Ok(_) | Err(broadcast::error::TryRecvError::Lagged(_)) => {}
                Err(_) => return None,
            }
        }
    }
}

fn open_log() -> io::Result<AsyncFd<OwnedFd>> {
    let log = openat(CWD, KERNEL_LOG, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    seek(&log, SeekFrom::End(0))?;
    sys::watch(log)
}

/// The program of a record that says that it was killed, because memory ran out, in the machine or in a control group.
///
/// # Source
/// `Documentation/ABI/testing/dev-kmsg` and `__oom_kill_process` in `mm/oom_kill.c` of the kernel.
fn killed_for_memory(record: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(record);
    let (prefix, message) = text.split_once(';')?;
    let facility_and_level: u32 = prefix.split(',').next()?.parse().ok()?;
    // The kernel's own facility is 0; what programs write has another.
    if facility_and_level >> 3 != 0 {
        return None;
    }
    let (_, rest) = message.split_once("ut of memory: Killed process ")?;
    let (_, name) = rest.split_once('(')?;
    let (name, _) = name.split_once(") total-vm:")?;
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernel_is_believed_when_memory_ran_out() {
        let tail = "Killed process 49 (tail) total-vm:503040kB, anon-rss:439424kB, UID:0\n";
        for (record, program) in [
            (format!("3,1012,7654,-;Out of memory: {tail}"), Some("tail")),
            (format!("3,1012,7654,-;Memory cgroup out of memory: {tail}"), Some("tail")),
            ("3,1,2,-;Out of memory: Killed process 5 (a) (b) total-vm:1kB".to_owned(), Some("a) (b")),
            (format!("11,1012,7654,-;Out of memory: {tail}"), None),
            ("6,1,2,-;tail invoked oom-killer: gfp_mask=0x1".to_owned(), None),
            ("nonsense".to_owned(), None),
        ] {
            assert_eq!(killed_for_memory(record.as_bytes()).as_deref(), program, "{record}");
        }
    }
}
