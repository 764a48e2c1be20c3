//! A run that is connected to this process's streams.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use microagent::{
    AttachOptions, AttachedOutput, AttachedRun, CancellationToken, Engine, Error, Event, ExecControl,
    ExecStdin, Observer, OutputStream, RunOptions, RunReport, StdinMode,
};
use tokio::time::sleep;

use super::streams::Attachment;
use crate::context::Context;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::session::{Receiver, Stdin, Terminate, feed_in_background, forward, signals};
use crate::signals::Listening;
use crate::stream::Passing;
use crate::terminal::{self, Raw};
use crate::writer::{WriteMeter, Writer};

/// How long what a cancelled run has printed may take to be written.
const LAST_OUTPUT: Duration = Duration::from_millis(200);

/// How an attached run ended.
pub(super) struct Ended {
    /// The run's own result.
    pub(super) result: Result<RunReport, Error>,
    /// Whether a signal that asks a command to end was passed on to it.
    pub(super) asked_to_end: bool,
}

/// Runs the command with our streams.
pub(super) fn run(
    context: &Context,
    engine: &Engine,
    options: RunOptions,
    attachment: Attachment,
    progress: &Arc<Progress>,
) -> Result<Ended, Failure> {
    let mut attach = AttachOptions::new().output(attachment.output);
    if attachment.stdin {
        attach = attach.stdin(StdinMode::Piped);
    }
    if attachment.tty {
        attach = attach.terminal(terminal::ours()?);
    }
    let mut closed = None;
    let asked_to_end = CancellationToken::new();
    let ran = context.block_on_lending(async |token, listening| {
        let shown = Shown { progress: Arc::clone(progress), output: attachment.output };
        let work = microagent::Progress::new().observer(shown).cancel(token.clone());
        let mut run = match engine.run_attached(options, attach, &work).await {
            Ok(run) => run,
            Err(error) => return Ok(Err(error)),
        };
        let mut passing = if context.streams() { Passing::lines() } else { Passing::Bytes };
        let held = hold(&mut run, (attachment, &mut passing), &asked_to_end, &token, &listening).await;
        if let Err(failure) = held {
            // Whoever reads our output has had enough, or there is nothing to read it.
            closed = Some(failure);
            token.cancel();
        }
        listening.exit_at_next();
        Ok(run.wait().await)
    })?;
    let result = match (ran, closed) {
        (Err(Error::RunCancelled { .. } | Error::Cancelled), Some(failure)) => return Err(failure),
        // What it printed was shown as it came.
        (Err(error), _) if attachment.output != AttachedOutput::Recorded => Err(without_output(error)),
        (ran, _) => ran,
    };
    Ok(Ended { result, asked_to_end: asked_to_end.is_cancelled() })
}

fn without_output(error: Error) -> Error {
    match error {
        Error::RunFailed { workspace, backend, kind, message, console_tail, output: _ } => {
            Error::RunFailed { workspace, backend, kind, message, console_tail, output: None }
        }
        Error::RunCancelled { workspace, output: _ } => Error::RunCancelled { workspace, output: None },
        error => error,
    }
}

/// Passes everything on, both ways, until the command has ended and what it printed is written, or the run was cancelled.
async fn hold(
    run: &mut AttachedRun,
    (attachment, passing): (Attachment, &mut Passing),
    asked_to_end: &CancellationToken,
    token: &CancellationToken,
    listening: &Listening,
) -> Result<(), Failure> {
    let writer = Writer::start()?;
    let (ended, meter) = (run.ended(), writer.meter());
    let interaction = Interaction {
        stdin: run.take_stdin(),
        receiver: Receiver {
            workspace: run.workspace().clone(),
            control: run.control(),
            meter: meter.clone(),
            terminate: Terminate::Ends,
            asked_to_end: asked_to_end.clone(),
            hung_up: CancellationToken::new(),
        },
        raw: attachment.tty,
        token: token.clone(),
        listening: listening.clone(),
    };
    let mut interacting = pin!(interaction.hold());
    tokio::select! {
        biased;
        written = pass_on(run, writer, attachment, passing) => written,
        Err(error) = &mut interacting => Err(Failure::Other {
            message: format!("the terminal cannot be used: {error}"),
            hint: None,
        }),
        () = untaken(&ended, token, &meter) => Ok(()),
    }
}

/// Writes what the run prints.
async fn pass_on(
    run: &mut AttachedRun,
    mut writer: Writer,
    attachment: Attachment,
    passing: &mut Passing,
) -> Result<(), Failure> {
    while let Some(frame) = run.next().await {
        let is_shown = match frame.stream {
            OutputStream::Stdout => attachment.stdout,
            OutputStream::Stderr => attachment.stderr,
        };
        if is_shown && let Some((stream, bytes)) = passing.piece(frame)? {
            writer.write(stream, bytes).await?;
        }
    }
    for (stream, bytes) in passing.rest()? {
        writer.write(stream, bytes).await?;
    }
    writer.finish().await
}

/// Waits until the run has ended, and nobody takes what it printed.
async fn untaken(ended: &CancellationToken, token: &CancellationToken, meter: &WriteMeter) {
    ended.cancelled().await;
    if token.is_cancelled() {
        return sleep(LAST_OUTPUT).await;
    }
    while !meter.is_stalled().await {}
}

/// What goes from us to the command, from its start on. Before, a signal cancels the run.
struct Interaction {
    stdin: Option<ExecStdin>,
    receiver: Receiver,
    raw: bool,
    token: CancellationToken,
    listening: Listening,
}

impl Interaction {
    /// Passes input, signals and sizes on. Our terminal is in raw mode until the future is dropped.
    async fn hold(self) -> io::Result<()> {
        let Interaction { stdin, receiver, raw, token, listening } = self;
        receiver.control.started().await;
        let signals = signals(raw)?;
        listening.lend();
        let _raw = if raw { Some(Raw::enter()?) } else { None };
        if raw {
            fit(&receiver.control).await;
        }
        if let Some(to) = stdin {
            feed_in_background(Stdin::Ours, to, None)?;
        }
        forward(signals, receiver, raw, token).await;
        // The run ends now; a further signal ends this process.
        listening.exit_at_next();
        std::future::pending().await
    }
}

/// Our terminal may have got another size since the start was requested.
async fn fit(control: &ExecControl) {
    if let Some((rows, cols)) = terminal::size() {
        // A command that has ended needs no size.
        let _ = control.resize(rows, cols).await;
    }
}

/// Shows how a run comes along, up to the moment from which its output is on the screen.
struct Shown {
    progress: Arc<Progress>,
    output: AttachedOutput,
}

impl Observer for Shown {
    fn event(&self, event: Event) {
        match event {
            Event::Command if self.progress.is_stream() => self.progress.event(event),
            Event::Command if self.output != AttachedOutput::Recorded => self.progress.end(),
            event @ Event::Setup { .. } if self.output == AttachedOutput::All => self.progress.line(&event),
            event => self.progress.event(event),
        }
    }
}
