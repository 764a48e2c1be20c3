//! The push half of the registry protocol: blobs first, each unless it is there, then the manifest.
//!
//! A blob goes in one piece (`POST`, then `PUT` with the whole content), the way that every registry takes; it
//! is read from disk as the network takes it. What the client's read timeout is for answers, [`Sent`] is for
//! sending: an upload that makes no progress is given up.
//!
//! # Source
//! OCI distribution specification 1.1, "Pushing blobs", "Mounting a blob from another repository".

use std::io::{self, Read};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use microagent_store::{Access, open_file};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use reqwest::{Response, StatusCode, Url};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, interval};

use super::Registry;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::manifest::{Descriptor, MANIFEST_LIMIT};

/// Bytes that are read from disk at once.
const PIECE: usize = 256 * 1024;
/// Pieces that wait for the network.
const QUEUE: usize = 4;
/// How often progress is told and a standstill looked for.
const TICK: Duration = Duration::from_millis(100);
/// For the registry's last word on a blob: it may hash gigabytes before it answers.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5 * 60);

/// How a blob came to be at the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It was sent.
    Sent,
    /// It was there, in this repository or another.
    Present,
}

impl Registry<'_> {
    /// Whether the repository has a blob.
    async fn has_blob(&self, blob: &Descriptor) -> Result<bool, ImageError> {
        let url = self.url(&format!("blobs/{}", blob.digest));
        let what = || format!("blob {}", blob.digest);
        self.within_deadline(what, async {
            let response = self.send(|http| http.head(url.clone())).await?;
            if response.status() == StatusCode::NOT_FOUND {
                return Ok(false);
            }
            self.expect(response, &[StatusCode::OK], &what()).await.map(|_| true)
        })
        .await
    }

    /// Makes sure that the repository has a blob. `elsewhere` is another repository of the registry that may
    /// have it; `told` hears how many bytes are there.
    pub(crate) async fn put_blob(
        &self,
        blob: &Descriptor,
        file: &Path,
        elsewhere: Option<&str>,
        stall: Duration,
        told: impl Fn(u64),
    ) -> Result<Arrival, ImageError> {
        if self.has_blob(blob).await? {
            return Ok(Arrival::Present);
        }
        let what = || format!("upload of {}", blob.digest);
        let mut start = self.url("blobs/uploads/");
        if let Some(repository) = elsewhere {
            let mount = [("mount", blob.digest.as_str()), ("from", repository)];
            start.query_pairs_mut().extend_pairs(mount);
        }
        let opened = self.within_deadline(what, async {
            let response = self.send(|http| http.post(start.clone()).header(CONTENT_LENGTH, 0)).await?;
            self.expect(response, &[StatusCode::CREATED, StatusCode::ACCEPTED], &what()).await
        });
        let response = opened.await?;
        if response.status() == StatusCode::CREATED {
            return Ok(Arrival::Present);
        }
        let mut location = self.location(&response)?;
        location.query_pairs_mut().append_pair("digest", blob.digest.as_str());
        let response = self.stream(blob, file, &location, stall, told).await?;
        self.expect(response, &[StatusCode::CREATED, StatusCode::NO_CONTENT], &what()).await?;
        Ok(Arrival::Sent)
    }

    /// Sends a manifest under a tag.
    pub(crate) async fn put_manifest(
        &self,
        tag: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<(), ImageError> {
        debug_assert!(bytes.len() as u64 <= MANIFEST_LIMIT, "a manifest that was read was not larger");
        let url = self.url(&format!("manifests/{tag}"));
        let what = || format!("manifest `{tag}`");
        let response = self
            .within_deadline(what, async {
                let put = |http: &reqwest::Client| {
                    http.put(url.clone()).header(CONTENT_TYPE, media_type).body(bytes.to_vec())
                };
                let response = self.send(put).await?;
                self.expect(response, &[StatusCode::CREATED, StatusCode::OK], &what()).await
            })
            .await?;
        let expected = Digest::of(bytes);
        let stated = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        match stated.and_then(|stated| stated.parse::<Digest>().ok()) {
            Some(actual) if actual != expected => {
                Err(ImageError::WrongDigest { what: what(), expected, actual })
            }
            _ => Ok(()),
        }
    }

    /// Where the registry wants the content: on itself or on a host of its choice, but never in the clear when
    /// the registry itself is not.
    fn location(&self, response: &Response) -> Result<Url, ImageError> {
        let protocol = |detail: &str| ImageError::Protocol {
            registry: self.name().to_owned(),
            detail: detail.to_owned(),
        };
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.and_then(|location| response.url().join(location).ok());
        let location = location.ok_or_else(|| protocol("it does not say where to upload to"))?;
        match location.scheme() {
            "https" => Ok(location),
            "http" if self.base.scheme() == "http" => Ok(location),
            _ => Err(protocol("it wants an upload that is not over https")),
        }
    }

    /// Sends the content and waits for the answer, as long as something moves.
    async fn stream(
        &self,
        blob: &Descriptor,
        file: &Path,
        location: &Url,
        stall: Duration,
        told: impl Fn(u64),
    ) -> Result<Response, ImageError> {
        let sent = Arc::new(AtomicU64::new(0));
        // The login is for the registry, not for a host that it names.
        let ours = location.origin() == self.base.origin();
        let request = |http: &reqwest::Client| {
            sent.store(0, Ordering::Relaxed);
            http.put(location.clone())
                .header(CONTENT_TYPE, "application/octet-stream")
                .body(reqwest::Body::wrap(Sent::open(file, blob.size, Arc::clone(&sent))))
        };
        let sending =
            async { if ours { self.send(request).await } else { self.try_send(&request, None).await } };
        let mut sending = std::pin::pin!(sending);
        let (mut ticks, mut seen, mut moved) = (interval(TICK), 0, Instant::now());
        loop {
            tokio::select! {
                response = &mut sending => return response,
                _ = ticks.tick() => {}
            }
            let now = sent.load(Ordering::Relaxed);
            if now != seen {
                (seen, moved) = (now, Instant::now());
                told(now);
            }
            let patience = if now == blob.size { stall.max(ANSWER_DEADLINE) } else { stall };
            if moved.elapsed() > patience {
                return Err(ImageError::ClosedEarly { registry: self.name().to_owned() });
            }
        }
    }
}

/// A file on its way out. One blocking thread reads it, at most [`QUEUE`] pieces ahead of the network.
struct Sent {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    left: u64,
    sent: Arc<AtomicU64>,
}

impl Sent {
    fn open(path: &Path, size: u64, sent: Arc<AtomicU64>) -> Sent {
        let (sender, pieces) = mpsc::channel(QUEUE);
        let path = path.to_owned();
        spawn_blocking(move || {
            let read = || -> io::Result<()> {
                let mut file = open_file(&path, Access::Read)?.take(size);
                loop {
                    let mut piece = Vec::with_capacity(PIECE);
                    (&mut file).take(PIECE as u64).read_to_end(&mut piece)?;
                    // The receiver goes when the request does.
                    if piece.is_empty() || sender.blocking_send(Ok(piece.into())).is_err() {
                        return Ok(());
                    }
                }
            };
            if let Err(error) = read() {
                let _ = sender.blocking_send(Err(error));
            }
        });
        Sent { pieces, left: size, sent }
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.pieces.poll_recv(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(piece))) => {
                self.left = self.left.saturating_sub(piece.len() as u64);
                self.sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error))),
            Poll::Ready(None) if self.left > 0 => {
                self.left = 0;
                Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())))
            }
            Poll::Ready(None) => Poll::Ready(None),
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
