//! Unpacks a tar stream of the host into a directory of the guest.
//!
//! What the host sends waits in few bounded pieces for one thread that writes. The stream is the host's and
//! so to be trusted, but the tree that it goes into is anybody's.

use std::io;
use std::os::fd::OwnedFd;

use microagent_proto::{
    FrameError, GuestError, GuestErrorKind, INPUT_LIMIT, MessageReader, REPLY_LIMIT, Stream, Unpack,
    UnpackInput, Unpacked, write_message,
};
use microagent_tar::read::Source;
use microagent_tree::{PlaceError, Rules};
use rustix::fs::{CWD, Mode, OFlags, openat, syncfs};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use crate::init;
use crate::inspect::{absolute, kind_of};
use crate::listing::{ListingError, open_exactly};

/// Pieces between the host and the writer.
const PIECES_IN_FLIGHT: usize = 4;

/// Why unpacking stopped. What was complete by then stays.
#[derive(Debug, thiserror::Error)]
enum UnpackError {
    #[error("`{path}` is not an absolute path")]
    NotAbsolute { path: String },
    #[error("cannot open the directory `{path}`")]
    Open { path: String, source: io::Error },
    #[error(transparent)]
    Exact(#[from] ListingError),
    #[error(transparent)]
    Unpack(#[from] microagent_tree::UnpackError<HostGone>),
    #[error("cannot flush what was unpacked")]
    Flush(#[source] io::Error),
}

impl From<UnpackError> for GuestError {
    fn from(error: UnpackError) -> GuestError {
        use microagent_tree::UnpackError::{Entry, Stream};
        let error = match error {
            UnpackError::Exact(error) => return error.into(),
            other => other,
        };
        let kind = match &error {
            UnpackError::NotAbsolute { .. } | UnpackError::Unpack(Stream(_)) => GuestErrorKind::Invalid,
            UnpackError::Open { source, .. } => kind_of(source),
            UnpackError::Unpack(Entry { source, .. }) => kind_of_place(source),
            UnpackError::Flush(_) => GuestErrorKind::Disk,
            UnpackError::Exact(_) => GuestErrorKind::Other,
        };
        GuestError { kind, message: microagent_proto::chain(&error) }
    }
}

fn kind_of_place(error: &PlaceError) -> GuestErrorKind {
    match error {
        PlaceError::Climbs | PlaceError::Destination => GuestErrorKind::Invalid,
        PlaceError::DirectoryThere
        | PlaceError::NoDirectoryThere
        | PlaceError::NoDirectoryAbove
        | PlaceError::LeadsOut => GuestErrorKind::Mismatch,
        PlaceError::System { source, .. } | PlaceError::Attribute { source, .. } => kind_of(source),
        _ => GuestErrorKind::Other,
    }
}

/// Unpacks for the host, speaking on this stream.
pub(crate) async fn serve(stream: Stream, wanted: Unpack) -> Result<(), FrameError> {
    let (from_host, mut to_host) = tokio::io::split(stream);
    let mut messages = MessageReader::new(from_host, INPUT_LIMIT);
    let (pieces, feed) = mpsc::channel(PIECES_IN_FLIGHT);
    // Disks block, so this has a thread of its own, which ends when its pieces do.
    let mut writer = tokio::task::spawn_blocking(move || {
        init::make_descriptors_reachable();
        unpack(&wanted, Feed::new(feed))
    });
    let written = tokio::select! {
        written = &mut writer => written,
        fed = feed_all(&mut messages, pieces) => {
            fed?;
            writer.await
        }
    };
    let answer: Result<Unpacked, GuestError> = match written {
        Ok(written) => written.map_err(GuestError::from),
        Err(_) => {
            Err(GuestError { kind: GuestErrorKind::Other, message: "unpacking was interrupted".to_owned() })
        }
    };
    write_message(&mut to_host, &answer, REPLY_LIMIT).await?;
    // What is still on its way is taken, so that the host reads its answer and no broken stream.
    while let Ok(Some(UnpackInput::Data(_))) = messages.next().await {}
    to_host.shutdown().await.map_err(FrameError::Transport)
}

/// Passes on what the host sends. Dropping the sender without the mark of the end tells the writer that
/// the host is gone.
async fn feed_all(
    messages: &mut MessageReader<impl tokio::io::AsyncRead + Unpin>,
    pieces: mpsc::Sender<Piece>,
) -> Result<(), FrameError> {
    while let Some(message) = messages.next().await? {
        let (piece, last) = match message {
            UnpackInput::Data(bytes) => (Piece::Bytes(bytes.into_vec()), false),
            UnpackInput::End => (Piece::End, true),
        };
        // A writer that failed takes no more; its answer is waited for.
        if pieces.send(piece).await.is_err() || last {
            return Ok(());
        }
    }
    Ok(())
}

/// What goes from the host to the writer.
#[derive(Debug)]
enum Piece {
    Bytes(Vec<u8>),
    End,
}

/// The stream broke off.
#[derive(Debug, thiserror::Error)]
#[error("the host closed it before its end")]
struct HostGone;

/// The host's bytes, for the writer's thread.
#[derive(Debug)]
struct Feed {
    pieces: mpsc::Receiver<Piece>,
    current: Vec<u8>,
    taken: usize,
    ended: bool,
}

impl Feed {
    fn new(pieces: mpsc::Receiver<Piece>) -> Feed {
        Feed { pieces, current: Vec::new(), taken: 0, ended: false }
    }
}

impl Source for Feed {
    type Error = HostGone;

    fn fill(&mut self) -> Result<&[u8], HostGone> {
        while self.taken == self.current.len() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => {
                    self.current = bytes;
                    self.taken = 0;
                }
                Some(Piece::End) => self.ended = true,
                None => return Err(HostGone),
            }
        }
        Ok(&self.current[self.taken..])
    }

    fn consume(&mut self, count: usize) {
        self.taken += count;
    }
}

/// Unpacks everything. It is on the disk when this returns.
fn unpack<S: Source<Error = HostGone>>(wanted: &Unpack, source: S) -> Result<Unpacked, UnpackError> {
    let root = if wanted.exact { open_exactly(&wanted.dir, true)? } else { open_following(wanted)? };
    let unpacked = microagent_tree::unpack(&root, source, Rules::EVERYTHING)?;
    syncfs(&root).map_err(|errno| UnpackError::Flush(errno.into()))?;
    Ok(Unpacked { entries: unpacked.entries, attributes_dropped: unpacked.attributes_dropped })
}

fn open_following(wanted: &Unpack) -> Result<OwnedFd, UnpackError> {
    let path = || String::from_utf8_lossy(&wanted.dir).into_owned();
    let dir = absolute(&wanted.dir).ok_or_else(|| UnpackError::NotAbsolute { path: path() })?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, &dir, flags, Mode::empty())
        .map_err(|errno| UnpackError::Open { path: path(), source: errno.into() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use super::*;

    /// What the host sends in one piece, and whether it says that this is all.
    fn refusal(dir: &Path, bytes: &[u8], ended: bool) -> GuestError {
        let (pieces, feed) = mpsc::channel(PIECES_IN_FLIGHT);
        pieces.try_send(Piece::Bytes(bytes.to_vec())).unwrap();
        if ended {
            pieces.try_send(Piece::End).unwrap();
        }
        drop(pieces);
        let wanted = Unpack { dir: dir.as_os_str().as_bytes().to_vec().into(), exact: false };
        unpack(&wanted, Feed::new(feed)).unwrap_err().into()
    }

    #[test]
    fn what_goes_wrong_has_a_kind() {
        let dest = tempfile::tempdir().unwrap();
        std::fs::write(dest.path().join("file"), "old").unwrap();
        assert_eq!(refusal(&dest.path().join("none"), b"", true).kind, GuestErrorKind::NotFound);
        assert_eq!(refusal(&dest.path().join("file"), b"", true).kind, GuestErrorKind::Mismatch);
        assert_eq!(refusal(Path::new("relative"), b"", true).kind, GuestErrorKind::Invalid);
        let damaged = refusal(dest.path(), &[b'x'; 1024], true);
        assert_eq!(damaged.kind, GuestErrorKind::Invalid);
        assert!(damaged.message.starts_with("the tar stream is not usable: "), "{damaged:?}");
        let gone = refusal(dest.path(), &[], false);
        assert_eq!(gone.kind, GuestErrorKind::Invalid);
        assert!(gone.message.ends_with("the host closed it before its end"), "{gone:?}");
    }
}
