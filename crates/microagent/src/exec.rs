//! Commands in a running workspace.

use std::io;
use std::pin::pin;
use std::time::Duration;

use jiff::Timestamp;
use microagent_proto::{
    Exec, ExecEvent, ExecInput as Tell, Exit, INPUT_CHUNK_LIMIT, INPUT_LIMIT, MessageReader, REPLY_LIMIT,
    Request, STDIN_WINDOW, StartErrorKind, write_message,
};
use microagent_store::{CommandLine, Workload, WorkspaceName};
use microagent_vm::OutputStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::error::with_cause;
use crate::limits::check_command;
use crate::provision;
use crate::{Engine, Error};

/// Exit code of a command that ran out of time, as `timeout` has it.
const TIMED_OUT: i32 = 124;

/// How long a command that is killed may take to be gone; only one that hangs in the guest's kernel takes any
/// time.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// How long a guest may take to start a command or to say why it cannot.
const START_PATIENCE: Duration = Duration::from_secs(60);

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
    /// A terminal as standard input, output and error.
    pub terminal: Option<Terminal>,
}

/// A terminal as it is at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terminal {
    /// Lines.
    pub rows: u16,
    /// Characters on a line.
    pub cols: u16,
    /// Value of `TERM`, unless the environment has one.
    pub term: String,
}

/// What a running command is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecControl {
    /// A signal, 1 to 64, for its process group.
    Signal(u8),
    /// Its terminal has another size now.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters on a line.
        cols: u16,
    },
}

/// What goes to a running command. Standard input ends with its sender.
#[derive(Debug, Default)]
pub struct ExecInput {
    stdin: Option<mpsc::Receiver<Vec<u8>>>,
    control: Option<mpsc::Receiver<ExecControl>>,
}

impl ExecInput {
    /// Standard input from this channel; pieces may have any length.
    #[must_use]
    pub fn stdin(mut self, bytes: mpsc::Receiver<Vec<u8>>) -> ExecInput {
        self.stdin = Some(bytes);
        self
    }

    /// Signals and sizes from this channel.
    #[must_use]
    pub fn control(mut self, control: mpsc::Receiver<ExecControl>) -> ExecInput {
        self.control = Some(control);
        self
    }
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
            terminal: None,
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
        input: ExecInput,
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
        check_command(&workload, &options.command)?;
        let exec = Exec {
            // The image names its own directory, and a user may mistype one.
            make_working_dir: options.working_dir.is_none(),
            stdin: input.stdin.is_some(),
            terminal: options.terminal.as_ref().map(|terminal| microagent_proto::Terminal {
                rows: terminal.rows,
                cols: terminal.cols,
                term: terminal.term.clone(),
            }),
            ..provision::exec_request(&workload, &options.command)
        };
        let started_at = Timestamp::now();
        let talk = self.ask(&guest, &Request::Exec(exec)).await?;
        let (from, to) = talk.stream.into_split();
        let mut conversation = Conversation {
            name,
            replies: MessageReader::new(from, REPLY_LIMIT),
            to,
            input,
            pending: Vec::new(),
            window: STDIN_WINDOW,
            heard: false,
        };
        let time_up = async {
            match options.timeout {
                Some(timeout) => sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        // Dropping the conversation has the agent kill the command with everything that it started.
        let ended = tokio::select! {
            ended = conversation.hold(sink) => ended?,
            () = cancel.cancelled() => return Err(Error::Cancelled),
            () = time_up => conversation.kill(sink).await?,
        };
        let End { exit_code, signal, start_error, timed_out } = ended;
        let exited_at = Timestamp::now();
        Ok(Execution { started_at, exited_at, exit_code, signal, start_error, timed_out })
    }
}

impl Engine {
    /// The program of interactive sessions that the workspace was made with, if any.
    ///
    /// # Errors
    /// Fails when there is no such workspace or its files are damaged.
    pub fn shell(&self, name: &WorkspaceName) -> Result<Option<String>, Error> {
        let workload = Workload::load(&self.existing(name)?).map_err(|e| self.damaged(name, e))?;
        Ok(workload.shell)
    }
}

struct End {
    exit_code: i32,
    signal: Option<i32>,
    start_error: Option<String>,
    timed_out: bool,
}

/// The conversation about one command.
struct Conversation<'a> {
    name: &'a WorkspaceName,
    replies: MessageReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
    input: ExecInput,
    /// Input that waits for room in the guest.
    pending: Vec<u8>,
    /// How much the guest has room for.
    window: usize,
    /// Whether the guest has said anything yet.
    heard: bool,
}

impl Conversation<'_> {
    /// Passes everything on, both ways, until the command has ended.
    async fn hold(&mut self, sink: &mut OutputSink<'_>) -> Result<End, Error> {
        let mut late = pin!(sleep(START_PATIENCE));
        loop {
            tokio::select! {
                biased;
                () = &mut late, if !self.heard => {
                    return Err(self.gone(format!("it said nothing for {} s", START_PATIENCE.as_secs())));
                }
                control = receive(&mut self.input.control) => match control {
                    Some(ExecControl::Signal(signal)) => self.tell(&Tell::Signal(signal)).await?,
                    Some(ExecControl::Resize { rows, cols }) => {
                        self.tell(&Tell::Resize { rows, cols }).await?;
                    }
                    None => self.input.control = None,
                },
                event = self.replies.next() => {
                    let event = event.map_err(|e| self.broken(&e))?;
                    self.heard = true;
                    if let Some(end) = self.take(event, sink)? {
                        return Ok(end);
                    }
                    self.feed().await?;
                }
                bytes = receive(&mut self.input.stdin), if self.pending.is_empty() => match bytes {
                    Some(bytes) => {
                        self.pending = bytes;
                        self.feed().await?;
                    }
                    None => {
                        self.input.stdin = None;
                        self.tell(&Tell::End).await?;
                    }
                },
            }
        }
    }

    /// Kills the command, whose time is up, and waits until all of it is gone.
    async fn kill(&mut self, sink: &mut OutputSink<'_>) -> Result<End, Error> {
        self.input = ExecInput::default();
        let gone = async {
            self.tell(&Tell::Kill).await?;
            self.hold(sink).await
        };
        // One that does not go goes with its machine.
        if let Ok(ended) = timeout(KILL_PATIENCE, gone).await {
            ended?;
        }
        Ok(End { exit_code: TIMED_OUT, signal: None, start_error: None, timed_out: true })
    }

    /// Sends as much of the pending input as the guest has room for.
    async fn feed(&mut self) -> Result<(), Error> {
        while !self.pending.is_empty() && self.window > 0 {
            let count = self.pending.len().min(self.window).min(INPUT_CHUNK_LIMIT);
            let rest = self.pending.split_off(count);
            let chunk = std::mem::replace(&mut self.pending, rest);
            self.window -= count;
            self.tell(&Tell::Stdin(chunk.into())).await?;
        }
        Ok(())
    }

    async fn tell(&mut self, message: &Tell) -> Result<(), Error> {
        write_message(&mut self.to, message, INPUT_LIMIT).await.map_err(|e| self.broken(&e))
    }

    /// What one event means; the end, if it is the last.
    fn take(&mut self, event: Option<ExecEvent>, sink: &mut OutputSink<'_>) -> Result<Option<End>, Error> {
        let unwritable = |source| Error::File { action: "write", path: "standard output".into(), source };
        let ended = |exit_code, signal, start_error| {
            Ok(Some(End { exit_code, signal, start_error, timed_out: false }))
        };
        match event {
            None => Err(self.gone("its machine has ended".to_owned())),
            Some(ExecEvent::Started | ExecEvent::OutOfMemory { .. }) => Ok(None),
            Some(ExecEvent::StdinTaken(count)) => {
                let taken = usize::try_from(count).unwrap_or(STDIN_WINDOW);
                self.window = (self.window + taken).min(STDIN_WINDOW);
                Ok(None)
            }
            Some(ExecEvent::Stdout(bytes)) => {
                sink(OutputStream::Stdout, &bytes).map(|()| None).map_err(unwritable)
            }
            Some(ExecEvent::Stderr(bytes)) => {
                sink(OutputStream::Stderr, &bytes).map(|()| None).map_err(unwritable)
            }
            Some(ExecEvent::Exited(Exit::Code(code))) => ended(i32::from(code), None, None),
            Some(ExecEvent::Exited(Exit::Signal(signal))) => {
                ended(128 + i32::from(signal), Some(i32::from(signal)), None)
            }
            // Only a main program ends so, and that is none of a client's.
            Some(ExecEvent::Exited(Exit::PoweredOff | Exit::Restarted)) => ended(0, None, None),
            Some(ExecEvent::NotStarted(error)) => {
                let code = if error.kind == StartErrorKind::NotFound { 127 } else { 126 };
                ended(code, None, Some(error.message))
            }
        }
    }

    fn broken(&self, error: &dyn std::error::Error) -> Error {
        self.gone(with_cause(error))
    }

    fn gone(&self, message: String) -> Error {
        Error::GuestGone { workspace: self.name.clone(), message }
    }
}

/// The next value of a channel; for ever pending where there is none.
async fn receive<T>(channel: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    match channel {
        Some(channel) => channel.recv().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use microagent_proto::{StartError, read_message};
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    use super::*;

    /// A conversation, and the guest's end of it.
    fn conversation(name: &WorkspaceName, input: ExecInput) -> (Conversation<'_>, UnixStream) {
        let (host, guest) = UnixStream::pair().unwrap();
        let (from, to) = host.into_split();
        let replies = MessageReader::new(from, REPLY_LIMIT);
        let pending = Vec::new();
        (Conversation { name, replies, to, input, pending, window: STDIN_WINDOW, heard: false }, guest)
    }

    async fn say(guest: &mut UnixStream, event: ExecEvent) {
        write_message(guest, &event, REPLY_LIMIT).await.unwrap();
    }

    #[tokio::test]
    async fn a_guest_that_lies_gets_an_error_and_nothing_else() {
        let name: WorkspaceName = "web".parse().unwrap();
        let huge = u32::MAX.to_le_bytes();
        let lies: [&[u8]; 4] = [&huge, b"this is not a message at all, not by far", &[1, 0, 0, 0, 99], &[]];
        for lie in lies {
            let (mut conversation, mut guest) = conversation(&name, ExecInput::default());
            guest.write_all(lie).await.unwrap();
            drop(guest);
            let mut sink = |_, _: &[u8]| Ok(());
            let ended = conversation.hold(&mut sink).await;
            assert!(matches!(ended, Err(Error::GuestGone { .. })), "{lie:?}");
        }
    }

    #[tokio::test]
    async fn input_waits_for_room_and_room_is_never_more_than_there_is() {
        let name: WorkspaceName = "web".parse().unwrap();
        let (stdin, bytes) = mpsc::channel(1);
        let (mut conversation, mut guest) = conversation(&name, ExecInput::default().stdin(bytes));
        let all = vec![7; 3 * STDIN_WINDOW];
        stdin.send(all.clone()).await.unwrap();
        drop(stdin);
        let guest = async {
            let (mut taken, mut unreported) = (0, 0);
            // More room than was ever taken is a lie that must not be believed.
            say(&mut guest, ExecEvent::StdinTaken(u32::MAX)).await;
            while let Some(Tell::Stdin(bytes)) = read_message(&mut guest, INPUT_LIMIT).await.unwrap() {
                taken += bytes.len();
                unreported += bytes.len();
                assert!(unreported <= STDIN_WINDOW, "{unreported} bytes are on their way");
                if unreported == STDIN_WINDOW {
                    say(&mut guest, ExecEvent::StdinTaken(u32::try_from(unreported).unwrap())).await;
                    unreported = 0;
                }
            }
            say(&mut guest, ExecEvent::Exited(Exit::Code(3))).await;
            taken
        };
        let mut sink = |_, _: &[u8]| Ok(());
        let (ended, taken) = tokio::join!(conversation.hold(&mut sink), guest);
        assert_eq!((ended.unwrap().exit_code, taken), (3, all.len()));
    }

    #[tokio::test]
    async fn every_end_has_the_code_that_a_shell_gives_it() {
        let name: WorkspaceName = "web".parse().unwrap();
        let error = |kind| ExecEvent::NotStarted(StartError { kind, message: "why".into() });
        for (event, code) in [
            (ExecEvent::Exited(Exit::Code(7)), 7),
            (ExecEvent::Exited(Exit::Signal(9)), 137),
            (error(StartErrorKind::NotFound), 127),
            (error(StartErrorKind::NotExecutable), 126),
            (error(StartErrorKind::NoSuchUser), 126),
        ] {
            let (mut conversation, mut guest) = conversation(&name, ExecInput::default());
            say(&mut guest, event).await;
            assert_eq!(conversation.hold(&mut |_, _| Ok(())).await.unwrap().exit_code, code);
        }
    }
}
