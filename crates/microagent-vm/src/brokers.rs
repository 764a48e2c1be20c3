//! The processes of a machine's brokers: a guard, and the one that serves, which reads what a hostile guest sends.
//!
//! The guard executes this program, started by a supervisor before the first byte of its guest. It gets the instructions
//! with the values of the credentials, two channels, and nothing else; it confines itself, forks the process that serves,
//! and forks another one when that ends. Neither supervisor, keeper nor network stack shares a process with them, and the
//! kernel ends both with the supervisor.

mod jail;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Instant;

use jiff::Timestamp;
use microagent_broker::{Instructions, serve};
use microagent_model::decisions;
use microagent_model::egress::{Decision, Subject};
use rustix::process::{Pid, WaitOptions, getpid, waitpid};

use crate::core_dump::never_dump_core;
use crate::descriptors::close_all_but;
use crate::handover::{exit_code, hand_over, take_over};
use crate::jail::sockets::limit_files;
use crate::jail::{die_with, give_up_capabilities};
use crate::network_stack::messages::send_message;
use crate::replacements::{REPLACEMENTS_MAX, Replacements};

/// Second argument of both processes, after [`SUPERVISE_ARGUMENT`](crate::SUPERVISE_ARGUMENT). No workspace has such a
/// name.
pub(crate) const BROKERS_ARGUMENT: &str = "__brokers";

/// Longest instructions in bytes: credentials, and all certificates that a system trusts.
const INSTRUCTIONS_LIMIT: usize = 8 * 1024 * 1024;

/// Descriptors that come with the instructions: where connections come from, and where the audit goes.
const INSTRUCTED_WITH: usize = 2;

/// Sends a guard its instructions, encoded, with its ends of both channels.
pub(crate) fn instruct(
    control: &UnixStream,
    instructions: &[u8],
    descriptors: [BorrowedFd<'_>; INSTRUCTED_WITH],
) -> io::Result<()> {
    hand_over(control, instructions, &descriptors)
}

/// The line that says that the process that serves has ended, or that another one runs.
pub(crate) fn brokers_change(is_up: bool) -> Decision {
    decisions::process_change(Timestamp::now(), Subject::Brokers, is_up)
}

/// Runs this process as the guard of brokers. Returns the exit code.
pub(crate) fn brokers() -> i32 {
    never_dump_core();
    exit_code("brokers", run())
}

fn run() -> io::Result<()> {
    let control = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?);
    let (bytes, descriptors) = take_over(&control, INSTRUCTIONS_LIMIT)?;
    let instructions = Instructions::decode(&bytes).map_err(io::Error::other)?;
    drop((bytes, control));
    let [connections, audit]: [OwnedFd; INSTRUCTED_WITH] =
        descriptors.try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    limit_files()?;
    give_up_capabilities()?;
    let ports = instructions.endpoints.iter().map(|endpoint| endpoint.broker.upstream.port.get());
    jail::restrict_objects(ports)?;
    jail::restrict_guard()?;
    Guard { instructions, connections, audit }.keep()
}

struct Guard {
    instructions: Instructions,
    connections: OwnedFd,
    audit: OwnedFd,
}

impl Guard {
    /// Keeps a process serving until the guest's network has ended.
    fn keep(&self) -> io::Result<()> {
        let mut replacements = Replacements::default();
        loop {
            let begun = Instant::now();
            let served = self.fork()?;
            let (_, status) =
                waitpid(Some(served), WaitOptions::empty())?.ok_or(io::ErrorKind::InvalidData)?;
            let status = ExitStatus::from_raw(status.as_raw());
            if status.success() {
                return Ok(());
            }
            self.tell(&brokers_change(false));
            let Some(pause) = replacements.next(begun.elapsed()) else {
                let says =
                    format!("{REPLACEMENTS_MAX} processes in a row have ended, the last one by {status}");
                return Err(io::Error::other(says));
            };
            // The supervisor's end ends this process, too. Connections wait in their channel.
            std::thread::sleep(pause);
            self.tell(&brokers_change(true));
        }
    }

    /// Tells the supervisor. One that does not read misses it.
    fn tell(&self, decision: &Decision) {
        if let Ok(line) = serde_json::to_vec(decision) {
            let _ = send_message(&self.audit, &line, &[]);
        }
    }

    /// Starts a process that serves.
    #[allow(unsafe_code)]
    fn fork(&self) -> io::Result<Pid> {
        let guard = getpid();
        // SAFETY: this process has one thread, so that its child can continue as it would. The child does not return.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                let code = exit_code("brokers", self.serve(guard));
                // SAFETY: ends the child without what its parent has registered for its own end.
                unsafe { libc::_exit(code) }
            }
            pid => Ok(Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?),
        }
    }

    fn serve(&self, guard: Pid) -> io::Result<()> {
        die_with(guard)?;
        let descriptors = [self.connections.try_clone()?, self.audit.try_clone()?];
        let [connections, audit] = descriptors;
        close_all_but([&connections, &audit].map(AsRawFd::as_raw_fd).to_vec())?;
        jail::restrict_calls()?;
        serve(self.instructions.clone(), connections, audit)
    }
}

const _: () = assert!(INSTRUCTED_WITH <= 4, "hand_over takes that many");
