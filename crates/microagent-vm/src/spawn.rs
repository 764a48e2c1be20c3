//! Starting a child so that it cannot outlive us and holds nothing that it was not given.

#![allow(unsafe_code)]

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::process::Stdio;

use landlock::RulesetCreated;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};
use tokio::process::{Child, Command};

/// A program to start.
pub(crate) struct Program<'a> {
    pub(crate) path: &'a Path,
    pub(crate) args: &'a [OsString],
    /// Descriptors that it inherits under the same numbers; all others are closed by `O_CLOEXEC`.
    pub(crate) inherit: &'a [BorrowedFd<'a>],
    /// Restrictions that it enters before its first instruction.
    pub(crate) jail: Option<RulesetCreated>,
}

/// Starts the program with an empty environment, no standard input, and stdout and stderr into one pipe.
/// It is killed when the calling thread ends, so that thread must be the supervisor's main one.
pub(crate) fn spawn(program: Program<'_>) -> io::Result<Child> {
    let parent = getpid();
    let inherit: Vec<RawFd> = program.inherit.iter().map(AsRawFd::as_raw_fd).collect();
    let mut jail = program.jail;
    let mut command = Command::new(program.path);
    command
        .args(program.args)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    // SAFETY: the closure runs between fork and exec in a process with one thread (the supervisor has no
    // others that could hold a lock); it makes plain system calls on descriptors that the parent keeps open
    // until `spawn` returns.
    unsafe {
        command.pre_exec(move || {
            die_with(parent)?;
            for fd in &inherit {
                fcntl_setfd(BorrowedFd::borrow_raw(*fd), FdFlags::empty())?;
            }
            match jail.take() {
                Some(jail) => jail.restrict_self().map(drop).map_err(io::Error::other),
                None => Ok(()),
            }
        });
    }
    command.spawn()
}

/// Asks the kernel to kill us when the parent dies; it may have died before we asked.
fn die_with(parent: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() == Some(parent) { Ok(()) } else { Err(io::Error::other("the supervisor is gone")) }
}
