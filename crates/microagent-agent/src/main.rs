//! The guest's first process.
//!
//! Life of it:
//!
//! 1. [`boot`]: everything that is the same for every guest (kernel file systems, device nodes, limits).
//! 2. [`port`]: waits for the host, answers pings. At this point the machine may be frozen and restored
//!    any number of times, so up to here nothing of a workspace is known and no random number is asked for.
//!    (What the C library reads for itself at its start, a canary and a marker of freed memory, is the same
//!    in all copies of a frozen agent and guards only the agent; programs get their own when they start.)
//! 3. [`session`]: the host opens a session; its first request configures the machine ([`configure`]),
//!    the next ones run commands ([`exec`]), pack files ([`pack`]) and end it all ([`shutdown`]).
//! 4. The session's end is the machine's end.
//!
//! The agent never runs a helper program, never resolves names through libraries of the image, and never
//! writes to the image's disk other than what [`configure`] lists.

mod boot;
mod cgroup;
mod configure;
mod console;
mod disk;
mod exec;
mod inspect;
mod net;
mod pack;
mod port;
mod program;
mod reaper;
mod session;
mod shutdown;
mod spawn;
mod sys;
mod user;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use microagent_proto::PreambleKind;

use crate::boot::BootError;

/// Why the agent gave up.
#[derive(Debug, thiserror::Error)]
enum AgentError {
    #[error("cannot prepare the machine")]
    Boot(#[from] BootError),
    #[error("the control port cannot be used")]
    Port(#[source] io::Error),
    #[error("cannot set up the event loop")]
    Runtime(#[source] io::Error),
}

fn main() -> ExitCode {
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        console::say("this is the init process of a microagent guest, it does nothing elsewhere");
        return ExitCode::FAILURE;
    }
    if let Err(error) = run() {
        console::say_error("giving up", &error);
    }
    power_off()
}

fn run() -> Result<(), AgentError> {
    let booted = boot::prepare()?;
    let port = port::open(boot::PORT_DEADLINE).map_err(AgentError::Port)?;
    let boot_us = sys::monotonic_us();
    while port::await_preamble(&port).map_err(AgentError::Port)?.kind != PreambleKind::Session {}
    session::run(port, booted, boot_us).map_err(AgentError::Runtime)
}

/// Ends the machine: QEMU runs with `-no-reboot`, so a restart is its exit.
fn power_off() -> ! {
    loop {
        if let Err(error) = rustix::system::reboot(rustix::system::RebootCommand::Restart) {
            console::say_error("cannot power off", &error);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}
