//! Commands in a running workspace.
//!
//! Each command has a task that communicates with the guest. The task enforces the time limit and forwards signals
//! even if the caller does not read the output: output is kept in a short queue, and the command blocks while the
//! queue is full.

mod control;
mod options;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use jiff::Timestamp;
use microagent_model::WorkspaceName;
use microagent_proto::{
    ExecEvent, ExecInput as GuestInput, Exit, INPUT_CHUNK_LIMIT, INPUT_LIMIT, MessageReader, REPLY_LIMIT,
    Request, STDIN_WINDOW, StartErrorKind, write_message,
};
use microagent_store::Workload;
use microagent_vm::{OutputFrame, OutputStream};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use self::control::Control;
pub use self::control::{ExecControl, ExecEnded, ExecStdin};
pub use self::options::{ExecOptions, StdinMode, Terminal};
use super::Workspace;
use crate::Error;
use crate::error::{Action, ConnectionFault};

/// Exit code of a command that reached its time limit, as with `timeout(1)`.
const TIMED_OUT: i32 = 124;

/// Exit code of a command that was killed: 128 and `SIGKILL`.
const KILLED: i32 = 137;

/// Deadline for the end of a killed command; only one that hangs in the guest's kernel needs any time.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Total time for which the output of a killed command waits to be read. The rest is discarded.
const OUTPUT_GRACE: Duration = Duration::from_millis(500);

/// Deadline for the start of a command, or for the guest's error.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// Length of the queue of output.
const OUTPUT_QUEUE: usize = 16;

/// Length of the queue of input, signals and terminal sizes.
const INPUT_QUEUE: usize = 4;

/// A command that runs in a workspace, started by [`Workspace::exec`]. It is a [`Stream`] of its output, in the order
/// of arrival.
///
/// [`Exec::next`] returns the output piece by piece, [`Exec::collect_output`] returns all of it, and [`Exec::wait`]
/// returns the exit code.
///
/// - A command that prints more than a few hundred KiB waits until the caller reads. Time limit and signals still work.
/// - A command with standard input can wait for both: a caller that writes more than a few hundred KiB must read the
///   output at the same time (a task of its own writes, see [`ExecStdin`]), or both sides wait for each other.
/// - To end the command, drop this value or use [`ExecControl::kill`]: both kill the command and its child processes.
///
/// ```no_run
/// # use microagent::{ExecOptions, OutputStream, Workspace};
/// # async fn example(workspace: &Workspace) -> Result<(), microagent::Error> {
/// let mut exec = workspace.exec(ExecOptions::shell("make test")).await?;
/// while let Some(frame) = exec.next().await {
///     if frame.stream == OutputStream::Stderr {
///         eprint!("{}", String::from_utf8_lossy(&frame.bytes));
///     }
/// }
/// let execution = exec.wait().await?;
/// println!("exited with {}", execution.exit_code);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "the command is killed when this is dropped"]
pub struct Exec {
    started_at: Timestamp,
    output: mpsc::Receiver<OutputFrame>,
    stdin: Option<ExecStdin>,
    control: ExecControl,
    conversation: ConversationTask,
}

/// The task that communicates with the guest; it ends with this value.
#[derive(Debug)]
struct ConversationTask(JoinHandle<Result<(End, Shortage), Error>>);

/// How a command in a workspace ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Execution {
    /// When it was started (host's clock).
    pub started_at: Timestamp,
    /// When it ended.
    pub exited_at: Timestamp,
    /// Exit code; 128 + number for a signal, 124 time limit, 127 not found, 126 not executable.
    pub exit_code: i32,
    /// The signal that ended it, if any. `None` after the time limit, although the command was killed; then `timed_out` is
    /// set and the exit code is 124.
    pub signal: Option<i32>,
    /// Why it could not be started, or `None`.
    pub start_error: Option<String>,
    /// Whether it reached its time limit.
    pub timed_out: bool,
    /// Bytes of output that the caller did not read. [`ExecOutput::dropped_bytes`] counts them and those beyond its limit.
    pub dropped_bytes: u64,
    /// The program that the guest's kernel killed during the command, because memory ran out.
    pub out_of_memory: Option<String>,
    /// Mount point of a disk of the guest that was full when the command failed.
    pub disk_full: Option<String>,
}

/// The output of a command, and how it ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ExecOutput {
    /// Standard output, up to the limit.
    pub stdout: Vec<u8>,
    /// Standard error, up to the limit.
    pub stderr: Vec<u8>,
    /// Bytes that are in neither: beyond the limit, of which the first bytes are kept, or not read before a kill.
    pub dropped_bytes: u64,
    /// How it ended.
    pub execution: Execution,
}

impl Workspace {
    /// Starts a command in the running workspace and connects to it. [`Workspace::start_job`] starts a command in the
    /// background, which needs no client.
    ///
    /// # Errors
    /// Fails if the workspace is not running ([`WrongState`](crate::ErrorKind::WrongState)), the time limit is 0
    /// ([`Invalid`](crate::ErrorKind::Invalid)), 56 commands, jobs and copies of all clients together run in it
    /// ([`Busy`](crate::ErrorKind::Busy)), or its guest cannot be reached ([`RunFailed`](crate::ErrorKind::RunFailed)). A
    /// command that cannot be started is not an error: [`Execution::start_error`] has the reason.
    pub async fn exec(&self, options: ExecOptions) -> Result<Exec, Error> {
        let guest = self.running_guest(Action::Exec)?;
        let (mode, limit) = (options.stdin, options.timeout);
        let request = self.exec_request(options)?;
        let started_at = Timestamp::now();
        let stream = guest.request(&Request::Exec(request)).await?;
        let stream = CommandStream { name: self.name.clone(), stream: stream.stream, heard: false };
        Ok(stream.converse(started_at, mode, limit))
    }

    /// Returns the program of interactive sessions, if the workspace has one.
    ///
    /// # Errors
    /// Fails if the workspace does not exist or its files are damaged.
    pub fn shell(&self) -> Result<Option<String>, Error> {
        let workload = Workload::load(&self.existing()?).map_err(|e| self.damaged(e))?;
        Ok(workload.shell)
    }
}

/// A stream of an agent, or of a supervisor in its place, on which a command was requested.
pub(crate) struct CommandStream {
    /// The workspace.
    pub(crate) name: WorkspaceName,
    /// The stream.
    pub(crate) stream: UnixStream,
    /// Whether the other side enforces the deadline of the start.
    pub(crate) heard: bool,
}

impl CommandStream {
    /// Starts the task that communicates with the guest.
    pub(crate) fn converse(self, started_at: Timestamp, stdin: StdinMode, limit: Option<Duration>) -> Exec {
        let (from, to) = self.stream.into_split();
        let (output, frames) = mpsc::channel(OUTPUT_QUEUE);
        let (controls, told) = mpsc::channel(INPUT_QUEUE);
        let started = CancellationToken::new();
        let (stdin, input) = match stdin {
            StdinMode::Empty => (None, None),
            StdinMode::Piped => {
                let (sender, receiver) = mpsc::channel(INPUT_QUEUE);
                (Some(ExecStdin(sender)), Some(receiver))
            }
        };
        let conversation = Conversation {
            name: self.name,
            replies: MessageReader::new(from, REPLY_LIMIT),
            to,
            stdin: input,
            control: Some(told),
            output,
            printed: None,
            discard_from: None,
            discarded_bytes: 0,
            pending: Vec::new(),
            window: STDIN_WINDOW,
            shortage: Shortage::default(),
            heard: self.heard,
            started: started.clone(),
        };
        let conversation = ConversationTask(tokio::spawn(conversation.run(limit)));
        Exec { started_at, output: frames, stdin, control: ExecControl { controls, started }, conversation }
    }
}

impl Exec {
    /// Waits for the next piece of output. Returns `None` after the last piece; then [`Exec::wait`] returns how the
    /// command ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<OutputFrame> {
        poll_fn(|context| self.output.poll_recv(context)).await
    }

    /// Takes the standard input; `None` if it is not [`StdinMode::Piped`] or was taken before. Drop it when all input is
    /// written: the command sees the end of its input only then.
    pub fn take_stdin(&mut self) -> Option<ExecStdin> {
        self.stdin.take()
    }

    /// Returns a handle that sends signals and terminal sizes.
    pub fn control(&self) -> ExecControl {
        self.control.clone()
    }

    /// Closes the standard input if it was not taken, reads and drops the output that was not read, and waits for the end of the
    /// command. If an [`ExecStdin`] was taken and is not dropped, a command that reads its input to the end (`cat`) does
    /// not end: drop it before.
    ///
    /// # Errors
    /// Fails if the connection to the guest was lost. A command that could not be started, or an exit code other than
    /// 0, is not an error.
    pub async fn wait(mut self) -> Result<Execution, Error> {
        // Without a writer the input is at its end.
        self.stdin = None;
        let mut untaken = 0;
        while let Some(frame) = self.next().await {
            untaken += frame.bytes.len() as u64;
        }
        let ended = (&mut self.conversation.0).await;
        let (End { exit_code, signal, start_error, timed_out, discarded_bytes }, shortage) =
            ended.map_err(interrupted)??;
        Ok(Execution {
            started_at: self.started_at,
            exited_at: Timestamp::now(),
            exit_code,
            signal,
            start_error,
            timed_out,
            dropped_bytes: discarded_bytes + untaken,
            out_of_memory: shortage.out_of_memory,
            disk_full: shortage.disk_full,
        })
    }

    /// Closes the standard input if it was not taken, waits for the end of the command, and returns its output: at most
    /// `limit` bytes of each stream.
    ///
    /// # Errors
    /// As [`Exec::wait`].
    pub async fn collect_output(mut self, limit: usize) -> Result<ExecOutput, Error> {
        self.stdin = None;
        let (mut stdout, mut stderr, mut dropped_bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(OutputFrame { stream, bytes }) = self.next().await {
            let kept = match stream {
                OutputStream::Stdout => &mut stdout,
                OutputStream::Stderr => &mut stderr,
            };
            let room = bytes.len().min(limit - kept.len());
            kept.extend_from_slice(&bytes[..room]);
            dropped_bytes += (bytes.len() - room) as u64;
        }
        let execution = self.wait().await?;
        dropped_bytes += execution.dropped_bytes;
        Ok(ExecOutput { stdout, stderr, dropped_bytes, execution })
    }
}

impl Stream for Exec {
    type Item = OutputFrame;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<OutputFrame>> {
        self.output.poll_recv(context)
    }
}

impl Drop for ConversationTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The task was aborted with its runtime, or panicked.
fn interrupted(error: JoinError) -> Error {
    match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Error::Cancelled,
    }
}

#[derive(Debug)]
struct End {
    exit_code: i32,
    signal: Option<i32>,
    start_error: Option<String>,
    timed_out: bool,
    discarded_bytes: u64,
}

/// What the guest had too little of.
#[derive(Debug, Default)]
struct Shortage {
    out_of_memory: Option<String>,
    disk_full: Option<String>,
}

/// How far [`Conversation::hold`] came.
enum Held {
    Ended(End),
    /// The command is to be killed.
    Kill,
}

/// The conversation about one command.
struct Conversation {
    name: WorkspaceName,
    replies: MessageReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
    stdin: Option<mpsc::Receiver<Vec<u8>>>,
    control: Option<mpsc::Receiver<Control>>,
    output: mpsc::Sender<OutputFrame>,
    /// Output that waits for room in the queue. Nothing more is read from the guest meanwhile.
    printed: Option<OutputFrame>,
    /// When output that nobody takes is discarded; never, before the command is killed.
    discard_from: Option<Instant>,
    discarded_bytes: u64,
    /// Input that waits for room in the guest.
    pending: Vec<u8>,
    /// How much the guest has room for.
    window: usize,
    shortage: Shortage,
    /// Whether the guest has said anything yet.
    heard: bool,
    /// Told that the command has started.
    started: CancellationToken,
}

impl Conversation {
    /// Speaks with the guest until the command has ended. Dropped, it has the agent kill the command with everything
    /// that it started.
    async fn run(mut self, limit: Option<Duration>) -> Result<(End, Shortage), Error> {
        let time_up = limit.map(|limit| Instant::now() + limit);
        let time_up = async {
            match time_up {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let held = tokio::select! {
            held = self.hold() => Some(held?),
            () = time_up => None,
        };
        let end = match held {
            Some(Held::Ended(end)) => end,
            Some(Held::Kill) => self.kill(KILLED, Some(KILLED - 128)).await?,
            None => End { timed_out: true, ..self.kill(TIMED_OUT, None).await? },
        };
        Ok((End { discarded_bytes: self.discarded_bytes, ..end }, self.shortage))
    }

    /// Passes everything on, both ways, until the command has ended or is to be killed.
    async fn hold(&mut self) -> Result<Held, Error> {
        let mut late = pin!(sleep(START_PATIENCE));
        loop {
            tokio::select! {
                biased;
                () = &mut late, if !self.heard => {
                    return Err(self.gone(ConnectionFault::Silent { seconds: START_PATIENCE.as_secs() }));
                }
                control = receive(&mut self.control) => match control {
                    Some(Control::Signal(signal)) => self.tell(&GuestInput::Signal(signal)).await?,
                    Some(Control::Resize { rows, cols }) => self.tell(&GuestInput::Resize { rows, cols }).await?,
                    Some(Control::Kill) => return Ok(Held::Kill),
                    // Whoever holds the other end of the output holds one of these, too.
                    None => self.control = None,
                },
                is_taken = has_room(&self.output, self.discard_from), if self.printed.is_some() => {
                    self.hand_over(is_taken);
                }
                event = self.replies.next(), if self.printed.is_none() => {
                    let event = event.map_err(|e| self.gone(e.into()))?;
                    self.heard = true;
                    if let Some(end) = self.take(event)? {
                        return Ok(Held::Ended(end));
                    }
                    self.feed().await?;
                }
                bytes = receive(&mut self.stdin), if self.pending.is_empty() => match bytes {
                    Some(bytes) => {
                        self.pending = bytes;
                        self.feed().await?;
                    }
                    None => {
                        self.stdin = None;
                        self.tell(&GuestInput::End).await?;
                    }
                },
            }
        }
    }

    /// Puts the printed piece into the queue, or discards it where nobody takes it.
    fn hand_over(&mut self, is_taken: bool) {
        let Some(frame) = self.printed.take() else { return };
        let bytes = frame.bytes.len() as u64;
        // There is room: this task alone puts pieces in.
        if !is_taken || self.output.try_send(frame).is_err() {
            self.discarded_bytes += bytes;
        }
    }

    /// Kills the command, and waits until all of it is gone.
    async fn kill(&mut self, exit_code: i32, signal: Option<i32>) -> Result<End, Error> {
        self.stdin = None;
        // Kept to the end, which is told by its closing.
        let _control = self.control.take();
        self.discard_from = Some(Instant::now() + OUTPUT_GRACE);
        let gone = async {
            self.tell(&GuestInput::Kill).await?;
            self.hold().await
        };
        // One that does not go goes with its machine.
        if let Ok(ended) = timeout(KILL_PATIENCE, gone).await {
            ended?;
        }
        Ok(End { exit_code, signal, start_error: None, timed_out: false, discarded_bytes: 0 })
    }

    /// Sends as much of the pending input as the guest has room for.
    async fn feed(&mut self) -> Result<(), Error> {
        while !self.pending.is_empty() && self.window > 0 {
            let count = self.pending.len().min(self.window).min(INPUT_CHUNK_LIMIT);
            let rest = self.pending.split_off(count);
            let chunk = std::mem::replace(&mut self.pending, rest);
            self.window -= count;
            self.tell(&GuestInput::Stdin(chunk.into())).await?;
        }
        Ok(())
    }

    async fn tell(&mut self, message: &GuestInput) -> Result<(), Error> {
        write_message(&mut self.to, message, INPUT_LIMIT).await.map_err(|e| self.gone(e.into()))
    }

    /// What one event means; the end, if it is the last.
    fn take(&mut self, event: Option<ExecEvent>) -> Result<Option<End>, Error> {
        let ended = |(exit_code, signal), start_error| {
            Ok(Some(End { exit_code, signal, start_error, timed_out: false, discarded_bytes: 0 }))
        };
        match event {
            None => Err(self.gone(ConnectionFault::Ended)),
            Some(ExecEvent::Started) => {
                self.started.cancel();
                Ok(None)
            }
            Some(ExecEvent::OutOfMemory { program }) => {
                self.shortage.out_of_memory = Some(program);
                Ok(None)
            }
            Some(ExecEvent::DiskFull { mount }) => {
                self.shortage.disk_full = Some(mount);
                Ok(None)
            }
            Some(ExecEvent::StdinTaken(count)) => {
                let taken = usize::try_from(count).unwrap_or(STDIN_WINDOW);
                self.window = (self.window + taken).min(STDIN_WINDOW);
                Ok(None)
            }
            Some(ExecEvent::Stdout(bytes)) => Ok(self.print(OutputStream::Stdout, bytes.into_vec())),
            Some(ExecEvent::Stderr(bytes)) => Ok(self.print(OutputStream::Stderr, bytes.into_vec())),
            Some(ExecEvent::Exited(exit)) => ended(exit_code(&exit), None),
            Some(ExecEvent::NotStarted(error)) => {
                let code = if error.kind == StartErrorKind::NotFound { 127 } else { 126 };
                ended((code, None), Some(error.message))
            }
        }
    }

    fn print(&mut self, stream: OutputStream, bytes: Vec<u8>) -> Option<End> {
        self.printed = Some(OutputFrame { stream, bytes });
        None
    }

    fn gone(&self, source: ConnectionFault) -> Error {
        Error::GuestGone { workspace: self.name.clone(), source }
    }
}

/// Exit code as a shell has it, and the signal.
fn exit_code(exit: &Exit) -> (i32, Option<i32>) {
    match exit {
        Exit::Code(code) => (i32::from(*code), None),
        Exit::Signal(signal) => (128 + i32::from(*signal), Some(i32::from(*signal))),
        // Only the main program of a machine ends so, and a client's command is not one.
        Exit::PoweredOff | Exit::Restarted => (0, None),
    }
}

/// Waits for room in the queue; `false` when the queue stays full until `deadline`, or nobody will take anything.
async fn has_room(output: &mpsc::Sender<OutputFrame>, deadline: Option<Instant>) -> bool {
    match deadline {
        None => output.reserve().await.is_ok(),
        Some(deadline) => timeout_at(deadline, output.reserve()).await.is_ok_and(|room| room.is_ok()),
    }
}

/// The next value of a channel; without a channel it never comes.
async fn receive<T>(channel: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    match channel {
        Some(channel) => channel.recv().await,
        None => std::future::pending().await,
    }
}
