//! QEMU's jail: if a guest takes QEMU over, it can use the files of its own machine and nothing else.
//!
//! Each wall holds without the others. QEMU inherits its files as descriptors. It has no capabilities, and a user of
//! its own if root starts it ([`privileges`]). A seccomp filter allows the system calls that QEMU needs
//! ([`syscalls`]). Landlock rules allow only the paths of QEMU's program, libraries and firmware ([`paths`]). QEMU's
//! own filter (`-sandbox`) is active in addition. The process enters the jail between fork and exec, and executes one
//! program ([`program`]).

mod limits;
mod notified;
mod paths;
mod privileges;
mod program;
pub(crate) mod sockets;
pub(crate) mod starter;
mod syscalls;
mod wait;
mod walls;

use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use landlock::RulesetError;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use rustix::thread::CapabilitySet;

pub(crate) use limits::Limits;
pub(crate) use notified::PUNCH_HOLE;
#[cfg(test)]
pub(crate) use notified::{enforce as ask_supervisor, refuse_holes};
pub(crate) use paths::{NEWEST, allow};
pub(crate) use privileges::Account;
pub(crate) use program::ProgramError;
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
    /// The jail cannot execute this QEMU.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The kernel supports Landlock and refused the rules.
    #[error("cannot make the Landlock rules")]
    Rules(#[from] RulesetError),
}

/// The properties of a QEMU that determine its jail.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Jailed<'a> {
    /// The program.
    pub(crate) qemu: &'a Path,
    /// Whether it uses `/dev/kvm`.
    pub(crate) kvm: bool,
    /// The user that it runs as, if that is another one.
    pub(crate) account: Option<&'a Account>,
    /// The state directory, which no rule may include.
    pub(crate) state_dir: &'a Path,
    /// Files that it opens again.
    pub(crate) reopened: &'a [Reopened<'a>],
    /// What it may take of the host.
    pub(crate) limits: Limits,
}

/// A prepared jail: the supervisor prepares it, the forked process enters it.
#[derive(Debug)]
pub(crate) struct Jail {
    executable: Executable,
    rules: Rules,
    account: Option<Account>,
    backend: Backend,
    limits: Limits,
    /// Where the listener of the calls goes that the supervisor answers, if it answers any.
    notified: Option<UnixStream>,
}

impl Jail {
    /// Prepares the jail.
    ///
    /// # Errors
    /// Fails if QEMU is not an ELF program, or the kernel supports Landlock and refuses the rules.
    pub(crate) fn prepare(jailed: Jailed<'_>, args: &[OsString]) -> Result<Jail, JailError> {
        let executable = Executable::open(jailed.qemu, args)?;
        let rules = Rules::new(&executable, jailed)?;
        let backend = if jailed.kvm { Backend::Kvm } else { Backend::Tcg };
        let (account, limits) = (jailed.account.cloned(), jailed.limits);
        Ok(Jail { executable, rules, account, backend, limits, notified: None })
    }

    /// Makes the supervisor answer the calls that concern the memory of a template: see [`notified`]. It gets the
    /// listener from the other end of the socket, when the process has entered the jail.
    pub(crate) fn notifying(self, supervisor: UnixStream) -> Jail {
        Jail { notified: Some(supervisor), ..self }
    }

    /// The path of the program without links.
    pub(crate) fn program(&self) -> PathBuf {
        self.executable.path().to_owned()
    }

    /// Enters the jail, waits if requested, and executes the program. The calling process was forked from `parent`
    /// and has one thread.
    ///
    /// # Errors
    /// Returns only if a wall could not be set up or the program could not be executed; the process must then exit.
    pub(crate) fn enter_and_execute(self, parent: Pid, wait: Option<Wait>) -> io::Error {
        match (self.enter(parent, wait.as_ref()), wait) {
            (Ok(executable), None) => executable.execute(),
            (Ok(executable), Some(wait)) => wait.then_execute(executable),
            (Err(error), _) => error,
        }
    }

    fn enter(self, parent: Pid, wait: Option<&Wait>) -> io::Result<Executable> {
        privileges::drop_all(self.account.as_ref())?;
        // A change of user resets it.
        die_with(parent)?;
        self.rules.enforce().map_err(io::Error::other)?;
        self.limits.enforce()?;
        let executable = self.executable.arm(self.limits.descriptors())?;
        if let Some(wait) = wait {
            wait.close_others(executable.slot())?;
        }
        if let Some(supervisor) = &self.notified {
            notified::enforce(supervisor)?;
        }
        syscalls::enforce(self.backend, executable.slot())?;
        Ok(executable)
    }
}

/// Drops all capabilities of this process permanently.
///
/// # Errors
/// Fails when the kernel refuses.
pub(crate) fn give_up_capabilities() -> io::Result<()> {
    privileges::drop_all(None)
}

/// Drops all capabilities of this process permanently, except the one to end processes of another user.
///
/// # Errors
/// Fails when the kernel refuses.
pub(crate) fn give_up_capabilities_but_kill() -> io::Result<()> {
    privileges::drop_but(CapabilitySet::KILL)
}

/// Makes the kernel kill this process when its parent dies. The parent may have died before the call.
pub(crate) fn die_with(parent: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() == Some(parent) { Ok(()) } else { Err(io::Error::other("the supervisor is gone")) }
}
