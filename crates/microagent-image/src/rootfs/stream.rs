//! A layer's uncompressed bytes: one thread decompresses, the one that reads hashes them.
//!
//! Between the two lie at most [`QUEUE`] pieces of [`PIECE`] bytes, so memory stays bounded whatever the
//! layer decompresses to.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Scope;

use microagent_store::{Access, open_file};
use microagent_tar::read::Source;
use sha2::{Digest, Sha256};

use super::error::{Damage, RootfsError};
use super::{Compression, LayerFile, Limits};

/// Bytes handed over at once.
const PIECE: usize = 256 << 10;
/// Pieces that wait at most.
const QUEUE: usize = 8;

/// What all layers of one build share: its limits, how much of them is used, and whether it was cancelled.
pub(super) struct Shared<'a> {
    pub(super) limits: &'a Limits,
    progress: &'a (dyn Fn(u64) + Sync),
    cancelled: &'a (dyn Fn() -> bool + Sync),
    /// Set when some layer failed, so that the others stop.
    failed: AtomicBool,
    compressed: AtomicU64,
    unpacked: AtomicU64,
    entries: AtomicU64,
    metadata: AtomicU64,
}

impl<'a> Shared<'a> {
    pub(super) fn new(
        limits: &'a Limits,
        progress: &'a (dyn Fn(u64) + Sync),
        cancelled: &'a (dyn Fn() -> bool + Sync),
    ) -> Shared<'a> {
        let zero = || AtomicU64::new(0);
        let failed = AtomicBool::new(false);
        Shared {
            limits,
            progress,
            cancelled,
            failed,
            compressed: zero(),
            unpacked: zero(),
            entries: zero(),
            metadata: zero(),
        }
    }

    /// Makes every other layer stop soon.
    pub(super) fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    pub(super) fn check_cancelled(&self) -> Result<(), RootfsError> {
        if self.failed.load(Ordering::Relaxed) || (self.cancelled)() {
            Err(RootfsError::Cancelled)
        } else {
            Ok(())
        }
    }

    /// Counts one entry that takes `bytes` of memory.
    pub(super) fn count_entry(&self, layer: usize, bytes: u64) -> Result<(), RootfsError> {
        let Limits { max_entries, max_metadata_bytes, .. } = *self.limits;
        charge(&self.entries, 1, max_entries)
            .map_err(|()| RootfsError::Limit { layer, limit: format!("more than {max_entries} entries") })?;
        charge(&self.metadata, bytes, max_metadata_bytes).map_err(|()| {
            let limit = format!("names and attributes of more than {max_metadata_bytes} bytes");
            RootfsError::Limit { layer, limit }
        })
    }

    fn count_unpacked(&self, layer: usize, bytes: u64) -> Result<(), RootfsError> {
        let most = self.limits.max_unpacked_bytes;
        charge(&self.unpacked, bytes, most).map_err(|()| {
            let limit = format!("it unpacks to more than {most} bytes");
            RootfsError::Limit { layer, limit }
        })
    }

    fn count_compressed(&self, bytes: u64) {
        let total = self.compressed.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(total);
    }
}

fn charge(counter: &AtomicU64, amount: u64, most: u64) -> Result<(), ()> {
    let before = counter.fetch_add(amount, Ordering::Relaxed);
    if before.saturating_add(amount) > most { Err(()) } else { Ok(()) }
}

/// The reading end.
pub(super) struct Stream<'a> {
    pieces: Receiver<Result<Vec<u8>, RootfsError>>,
    /// Empty pieces on their way back.
    used: SyncSender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
    hasher: Sha256,
    layer: usize,
    shared: &'a Shared<'a>,
}

impl<'a> Stream<'a> {
    /// Opens a layer and starts to decompress it.
    pub(super) fn open<'scope>(
        scope: &'scope Scope<'scope, '_>,
        layer: usize,
        file: &'scope LayerFile,
        shared: &'scope Shared<'a>,
    ) -> Result<Stream<'scope>, RootfsError>
    where
        'a: 'scope,
    {
        let blob = open_file(&file.path, Access::ReadFollowing)
            .map_err(RootfsError::host(format!("open `{}`", file.path.display())))?;
        let (sender, pieces) = sync_channel(QUEUE);
        let (used, reuse) = sync_channel(QUEUE + 2);
        std::thread::Builder::new()
            .name(format!("layer-{}", layer + 1))
            .spawn_scoped(scope, move || decompress(layer, blob, file, shared, &sender, &reuse))
            .map_err(RootfsError::host("start a thread"))?;
        Ok(Stream { pieces, used, piece: Vec::new(), at: 0, hasher: Sha256::new(), layer, shared })
    }

    /// Digest of everything that was read.
    pub(super) fn digest(self) -> [u8; 32] {
        self.hasher.finalize().into()
    }
}

impl Source for Stream<'_> {
    type Error = RootfsError;

    fn fill(&mut self) -> Result<&[u8], RootfsError> {
        if self.at == self.piece.len() {
            self.shared.check_cancelled()?;
            let old = std::mem::take(&mut self.piece);
            self.at = 0;
            if old.capacity() > 0 {
                // When the other side is gone, there is nobody to reuse it.
                let _ = self.used.try_send(old);
            }
            // The sender is dropped at the stream's end.
            if let Ok(piece) = self.pieces.recv() {
                self.piece = piece?;
                self.shared.count_unpacked(self.layer, self.piece.len() as u64)?;
                self.hasher.update(&self.piece);
            }
        }
        Ok(&self.piece[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

/// Sends the blob's uncompressed bytes until they end, something fails, or nobody listens any more.
fn decompress(
    layer: usize,
    blob: File,
    file: &LayerFile,
    shared: &Shared<'_>,
    pieces: &SyncSender<Result<Vec<u8>, RootfsError>>,
    reuse: &Receiver<Vec<u8>>,
) {
    let mut host_error = None;
    let counted = CountingReader { blob, shared, host_error: &mut host_error };
    let buffered = BufReader::with_capacity(PIECE, counted);
    let result = match file.compression {
        Compression::None => pump(buffered, pieces, reuse),
        Compression::Gzip => pump(flate2::bufread::MultiGzDecoder::new(buffered), pieces, reuse),
        Compression::Zstd => zstd::stream::read::Decoder::with_buffer(buffered)
            .and_then(|decoder| pump(decoder, pieces, reuse)),
    };
    if let Err(error) = result {
        let error = match host_error {
            Some(source) => RootfsError::Host { doing: format!("read `{}`", file.path.display()), source },
            None => RootfsError::Damaged { layer, source: Damage::Decompress(error) },
        };
        // Nobody listens when the reading side failed on its own.
        let _ = pieces.send(Err(error));
    }
}

fn pump(
    mut from: impl Read,
    pieces: &SyncSender<Result<Vec<u8>, RootfsError>>,
    reuse: &Receiver<Vec<u8>>,
) -> io::Result<()> {
    loop {
        let mut piece = reuse.try_recv().unwrap_or_default();
        piece.resize(PIECE, 0);
        let mut filled = 0;
        while filled < PIECE {
            match from.read(&mut piece[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        piece.truncate(filled);
        if filled == 0 || pieces.send(Ok(piece)).is_err() {
            return Ok(());
        }
    }
}

/// Counts what is read of the blob, and keeps the kernel's errors apart from the decoder's.
struct CountingReader<'a> {
    blob: File,
    shared: &'a Shared<'a>,
    host_error: &'a mut Option<io::Error>,
}

impl Read for CountingReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.blob.read(buffer) {
            Ok(count) => {
                self.shared.count_compressed(count as u64);
                Ok(count)
            }
            Err(error) => {
                let kind = error.kind();
                if kind != io::ErrorKind::Interrupted {
                    *self.host_error = Some(error);
                }
                Err(kind.into())
            }
        }
    }
}
