//! Many streams over one channel: yamux, with its memory bounded.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, ConnectionError, Mode};

use crate::batch::{Batched, Batching, Turns};

/// Most streams at a time.
pub const SESSION_STREAM_LIMIT: usize = 64;

/// Bytes that yamux lets a stream have in flight towards one side from the start.
pub(crate) const STREAM_WINDOW: usize = 256 * 1024;

/// Bytes that all streams together may have in flight towards one side: yamux grants each stream 256 KiB
/// from the start, so this is the smallest bound that it accepts.
const RECEIVE_WINDOW_LIMIT: usize = SESSION_STREAM_LIMIT * STREAM_WINDOW;

/// Largest payload of one yamux frame, in bytes.
const FRAME_PAYLOAD: usize = 64 * 1024;

/// Streams that were opened by the other side and wait to be taken: all that there can be.
const BACKLOG: usize = SESSION_STREAM_LIMIT;

/// A stream of a session.
pub type Stream = Compat<yamux::Stream>;

/// Why a session ended or a stream could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The channel broke or the other side broke the protocol.
    #[error("the control channel failed")]
    Connection(#[source] ConnectionError),
    /// The session is over.
    #[error("the control channel is closed")]
    Closed,
}

/// Opens streams. Cheap to clone; the session ends when all handles are gone.
#[derive(Debug, Clone)]
pub struct SessionHandle {
    requests: mpsc::Sender<oneshot::Sender<Result<Stream, SessionError>>>,
}

impl SessionHandle {
    /// Opens a stream. Waits while [`SESSION_STREAM_LIMIT`] are open.
    ///
    /// # Errors
    /// Fails when the session is over.
    pub async fn open(&self) -> Result<Stream, SessionError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(reply).await.map_err(|_| SessionError::Closed)?;
        answer.await.map_err(|_| SessionError::Closed)?
    }
}

/// Streams that the other side opened.
pub type Incoming = mpsc::Receiver<Stream>;

fn config() -> Config {
    let mut config = Config::default();
    config.set_max_num_streams(SESSION_STREAM_LIMIT);
    config.set_max_connection_receive_window(Some(RECEIVE_WINDOW_LIMIT));
    config.set_split_send_size(FRAME_PAYLOAD);
    config
}

/// Starts the host's side over a channel on which the preamble has been answered. The future drives the
/// session and must be polled (spawned) for anything to happen; it ends with the session.
///
/// Streams that the guest opens are dropped: it has nothing to ask for.
pub fn host_session<S>(channel: S) -> (SessionHandle, impl Future<Output = Result<(), SessionError>> + Send)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (channel, batching) = Batched::new(channel.compat());
    let connection = Connection::new(channel, config(), Mode::Client);
    let (requests, receiver) = mpsc::channel(1);
    (SessionHandle { requests }, drive(connection, batching, receiver, None))
}

/// Starts the guest's side; streams that the host opens come out of [`Incoming`]. The future drives the
/// session as with [`host_session`].
pub fn guest_session<S>(channel: S) -> (Incoming, impl Future<Output = Result<(), SessionError>> + Send)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (channel, batching) = Batched::new(channel.compat());
    let connection = Connection::new(channel, config(), Mode::Server);
    let (accepted, incoming) = mpsc::channel(BACKLOG);
    let (_, receiver) = mpsc::channel(1);
    (incoming, drive(connection, batching, receiver, Some(accepted)))
}

/// One task owns the connection; this is its loop.
async fn drive<T>(
    mut connection: Connection<T>,
    batching: Arc<Batching>,
    mut requests: mpsc::Receiver<oneshot::Sender<Result<Stream, SessionError>>>,
    accepted: Option<mpsc::Sender<Stream>>,
) -> Result<(), SessionError>
where
    T: futures::AsyncRead + futures::AsyncWrite + Unpin,
{
    let (mut pending, mut turns) = (None, Turns::default());
    let ended = poll_fn(|cx| {
        batching.set_may_flush(false);
        let ended = poll(&mut connection, &mut requests, &mut pending, accepted.as_ref(), cx);
        if ended.is_ready() {
            return ended;
        }
        if batching.waits(&mut turns) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        batching.set_may_flush(true);
        poll(&mut connection, &mut requests, &mut pending, accepted.as_ref(), cx)
    })
    .await;
    // Whoever still waits for a stream learns of the end by the dropped sender.
    drop(pending);
    ended
}

type StreamReply = oneshot::Sender<Result<Stream, SessionError>>;

fn poll<T>(
    connection: &mut Connection<T>,
    requests: &mut mpsc::Receiver<StreamReply>,
    pending: &mut Option<StreamReply>,
    accepted: Option<&mpsc::Sender<Stream>>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), SessionError>>
where
    T: futures::AsyncRead + futures::AsyncWrite + Unpin,
{
    loop {
        let mut progress = false;
        if pending.is_none() && accepted.is_none() {
            match Pin::new(&mut *requests).poll_recv(cx) {
                Poll::Ready(Some(reply)) => *pending = Some(reply),
                Poll::Ready(None) => return connection.poll_close(cx).map_err(SessionError::Connection),
                Poll::Pending => {}
            }
        }
        if let Some(reply) = pending.take() {
            match connection.poll_new_outbound(cx) {
                Poll::Ready(opened) => {
                    // The asker may have gone; the stream is reset by its drop then.
                    let _ = reply.send(opened.map(|s| s.compat()).map_err(SessionError::Connection));
                    progress = true;
                }
                Poll::Pending => *pending = Some(reply),
            }
        }
        match connection.poll_next_inbound(cx) {
            Poll::Ready(Some(Ok(stream))) => {
                if let Some(accepted) = accepted {
                    // A full backlog drops (resets) the stream: the other side asked for too much at once.
                    let _ = accepted.try_send(stream.compat());
                }
                progress = true;
            }
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(SessionError::Connection(error))),
            Poll::Ready(None) => return Poll::Ready(Ok(())),
            Poll::Pending => {}
        }
        if !progress {
            return Poll::Pending;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn megabytes_go_both_ways_over_several_streams() {
        let (host, guest) = tokio::io::duplex(8192);
        let (handle, host_driver) = host_session(host);
        let (mut incoming, guest_driver) = guest_session(guest);
        let drivers = tokio::spawn(async { tokio::join!(host_driver, guest_driver) });
        let echo = tokio::spawn(async move {
            while let Some(stream) = incoming.recv().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = tokio::io::split(stream);
                    tokio::io::copy(&mut from, &mut to).await.unwrap();
                    to.shutdown().await.unwrap();
                });
            }
        });
        let mut asking = Vec::new();
        for number in 0..8u8 {
            let handle = handle.clone();
            asking.push(tokio::spawn(async move {
                let (mut from, mut to) = tokio::io::split(handle.open().await.unwrap());
                let sent = vec![number; 1 << 20];
                let writing = async {
                    to.write_all(&sent).await.unwrap();
                    to.shutdown().await.unwrap();
                };
                let mut back = Vec::new();
                let reading = from.read_to_end(&mut back);
                let ((), read) = tokio::join!(writing, reading);
                read.unwrap();
                assert!(back == sent);
            }));
        }
        for task in asking {
            task.await.unwrap();
        }
        drop(handle);
        let (host_end, _) = drivers.await.unwrap();
        host_end.unwrap();
        echo.await.unwrap();
    }

    #[tokio::test]
    async fn rubbish_in_place_of_a_session_is_an_error() {
        let (host, mut guest) = tokio::io::duplex(8192);
        let (_handle, driver) = host_session(host);
        guest.write_all(&[0xff; 4096]).await.unwrap();
        assert!(driver.await.is_err());
    }

    #[tokio::test]
    async fn a_closed_channel_fails_the_asker() {
        let (host, guest) = tokio::io::duplex(8192);
        let (handle, driver) = host_session(host);
        drop(guest);
        let driver = tokio::spawn(driver);
        let _ = driver.await.unwrap();
        assert!(handle.open().await.is_err());
    }
}
