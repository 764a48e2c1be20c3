//! Standard output and standard error, written on a thread of their own.
//!
//! Whoever reads our output may stop reading for any time, and a write then waits as long. The thread waits; what else a
//! command does (time limits, signals, its end) continues.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use microagent::{CancellationToken, Error, OutputStream, Streaming};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use crate::documents::stream::StreamLine;
use crate::failure::Failure;
use crate::output::Format;

/// Pieces that wait to be written.
const QUEUE: usize = 4;

/// How long a reader may take nothing before it counts as stalled for whoever asks.
pub(crate) const STALL: Duration = Duration::from_millis(700);

/// A piece of output.
struct Piece {
    stream: OutputStream,
    bytes: Vec<u8>,
}

/// The writing end. Dropping it abandons what is not written yet.
pub(crate) struct Writer {
    pieces: mpsc::Sender<Piece>,
    ended: oneshot::Receiver<io::Result<()>>,
    meter: WriteMeter,
}

/// Tells whether the reader of the output takes it.
#[derive(Clone)]
pub(crate) struct WriteMeter {
    handed_in: Arc<AtomicU64>,
    written: Arc<AtomicU64>,
}

impl Writer {
    /// Starts the thread. It ends with this process.
    pub(crate) fn start() -> io::Result<Writer> {
        let (pieces, received) = mpsc::channel(QUEUE);
        let (report, ended) = oneshot::channel();
        let meter = WriteMeter { handed_in: Arc::default(), written: Arc::default() };
        let written = Arc::clone(&meter.written);
        thread::Builder::new().name("output".to_owned()).spawn(move || {
            // Nobody is left to be told when the other end is gone.
            let _ = report.send(write_all(received, &written));
        })?;
        Ok(Writer { pieces, ended, meter })
    }

    /// Tells, while this end is in use, whether the reader takes anything.
    pub(crate) fn meter(&self) -> WriteMeter {
        self.meter.clone()
    }

    /// Hands a piece in; waits while the reader is slow.
    pub(crate) async fn write(&mut self, stream: OutputStream, bytes: Vec<u8>) -> Result<(), Failure> {
        self.meter.handed_in.fetch_add(1, Ordering::Relaxed);
        match self.pieces.send(Piece { stream, bytes }).await {
            Ok(()) => Ok(()),
            Err(_) => self.outcome().await,
        }
    }

    /// Waits until everything is written.
    pub(crate) async fn finish(mut self) -> Result<(), Failure> {
        // The thread ends with its last piece.
        self.pieces = mpsc::channel(1).0;
        self.outcome().await
    }

    async fn outcome(&mut self) -> Result<(), Failure> {
        match (&mut self.ended).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(Failure::Other { message: "the output was interrupted".to_owned(), hint: None }),
        }
    }
}

impl WriteMeter {
    /// Waits for [`STALL`], and says whether something waited to be written all the time and nothing was.
    pub(crate) async fn is_stalled(&self) -> bool {
        self.is_unchanged(|| self.waits()).await
    }

    /// As [`WriteMeter::is_stalled`], also at the moment in which nothing waits but would have to.
    pub(crate) async fn would_stall(&self) -> bool {
        self.is_unchanged(|| self.waits() || !has_room()).await
    }

    fn waits(&self) -> bool {
        self.handed_in.load(Ordering::Relaxed) > self.written.load(Ordering::Relaxed)
    }

    async fn is_unchanged(&self, is_held: impl Fn() -> bool) -> bool {
        let before = self.written.load(Ordering::Relaxed);
        let was_held = is_held();
        sleep(STALL).await;
        was_held && is_held() && self.written.load(Ordering::Relaxed) == before
    }
}

/// Whether standard output has room. What cannot be asked is not in the way.
fn has_room() -> bool {
    let stdout = io::stdout();
    let mut end = [PollFd::new(&stdout, PollFlags::OUT)];
    !matches!(poll(&mut end, Some(&Timespec::default())), Ok(0))
}

fn write_all(mut pieces: mpsc::Receiver<Piece>, written: &AtomicU64) -> io::Result<()> {
    while let Some(Piece { stream, bytes }) = pieces.blocking_recv() {
        match stream {
            OutputStream::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(&bytes)?;
                out.flush()?;
            }
            OutputStream::Stderr => io::stderr().lock().write_all(&bytes)?,
        }
        written.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Writes items to standard output as lines of `--json=stream`, as [`pass_on`] does.
pub(crate) async fn pass_on_lines<T>(
    items: &mut Streaming<T>,
    line: impl Fn(T) -> StreamLine,
    token: &CancellationToken,
) -> Result<(), Failure> {
    let bytes = |item| line(item).to_bytes().expect("lines are plain data");
    pass_on(items, bytes, token).await
}

/// Writes items to standard output as they come, until there are no more or the token is cancelled.
pub(crate) async fn pass_on<T>(
    items: &mut Streaming<T>,
    bytes: impl Fn(T) -> Vec<u8>,
    token: &CancellationToken,
) -> Result<(), Failure> {
    let mut writer = Writer::start()?;
    let passing = async {
        while let Some(item) = items.next().await {
            writer.write(OutputStream::Stdout, bytes(item?)).await?;
        }
        writer.finish().await
    };
    tokio::select! {
        passed = passing => passed,
        () = token.cancelled() => Err(Error::Cancelled.into()),
    }
}

/// Writes a tar stream of a workspace to standard output. A machine that was booted for it shuts down cleanly, whatever
/// becomes of the reader.
pub(crate) async fn pass_on_to_its_end(
    mut stream: Streaming<Vec<u8>>,
    token: &CancellationToken,
) -> Result<(), Failure> {
    let passed = pass_on(&mut stream, |bytes| bytes, token).await;
    token.cancel();
    while stream.next().await.is_some() {}
    passed
}

/// Refuses a tar stream on standard output that nothing could read: on a terminal, or mixed with a JSON document.
/// `elsewhere` says how it goes to a file.
pub(crate) fn check_tar_output(format: Format, elsewhere: &str) -> Result<(), Failure> {
    if io::stdout().is_terminal() {
        return Err(Failure::usage(
            "a tar stream cannot be written to a terminal",
            format!("{elsewhere}, or pipe it: … | tar -tv"),
        ));
    }
    if format == Format::Json {
        return Err(Failure::usage(
            "a tar stream and a JSON document cannot both go to standard output",
            format!("{elsewhere}, or omit --json"),
        ));
    }
    Ok(())
}
