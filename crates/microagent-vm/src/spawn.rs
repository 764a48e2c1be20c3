//! Starts child processes that end with this process and inherit only the given descriptors.

#![allow(unsafe_code)]

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::Stdio;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::getpid;
use tokio::process::{Child, Command};

use crate::descriptors::close_on_exec;
use crate::jail::{Jail, Wait, die_with};

/// A program to start.
pub(crate) struct Program<'a> {
    pub(crate) path: &'a Path,
    /// Its arguments; empty if a jail has them.
    pub(crate) args: &'a [OsString],
    /// Descriptors that it inherits under the same numbers; all others are closed.
    pub(crate) inherit: &'a [BorrowedFd<'a>],
    /// Its standard input; `/dev/null` without one.
    pub(crate) stdin: Option<OwnedFd>,
    /// The jail that the process enters before it executes the program.
    pub(crate) jail: Option<Jail>,
}

/// Triggers a process that was started by [`spawn_waiting`].
#[derive(Debug)]
pub(crate) struct Trigger(File);

impl Trigger {
    /// Makes the process execute its program.
    ///
    /// # Errors
    /// Fails if the process has ended.
    pub(crate) fn fire(mut self) -> io::Result<()> {
        self.0.write_all(b"1")
    }
}

/// Starts the program with an empty environment, and one pipe for standard output and standard error.
/// The kernel kills it when the calling thread ends, so this must be the supervisor's main thread.
pub(crate) fn spawn(program: Program<'_>) -> io::Result<Child> {
    start(program, None)
}

/// Forks a process that enters the jail, closes all descriptors that the program does not inherit, and waits. It
/// executes the program when the trigger fires, and ends when the trigger is dropped.
pub(crate) fn spawn_waiting(program: Program<'_>) -> io::Result<(Child, Trigger)> {
    let (told, teller) = pipe_with(PipeFlags::CLOEXEC)?;
    let keeps = program.inherit.iter().map(AsRawFd::as_raw_fd).collect();
    let child = start(program, Some(Wait { until: File::from(told), keeps }))?;
    Ok((child, Trigger(File::from(teller))))
}

fn start(program: Program<'_>, wait: Option<Wait>) -> io::Result<Child> {
    let parent = getpid();
    let inherit: Vec<RawFd> = program.inherit.iter().map(AsRawFd::as_raw_fd).collect();
    let (mut jail, mut wait) = (program.jail, wait);
    let mut command = Command::new(program.path);
    command
        .args(program.args)
        .env_clear()
        .stdin(program.stdin.map_or_else(Stdio::null, Stdio::from))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    // SAFETY: the closure runs between fork and exec in a process with one thread (the supervisor has no
    // others that could hold a lock); it makes plain system calls on descriptors that the parent keeps open
    // until `spawn` returns.
    unsafe {
        command.pre_exec(move || {
            close_on_exec()?;
            for fd in &inherit {
                fcntl_setfd(BorrowedFd::borrow_raw(*fd), FdFlags::empty())?;
            }
            match jail.take() {
                Some(jail) => Err(jail.enter_and_execute(parent, wait.take())),
                None => die_with(parent),
            }
        });
    }
    command.spawn()
}
