//! A client of QEMU's machine protocol: one JSON document per line in each direction.
//!
//! A hostile guest may have taken over QEMU. So the length of lines is limited, events that are not fetched are
//! dropped, and the caller sets a deadline for every wait.
//!
//! # Source
//! QEMU's `docs/interop/qmp-spec`.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::argv::FdSet;

/// Longest line in bytes; most have a few hundred.
const LINE_LIMIT: u64 = 1024 * 1024;

/// Most lines to skip before an answer.
const SKIP_LIMIT: usize = 10_000;

/// Most events that are kept for [`Qmp::next_event`]; further ones replace the oldest.
const EVENT_LIMIT: usize = 256;

/// Why a command of the monitor failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QmpError {
    /// QEMU closed the monitor, because it ends or has ended.
    #[error("QEMU closed its monitor")]
    Closed,
    /// The monitor's socket failed.
    #[error("QEMU's monitor broke")]
    Transport(#[source] io::Error),
    /// A line is too long or violates the protocol.
    #[error("QEMU's monitor sent something that is not QMP")]
    Malformed,
    /// QEMU refused the command.
    #[error("QEMU refused `{command}`: {description}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's message.
        description: String,
    },
}

/// An event of QEMU.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Name of the event, such as `BLOCK_IO_ERROR`.
    pub name: String,
    /// Data of the event.
    pub data: Value,
}

/// A monitor in command mode.
#[derive(Debug)]
pub struct Qmp {
    lines: BufReader<OwnedReadHalf>,
    partial: Vec<u8>,
    commands: OwnedWriteHalf,
    events: VecDeque<Event>,
    next_id: u64,
}

impl Qmp {
    /// Reads QEMU's greeting and enters command mode.
    ///
    /// # Errors
    /// Fails if the socket fails or the other side is not a QMP server.
    pub async fn negotiate(stream: UnixStream) -> Result<Qmp, QmpError> {
        let (reader, commands) = stream.into_split();
        let mut qmp = Qmp {
            lines: BufReader::new(reader),
            partial: Vec::new(),
            commands,
            events: VecDeque::new(),
            next_id: 0,
        };
        if qmp.read_line().await?.get("QMP").is_none() {
            return Err(QmpError::Malformed);
        }
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Executes one command and returns its `return` value.
    ///
    /// # Errors
    /// Fails if QEMU refuses the command or the monitor fails.
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let (id, line) = self.line(command, &arguments);
        self.commands.write_all(line.as_bytes()).await.map_err(QmpError::Transport)?;
        self.answer(command, id).await
    }

    /// Passes QEMU a descriptor with a name that later commands use.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn getfd(&mut self, name: &str, fd: BorrowedFd<'_>) -> Result<(), QmpError> {
        self.send_fd("getfd", &json!({ "fdname": name }), fd).await
    }

    /// Passes QEMU a descriptor for a set; later commands open the set by its name.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn add_fd(&mut self, set: FdSet, fd: BorrowedFd<'_>) -> Result<(), QmpError> {
        self.send_fd("add-fd", &json!({ "fdset-id": set.0 }), fd).await
    }

    /// Removes a set; files that were opened from it stay open.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn remove_fd(&mut self, set: FdSet) -> Result<(), QmpError> {
        self.execute("remove-fd", json!({ "fdset-id": set.0 })).await.map(drop)
    }

    async fn send_fd(
        &mut self,
        command: &str,
        arguments: &Value,
        fd: BorrowedFd<'_>,
    ) -> Result<(), QmpError> {
        let (id, line) = self.line(command, arguments);
        let socket: &UnixStream = self.commands.as_ref();
        let sent = socket.async_io(Interest::WRITABLE, || send_with_fd(socket, line.as_bytes(), fd)).await;
        if sent.map_err(QmpError::Transport)? != line.len() {
            // A monitor that is not read from does not take even this short line.
            return Err(QmpError::Transport(io::ErrorKind::WriteZero.into()));
        }
        self.answer(command, id).await.map(drop)
    }

    fn line(&mut self, command: &str, arguments: &Value) -> (u64, String) {
        self.next_id += 1;
        let mut line = json!({ "execute": command, "arguments": arguments, "id": self.next_id }).to_string();
        line.push('\n');
        (self.next_id, line)
    }

    /// Reads up to the answer with this id; keeps events that arrive before it.
    async fn answer(&mut self, command: &str, id: u64) -> Result<Value, QmpError> {
        for _ in 0..SKIP_LIMIT {
            let mut answer = self.read_line().await?;
            if let Some(event) = event(&answer) {
                self.keep(event);
            } else if answer["id"] == id {
                return match answer.get("error") {
                    None => Ok(answer["return"].take()),
                    Some(error) => Err(QmpError::Refused {
                        command: command.to_owned(),
                        description: error["desc"].as_str().unwrap_or_default().to_owned(),
                    }),
                };
            }
        }
        Err(QmpError::Malformed)
    }

    /// Waits for the next event. Cancel-safe: no data is lost if the future is dropped.
    ///
    /// # Errors
    /// Fails if the monitor fails or ends.
    pub async fn next_event(&mut self) -> Result<Event, QmpError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            let line = self.read_line().await?;
            if let Some(event) = event(&line) {
                return Ok(event);
            }
        }
    }

    fn keep(&mut self, event: Event) {
        if self.events.len() == EVENT_LIMIT {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Keeps an incomplete line in `partial`, so that no data is lost if the future is dropped.
    async fn read_line(&mut self) -> Result<Value, QmpError> {
        let room = LINE_LIMIT.saturating_sub(self.partial.len() as u64);
        let read = (&mut self.lines).take(room).read_until(b'\n', &mut self.partial).await;
        read.map_err(QmpError::Transport)?;
        if self.partial.last() != Some(&b'\n') {
            let full = self.partial.len() as u64 >= LINE_LIMIT;
            return Err(if full { QmpError::Malformed } else { QmpError::Closed });
        }
        let line = std::mem::take(&mut self.partial);
        serde_json::from_slice(&line).map_err(|_| QmpError::Malformed)
    }
}

fn send_with_fd(socket: &UnixStream, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

fn event(line: &Value) -> Option<Event> {
    let name = line.get("event")?.as_str()?.to_owned();
    Some(Event { name, data: line.get("data").cloned().unwrap_or(Value::Null) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Acts as QEMU: sends the greeting, then answers each line with the given lines.
    fn qemu(answers: &'static [&'static str]) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let (reader, mut writer) = theirs.into_split();
            let mut lines = BufReader::new(reader).lines();
            writer.write_all(b"{\"QMP\": {\"version\": {}}}\n").await.unwrap();
            lines.next_line().await.unwrap();
            writer.write_all(b"{\"return\": {}, \"id\": 1}\n").await.unwrap();
            for answer in answers {
                lines.next_line().await.unwrap();
                writer.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        ours
    }

    #[tokio::test]
    async fn answers_are_matched_and_events_kept() {
        let stream = qemu(&[
            "{\"event\": \"STOP\"}\n{\"return\": 1, \"id\": 99}\n{\"return\": {\"running\": true}, \"id\": 2}\n",
        ]);
        let mut qmp = Qmp::negotiate(stream).await.unwrap();
        let status = qmp.execute("query-status", json!({})).await.unwrap();
        assert_eq!(status["running"], true);
        assert_eq!(qmp.next_event().await.unwrap().name, "STOP");
    }

    #[tokio::test]
    async fn a_refusal_carries_the_words_of_qemu() {
        let mut qmp =
            Qmp::negotiate(qemu(&["{\"error\": {\"class\": \"X\", \"desc\": \"no such\"}, \"id\": 2}\n"]))
                .await
                .unwrap();
        let refused = qmp.execute("cont", json!({})).await.unwrap_err();
        assert_eq!(refused.to_string(), "QEMU refused `cont`: no such");
    }

    #[tokio::test]
    async fn an_end_and_an_endless_line_are_errors() {
        let mut qmp = Qmp::negotiate(qemu(&[])).await.unwrap();
        assert!(matches!(qmp.next_event().await, Err(QmpError::Closed)));

        let (ours, theirs) = UnixStream::pair().unwrap();
        let flood = tokio::spawn(async move {
            let (_reader, mut writer) = theirs.into_split();
            while writer.write_all(&[b'x'; 65536]).await.is_ok() {}
        });
        assert!(matches!(Qmp::negotiate(ours).await, Err(QmpError::Malformed)));
        flood.await.unwrap();
    }
}
