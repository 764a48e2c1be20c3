//! Bodies on their way through: counted, not kept, and ended when nothing moves.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Duration, Instant, Sleep, sleep};

/// How long a body that is waited for may send nothing. Streams that move have no limit.
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(600);

/// Why a body is cut off.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Bytes that were passed on, and when the last ones were.
#[derive(Debug)]
pub(crate) struct Progress {
    begun: Instant,
    bytes: AtomicU64,
    /// Milliseconds after `begun`.
    last: AtomicU64,
}

impl Progress {
    pub(crate) fn new() -> Arc<Progress> {
        Arc::new(Progress { begun: Instant::now(), bytes: AtomicU64::new(0), last: AtomicU64::new(0) })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// When something moved last.
    pub(crate) fn last(&self) -> Instant {
        self.begun + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }

    pub(crate) fn milliseconds(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn count(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.last.store(self.milliseconds(), Ordering::Relaxed);
    }
}

/// A body that is passed on as it comes. `T` is dropped with it.
pub(crate) struct Passed<T> {
    inner: Incoming,
    progress: Arc<Progress>,
    idle: Pin<Box<Sleep>>,
    _held: T,
}

impl<T> Passed<T> {
    pub(crate) fn new(inner: Incoming, progress: Arc<Progress>, held: T) -> Passed<T> {
        Passed { inner, progress, idle: Box::pin(sleep(IDLE_MAX)), _held: held }
    }
}

impl<T: Unpin> Body for Passed<T> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        loop {
            let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(context) else {
                ready!(this.idle.as_mut().poll(context));
                return Poll::Ready(Some(Err("nothing has moved for too long".into())));
            };
            this.idle.as_mut().reset(Instant::now() + IDLE_MAX);
            match frame {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                // Trailers are headers of a connection's framing; they end here.
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        this.progress.count(data.len());
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
