//! A guest's tar stream as a reader, and its extraction to files.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use microagent_tar::read::ReadSource;
use microagent_tree::{Rules, SymlinkRule, Unpacked};
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::error::{ConnectionFault, deepest_io};

/// A guest's tar stream as a reader, for a thread that may block. It ends with an empty piece; one that ends without is
/// torn, and one that is longer than its limit is an error.
pub(crate) struct TarReader {
    pieces: mpsc::Receiver<Vec<u8>>,
    current: io::Cursor<Vec<u8>>,
    ended: bool,
    /// How many more bytes are taken.
    left: u64,
}

impl TarReader {
    /// The pieces in their order, up to so many bytes.
    pub(crate) fn new(pieces: mpsc::Receiver<Vec<u8>>, limit: u64) -> TarReader {
        TarReader { pieces, current: io::Cursor::default(), ended: false, left: limit }
    }
}

impl Read for TarReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.current.read(buffer)? {
                0 if !buffer.is_empty() && !self.ended => match self.pieces.blocking_recv() {
                    Some(piece) => {
                        let left = self.left.checked_sub(piece.len() as u64);
                        self.left = left.ok_or_else(|| io::Error::other(ConnectionFault::TooMuch))?;
                        self.ended = piece.is_empty();
                        self.current = io::Cursor::new(piece);
                    }
                    None => return Err(io::Error::other("the guest's stream broke off")),
                },
                read => return Ok(read),
            }
        }
    }
}

/// Unpacks a stream into a fresh directory in `beside`. Only files, directories and links come out: nothing that is
/// special on the host, no foreign owner, no set-id bit; nothing lands outside. `links` says which links are made.
pub(crate) fn unpack(
    stream: impl Read,
    beside: &Path,
    links: SymlinkRule,
) -> io::Result<(TempDir, Unpacked)> {
    // One that is not there is told without the made-up name.
    File::open(beside)?;
    let dir = tempfile::Builder::new().prefix(".microagent-").tempdir_in(beside)?;
    let root = File::open(dir.path())?;
    let rules = Rules { links, ..Rules::HARMLESS };
    let unpacked =
        microagent_tree::unpack(&root.into(), ReadSource::new(stream), rules).map_err(|error| {
            // What the system said decides whether it is worth trying again.
            let kind = deepest_io(&error).map_or(io::ErrorKind::Other, io::Error::kind);
            io::Error::new(kind, error)
        })?;
    Ok((dir, unpacked))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(pieces: &[&[u8]], limit: u64) -> TarReader {
        let (sender, receiver) = mpsc::channel(8);
        for piece in pieces {
            sender.try_send(piece.to_vec()).unwrap();
        }
        TarReader::new(receiver, limit)
    }

    #[test]
    fn a_stream_ends_with_its_mark_and_has_a_limit() {
        let mut read = Vec::new();
        reader(&[b"one", b"two", b""], 6).read_to_end(&mut read).unwrap();
        assert_eq!(read, b"onetwo");
        let torn = reader(&[b"one"], 6).read_to_end(&mut Vec::new()).unwrap_err();
        assert!(torn.to_string().contains("broke off"));
        let mut read = Vec::new();
        let long = reader(&[&[0; 100], &[0; 100]], 150).read_to_end(&mut read).unwrap_err();
        assert!(long.to_string().contains("more than its disk"));
        assert_eq!(read.len(), 100);
    }

    #[test]
    fn a_torn_stream_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(unpack(reader(&[], 100), dir.path(), SymlinkRule::All).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
