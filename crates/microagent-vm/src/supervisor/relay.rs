//! The stream between the caller of a run and the command that it is attached to.
//! The supervisor communicates with the guest, records output for `logs`, and knows the result. The caller receives
//! the same events in the same protocol as a client of `exec`, and sends the same inputs. A caller that reads slowly
//! blocks the command, but not the signals that it sends.

use std::io;
use std::os::fd::AsFd;

use microagent_proto::{ExecEvent, ExecInput, INPUT_LIMIT, MessageReader, REPLY_LIMIT, write_message};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_local};

use super::tether_stream;

/// Length of the queue of events for the caller.
const QUEUE: usize = 2;

/// The supervisor's end of the stream.
pub(super) struct Relay {
    /// The caller's inputs; `None` after the last one.
    inputs: Option<MessageReader<OwnedReadHalf>>,
    events: mpsc::Sender<ExecEvent>,
    writing: JoinHandle<()>,
}

impl Relay {
    /// Takes the stream that the caller has left as standard output. Needs a [`tokio::task::LocalSet`].
    pub(super) fn take_stdout() -> io::Result<Relay> {
        let stream = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
        let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(null.as_fd())?;
        let (from, to) = tether_stream(stream)?.into_split();
        let (events, queued) = mpsc::channel(QUEUE);
        Ok(Relay {
            inputs: Some(MessageReader::new(from, INPUT_LIMIT)),
            events,
            writing: spawn_local(write_all(to, queued)),
        })
    }

    /// Waits for the caller's next input; for ever once there is none.
    pub(super) async fn next_input(&mut self) -> ExecInput {
        if let Some(inputs) = &mut self.inputs
            && let Ok(Some(input)) = inputs.next().await
        {
            return input;
        }
        // It has ended its direction or is gone, which its tether tells.
        self.inputs = None;
        std::future::pending().await
    }

    /// Waits until one more event can be sent.
    pub(super) fn room(&self) -> impl Future<Output = ()> + use<> {
        let events = self.events.clone();
        async move {
            // A caller that is gone needs none.
            let _ = events.reserve().await;
        }
    }

    /// Sends an event for which there is room. A caller that is gone gets none.
    pub(super) fn send(&self, event: ExecEvent) {
        let _ = self.events.try_send(event);
    }

    /// Waits until the caller has everything.
    pub(super) async fn finish(self) {
        drop(self.events);
        let _ = self.writing.await;
    }
}

async fn write_all(mut to: OwnedWriteHalf, mut queued: mpsc::Receiver<ExecEvent>) {
    while let Some(event) = queued.recv().await {
        if write_message(&mut to, &event, REPLY_LIMIT).await.is_err() {
            return;
        }
    }
}
