//! Makes a process: `clone3` straight into its control group, then a fixed list of system calls up to
//! `execve`.
//!
//! The child is a copy of a process that may have had other threads, so it allocates nothing and takes no
//! lock: everything that it needs lies in a [`Plan`], made before, and only system calls follow. The exception is
//! process 1 of the guest ([`crate::init`]), which is made before its plan is known, while there is one thread.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use microagent_proto::Limit;
use rustix::fs::{CWD, Mode, OFlags, fchown, mkdirat, openat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Gid, Pid, Uid};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};
use serde::{Deserialize, Serialize};

use crate::init::{Namespace, agent_proc};

/// `CLONE_INTO_CGROUP`, linux/sched.h.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Length of the note by which a child tells why it could not become the program.
pub(crate) const NOTE_LEN: usize = 8;

/// Everything that a child needs.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Where the program may be, tried in order.
    pub(crate) candidates: Vec<CString>,
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
    /// The working directory.
    pub(crate) working_dir: CString,
    /// Directories that are made if they are missing: those on the way to the working directory, and itself.
    pub(crate) directories: Vec<CString>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    /// Resource limits in place of the agent's.
    pub(crate) limits: Vec<Limit>,
}

/// What becomes a child's standard streams.
#[derive(Debug)]
pub(crate) enum ChildStreams {
    /// Ends of pipes; without one for standard input, that is empty.
    Pipes { stdin: Option<OwnedFd>, stdout: OwnedFd, stderr: OwnedFd },
    /// A terminal as all three, which the child's session gets as its own.
    Terminal(OwnedFd),
}

/// A child, on its way to becoming the program.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: Pid,
    /// Closes without a byte when the program runs, or carries [`NOTE_LEN`] bytes.
    pub(crate) note: OwnedFd,
}

/// What a child was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    Prepare = 1,
    WorkingDir = 2,
    User = 3,
    Execute = 4,
}

/// Reads a child's note.
pub(crate) fn read_note(note: [u8; NOTE_LEN]) -> (Stage, io::Error) {
    let stage = match note[0] {
        2 => Stage::WorkingDir,
        3 => Stage::User,
        4 => Stage::Execute,
        _ => Stage::Prepare,
    };
    let errno = i32::from_le_bytes([note[4], note[5], note[6], note[7]]);
    (stage, io::Error::from_raw_os_error(errno))
}

/// Argument of `clone3` (linux/sched.h).
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Starts a process by this plan, with these streams, in this control group and this PID namespace.
pub(crate) fn spawn(
    plan: &Plan,
    streams: ChildStreams,
    cgroup: BorrowedFd<'_>,
    namespace: &Namespace,
) -> io::Result<Spawned> {
    let (note, child_note) = pipe_with(PipeFlags::CLOEXEC)?;
    let child = Child::new(plan, &streams, &child_note);
    let arguments = CloneArguments {
        flags: CLONE_INTO_CGROUP,
        cgroup: u64::try_from(cgroup.as_raw_fd()).expect("an open descriptor is not negative"),
        ..CloneArguments::default()
    };
    namespace.enter()?;
    let made = clone(arguments);
    if !matches!(made, Ok(None)) {
        namespace.leave();
    }
    match made? {
        Some(pid) => Ok(Spawned { pid, note }),
        None => become_program(&child, &streams, &child_note),
    }
}

/// What a child does from its plan on.
pub(crate) fn follow(plan: &Plan, streams: &ChildStreams, note: &OwnedFd) -> ! {
    become_program(&Child::new(plan, streams, note), streams, note)
}

fn become_program(child: &Child<'_>, streams: &ChildStreams, note: &OwnedFd) -> ! {
    match prepare(streams) {
        Ok(()) => child.become_program(),
        Err(errno) => fail(note, Stage::Prepare, errno),
    }
}

/// Makes a copy of this process that is process 1 of a new PID namespace. Working directory, root and file mode mask
/// are one thing for both, until the copy has its own. The calling process must have one thread.
pub(crate) fn clone_init() -> io::Result<Option<Pid>> {
    let flags = u64::try_from(libc::CLONE_NEWPID | libc::CLONE_FS).expect("two positive flags");
    clone(CloneArguments { flags, ..CloneArguments::default() })
}

/// Makes a copy of this process; gives the child's id, and in the child nothing.
fn clone(arguments: CloneArguments) -> io::Result<Option<Pid>> {
    let mut arguments = CloneArguments { exit_signal: libc::SIGCHLD as u64, ..arguments };
    // SAFETY: the structure is the kernel's, its pointers are null, and no memory is shared with the child,
    // so for the parent this is a plain system call.
    let made = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<CloneArguments>()) };
    match made {
        0 => Ok(None),
        made if made > 0 => {
            Ok(Some(i32::try_from(made).ok().and_then(Pid::from_raw).expect("clone3 gives a process id")))
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// A child's end without having become a program; says why. Nobody needs the note of a command that was given
/// up.
fn fail(note: &OwnedFd, stage: Stage, errno: Errno) -> ! {
    let mut bytes = [0; NOTE_LEN];
    bytes[0] = stage as u8;
    bytes[4..].copy_from_slice(&errno.raw_os_error().to_le_bytes());
    let _ = rustix::io::write(note, &bytes);
    exit(127)
}

pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: _exit ends the process without running anything of the parent's copy.
    unsafe { libc::_exit(code) }
}

/// Own session, standard streams, default signals, ordinary standing when memory runs out.
fn prepare(streams: &ChildStreams) -> Result<(), Errno> {
    rustix::process::setsid()?;
    take_streams(streams)?;
    // SAFETY: both calls are async-signal-safe and get valid arguments; Rust's start-up has set SIGPIPE
    // to be ignored, which would otherwise be inherited.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let score = openat(agent_proc(), c"self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(score.as_fd(), b"0")?;
    Ok(())
}

fn take_streams(streams: &ChildStreams) -> Result<(), Errno> {
    match streams {
        ChildStreams::Pipes { stdin, stdout, stderr } => {
            match stdin {
                Some(stdin) => rustix::stdio::dup2_stdin(stdin)?,
                None => {
                    let flags = OFlags::RDWR | OFlags::CLOEXEC;
                    rustix::stdio::dup2_stdin(openat(CWD, c"/dev/null", flags, Mode::empty())?)?;
                }
            }
            rustix::stdio::dup2_stdout(stdout)?;
            rustix::stdio::dup2_stderr(stderr)
        }
        ChildStreams::Terminal(terminal) => {
            rustix::process::ioctl_tiocsctty(terminal)?;
            rustix::stdio::dup2_stdin(terminal)?;
            rustix::stdio::dup2_stdout(terminal)?;
            rustix::stdio::dup2_stderr(terminal)
        }
    }
}

/// What the child works with.
struct Child<'a> {
    plan: &'a Plan,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    groups: Vec<Gid>,
    streams: &'a ChildStreams,
    note: &'a OwnedFd,
}

impl<'a> Child<'a> {
    fn new(plan: &'a Plan, streams: &'a ChildStreams, note: &'a OwnedFd) -> Child<'a> {
        let pointers = |strings: &[CString]| -> Vec<*const c_char> {
            strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
        };
        Child {
            plan,
            argv: pointers(&plan.arguments),
            envp: pointers(&plan.environment),
            groups: plan.groups.iter().map(|gid| Gid::from_raw(*gid)).collect(),
            streams,
            note,
        }
    }

    /// What a prepared child does from then on.
    fn become_program(&self) -> ! {
        let (stage, errno) = self.try_to_become_program();
        fail(self.note, stage, errno)
    }

    fn try_to_become_program(&self) -> (Stage, Errno) {
        if let Err(errno) = self.set_limits() {
            return (Stage::Prepare, errno);
        }
        if let Err(errno) = self.own_streams() {
            return (Stage::Prepare, errno);
        }
        if let Err(errno) = self.make_working_dir() {
            return (Stage::WorkingDir, errno);
        }
        if let Err(errno) = self.take_identity() {
            return (Stage::User, errno);
        }
        if let Err(errno) = rustix::process::chdir(self.plan.working_dir.as_c_str()) {
            return (Stage::WorkingDir, errno);
        }
        (Stage::Execute, self.execute())
    }

    /// As root, which may raise what is inherited.
    fn set_limits(&self) -> Result<(), Errno> {
        for limit in &self.plan.limits {
            let value = libc::rlimit { rlim_cur: limit.soft, rlim_max: limit.hard };
            // SAFETY: the call is async-signal-safe and reads one structure.
            if unsafe { libc::setrlimit(limit.resource.into(), &raw const value) } < 0 {
                return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL));
            }
        }
        Ok(())
    }

    /// The standard streams are the user's, so that a program that is not root's can open `/dev/stdout` or its
    /// terminal again.
    fn own_streams(&self) -> Result<(), Errno> {
        if self.plan.uid == 0 {
            return Ok(());
        }
        let uid = Some(Uid::from_raw(self.plan.uid));
        match self.streams {
            ChildStreams::Pipes { stdin, stdout, stderr } => {
                if let Some(stdin) = stdin {
                    fchown(stdin, uid, None)?;
                }
                fchown(stdout, uid, None)?;
                fchown(stderr, uid, None)
            }
            ChildStreams::Terminal(terminal) => fchown(terminal, uid, None),
        }
    }

    /// Makes the missing directories, owned by root as in Docker. One that cannot be made shows when it is
    /// entered.
    fn make_working_dir(&self) -> Result<(), Errno> {
        for dir in &self.plan.directories {
            match mkdirat(CWD, dir.as_c_str(), Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(Errno::ROFS) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Each call concerns one thread, and the child has one.
    fn take_identity(&self) -> Result<(), Errno> {
        set_thread_groups(&self.groups)?;
        set_thread_gid(Gid::from_raw(self.plan.gid))?;
        set_thread_uid(Uid::from_raw(self.plan.uid))
    }

    /// Tries all candidates, as `execvp` does: continues where nothing is, remembers where something was
    /// that may not be executed.
    fn execute(&self) -> Errno {
        let mut result = Errno::NOENT;
        for candidate in &self.plan.candidates {
            match self.execute_one(candidate) {
                Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::LOOP => {}
                Errno::ACCESS => result = Errno::ACCESS,
                errno => return errno,
            }
        }
        result
    }

    fn execute_one(&self, path: &CStr) -> Errno {
        // SAFETY: both arrays end with a null pointer and point to C strings that live in the plan.
        unsafe { libc::execve(path.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr()) };
        Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)
    }
}
