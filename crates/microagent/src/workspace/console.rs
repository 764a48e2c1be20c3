//! Sessions at the serial console of a machine.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use microagent_vm::control;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::{Workspace, refused};
use crate::Error;
use crate::error::Action;

/// Most bytes of one read.
const READ_BYTES: usize = 64 * 1024;

/// A session at the serial console: a [`Stream`] of the console's output from the start of the session, and its
/// input. Only one session is possible at a time; it ends when this is dropped.
#[derive(Debug)]
pub struct Console {
    output: OwnedReadHalf,
    keys: ConsoleKeys,
    buffer: Vec<u8>,
}

/// The input of a console.
#[derive(Debug)]
struct ConsoleKeys(OwnedWriteHalf);

impl Workspace {
    /// Opens the serial console of the machine.
    ///
    /// # Errors
    /// Fails if there is no machine, or another session uses its console.
    pub async fn console(&self) -> Result<Console, Error> {
        let record = self.observe()?;
        if !record.has_machine() {
            return Err(self.wrong_state(record.observed_state(), Action::Console));
        }
        match control::console(&self.existing()?).await {
            Ok(Ok(stream)) => {
                let (output, keys) = stream.into_split();
                Ok(Console { output, keys: ConsoleKeys(keys), buffer: vec![0; READ_BYTES] })
            }
            Ok(Err(refusal)) => Err(refused(&self.name, refusal, Action::Console)),
            Err(source) => Err(self.unreachable(Action::Console, source)),
        }
    }
}

impl Console {
    /// Waits for the next output; `None` when the machine has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// Sends input. Returns whether the machine still exists.
    pub async fn write(&mut self, keys: &[u8]) -> bool {
        self.keys.0.write_all(keys).await.is_ok()
    }
}

impl Stream for Console {
    type Item = Vec<u8>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Vec<u8>>> {
        let Console { output, buffer, .. } = self.get_mut();
        let mut read = ReadBuf::new(buffer);
        match ready!(Pin::new(output).poll_read(context, &mut read)) {
            Ok(()) if !read.filled().is_empty() => Poll::Ready(Some(read.filled().to_vec())),
            Ok(()) | Err(_) => Poll::Ready(None),
        }
    }
}
