//! The protocol over standard input and output, as clients start servers.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use microagent::{CancellationToken, Engine};
use rmcp::service::{ServerInitializeError, serve_server_with_ct};
use rmcp::transport::async_rw::AsyncRwTransport;
use rmcp::transport::stdio_pipes;
use tokio::io::{AsyncRead, ReadBuf};

use crate::Policy;
use crate::error::ServeError;
use crate::server::{MESSAGE_LIMIT, Server};

/// Most characters of what a client sent that an error repeats.
const SHOWN: usize = 200;

/// Serves the client at the other end of standard input and output, until it closes its end or `cancel` is cancelled.
/// Then commands in progress are killed, and workspaces deleted as the policy says.
///
/// # Errors
/// Fails when the client does not speak the protocol, or workspaces could not be deleted.
///
/// # Source
/// Model Context Protocol, "Transports", stdio: messages are lines; nothing else is written to standard output.
pub async fn serve_stdio(
    engine: Engine,
    policy: Policy,
    cancel: CancellationToken,
) -> Result<(), ServeError> {
    let server = Server::new(engine, policy)?;
    let (read, write) = stdio_pipes();
    let read = EndReporter { read, ended: server.shutdown().clone() };
    let transport = AsyncRwTransport::new_server(read, write).with_max_line_length(MESSAGE_LIMIT);
    let served = match serve_server_with_ct(server.clone(), transport, cancel.clone()).await {
        Ok(running) => running.waiting().await.map(drop).map_err(|error| error.to_string()),
        Err(ServerInitializeError::Cancelled) => Ok(()),
        // A client that closes without having said anything has changed its mind.
        Err(_) if server.shutdown().is_cancelled() || cancel.is_cancelled() => Ok(()),
        Err(error) => Err(error.to_string()),
    };
    let finished = server.finish().await;
    served.map_err(|reason| ServeError::Protocol { reason: reason.chars().take(SHOWN).collect() })?;
    finished
}

/// Reports the end of what it reads, for which work that nobody waits for any more is not to wait.
struct EndReporter<R> {
    read: R,
    ended: CancellationToken,
}

impl<R: AsyncRead + Unpin> AsyncRead for EndReporter<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.read).poll_read(context, buffer);
        let is_over = match &read {
            Poll::Ready(Ok(())) => buffer.filled().len() == before && buffer.remaining() > 0,
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        if is_over {
            self.ended.cancel();
        }
        read
    }
}
