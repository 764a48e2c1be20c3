//! From a request to a program: what is run, as whom, and in words why it could not be.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use microagent_proto::{Command, Exec, StartError, StartErrorKind};

use crate::boot::SCRATCH;
use crate::program::{self, ProgramError};
use crate::settings;
use crate::spawn::{Plan, Stage};
use crate::user::{Identity, UserError};

const SHELL: &str = "/bin/sh";

/// Says what a child's note means.
pub(super) fn start_error(exec: &Exec, plan: &Plan, stage: Stage, error: &io::Error) -> StartError {
    let working_dir = plan.working_dir.to_string_lossy();
    match stage {
        Stage::Prepare => other("cannot prepare the process", error),
        Stage::User => other("cannot become the user", error),
        Stage::WorkingDir => StartError {
            kind: StartErrorKind::WorkingDir,
            message: format!("cannot enter the working directory `{working_dir}`: {error}"),
        },
        Stage::Execute => execute_error(exec, &plan.candidates, error),
    }
}

/// Says why the kernel did not execute the program.
fn execute_error(exec: &Exec, candidates: &[CString], error: &io::Error) -> StartError {
    let program = match &exec.command {
        Command::Argv(argv) => argv.first().map_or("".into(), |program| String::from_utf8_lossy(program)),
        Command::Shell(_) => SHELL.into(),
        Command::Script(_) => "the script".into(),
    };
    let exists = candidates.iter().any(|path| rustix::fs::stat(path.as_c_str()).is_ok());
    let (kind, message) = match error.raw_os_error() {
        Some(libc::ENOENT) if exists => (
            StartErrorKind::NotFound,
            format!("cannot run `{program}`: the interpreter or loader that it names does not exist"),
        ),
        Some(libc::ENOENT) if matches!(exec.command, Command::Shell(_)) => {
            (StartErrorKind::NotFound, format!("the image has no shell ({SHELL})"))
        }
        Some(libc::ENOENT) if matches!(exec.command, Command::Script(_)) => {
            (StartErrorKind::NotFound, format!("cannot run the script: the image has no shell ({SHELL})"))
        }
        Some(libc::ENOENT) => {
            let place = if program.contains('/') { "" } else { " in PATH" };
            (StartErrorKind::NotFound, format!("`{program}` was not found{place}"))
        }
        Some(libc::ENOEXEC) => (
            StartErrorKind::NotExecutable,
            format!("`{program}` is not a program: no `#!` line and no format that the machine knows"),
        ),
        Some(libc::E2BIG) => (
            StartErrorKind::NotExecutable,
            format!(
                "cannot run `{program}`: its arguments and environment are larger than the guest's kernel takes (128 KiB each, 2 MiB together)"
            ),
        ),
        Some(libc::EACCES | libc::EISDIR | libc::EPERM) => {
            (StartErrorKind::NotExecutable, format!("`{program}` is not executable: {error}"))
        }
        _ => (StartErrorKind::Other, format!("cannot run `{program}`: {error}")),
    };
    StartError { kind, message }
}

pub(super) fn other(attempt: &str, error: &io::Error) -> StartError {
    StartError { kind: StartErrorKind::Other, message: format!("{attempt}: {error}") }
}

impl From<UserError> for StartError {
    fn from(error: UserError) -> StartError {
        let kind = match error {
            UserError::NoUser(_) | UserError::NoGroup(_) => StartErrorKind::NoSuchUser,
            UserError::Read { .. } => StartErrorKind::Other,
        };
        StartError { kind, message: microagent_proto::chain(&error) }
    }
}

impl From<ProgramError> for StartError {
    fn from(error: ProgramError) -> StartError {
        StartError { kind: StartErrorKind::Other, message: error.to_string() }
    }
}

pub(super) fn plan(exec: &Exec, identity: Identity, script: Option<&Script>) -> Result<Plan, ProgramError> {
    let term = exec.terminal.as_ref().map_or("", |terminal| &terminal.term);
    let environment = program::environment(&exec.env, &identity.home, term)?;
    let arguments: Vec<&[u8]> = match (&exec.command, script) {
        (_, Some(script)) => script.arguments(),
        (Command::Shell(line), None) => vec![SHELL.as_bytes(), b"-c", line],
        (Command::Argv(argv), None) => argv.iter().map(|argument| argument.as_slice()).collect(),
        (Command::Script(_), None) => unreachable!("a script is stored before it is planned"),
    };
    let program = arguments.first().ok_or(ProgramError::Empty)?;
    Ok(Plan {
        candidates: program::candidates(program, &environment)?,
        arguments: program::arguments(&arguments)?,
        working_dir: program::working_dir(&exec.working_dir)?,
        directories: if exec.make_working_dir { program::ancestors(&exec.working_dir)? } else { Vec::new() },
        environment,
        uid: identity.uid,
        gid: identity.gid,
        groups: identity.groups,
        limits: settings::limits().to_vec(),
    })
}

/// A script's file, in memory; removed with this value.
#[derive(Debug)]
pub(super) struct Script {
    path: PathBuf,
    has_interpreter: bool,
}

impl Script {
    pub(super) fn write(text: &[u8], identity: &Identity) -> io::Result<Script> {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let path = PathBuf::from(format!("{SCRATCH}/script-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        // Readable for its user alone: setup scripts may hold secrets.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o700).open(&path)?;
        let script = Script { path, has_interpreter: text.starts_with(b"#!") };
        file.write_all(text)?;
        chown(&script.path, Some(identity.uid), Some(identity.gid))?;
        Ok(script)
    }

    fn arguments(&self) -> Vec<&[u8]> {
        let path = self.path.as_os_str().as_encoded_bytes();
        if self.has_interpreter { vec![path] } else { vec![SHELL.as_bytes(), path] }
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // The workload may have removed it already.
        let _ = fs::remove_file(&self.path);
    }
}
