//! The host's side of a copy into a workspace: files of the host as a tar stream.

use std::ffi::CString;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use microagent_proto::INPUT_CHUNK_LIMIT;
use microagent_tree::pack::PIECE_LIMIT;
use microagent_tree::{PackError, Pieces};
use tokio::sync::mpsc;

use super::chunked;
use crate::Error;

// A piece is one message.
const _: () = assert!(PIECE_LIMIT <= INPUT_CHUNK_LIMIT);

/// Passes a tar stream on as it comes.
pub(super) fn pass_on(stream: impl Read, chunks: mpsc::Sender<Vec<u8>>) -> Result<(), Error> {
    chunked(stream, |bytes| chunks.blocking_send(bytes).is_ok()).map_err(|source| Error::File {
        action: "read",
        path: "standard input".into(),
        source,
    })
}

/// Packs a file or directory under this name; without one, the content of a directory.
pub(super) fn pack(
    path: &Path,
    follow: bool,
    name: Option<&str>,
    chunks: mpsc::Sender<Vec<u8>>,
) -> Result<(), Error> {
    let bytes = path.as_os_str().as_bytes();
    let follow = follow || bytes.ends_with(b"/") || bytes.ends_with(b"/.");
    let unreadable = |path: PathBuf, source| Error::File { action: "read", path, source };
    let start = CString::new(bytes).map_err(|e| unreadable(path.to_owned(), e.into()))?;
    let pieces = Pieces::new(move |piece| chunks.blocking_send(piece).is_ok());
    microagent_tree::pack(&start, name.unwrap_or(".").as_bytes(), follow, pieces).map_err(|error| match error
    {
        PackError::Read { path, source } => unreadable(path.into(), source),
        // A guest that takes no more says why itself.
        PackError::Unwanted => Error::Cancelled,
    })
}
