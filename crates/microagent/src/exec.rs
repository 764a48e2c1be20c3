//! Commands in a running workspace.

use std::io;
use std::time::Duration;

use jiff::Timestamp;
use microagent_proto::{ExecEvent, Exit, Request, StartErrorKind};
use microagent_store::{CommandLine, Workload, WorkspaceName};
use microagent_vm::OutputStream;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::attach::Talk;
use crate::making;
use crate::{Engine, Error};

/// Exit code of a command that ran out of time, as `timeout` has it.
const TIMED_OUT: i32 = 124;

/// What a command in a running workspace is. Start from [`ExecOptions::new`] and set what differs.
#[derive(Debug, Clone)]
pub struct ExecOptions {
    /// What runs. The image's entrypoint has no part in it.
    pub command: CommandLine,
    /// Environment, over the workspace's; later entries win.
    pub env: Vec<(String, String)>,
    /// Working directory in place of the workspace's.
    pub working_dir: Option<String>,
    /// OCI user in place of the workspace's.
    pub user: Option<String>,
    /// How long it may take; then it is killed with everything that it started.
    pub timeout: Option<Duration>,
}

impl ExecOptions {
    /// A program and its arguments.
    pub fn new<S: Into<String>>(words: impl IntoIterator<Item = S>) -> ExecOptions {
        ExecOptions {
            command: CommandLine::Argv(words.into_iter().map(Into::into).collect()),
            env: Vec::new(),
            working_dir: None,
            user: None,
            timeout: None,
        }
    }
}

/// How a command in a workspace ended.
#[derive(Debug, Clone)]
pub struct Execution {
    /// When it was started (host's clock).
    pub started_at: Timestamp,
    /// When it ended.
    pub exited_at: Timestamp,
    /// Exit code; 128 + number for a signal, 124 out of time, 127 not found, 126 not executable.
    pub exit_code: i32,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// Why it could not be started, if it could not.
    pub start_error: Option<String>,
    /// Whether its time was up.
    pub timed_out: bool,
}

/// Takes what a command prints, in the order of arrival. One that takes its time holds the command up.
pub type OutputSink<'a> = dyn FnMut(OutputStream, &[u8]) -> io::Result<()> + Send + 'a;

impl Engine {
    /// Runs a command in a running workspace.
    ///
    /// # Errors
    /// Fails when the workspace does not run, its guest goes away in the middle, the sink fails, or `cancel` says
    /// so; the command is killed then. Not when the command cannot be started or returns something else than 0.
    pub async fn exec(
        &self,
        name: &WorkspaceName,
        options: &ExecOptions,
        sink: &mut OutputSink<'_>,
        cancel: &CancellationToken,
    ) -> Result<Execution, Error> {
        let guest = self.running_guest(name, "run a command in it")?;
        let mut workload = Workload::load(&self.existing(name)?).map_err(|e| self.damaged(name, e))?;
        workload.env.extend(options.env.iter().cloned());
        if let Some(dir) = &options.working_dir {
            workload.working_dir.clone_from(dir);
        }
        if let Some(user) = &options.user {
            workload.user.clone_from(user);
        }
        let request = Request::Exec(making::exec(&workload, &options.command));
        let started_at = Timestamp::now();
        let mut talk = self.ask(&guest, &request).await?;
        let time_up = async {
            match options.timeout {
                Some(timeout) => sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        // Dropping the conversation has the agent kill the command with everything that it started.
        let ended = tokio::select! {
            ended = converse(&mut talk, sink) => ended?,
            () = cancel.cancelled() => return Err(Error::Cancelled),
            () = time_up => End { exit_code: TIMED_OUT, signal: None, start_error: None, timed_out: true },
        };
        let End { exit_code, signal, start_error, timed_out } = ended;
        let exited_at = Timestamp::now();
        Ok(Execution { started_at, exited_at, exit_code, signal, start_error, timed_out })
    }
}

struct End {
    exit_code: i32,
    signal: Option<i32>,
    start_error: Option<String>,
    timed_out: bool,
}

async fn converse(talk: &mut Talk, sink: &mut OutputSink<'_>) -> Result<End, Error> {
    let unwritable = |source| Error::File { action: "write", path: "standard output".into(), source };
    let ended = |exit_code, signal, start_error| End { exit_code, signal, start_error, timed_out: false };
    loop {
        match talk.reply().await? {
            ExecEvent::Started { .. } | ExecEvent::StdinTaken(_) => {}
            ExecEvent::Stdout(bytes) => sink(OutputStream::Stdout, &bytes).map_err(unwritable)?,
            ExecEvent::Stderr(bytes) => sink(OutputStream::Stderr, &bytes).map_err(unwritable)?,
            ExecEvent::Exited(Exit::Code(code)) => return Ok(ended(i32::from(code), None, None)),
            ExecEvent::Exited(Exit::Signal(signal)) => {
                return Ok(ended(128 + i32::from(signal), Some(i32::from(signal)), None));
            }
            ExecEvent::NotStarted(error) => {
                let code = if error.kind == StartErrorKind::NotFound { 127 } else { 126 };
                return Ok(ended(code, None, Some(error.message)));
            }
        }
    }
}
