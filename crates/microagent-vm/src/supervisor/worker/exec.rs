//! The supervisor's own conversation about one command of the guest: a setup step, the command of a run, a service.

use std::pin::pin;
use std::time::Duration;

use jiff::Timestamp;
use microagent_proto::{
    Chunk, ExecEvent, ExecInput, Exit, INPUT_LIMIT, MessageReader, REPLY_LIMIT, Request, SessionHandle,
    StartErrorKind, write_message,
};
use microagent_store::RecordedResult;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::{Trouble, Worker, ask, closed};
use crate::lifecycle::Event;
use crate::output::OutputStream;
use crate::spec::RelayedOutput;
use crate::supervisor::relay::Relay;

/// How long the guest may take to start a command or to say why it cannot.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A caller that is attached to the command of its run.
pub(super) struct Attached {
    /// Its stream.
    pub(super) relay: Relay,
    /// What it is shown.
    pub(super) shown: RelayedOutput,
}

/// Whose command it is, and who hears of it.
pub(super) enum Conversation<'a> {
    /// A setup step. An attached caller sees at most what it prints.
    Setup { attached: Option<&'a mut Attached> },
    /// The command of a run, to which an attached caller speaks.
    Command { attached: Option<&'a mut Attached> },
    /// A service: that it runs is an event, and it gets signals.
    Service { events: &'a mpsc::Sender<Event>, signals: mpsc::Receiver<u8> },
}

impl Conversation<'_> {
    /// Waits for something that the command is to be told; for ever where nobody tells it anything.
    async fn next_input(&mut self) -> ExecInput {
        let signal = match self {
            Conversation::Command { attached: Some(attached) } => return attached.relay.next_input().await,
            Conversation::Service { signals, .. } => signals.recv().await,
            Conversation::Command { attached: None } | Conversation::Setup { .. } => None,
        };
        match signal {
            Some(signal) => ExecInput::Signal(signal),
            None => std::future::pending().await,
        }
    }

    /// Waits until the next event of the guest can be passed on.
    fn room(&self) -> impl Future<Output = ()> + use<> {
        let room = match self {
            Conversation::Setup { attached } | Conversation::Command { attached } => {
                attached.as_ref().map(|attached| attached.relay.room())
            }
            Conversation::Service { .. } => None,
        };
        async move {
            if let Some(room) = room {
                room.await;
            }
        }
    }

    /// Tells an attached caller, if there is one, what became of the command itself.
    fn tell(&self, event: ExecEvent) {
        if let Conversation::Command { attached: Some(attached) } = self {
            attached.relay.send(event);
        }
    }

    /// Shows an attached caller a piece of output; gives it back where it is to be recorded.
    fn show(&self, stream: OutputStream, bytes: Chunk) -> Option<Chunk> {
        let relay = match self {
            Conversation::Setup { attached: Some(Attached { relay, shown: RelayedOutput::All }) }
            | Conversation::Command {
                attached: Some(Attached { relay, shown: RelayedOutput::Command | RelayedOutput::All }),
            } => relay,
            _ => return Some(bytes),
        };
        relay.send(match stream {
            OutputStream::Stdout => ExecEvent::Stdout(bytes),
            OutputStream::Stderr => ExecEvent::Stderr(bytes),
        });
        None
    }
}

/// What the guest lacked while a command ran.
#[derive(Default)]
struct Shortage {
    /// The program that the kernel killed because memory ran out.
    out_of_memory: Option<String>,
    /// The mount point of a full file system.
    disk_full: Option<String>,
}

/// How a command ended: exit code, signal, and why it could not be started.
type End = (i32, Option<i32>, Option<String>);

impl Worker {
    /// Runs one command to its end; records what it prints, or passes it on.
    pub(super) async fn exec(
        &mut self,
        session: &SessionHandle,
        request: Request,
        mut conversation: Conversation<'_>,
    ) -> Result<RecordedResult, Trouble> {
        let started_at = Timestamp::now();
        let (from, mut to) = tokio::io::split(ask(session, &request).await?);
        let mut replies = MessageReader::new(from, REPLY_LIMIT);
        let mut late = pin!(sleep(START_DEADLINE));
        let (mut heard, mut room) = (false, false);
        let mut shortage = Shortage::default();
        let (exit_code, signal, start_error) = loop {
            let reply = tokio::select! {
                // Nothing more is read from the guest while an attached caller takes nothing.
                () = conversation.room(), if !room => {
                    room = true;
                    continue;
                }
                reply = replies.next(), if room => reply?,
                () = &mut late, if !heard => {
                    let seconds = START_DEADLINE.as_secs();
                    return Err(Trouble::Guest(format!("the guest started nothing for {seconds} s")));
                }
                input = conversation.next_input() => {
                    write_message(&mut to, &input, INPUT_LIMIT).await?;
                    continue;
                }
            };
            (heard, room) = (true, false);
            if let Some(end) = self.take(reply.ok_or_else(closed)?, &conversation, &mut shortage).await? {
                break end;
            }
        };
        let exited_at = Timestamp::now();
        let dropped_bytes = self.output.finish().map_err(not_stored)?;
        let Shortage { out_of_memory, disk_full } = shortage;
        Ok(RecordedResult {
            started_at,
            exited_at,
            exit_code,
            signal,
            start_error,
            dropped_bytes,
            out_of_memory,
            disk_full,
        })
    }

    /// What one event of the guest means; the end, if it is the last.
    async fn take(
        &mut self,
        event: ExecEvent,
        conversation: &Conversation<'_>,
        shortage: &mut Shortage,
    ) -> Result<Option<End>, Trouble> {
        match event {
            ExecEvent::Started => {
                conversation.tell(ExecEvent::Started);
                if let Conversation::Service { events, .. } = conversation {
                    let _ = events.send(Event::Serving).await;
                }
            }
            ExecEvent::StdinTaken(count) => conversation.tell(ExecEvent::StdinTaken(count)),
            ExecEvent::Stdout(bytes) => self.record(OutputStream::Stdout, bytes, conversation)?,
            ExecEvent::Stderr(bytes) => self.record(OutputStream::Stderr, bytes, conversation)?,
            // The machine ends with its process 1; the driver sees that.
            ExecEvent::Exited(Exit::PoweredOff | Exit::Restarted) => return std::future::pending().await,
            ExecEvent::Exited(exit) => {
                conversation.tell(ExecEvent::Exited(exit));
                return Ok(Some(match exit {
                    Exit::Signal(signal) => (128 + i32::from(signal), Some(i32::from(signal)), None),
                    Exit::Code(code) => (i32::from(code), None, None),
                    Exit::PoweredOff | Exit::Restarted => (0, None, None),
                }));
            }
            ExecEvent::OutOfMemory { program } => shortage.out_of_memory = Some(program),
            ExecEvent::DiskFull { mount } => shortage.disk_full = Some(mount),
            ExecEvent::NotStarted(error) => {
                conversation.tell(ExecEvent::NotStarted(error.clone()));
                let code = if error.kind == StartErrorKind::NotFound { 127 } else { 126 };
                return Ok(Some((code, None, Some(error.message))));
            }
        }
        Ok(None)
    }

    fn record(
        &mut self,
        stream: OutputStream,
        bytes: Chunk,
        conversation: &Conversation<'_>,
    ) -> Result<(), Trouble> {
        self.context.console.borrow_mut().append(&bytes);
        let Some(bytes) = conversation.show(stream, bytes) else { return Ok(()) };
        self.output.append(stream, &bytes).map_err(not_stored)
    }
}

fn not_stored(error: std::io::Error) -> Trouble {
    Trouble::Host(format!("what the command printed cannot be stored: {error}"))
}
