//! Runs one command for the host: starts it, carries its output, tells its end.
//!
//! Output is read only as fast as the host takes it. When the host drops the stream before the end, the
//! command is killed with everything that it started.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use microagent_proto::{
    Chunk, Command, Exec, ExecEvent, Exit, FrameError, OUTPUT_CHUNK_LIMIT, REPLY_LIMIT, StartError,
    StartErrorKind, Stream, write_message,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::boot::SCRATCH;
use crate::cgroup::{Cgroup, Cgroups};
use crate::console;
use crate::program::{self, ProgramError};
use crate::reaper::Reaper;
use crate::spawn::{self, NOTE_LEN, Plan, Stage};
use crate::user::{self, Identity, UserError};

const SHELL: &str = "/bin/sh";

/// What commands need of the machine.
#[derive(Debug)]
pub(crate) struct Executor {
    pub(crate) cgroups: Cgroups,
    pub(crate) reaper: Reaper,
}

impl Executor {
    /// Runs a command, speaking to the host on this stream.
    pub(crate) async fn serve(&self, stream: Stream, exec: &Exec) {
        let (mut from_host, mut to_host) = tokio::io::split(stream);
        match self.start(exec) {
            Err(error) => finish(&mut to_host, ExecEvent::NotStarted(error)).await,
            Ok(mut running) => {
                tokio::select! {
                    // A broken stream ends the conversation as its end does.
                    _ = running.converse(exec, &mut to_host) => {}
                    () = host_is_gone(&mut from_host) => {}
                }
                // The last event goes out before the cleaning up.
                tokio::task::yield_now().await;
                self.end(running);
            }
        }
    }

    fn start(&self, exec: &Exec) -> Result<Running, StartError> {
        let identity = user::resolve(&exec.user)?;
        let script = match &exec.command {
            Command::Script(text) => {
                Some(Script::write(text, &identity).map_err(|e| other("cannot store the script", &e))?)
            }
            Command::Argv(_) | Command::Shell(_) => None,
        };
        let plan = plan(exec, identity, script.as_ref())?;
        let cgroup = self.cgroups.create().map_err(|e| other("cannot make a control group", &e))?;
        let spawned = match spawn::spawn(&plan, std::os::fd::AsFd::as_fd(&cgroup)) {
            Ok(spawned) => spawned,
            Err(error) => {
                self.cgroups.retire(cgroup);
                return Err(other("cannot make a process", &error));
            }
        };
        let exited = self.reaper.watch(spawned.pid);
        let receiver = pipe::Receiver::from_owned_fd;
        let pipes = receiver(spawned.stdout)
            .and_then(|stdout| Ok((stdout, receiver(spawned.stderr)?, receiver(spawned.note)?)));
        let pid = spawned.pid.as_raw_nonzero().get().unsigned_abs();
        match pipes {
            Ok((stdout, stderr, note)) => {
                let output = Output { stdout: Some(stdout), stderr: Some(stderr) };
                Ok(Running { pid, output, note, exited, cgroup, plan, script, over: false })
            }
            Err(error) => {
                kill(&cgroup);
                self.cgroups.retire(cgroup);
                Err(other("cannot watch the process's output", &error))
            }
        }
    }

    /// Leaves background processes of a finished command alone, and kills an unfinished one.
    fn end(&self, running: Running) {
        if running.over {
            if running.output.is_open() {
                tokio::spawn(running.output.discard());
            }
        } else {
            kill(&running.cgroup);
        }
        self.cgroups.retire(running.cgroup);
    }
}

fn kill(cgroup: &Cgroup) {
    if let Err(error) = cgroup.kill() {
        console::say_error("cannot kill a command", &error);
    }
}

/// Waits until the host drops the stream: after its request it has nothing more to say.
async fn host_is_gone(from_host: &mut (impl AsyncRead + Unpin)) {
    let mut ignored = [0; 64];
    while from_host.read(&mut ignored).await.is_ok_and(|count| count > 0) {}
}

async fn send(to_host: &mut (impl AsyncWrite + Unpin), event: &ExecEvent) -> Result<(), FrameError> {
    write_message(to_host, event, REPLY_LIMIT).await
}

/// Sends the last event. A host that is gone misses nothing.
async fn finish(to_host: &mut (impl AsyncWrite + Unpin), event: ExecEvent) {
    if send(to_host, &event).await.is_ok() {
        let _ = to_host.shutdown().await;
    }
}

/// A command on its way.
#[derive(Debug)]
struct Running {
    pid: u32,
    output: Output,
    note: pipe::Receiver,
    exited: oneshot::Receiver<Exit>,
    cgroup: Cgroup,
    plan: Plan,
    /// Removes the script's file when the command is over.
    script: Option<Script>,
    /// Whether the main process has ended.
    over: bool,
}

impl Running {
    /// Tells the host everything from the start to the end.
    async fn converse(
        &mut self,
        exec: &Exec,
        to_host: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), FrameError> {
        if let Some(error) = self.start_error(exec).await {
            self.over = true;
            finish(to_host, ExecEvent::NotStarted(error)).await;
            return Ok(());
        }
        send(to_host, &ExecEvent::Started { pid: self.pid }).await?;
        let mut buffers = [vec![0; OUTPUT_CHUNK_LIMIT], vec![0; OUTPUT_CHUNK_LIMIT]];
        let [out, err] = &mut buffers;
        let exit = loop {
            let event = tokio::select! {
                count = read_some(&mut self.output.stdout, out) => stdout_event(&out[..count]),
                count = read_some(&mut self.output.stderr, err) => stderr_event(&err[..count]),
                exit = &mut self.exited => break exit.unwrap_or(Exit::Signal(9)),
            };
            send(to_host, &event).await?;
        };
        self.over = true;
        self.script = None;
        // Background processes may hold the pipes open for ever; what the command itself wrote is in them now.
        drain(&self.output.stdout, out, stdout_event, to_host).await?;
        drain(&self.output.stderr, err, stderr_event, to_host).await?;
        finish(to_host, ExecEvent::Exited(exit)).await;
        Ok(())
    }

    /// Waits until the program runs (`None`) or the child says why it cannot.
    async fn start_error(&mut self, exec: &Exec) -> Option<StartError> {
        let mut note = [0; NOTE_LEN];
        if self.note.read_exact(&mut note).await.is_err() {
            // Closed by execve, or by a death that the exit status tells of.
            return None;
        }
        let (stage, error) = spawn::read_note(note);
        let working_dir = self.plan.directories.last().map_or("/".into(), |dir| dir.to_string_lossy());
        Some(match stage {
            Stage::Prepare => other("cannot prepare the process", &error),
            Stage::User => other("cannot become the user", &error),
            Stage::WorkingDir => StartError {
                kind: StartErrorKind::WorkingDir,
                message: format!("cannot enter the working directory `{working_dir}`: {error}"),
            },
            Stage::Execute => execute_error(exec, &self.plan.candidates, &error),
        })
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
        Some(libc::EACCES | libc::EISDIR | libc::EPERM) => {
            (StartErrorKind::NotExecutable, format!("`{program}` is not executable: {error}"))
        }
        _ => (StartErrorKind::Other, format!("cannot run `{program}`: {error}")),
    };
    StartError { kind, message }
}

fn other(attempt: &str, error: &io::Error) -> StartError {
    StartError { kind: StartErrorKind::Other, message: format!("{attempt}: {error}") }
}

impl From<UserError> for StartError {
    fn from(error: UserError) -> StartError {
        let kind = match error {
            UserError::NoUser(_) | UserError::NoGroup(_) => StartErrorKind::NoSuchUser,
            UserError::Read { .. } => StartErrorKind::Other,
        };
        StartError { kind, message: console::chain(&error) }
    }
}

impl From<ProgramError> for StartError {
    fn from(error: ProgramError) -> StartError {
        StartError { kind: StartErrorKind::Other, message: error.to_string() }
    }
}

fn plan(exec: &Exec, identity: Identity, script: Option<&Script>) -> Result<Plan, ProgramError> {
    let environment = program::environment(&exec.env, &identity.home)?;
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
        directories: program::ancestors(&exec.working_dir)?,
        environment,
        uid: identity.uid,
        gid: identity.gid,
        groups: identity.groups,
    })
}

/// A script's file, in memory; removed with this value.
#[derive(Debug)]
struct Script {
    path: PathBuf,
    has_interpreter: bool,
}

impl Script {
    fn write(text: &[u8], identity: &Identity) -> io::Result<Script> {
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

/// The two pipes; `None` after their end.
#[derive(Debug)]
struct Output {
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

impl Output {
    fn is_open(&self) -> bool {
        self.stdout.is_some() || self.stderr.is_some()
    }

    /// Takes what background processes still write, so that they neither block nor die of it.
    async fn discard(mut self) {
        let mut buffers = [vec![0; 4096], vec![0; 4096]];
        let [out, err] = &mut buffers;
        while self.is_open() {
            tokio::select! {
                _ = read_some(&mut self.stdout, out) => {}
                _ = read_some(&mut self.stderr, err) => {}
            }
        }
    }
}

fn stdout_event(bytes: &[u8]) -> ExecEvent {
    ExecEvent::Stdout(Chunk::from(bytes))
}

fn stderr_event(bytes: &[u8]) -> ExecEvent {
    ExecEvent::Stderr(Chunk::from(bytes))
}

/// Reads at least one byte; for ever pending once the pipe has ended.
async fn read_some(pipe: &mut Option<pipe::Receiver>, buffer: &mut [u8]) -> usize {
    if let Some(open) = pipe {
        match open.read(buffer).await {
            Ok(count) if count > 0 => return count,
            Ok(_) | Err(_) => *pipe = None,
        }
    }
    std::future::pending().await
}

/// Sends what is in a pipe now, and no more than that.
async fn drain(
    pipe: &Option<pipe::Receiver>,
    buffer: &mut [u8],
    event: fn(&[u8]) -> ExecEvent,
    to_host: &mut (impl AsyncWrite + Unpin),
) -> Result<(), FrameError> {
    let Some(pipe) = pipe else { return Ok(()) };
    let mut left = rustix::io::ioctl_fionread(pipe).map_or(0, |left| usize::try_from(left).unwrap_or(0));
    while left > 0 {
        let limit = left.min(buffer.len());
        match rustix::io::read(pipe, &mut buffer[..limit]) {
            Ok(count) if count > 0 => {
                left -= count;
                send(to_host, &event(&buffer[..count])).await?;
            }
            Err(rustix::io::Errno::INTR) => {}
            Ok(_) | Err(_) => break,
        }
    }
    Ok(())
}
