//! What QEMU may do, should a guest take it over: use the files of its own machine, and nothing else.
//!
//! The walls are independent of each other. QEMU gets its files as descriptors. It has no capabilities, and a user of
//! its own where root starts it ([`privileges`]). A seccomp filter allows the system calls that QEMU needs
//! ([`syscalls`]). Landlock rules allow no path but QEMU's program, libraries and firmware ([`paths`]). QEMU's own
//! filter (`-sandbox`) comes on top. The process enters them between fork and exec, and executes one program
//! ([`program`]).

mod paths;
mod privileges;
mod program;
mod syscalls;
mod wait;
mod walls;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use landlock::RulesetError;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use rustix::thread::CapabilitySet;

pub(crate) use paths::{NEWEST, allow};
pub(crate) use privileges::Account;
pub(crate) use program::ProgramError;
pub(crate) use syscalls::ARCHITECTURE;
pub(crate) use wait::Wait;
pub use walls::Walls;

use paths::Rules;
use program::Executable;
use syscalls::Backend;

/// A file that QEMU opens again through a descriptor that it inherits (`/proc/self/fd`).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reopened<'a> {
    pub(crate) file: BorrowedFd<'a>,
    pub(crate) access: FileAccess,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileAccess {
    /// For reading.
    Read,
    /// For reading and writing.
    ReadWrite,
}

/// Why the jail could not be prepared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JailError {
    /// QEMU is not a program that the jail can execute.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The kernel knows Landlock and refused the rules.
    #[error("cannot make the Landlock rules")]
    Rules(#[from] RulesetError),
}

/// What QEMU is, for its jail.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Jailed<'a> {
    /// The program.
    pub(crate) qemu: &'a Path,
    /// Whether it uses `/dev/kvm`.
    pub(crate) kvm: bool,
    /// The user it becomes, if it becomes another one.
    pub(crate) account: Option<&'a Account>,
    /// The state directory: none of the rules may contain it.
    pub(crate) state_dir: &'a Path,
    /// Files that it opens again.
    pub(crate) reopened: &'a [Reopened<'a>],
}

/// A prepared jail: made by the supervisor, entered by the forked process.
#[derive(Debug)]
pub(crate) struct Jail {
    executable: Executable,
    /// What the process enters its control groups by.
    entrances: Vec<File>,
    rules: Rules,
    account: Option<Account>,
    backend: Backend,
}

impl Jail {
    /// Prepares the jail. `entrances` are files of control groups that a process enters by writing `0`.
    ///
    /// # Errors
    /// Fails when QEMU is not an ELF program, or the kernel knows Landlock and refuses the rules.
    pub(crate) fn prepare(
        jailed: Jailed<'_>,
        args: &[OsString],
        entrances: Vec<File>,
    ) -> Result<Jail, JailError> {
        let executable = Executable::open(jailed.qemu, args)?;
        let rules = Rules::new(&executable, jailed)?;
        let backend = if jailed.kvm { Backend::Kvm } else { Backend::Tcg };
        Ok(Jail { executable, entrances, rules, account: jailed.account.cloned(), backend })
    }

    /// The program with links resolved.
    pub(crate) fn program(&self) -> PathBuf {
        self.executable.path().to_owned()
    }

    /// Enters the jail and executes the program, in between waits if it is to wait. The calling process was forked from
    /// `parent` and has one thread.
    ///
    /// # Errors
    /// Returns only when a wall could not be raised or the program not be executed; the process must exit then.
    pub(crate) fn enter_and_execute(self, parent: Pid, wait: Option<Wait>) -> io::Error {
        match (self.enter(parent, wait.as_ref()), wait) {
            (Ok(executable), None) => executable.execute(),
            (Ok(executable), Some(wait)) => wait.then_execute(executable),
            (Err(error), _) => error,
        }
    }

    fn enter(self, parent: Pid, wait: Option<&Wait>) -> io::Result<Executable> {
        for mut entrance in self.entrances {
            // A group is a bound on what it takes, not a wall: one that was removed meanwhile does not bind.
            let _ = entrance.write_all(b"0");
        }
        privileges::drop_all(self.account.as_ref())?;
        // A change of user resets it.
        die_with(parent)?;
        self.rules.enforce().map_err(io::Error::other)?;
        let executable = self.executable.arm()?;
        if let Some(wait) = wait {
            wait.close_others(executable.slot())?;
        }
        syscalls::enforce(self.backend, executable.slot())?;
        Ok(executable)
    }
}

/// Gives up all capabilities of this process for good; what it needs them for it has done.
///
/// # Errors
/// Fails when the kernel refuses.
pub(crate) fn give_up_capabilities() -> io::Result<()> {
    privileges::drop_all(None)
}

/// Gives up all capabilities of this process for good but the one that ends processes of an account.
///
/// # Errors
/// Fails when the kernel refuses.
pub(crate) fn give_up_capabilities_but_kill() -> io::Result<()> {
    privileges::drop_but(CapabilitySet::KILL)
}

/// Asks the kernel to kill this process when its parent dies; the parent may have died before.
pub(crate) fn die_with(parent: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() == Some(parent) { Ok(()) } else { Err(io::Error::other("the supervisor is gone")) }
}
