//! How a guest ended its machine. Every end of it is a reset of the processor, which QEMU answers by stopping the
//! machine; what kind of end it was, the agent has reported if a program asked for it in the usual way, or the kernel
//! has printed it. A program that prints the kernel's words fools nobody but its own user.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use microagent_proto::{GuestEvent, REPLY_LIMIT, REQUEST_LIMIT, Request, SessionHandle};
use microagent_proto::{read_message, write_message};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::Shared;
use crate::bounded_log::BoundedLog;
use crate::lifecycle::{Event, MachineExit};

/// How often the kernel's last words are looked for, and how many times. A guest that has none has restarted.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
const POLLS: usize = 20;

/// Lines of the console, from the last, in which they are. A panic prints a trace after them.
const LINES: usize = 60;

/// What is known of the end of one guest.
#[derive(Clone)]
pub(super) struct GuestEnd {
    console: Shared<BoundedLog>,
    reported: Rc<Cell<Option<Reported>>>,
}

/// What the agent has reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reported {
    PoweredOff,
    Restarted,
}

impl GuestEnd {
    /// Nothing yet, of a guest with this console.
    pub(super) fn new(console: Shared<BoundedLog>) -> GuestEnd {
        GuestEnd { console, reported: Rc::default() }
    }

    /// Takes what the agent reports of its machine. Never ends: that the reports end is no news.
    pub(super) async fn watch(&self, session: &SessionHandle, events: &mpsc::Sender<Event>) {
        if let Ok(mut stream) = session.open().await
            && write_message(&mut stream, &Request::Watch, REQUEST_LIMIT).await.is_ok()
        {
            while let Ok(Some(event)) = read_message::<GuestEvent, _>(&mut stream, REPLY_LIMIT).await {
                match event {
                    GuestEvent::OutOfMemory { program } => {
                        // A driver that does not listen any more has ended the machine.
                        let _ = events.send(Event::OutOfMemory(program)).await;
                    }
                    GuestEvent::PoweredOff => self.reported.set(Some(Reported::PoweredOff)),
                    GuestEvent::Restarted => self.reported.set(Some(Reported::Restarted)),
                }
            }
        }
        std::future::pending().await
    }

    /// How the machine ended that is stopped now. What comes after belongs to its next boot.
    pub(super) async fn exit(&self) -> MachineExit {
        match self.reported.take() {
            Some(Reported::PoweredOff) => return MachineExit::PoweredOff,
            Some(Reported::Restarted) => return MachineExit::Rebooted,
            None => {}
        }
        for _ in 0..POLLS {
            let tail = self.console.borrow().tail();
            if let Some(exit) = on_console(&tail) {
                return exit;
            }
            // They may still be on their way through the console's socket.
            sleep(POLL_INTERVAL).await;
        }
        MachineExit::Rebooted
    }
}

fn on_console(tail: &str) -> Option<MachineExit> {
    tail.lines().rev().take(LINES).find_map(|line| {
        if line.contains("reboot: Power down") || line.contains("reboot: System halted") {
            return Some(MachineExit::PoweredOff);
        }
        if line.contains("reboot: Restarting system") || line.contains("sysrq: Resetting") {
            return Some(MachineExit::Rebooted);
        }
        let panic = line.find("Kernel panic")?;
        Some(MachineExit::Panicked(line[panic..].trim().to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_of_the_kernel_count() {
        let exit = |text: &str| on_console(text);
        assert_eq!(exit("[ 1.0] reboot: Power down\n"), Some(MachineExit::PoweredOff));
        assert_eq!(exit("[ 1.0] reboot: System halted\n"), Some(MachineExit::PoweredOff));
        assert_eq!(
            exit("[ 1.0] reboot: Power down\n[ 2.0] reboot: Restarting system\r\n"),
            Some(MachineExit::Rebooted)
        );
        let panic = "[ 3.1] Kernel panic - not syncing: x\n[ 3.1] CPU: 0\n[ 3.1] ---[ end ]---\n";
        assert_eq!(exit(panic), Some(MachineExit::Panicked("Kernel panic - not syncing: x".to_owned())));
        assert_eq!(exit("hello\n"), None);
    }
}
