//! Holds the guest's programs while their machine is captured.
//!
//! All control groups with programs of the guest are frozen. The kernel does not freeze its root group, so what is in it
//! (the main program and what it has started) is in a group of its own meanwhile. A group that the guest itself has frozen
//! stays so.
//!
//! # Source
//! `Documentation/admin-guide/cgroup-v2.rst` of the kernel: `cgroup.freeze`, `cgroup.events`, `cgroup.procs`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use microagent_proto::{GENERATION, Preamble, PreambleKind};
use rustix::fs::{Dir, FileType, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::boot::COMMANDS;
use crate::init::{agent_proc, read};

/// Name of the group of what is in the root group otherwise.
const HELD: &str = "held";

/// The files of a group.
const FREEZE: &str = "cgroup.freeze";
const PROCESSES: &str = "cgroup.procs";

/// How often it is looked for programs in the root group: they may start others meanwhile.
const ROUNDS: usize = 16;

/// How long programs may take to be frozen. One that does not return from the kernel runs no instruction of its own.
const FREEZE_DEADLINE: Duration = Duration::from_millis(200);

/// Pause between two looks whether a group is frozen.
const LOOK_PAUSE: Duration = Duration::from_micros(500);

/// The process of the kernel whose children are its threads.
const KERNEL_THREADS: u32 = 2;

/// Whether the guest's programs are held, and what begins a new session meanwhile.
#[derive(Debug)]
pub(crate) struct Hold {
    /// The root of the control groups.
    root: OwnedFd,
    /// Parent of the commands' groups.
    commands: OwnedFd,
    /// The groups that were frozen; locked while that changes.
    frozen: tokio::sync::Mutex<Vec<OwnedFd>>,
    held: watch::Sender<bool>,
    token: Mutex<Option<[u8; 16]>>,
    asked: Mutex<Option<Preamble>>,
}

impl Hold {
    /// Nothing is held.
    pub(crate) fn new(commands: OwnedFd) -> io::Result<Hold> {
        let root = open_group(commands.as_fd(), "..")?;
        Ok(Hold {
            root,
            commands,
            frozen: tokio::sync::Mutex::default(),
            held: watch::Sender::new(false),
            token: Mutex::default(),
            asked: Mutex::default(),
        })
    }

    /// Stops all programs and flushes all disks. A preamble with this token begins a new session from now on.
    pub(crate) async fn begin(&self, token: [u8; 16]) -> io::Result<()> {
        let mut frozen = self.frozen.lock().await;
        self.held.send_replace(true);
        *lock(&self.token) = Some(token);
        let stopped = self.freeze(&mut frozen).await;
        if let Err(error) = stopped {
            self.thaw(&mut frozen);
            return Err(error);
        }
        // Nothing but the agent runs, so it ends.
        tokio::task::spawn_blocking(rustix::fs::sync).await.map_err(io::Error::other)
    }

    /// Lets all programs continue.
    pub(crate) async fn end(&self) {
        let mut frozen = self.frozen.lock().await;
        self.thaw(&mut frozen);
    }

    /// Whether programs are held.
    pub(crate) fn is_held(&self) -> bool {
        *self.held.borrow()
    }

    /// Waits until no programs are held.
    pub(crate) async fn ended(&self) {
        // The sender lives as long as this.
        let _ = self.held.subscribe().wait_for(|held| !held).await;
    }

    /// Takes what the host sends, and gives what belongs to the session; `None` when a new one is asked for. What could be the
    /// beginning of that is kept for the next time: more follows in any case, and be it the end of the hold.
    pub(crate) fn sift(&self, doubtful: &mut Vec<u8>, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut all = std::mem::take(doubtful);
        all.extend(bytes);
        let Some(nonce) = *lock(&self.token) else { return Some(all) };
        let wanted = Preamble { kind: PreambleKind::Renew, generation: GENERATION, nonce };
        let encoded = wanted.encode();
        if all.windows(encoded.len()).any(|window| window == encoded) {
            *lock(&self.token) = None;
            *lock(&self.asked) = Some(wanted);
            return None;
        }
        let rest = (0..all.len()).find(|start| encoded.starts_with(&all[*start..])).unwrap_or(all.len());
        *doubtful = all.split_off(rest);
        Some(all)
    }

    /// Whether a new session was asked for that has not begun.
    pub(crate) fn is_renewed(&self) -> bool {
        lock(&self.asked).is_some()
    }

    /// The preamble of a new session, once.
    pub(crate) fn take_renewal(&self) -> Option<Preamble> {
        lock(&self.asked).take()
    }

    async fn freeze(&self, frozen: &mut Vec<OwnedFd>) -> io::Result<()> {
        match mkdirat(&self.commands, HELD, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let held = open_group(self.commands.as_fd(), HELD)?;
        for _ in 0..ROUNDS {
            if move_processes(self.root.as_fd(), held.as_fd(), is_program) == 0 {
                break;
            }
        }
        // The commands' groups one by one, and not their parent: what the agent runs meanwhile gets a new one.
        let commands = groups_in(self.commands.as_fd())?;
        let others = groups_in(self.root.as_fd())?.into_iter().filter(|(name, _)| name != COMMANDS);
        for (_, group) in commands.into_iter().chain(others) {
            let has_frozen_itself = read(group.as_fd(), FREEZE).is_ok_and(|value| value.trim() == "1");
            if has_line(&group, "populated 1")
                && !has_frozen_itself
                && write(group.as_fd(), FREEZE, "1").is_ok()
            {
                frozen.push(group);
            }
        }
        let start = Instant::now();
        while start.elapsed() < FREEZE_DEADLINE && !frozen.iter().all(|group| has_line(group, "frozen 1")) {
            sleep(LOOK_PAUSE).await;
        }
        Ok(())
    }

    fn thaw(&self, frozen: &mut Vec<OwnedFd>) {
        *lock(&self.token) = None;
        for group in frozen.drain(..) {
            // One that the guest has removed needs nothing.
            let _ = write(group.as_fd(), FREEZE, "0");
        }
        if let Ok(held) = open_group(self.commands.as_fd(), HELD) {
            for _ in 0..ROUNDS {
                if move_processes(held.as_fd(), self.root.as_fd(), |_| true) == 0 {
                    break;
                }
            }
        }
        self.held.send_replace(false);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of the lock panics")
}

fn open_group(parent: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    Ok(openat(parent, name, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The groups right below one.
fn groups_in(parent: BorrowedFd<'_>) -> io::Result<Vec<(String, OwnedFd)>> {
    let mut groups = Vec::new();
    for entry in Dir::read_from(parent)?.flatten() {
        if entry.file_type() == FileType::Directory
            && let Ok(name) = entry.file_name().to_str()
            && !matches!(name, "." | "..")
            // One that is gone by now has no programs.
            && let Ok(group) = open_group(parent, name)
        {
            groups.push((name.to_owned(), group));
        }
    }
    Ok(groups)
}

/// Moves processes from one group to another, and says how many were moved.
fn move_processes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, which: impl Fn(u32) -> bool) -> usize {
    let Ok(processes) = read(from, PROCESSES) else { return 0 };
    let moved = |pid: &u32| which(*pid) && write(to, PROCESSES, &pid.to_string()).is_ok();
    processes.lines().filter_map(|line| line.parse().ok()).filter(moved).count()
}

/// Whether a process is one of the guest's programs, and not the agent or a thread of the kernel.
fn is_program(pid: u32) -> bool {
    let Ok(status) = read(agent_proc(), &format!("{pid}/status")) else { return false };
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
    pid != 1 && pid != KERNEL_THREADS && parent != Some(KERNEL_THREADS)
}

fn has_line(group: &OwnedFd, state: &str) -> bool {
    read(group.as_fd(), "cgroup.events").is_ok_and(|events| events.lines().any(|line| line == state))
}

fn write(group: BorrowedFd<'_>, file: &str, value: &str) -> io::Result<()> {
    let file = openat(group, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, value.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a session gets of these pieces, and whether a new one was asked for.
    fn sifted(hold: &Hold, pieces: &[&[u8]]) -> (Vec<u8>, bool) {
        let (mut doubtful, mut cleared) = (Vec::new(), Vec::new());
        for piece in pieces {
            match hold.sift(&mut doubtful, piece) {
                Some(bytes) => cleared.extend(bytes),
                None => return (cleared, true),
            }
        }
        (cleared, false)
    }

    fn hold(token: Option<[u8; 16]>) -> Hold {
        let dir: OwnedFd = std::fs::File::open("/").unwrap().into();
        let hold = Hold::new(dir).unwrap();
        *lock(&hold.token) = token;
        hold
    }

    #[test]
    fn a_new_session_is_found_in_whatever_pieces_it_comes() {
        let preamble =
            Preamble { kind: PreambleKind::Renew, generation: GENERATION, nonce: [7; 16] }.encode();
        for first in 0..preamble.len() {
            let (start, rest) = preamble.split_at(first);
            let found = hold(Some([7; 16]));
            let old = [b"old \xf5", start].concat();
            assert!(sifted(&found, &[&old, rest]).1, "{first}");
            assert!(found.is_renewed() && found.take_renewal().is_some() && !found.is_renewed());
            // Another token, or none, and it is data like any other.
            for token in [Some([8; 16]), None] {
                let (data, renewed) = sifted(&hold(token), &[&old, rest, b"new"]);
                assert_eq!((data, renewed), ([&old[..], rest, b"new"].concat(), false));
            }
        }
    }

    #[test]
    fn what_only_begins_like_one_is_not_lost() {
        let found = hold(Some([7; 16]));
        let (data, renewed) = sifted(&found, &[b"x\xf5micro", b"\xf5", b"microagent\xf5\x01", b"y"]);
        assert_eq!((data.as_slice(), renewed), (&b"x\xf5micro\xf5microagent\xf5\x01y"[..], false));
    }
}
