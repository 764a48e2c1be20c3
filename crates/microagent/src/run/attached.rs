//! A run whose command is attached: the program reads and writes its streams while it runs.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use jiff::Timestamp;
use microagent_model::WorkspaceName;
use microagent_proto::Exec as ExecRequest;
use microagent_vm::RelayedOutput;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::workspace::CommandStream;
use crate::{
    AttachOptions, AttachedOutput, Engine, Error, Exec, ExecControl, ExecStdin, OutputFrame, Progress,
    RunOptions, RunReport, StdinMode, Terminal, Workspace,
};

/// A run in progress whose command is attached to this program, from [`Engine::run_attached`]. Dropping it ends the run.
/// It is a [`Stream`] of the output.
///
/// ```no_run
/// use microagent::{AttachOptions, Engine, Progress, RunOptions, StdinMode};
///
/// # async fn example(engine: &Engine, progress: &Progress) -> Result<(), microagent::Error> {
/// let options = RunOptions::new("busybox").argv(["sort"]);
/// let mut run = engine.run_attached(options, AttachOptions::new().stdin(StdinMode::Piped), progress).await?;
/// if let Some(stdin) = run.take_stdin() {
///     // Written while the output is read. Dropping `stdin` closes it.
///     tokio::spawn(async move { stdin.write("b\na\n").await });
/// }
/// while let Some(frame) = run.next().await {
///     print!("{}", String::from_utf8_lossy(&frame.bytes));
/// }
/// let report = run.wait().await?;
/// println!("exited with {}", report.result.exit_code);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "the run is ended when this is dropped"]
pub struct AttachedRun {
    workspace: Workspace,
    exec: Exec,
    cancel: CancellationToken,
    ended: CancellationToken,
    finishing: JoinHandle<Result<RunReport, Error>>,
}

impl Engine {
    /// Starts a run and attaches to its command: output arrives while it runs, and input, signals and terminal sizes
    /// are sent to it. Returns when its machine is being started.
    ///
    /// # Errors
    /// Fails when the image cannot be used, the machine cannot be started, or `progress` is cancelled.
    pub async fn run_attached(
        &self,
        options: RunOptions,
        attach: AttachOptions,
        progress: &Progress,
    ) -> Result<AttachedRun, Error> {
        let mut begun = self.begin_run(options, Some(&attach), progress).await?;
        let name = begun.name().clone();
        let stream = begun.supervisor.take_relay().ok_or(Error::Cancelled)?;
        // The supervisor keeps the deadline of the start.
        let stream = CommandStream { name: name.clone(), stream, heard: true };
        let exec = stream.converse(Timestamp::now(), attach.stdin, None);
        let (cancel, ended) = (progress.token().child_token(), CancellationToken::new());
        let progress = progress.clone().cancel(cancel.clone());
        let end = ended.clone().drop_guard();
        let finishing = tokio::spawn(async move {
            let _end = end;
            begun.finish(&progress).await
        });
        Ok(AttachedRun { workspace: self.workspace(&name), exec, cancel, ended, finishing })
    }
}

impl AttachedRun {
    /// Returns the workspace of the run, which can be used while it runs.
    pub fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// Waits for the next piece of output; `None` when there is no more. Cancel-safe. A caller that does not read
    /// blocks the command, but neither its time limit nor signals.
    pub async fn next(&mut self) -> Option<OutputFrame> {
        self.exec.next().await
    }

    /// Takes the standard input; `None` if it is not [`StdinMode::Piped`] or was taken before.
    pub fn take_stdin(&mut self) -> Option<ExecStdin> {
        self.exec.take_stdin()
    }

    /// Returns a handle that sends signals and terminal sizes, and waits for the start of the command.
    pub fn control(&self) -> ExecControl {
        self.exec.control()
    }

    /// Returns a token that is cancelled when the run has ended, even if output was not read.
    pub fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Closes the standard input if it was not taken, waits for the end, and discards unread output. If the standard
    /// input was taken and is not dropped, a command that reads it to its end does not end.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub async fn wait(mut self) -> Result<RunReport, Error> {
        drop(self.exec.take_stdin());
        let mut more = true;
        loop {
            tokio::select! {
                ended = &mut self.finishing => return ended.unwrap_or(Err(Error::Cancelled)),
                piece = self.exec.next(), if more => more = piece.is_some(),
            }
        }
    }
}

impl Stream for AttachedRun {
    type Item = OutputFrame;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<OutputFrame>> {
        Pin::new(&mut self.exec).poll_next(context)
    }
}

impl Drop for AttachedRun {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl super::BegunRun {
    fn name(&self) -> &WorkspaceName {
        &self.provision.record.name
    }
}

impl AttachOptions {
    /// A command with the streams that are attached.
    pub(super) fn of(&self, command: ExecRequest) -> ExecRequest {
        ExecRequest {
            stdin: self.stdin == StdinMode::Piped,
            terminal: self.terminal.clone().map(Terminal::request),
            ..command
        }
    }
}

impl AttachedOutput {
    pub(super) fn relayed(self) -> RelayedOutput {
        match self {
            AttachedOutput::All => RelayedOutput::All,
            AttachedOutput::Command => RelayedOutput::Command,
            AttachedOutput::Recorded => RelayedOutput::None,
        }
    }
}
