//! Starting a child so that it cannot outlive us and holds nothing that it was not given.

#![allow(unsafe_code)]

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::Stdio;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::getpid;
use tokio::process::{Child, Command};

use crate::descriptors::close_on_exec;
use crate::jail::{Jail, die_with};

/// A program to start.
pub(crate) struct Program<'a> {
    pub(crate) path: &'a Path,
    /// Its arguments; a jail has them already.
    pub(crate) args: &'a [OsString],
    /// Descriptors that it inherits under the same numbers; all others are closed.
    pub(crate) inherit: &'a [BorrowedFd<'a>],
    /// Its standard input; nothing without one.
    pub(crate) stdin: Option<OwnedFd>,
    /// What it enters before its first instruction.
    pub(crate) jail: Option<Jail>,
}

/// Starts the program with an empty environment, and stdout and stderr into one pipe.
/// It is killed when the calling thread ends, so that thread must be the supervisor's main one.
pub(crate) fn spawn(program: Program<'_>) -> io::Result<Child> {
    let parent = getpid();
    let inherit: Vec<RawFd> = program.inherit.iter().map(AsRawFd::as_raw_fd).collect();
    let mut jail = program.jail;
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
                Some(jail) => Err(jail.enter_and_execute(parent)),
                None => die_with(parent),
            }
        });
    }
    command.spawn()
}
