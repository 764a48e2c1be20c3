//! A process that is still the one that was recorded.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// A process id with its start time, so that a reused id is not taken for the old process.
///
/// # Source
/// `proc_pid_stat(5)`, field 22 (`starttime`, clock ticks since boot), and the boot id, because both
/// may repeat after a reboot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since boot.
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id` of the boot it ran in.
    pub boot_id: String,
}

impl ProcessId {
    /// The calling process.
    pub fn current() -> Option<ProcessId> {
        Self::of(i32::try_from(std::process::id()).ok()?)
    }

    /// The process that has this id now, if there is one.
    pub fn of(pid: i32) -> Option<ProcessId> {
        let stat = stat(pid)?;
        stat.is_alive().then(|| ProcessId { pid, start_time: stat.start_time, boot_id: boot_id() })
    }

    /// Whether that very process still runs (a zombie does not).
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// Whether it ran since the host was started.
    pub fn is_of_this_boot(&self) -> bool {
        self.boot_id == boot_id()
    }

    /// Whether the main thread of a process has ended while others run. Its parent hears of its end when all have.
    pub fn has_lost_its_main_thread(pid: i32) -> bool {
        stat(pid).is_some_and(|stat| stat.is_zombie && stat.is_alive())
    }

    /// Kills the process if it is still the recorded one.
    pub fn kill(&self) {
        if let (true, Some(pid)) = (self.is_alive(), Pid::from_raw(self.pid)) {
            // Gone in between is as good as killed.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// What the kernel says of a process, as far as it is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    /// Its main thread has ended.
    is_zombie: bool,
    thread_count: u64,
    start_time: u64,
}

impl Stat {
    /// A process of which only the main thread has ended is alive.
    fn is_alive(self) -> bool {
        !self.is_zombie || self.thread_count > 1
    }
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&String::from_utf8_lossy(&text))
}

/// The command name in field 2 may hold spaces and parentheses: fields count from the last `)`.
///
/// # Source
/// `proc_pid_stat(5)`: state, threads and start time are fields 3, 20 and 22.
fn parse_stat(text: &str) -> Option<Stat> {
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let thread_count = fields.nth(16)?.parse().ok()?;
    let start_time = fields.nth(1)?.parse().ok()?;
    Some(Stat { is_zombie: state == 'Z', thread_count, start_time })
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_itself_and_not_another_start() {
        let me = ProcessId::current().unwrap();
        assert!(me.is_alive());
        let reused = ProcessId { start_time: me.start_time + 1, ..me };
        assert!(!reused.is_alive());
    }

    #[test]
    fn a_hostile_command_name_does_not_shift_the_fields() {
        let line = "7 (a) R 1 (b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 5 18 4242 20";
        assert_eq!(parse_stat(line), Some(Stat { is_zombie: false, thread_count: 5, start_time: 4242 }));
    }

    #[test]
    fn a_process_lives_as_long_as_one_of_its_threads() {
        let of = |is_zombie, thread_count| Stat { is_zombie, thread_count, start_time: 1 }.is_alive();
        assert!(of(false, 1) && of(true, 2));
        assert!(!of(true, 1) && !of(true, 0));
    }

    #[test]
    fn a_dead_child_is_not_alive() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of(i32::try_from(child.id()).unwrap()).unwrap();
        id.kill();
        child.wait().unwrap();
        assert!(!id.is_alive());
    }
}
