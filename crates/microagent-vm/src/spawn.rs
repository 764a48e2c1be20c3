//! Starts child processes that end with this process and inherit only the given descriptors.

#![allow(unsafe_code)]

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};
use tokio::process::{Child, ChildStderr, Command};

use crate::descriptors::{close_on_exec, keep_apart};
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

/// A process that was started, which is killed when this is dropped. It is killed through a descriptor: its number may
/// be that of another process once it has ended.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    pid: Pid,
    handle: OwnedFd,
}

/// The numbers of a process and of the descriptor through which it is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) pid: i32,
    pub(crate) handle: RawFd,
}

impl Process {
    /// Takes a child that nobody has waited for, so that its number is its own.
    fn of(mut child: Child) -> io::Result<Process> {
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let pid = pid.ok_or(io::ErrorKind::NotFound)?;
        let handle = pidfd_open(pid, PidfdFlags::empty());
        match handle.map_err(io::Error::from).and_then(|handle| keep_apart(&handle)) {
            Ok(handle) => Ok(Process { child, pid, handle }),
            Err(error) => {
                let _ = child.start_kill();
                Err(error)
            }
        }
    }

    /// Its process id; none once it has been waited for.
    pub(crate) fn id(&self) -> Option<i32> {
        self.child.id().map(u32::cast_signed)
    }

    /// Its numbers, whether it runs or not.
    pub(crate) fn numbers(&self) -> Numbers {
        Numbers { pid: self.pid.as_raw_nonzero().get(), handle: self.handle.as_raw_fd() }
    }

    /// The descriptor through which it is killed.
    pub(crate) fn handle(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// What it says on its standard error, once.
    pub(crate) fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Kills it. One that has ended is as good as killed.
    pub(crate) fn kill(&self) {
        let _ = pidfd_send_signal(self.handle(), Signal::KILL);
    }

    /// Waits for its end. Cancel-safe.
    ///
    /// # Errors
    /// Fails when the kernel refuses.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
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
pub(crate) fn spawn(program: Program<'_>) -> io::Result<Process> {
    start(program, None)
}

/// Forks a process that enters the jail, closes all descriptors that the program does not inherit, and waits. It
/// executes the program when the trigger fires, and ends when the trigger is dropped.
pub(crate) fn spawn_waiting(program: Program<'_>) -> io::Result<(Process, Trigger)> {
    let (told, teller) = pipe_with(PipeFlags::CLOEXEC)?;
    let keeps = program.inherit.iter().map(AsRawFd::as_raw_fd).collect();
    let child = start(program, Some(Wait { until: File::from(told), keeps }))?;
    Ok((child, Trigger(File::from(teller))))
}

fn start(program: Program<'_>, wait: Option<Wait>) -> io::Result<Process> {
    let parent = getpid();
    let inherit: Vec<RawFd> = program.inherit.iter().map(AsRawFd::as_raw_fd).collect();
    let (mut jail, mut wait) = (program.jail, wait);
    let mut command = Command::new(program.path);
    command
        .args(program.args)
        .env_clear()
        .stdin(program.stdin.map_or_else(Stdio::null, Stdio::from))
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
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
    Process::of(command.spawn()?)
}
