//! The conversation with the guest about one job.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use jiff::Timestamp;
use microagent_model::JobState;
use microagent_proto::{
    Exec, ExecEvent, ExecInput, Exit, INPUT_CHUNK_LIMIT, INPUT_LIMIT, MessageReader, REPLY_LIMIT, Request,
    STDIN_WINDOW, SessionHandle, StartErrorKind, Stream, write_message,
};
use microagent_store::{JobDir, JobEnd};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Input, Order, SIGKILL};
use crate::control::JobOrder;
use crate::job_output::JobOutputWriter;
use crate::output::OutputStream;
use crate::supervisor::worker::{Trouble, ask, closed};

/// How long the guest may take to start a command or to say why it cannot.
pub(crate) const JOB_START_DEADLINE: Duration = Duration::from_secs(60);

/// How long the guest may take to accept what a command is told. The agent reads at once.
const TELL_DEADLINE: Duration = Duration::from_secs(10);

/// How long a command that is killed may take to be gone. One that does not go goes with its machine.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Exit code of a command that reached its time limit, as `timeout(1)` has it.
const TIMED_OUT: i32 = 124;

/// What comes for a job while it runs.
pub(super) struct Inputs {
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) stdin: Option<mpsc::Receiver<Input>>,
    /// How long it may run.
    pub(super) timeout: Option<Duration>,
}

/// How a job's command ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) state: JobState,
    pub(super) exit_code: i32,
    pub(super) signal: Option<i32>,
    /// Whether it was killed by this supervisor.
    pub(super) was_killed: bool,
}

impl Ended {
    fn by(exit: Exit) -> Ended {
        let (state, exit_code, signal) = match exit {
            Exit::Code(code) => (JobState::Exited, i32::from(code), None),
            Exit::Signal(signal) => (JobState::Signaled, 128 + i32::from(signal), Some(i32::from(signal))),
            // Only the main program of a machine ends so, never a job.
            Exit::PoweredOff | Exit::Restarted => (JobState::Exited, 0, None),
        };
        Ended { state, exit_code, signal, was_killed: false }
    }

    /// It was killed with everything that it started, for this reason.
    fn killed(state: JobState) -> Ended {
        let (exit_code, signal) = match state {
            JobState::TimedOut => (TIMED_OUT, None),
            _ => (128 + SIGKILL, Some(SIGKILL)),
        };
        Ended { state, exit_code, signal, was_killed: true }
    }
}

/// A kill that was sent.
struct Kill {
    state: JobState,
    deadline: Instant,
}

/// A command that has started.
pub(super) struct Conversation {
    replies: MessageReader<ReadHalf<Stream>>,
    to: WriteHalf<Stream>,
    output: JobOutputWriter,
    /// How much was printed.
    printed: Rc<Cell<u64>>,
    /// Input that waits for room in the guest.
    pending: Vec<u8>,
    /// How much the guest has room for.
    window: usize,
    out_of_memory: Option<String>,
    disk_full: Option<String>,
}

impl Conversation {
    /// Has a command started; the inner error is its exit code and the guest's reason.
    pub(super) async fn start(
        session: &SessionHandle,
        exec: Exec,
        output: JobOutputWriter,
        printed: Rc<Cell<u64>>,
    ) -> Result<Result<Conversation, (i32, String)>, Trouble> {
        let (from, to) = tokio::io::split(ask(session, &Request::Exec(exec)).await?);
        let mut conversation = Conversation {
            replies: MessageReader::new(from, REPLY_LIMIT),
            to,
            output,
            printed,
            pending: Vec::new(),
            window: STDIN_WINDOW,
            out_of_memory: None,
            disk_full: None,
        };
        let started = async {
            loop {
                match conversation.replies.next().await?.ok_or_else(closed)? {
                    ExecEvent::Started => return Ok(None),
                    ExecEvent::NotStarted(error) => {
                        let code = if error.kind == StartErrorKind::NotFound { 127 } else { 126 };
                        return Ok(Some((code, error.message)));
                    }
                    ExecEvent::OutOfMemory { program } => conversation.out_of_memory = Some(program),
                    _ => {
                        return Err(Trouble::Guest(
                            "the guest told of a command before its start".to_owned(),
                        ));
                    }
                }
            }
        };
        match timeout(JOB_START_DEADLINE, started).await {
            Ok(started) => Ok(started?.map_or(Ok(conversation), Err)),
            Err(_) => {
                let seconds = JOB_START_DEADLINE.as_secs();
                Err(Trouble::Guest(format!("the guest started nothing for {seconds} s")))
            }
        }
    }

    /// Its directory has another name now.
    pub(super) fn moved(&mut self, dir: JobDir) {
        self.output.moved(dir);
    }

    /// Removes a part of what it printed for the room that it takes; whether there was one.
    pub(super) fn drop_oldest_output(&mut self) -> bool {
        self.output.drop_oldest()
    }

    /// How it ended, for its record; `None` where the connection ended before.
    pub(super) fn end_of(&self, ended: Option<&Ended>) -> JobEnd {
        JobEnd {
            state: ended.map_or(JobState::MachineEnded, |ended| ended.state),
            at: Some(Timestamp::now()),
            exit_code: ended.map(|ended| ended.exit_code),
            signal: ended.and_then(|ended| ended.signal),
            printed_bytes: Some(self.output.printed()),
            out_of_memory: self.out_of_memory.clone(),
            disk_full: self.disk_full.clone(),
        }
    }

    /// Passes everything on, both ways, until the command has ended; `None` where the connection ended before.
    pub(super) async fn hold(&mut self, inputs: Inputs) -> Option<Ended> {
        let Inputs { mut orders, mut stdin, timeout } = inputs;
        let time_up = timeout.map(|timeout| Instant::now() + timeout);
        let mut time_up = pin!(wait_until(time_up));
        let mut kill: Option<Kill> = None;
        loop {
            tokio::select! {
                biased;
                () = &mut time_up, if kill.is_none() => {
                    kill = Some(self.kill(JobState::TimedOut).await?);
                }
                () = wait_until(kill.as_ref().map(|kill| kill.deadline)) => {
                    return kill.map(|kill| Ended::killed(kill.state));
                }
                Some(Order { order, told }) = orders.recv() => {
                    match order {
                        JobOrder::Signal(signal) => self.tell(&ExecInput::Signal(signal)).await?,
                        JobOrder::Kill if kill.is_none() => {
                            kill = Some(self.kill(JobState::Signaled).await?);
                        }
                        JobOrder::Kill => {}
                    }
                    // A client that is gone misses nothing.
                    let _ = told.send(());
                }
                event = self.replies.next() => {
                    if let Some(exit) = self.take(event.ok()??).await? {
                        return Some(kill.map_or_else(|| Ended::by(exit), |kill| Ended::killed(kill.state)));
                    }
                }
                input = next_input(&mut stdin), if self.pending.is_empty() => match input {
                    Input::Bytes(bytes) => {
                        self.pending = bytes.into_vec();
                        self.feed().await?;
                    }
                    Input::End => {
                        stdin = None;
                        self.tell(&ExecInput::End).await?;
                    }
                    Input::Passed(passed) => drop(passed.send(())),
                },
            }
        }
    }

    async fn kill(&mut self, state: JobState) -> Option<Kill> {
        self.tell(&ExecInput::Kill).await?;
        Some(Kill { state, deadline: Instant::now() + KILL_PATIENCE })
    }

    /// What one event means: how the command ended, if it did. `None` where the connection ended.
    async fn take(&mut self, event: ExecEvent) -> Option<Option<Exit>> {
        match event {
            ExecEvent::Stdout(bytes) => self.print(OutputStream::Stdout, &bytes),
            ExecEvent::Stderr(bytes) => self.print(OutputStream::Stderr, &bytes),
            ExecEvent::StdinTaken(count) => {
                let taken = usize::try_from(count).unwrap_or(STDIN_WINDOW);
                self.window = self.window.saturating_add(taken).min(STDIN_WINDOW);
                self.feed().await?;
            }
            ExecEvent::OutOfMemory { program } => self.out_of_memory = Some(program),
            ExecEvent::DiskFull { mount } => self.disk_full = Some(mount),
            ExecEvent::Exited(exit) => return Some(Some(exit)),
            // It has started already.
            ExecEvent::Started | ExecEvent::NotStarted(_) => return None,
        }
        Some(None)
    }

    fn print(&mut self, stream: OutputStream, bytes: &[u8]) {
        self.output.append(stream, bytes);
        self.printed.set(self.output.printed());
    }

    /// Sends as much of the pending input as the guest has room for.
    async fn feed(&mut self) -> Option<()> {
        while !self.pending.is_empty() && self.window > 0 {
            let count = self.pending.len().min(self.window).min(INPUT_CHUNK_LIMIT);
            let rest = self.pending.split_off(count);
            let chunk = std::mem::replace(&mut self.pending, rest);
            self.window -= count;
            self.tell(&ExecInput::Stdin(chunk.into())).await?;
        }
        Some(())
    }

    async fn tell(&mut self, message: &ExecInput) -> Option<()> {
        timeout(TELL_DEADLINE, write_message(&mut self.to, message, INPUT_LIMIT)).await.ok()?.ok()
    }
}

/// The next part of the standard input; never, where there is none.
async fn next_input(stdin: &mut Option<mpsc::Receiver<Input>>) -> Input {
    if let Some(inputs) = stdin
        && let Some(input) = inputs.recv().await
    {
        return input;
    }
    std::future::pending().await
}

async fn wait_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
