//! Which processes there are, and which of them belong to a directory.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// A process as `/proc` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// Id of its session, which is that of the process that started it unless it made one of its own.
    pub session: i32,
    /// Start time in clock ticks since boot: with the id, the identity of a process.
    pub start_time: u64,
    /// Words of its command line.
    pub words: Vec<String>,
}

impl Process {
    fn read(pid: i32) -> Option<Process> {
        let stat = String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/stat")).ok()?).into_owned();
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        let session = fields.nth(1)?.parse().ok()?;
        let start_time = fields.nth(15)?.parse().ok()?;
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words = cmdline.split(|byte| *byte == 0).filter(|word| !word.is_empty());
        let words = words.map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        // A zombie holds nothing but its number.
        (state != "Z").then_some(Process { pid, parent, session, start_time, words })
    }

    /// Whether this very process still runs.
    pub fn is_alive(&self) -> bool {
        Process::read(self.pid).is_some_and(|now| now.start_time == self.start_time)
    }

    /// Stops it, and waits until it does nothing any more.
    #[track_caller]
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        crate::wait_for("a process to be stopped", Duration::from_secs(60), || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
            let state = stat.rsplit_once(')').and_then(|(_, fields)| fields.split_whitespace().next());
            if state == Some("T") || !self.is_alive() { Ok(()) } else { Err(stat.clone()) }
        });
    }

    /// File name of the program, as the process was called.
    pub fn program(&self) -> &str {
        self.words.first().map_or("", |word| word.rsplit('/').next().unwrap_or(word))
    }

    /// Whether it is a machine. The supervisor also starts QEMU without one, to ask what it can do.
    pub fn is_qemu(&self) -> bool {
        self.program().starts_with("qemu-system") && self.words.iter().any(|word| word.starts_with("microvm"))
    }

    /// Whether it is a network stack or the keeper of one.
    fn is_of_network(&self) -> bool {
        self.words.get(1..) == Some(&["__supervise".to_owned(), "__net".to_owned()])
    }

    /// Whether it serves the brokers of a machine, or guards the process that does.
    pub fn is_of_brokers(&self) -> bool {
        self.words.get(1..) == Some(&["__supervise".to_owned(), "__brokers".to_owned()])
    }

    /// Whether it is a network stack.
    pub fn is_network_stack(&self) -> bool {
        self.is_of_network() && Process::read(self.parent).is_some_and(|parent| parent.is_of_network())
    }

    /// Whether it is the keeper of a network stack.
    pub fn is_network_keeper(&self) -> bool {
        self.is_of_network() && !self.is_network_stack()
    }

    /// Whether it is one of our supervisors.
    pub fn is_supervisor(&self) -> bool {
        let is_helper = self.is_of_network() || self.is_of_brokers();
        self.words.get(1).is_some_and(|word| word == "__supervise") && !is_helper
    }

    /// Sends a signal; a process that is gone does not mind.
    pub fn signal(&self, signal: Signal) {
        if let (true, Some(pid)) = (self.is_alive(), Pid::from_raw(self.pid)) {
            let _ = kill_process(pid, signal);
        }
    }

    /// A size from `/proc/PID/status` in KiB, such as `VmHWM`; none when the process is gone.
    pub fn memory_kib(&self, field: &str) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// What it takes of the host's memory in KiB, of shared pages its part; none when the process is gone.
    pub fn cost_kib(&self) -> Option<u64> {
        let memory = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid)).ok()?;
        let line = memory.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// Whether its command line, working directory, root or an open file lies in `dir`.
    fn uses(&self, dir: &Path) -> bool {
        let dir_bytes = dir.as_os_str().as_bytes();
        let names = |word: &String| word.as_bytes().windows(dir_bytes.len()).any(|part| part == dir_bytes);
        let proc = PathBuf::from(format!("/proc/{}", self.pid));
        let opens = || {
            let files =
                fs::read_dir(proc.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
            files
                .chain([proc.join("cwd"), proc.join("root")])
                .any(|link| fs::read_link(link).is_ok_and(|target| target.starts_with(dir)))
        };
        self.words.iter().any(names) || opens()
    }
}

/// All processes of this host.
pub fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(Process::read).collect()
}

/// All processes that belong to `dir`, their children and supervisors included, but not this one.
pub fn of_dir(dir: &Path) -> Vec<Process> {
    let me = i32::try_from(std::process::id()).expect("process ids are positive");
    let all = all();
    let mut found: Vec<Process> =
        all.iter().filter(|process| process.pid != me && process.uses(dir)).cloned().collect();
    loop {
        let is_found = |pid: i32| found.iter().any(|process| process.pid == pid);
        // A supervisor shows its open files to root alone; its machine names the directory.
        let has_found_child = |process: &Process| {
            process.is_supervisor() && found.iter().any(|child| child.parent == process.pid)
        };
        let relative = all.iter().find(|process| {
            let related = is_found(process.parent) || has_found_child(process);
            related && !is_found(process.pid) && process.pid != me
        });
        match relative {
            Some(relative) => found.push(relative.clone()),
            None => return found,
        }
    }
}

/// Network stacks and brokers that have outlived their supervisor, started since `start_time`. They name no directory, so these are
/// looked for in the whole system. Whoever else has started one is still its parent, of the same session.
pub fn orphaned_network_stacks(start_time: u64) -> Vec<Process> {
    let all = all();
    let is_helper = |process: &Process| process.is_of_network() || process.is_of_brokers();
    let is_ours = |process: &&Process| is_helper(process) && process.start_time >= start_time;
    let is_kept = |process: &&Process| {
        all.iter().any(|parent| parent.pid == process.parent && parent.session == process.session)
    };
    all.iter().filter(is_ours).filter(|process| !is_kept(process)).cloned().collect()
}

/// When this test process started.
pub fn own_start_time() -> u64 {
    let me = i32::try_from(std::process::id()).expect("process ids are positive");
    Process::read(me).expect("this process runs").start_time
}
