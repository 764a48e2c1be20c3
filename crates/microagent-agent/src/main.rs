//! The guest's first process.
//!
//! Its steps:
//!
//! 1. [`boot`]: everything that is the same for every guest (kernel file systems, device nodes, limits, and the
//!    namespace of the image's programs with its process 1, [`init`]).
//! 2. [`port`]: waits for the host, answers pings, mounts an image's fresh disk if asked to. At this point
//!    the machine may be frozen and restored any number of times, so up to here nothing of a workspace is
//!    known, no program of the image has run, and nobody but the agent has asked for a random number.
//!    (What the C library and the event loop read for themselves, a canary, keys of hash tables, is the same
//!    in all copies of a frozen agent and guards only the agent; programs get their own when they start.)
//!    What every guest needs is made here, the event loop included: an emulated processor translates code
//!    anew in each restored machine, so the cheapest code is that which ran before the freeze.
//! 3. [`session`]: the host opens a session; its first request configures the machine ([`configure`]),
//!    the next ones run commands ([`exec`]), pack and unpack files ([`pack`], [`unpack`]), look at them
//!    ([`inspect`]), compare the disk with its image ([`diff`]) and end it all ([`shutdown`]).
//! 4. The session's end is the machine's end. The exception is the copy of a machine that was captured ([`hold`]): there a
//!    new session takes the place of the one that was captured, and makes the machine a new one ([`renewal`]).
//!
//! The agent never runs a helper program, never resolves names through libraries of the image, and never
//! writes to the image's disk other than what [`configure`] lists and what the host has it unpack.

mod boot;
mod cgroup;
mod configure;
mod console;
mod diff;
mod disk;
mod events;
mod exec;
mod hold;
mod hooks;
mod init;
mod inspect;
mod listing;
mod mounts;
mod net;
mod pack;
mod port;
mod processes;
mod program;
mod reaper;
mod renewal;
mod rtnetlink;
mod secrets;
mod session;
mod settings;
mod shutdown;
mod sockets;
mod spawn;
mod surroundings;
mod sys;
mod unpack;
mod user;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use microagent_proto::{Preamble, PreambleKind};

use crate::boot::BootError;
use crate::session::Session;

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
    let mut session = Session::prepare(booted, boot_us).map_err(AgentError::Runtime)?;
    loop {
        let asked = port::await_preamble(&port).map_err(AgentError::Port)?;
        let kind = match asked.kind {
            PreambleKind::Mount => match session.mount() {
                Ok(()) => PreambleKind::Mount,
                Err(error) => {
                    console::say(&format!("cannot mount the image's disk: {}", error.message));
                    PreambleKind::Failed
                }
            },
            kind => kind,
        };
        port::answer(&port, &Preamble { kind, ..asked });
        if kind == PreambleKind::Session {
            return session.serve(port).map_err(AgentError::Runtime);
        }
    }
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
