//! Joins what a session writes in short succession to one write.
//!
//! Each write to the port of a guest is an interrupt of its own there, and each interrupt stops a virtual processor twice.
//! yamux writes a frame's header and body apart, and flushes after each frame.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use futures::{AsyncRead, AsyncWrite};

/// Most bytes that wait to be written. Larger pieces are written at once.
const BATCH_BYTES: usize = 4096;

/// Most times that a session lets others run before it writes what it has.
const TURNS: usize = 4;

/// A channel that writes only when the session says that nothing follows, when it is closed, or when its batch is full.
#[derive(Debug)]
pub(crate) struct Batched<S> {
    channel: S,
    batch: Vec<u8>,
    batching: Arc<Batching>,
}

/// The session's side of a [`Batched`] channel.
#[derive(Debug, Default)]
pub(crate) struct Batching {
    /// Bytes that wait to be written.
    waiting: AtomicUsize,
    /// Bytes that have ever been put into the batch.
    added: AtomicUsize,
    may_flush: AtomicBool,
}

/// How often a session has let others run, and what had been added by then.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    added: usize,
    count: usize,
}

impl Batching {
    /// Whether a session that has nothing more to do now should let others run first: they may have more to write.
    pub(crate) fn waits(&self, turns: &mut Turns) -> bool {
        let added = self.added.load(Ordering::Relaxed);
        let grew = std::mem::replace(&mut turns.added, added) != added;
        let waits = grew && self.waiting.load(Ordering::Relaxed) > 0 && turns.count < TURNS;
        turns.count = if waits { turns.count + 1 } else { 0 };
        waits
    }

    /// Lets the next flush write, or not.
    pub(crate) fn set_may_flush(&self, may_flush: bool) {
        self.may_flush.store(may_flush, Ordering::Relaxed);
    }
}

impl<S: AsyncWrite + Unpin> Batched<S> {
    /// Batches what is written to a channel.
    pub(crate) fn new(channel: S) -> (Batched<S>, Arc<Batching>) {
        let batching = Arc::new(Batching::default());
        (Batched { channel, batch: Vec::new(), batching: Arc::clone(&batching) }, batching)
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.batch.is_empty() {
            let written = ready!(Pin::new(&mut self.channel).poll_write(cx, &self.batch))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.batch.drain(..written);
            self.batching.waiting.store(self.batch.len(), Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Batched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.channel).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Batched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.batch.len() + data.len() > BATCH_BYTES {
            ready!(self.poll_drain(cx))?;
        }
        if data.len() > BATCH_BYTES {
            return Pin::new(&mut self.channel).poll_write(cx, data);
        }
        self.batch.extend_from_slice(data);
        self.batching.waiting.store(self.batch.len(), Ordering::Relaxed);
        self.batching.added.fetch_add(data.len(), Ordering::Relaxed);
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.batching.may_flush.load(Ordering::Relaxed) {
            // The session polls again before it waits for anything.
            return Poll::Pending;
        }
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.channel).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.channel).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// A channel that remembers each write, and takes at most so many bytes of one.
    #[derive(Default)]
    struct Writes {
        all: Vec<Vec<u8>>,
        most: usize,
    }

    impl AsyncWrite for Writes {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
            let taken = data.len().min(self.most);
            self.all.push(data[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn write(batched: &mut Batched<Writes>, data: &[u8]) {
        let mut cx = Context::from_waker(Waker::noop());
        let mut rest = data;
        while !rest.is_empty() {
            let Poll::Ready(written) = Pin::new(&mut *batched).poll_write(&mut cx, rest) else {
                panic!("it takes everything")
            };
            rest = &rest[written.unwrap()..];
        }
    }

    fn flush(batched: &mut Batched<Writes>) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        Pin::new(batched).poll_flush(&mut cx).is_ready()
    }

    #[test]
    fn what_is_written_before_a_flush_is_one_write() {
        let (mut batched, batching) = Batched::new(Writes { most: usize::MAX, ..Writes::default() });
        for piece in ["head", "body", "head"] {
            write(&mut batched, piece.as_bytes());
            assert!(!flush(&mut batched), "it is not allowed yet");
        }
        assert!(batched.channel.all.is_empty());
        batching.set_may_flush(true);
        assert!(flush(&mut batched));
        assert_eq!(batched.channel.all, [b"headbodyhead".to_vec()]);
        assert!(batched.batch.is_empty());
    }

    #[test]
    fn nothing_is_lost_or_exchanged_whatever_the_sizes() {
        let (mut batched, batching) = Batched::new(Writes { most: 1000, ..Writes::default() });
        batching.set_may_flush(true);
        let mut expected = Vec::new();
        for (number, length) in [1, 4096, 5, 4097, 12, 65_536, 12, 4000, 200].into_iter().enumerate() {
            let piece = vec![number as u8; length];
            write(&mut batched, &piece);
            expected.extend(piece);
        }
        assert!(batched.batch.len() <= BATCH_BYTES);
        assert!(flush(&mut batched));
        assert!(batched.channel.all.concat() == expected);
    }

    #[test]
    fn a_close_writes_what_waits() {
        let (mut batched, _) = Batched::new(Writes { most: usize::MAX, ..Writes::default() });
        write(&mut batched, b"last");
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut batched).poll_close(&mut cx).is_ready());
        assert_eq!(batched.channel.all, [b"last".to_vec()]);
    }

    #[test]
    fn a_session_waits_while_more_comes_and_not_for_ever() {
        let (mut batched, batching) = Batched::new(Writes { most: usize::MAX, ..Writes::default() });
        let mut turns = Turns::default();
        for _ in 0..2 {
            assert!(!batching.waits(&mut turns), "nothing waits");
            write(&mut batched, b"one");
            assert!(batching.waits(&mut turns));
            assert!(!batching.waits(&mut turns), "nothing was added");
            let mut waited = 0;
            loop {
                write(&mut batched, b"more");
                if !batching.waits(&mut turns) {
                    break;
                }
                waited += 1;
            }
            assert_eq!(waited, TURNS);
            batching.set_may_flush(true);
            assert!(flush(&mut batched));
        }
        // Who has written everything does not wait.
        write(&mut batched, &[0; 2 * BATCH_BYTES]);
        assert!(!batching.waits(&mut turns));
    }
}
