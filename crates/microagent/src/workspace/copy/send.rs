//! The host's side of a copy into a workspace: files of the host as a tar stream, and the guest that takes it.

use std::ffi::CString;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::pin::pin;

use microagent_proto::{
    Chunk, FrameError, GuestError, INPUT_CHUNK_LIMIT, INPUT_LIMIT, MessageReader, REPLY_LIMIT, UnpackInput,
    Unpacked, write_message,
};
use microagent_tree::pack::PIECE_LIMIT;
use microagent_tree::{PackError, Pieces};
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::{SymlinkMode, chunked};
use crate::error::ConnectionFault;
use crate::guest::{AgentStream, SILENCE};
use crate::{Error, Event, Progress};

// A piece is one message.
const _: () = assert!(PIECE_LIMIT <= INPUT_CHUNK_LIMIT);

/// Passes a tar stream on as it comes.
pub(super) fn pass_on(stream: impl Read, chunks: mpsc::Sender<Vec<u8>>) -> Result<u64, Error> {
    chunked(stream, |bytes| chunks.blocking_send(bytes).is_ok()).map(|()| 0).map_err(|source| Error::File {
        action: "read",
        path: "standard input".into(),
        source,
    })
}

/// Feeds a guest that unpacks, and waits for its answer, which may come before the end: it does not want more then.
/// Gives what came of the packing.
pub(in crate::workspace) async fn feed<T: Default>(
    stream: AgentStream,
    mut chunked: mpsc::Receiver<Vec<u8>>,
    packing: JoinHandle<Result<T, Error>>,
    progress: &Progress,
) -> Result<Result<T, GuestError>, Error> {
    let AgentStream { name, stream, .. } = stream;
    let gone = |source: ConnectionFault| Error::GuestGone { workspace: name.clone(), source };
    let broken = |e: FrameError| gone(e.into());
    let seconds = SILENCE.as_secs();
    let (from, mut to) = stream.into_split();
    let mut replies = MessageReader::new(from, REPLY_LIMIT);
    let feeding = async {
        let tell = async |to: &mut OwnedWriteHalf, input: UnpackInput| {
            let told = timeout(SILENCE, write_message(to, &input, INPUT_LIMIT)).await;
            told.map_err(|_| gone(ConnectionFault::Stalled { seconds }))?.map_err(broken)
        };
        let mut sent = 0_u64;
        while let Some(bytes) = chunked.recv().await {
            sent = sent.saturating_add(bytes.len() as u64);
            tell(&mut to, UnpackInput::Data(Chunk::from(bytes))).await?;
            progress.event(Event::Copying { bytes: sent });
        }
        // What the host could not read is no complete stream, and the guest must not take it for one.
        let packed = match packing.await {
            Ok(read) => read?,
            Err(_) => return Err(gone(ConnectionFault::Interrupted)),
        };
        tell(&mut to, UnpackInput::End).await.map(|()| packed)
    };
    let mut feeding = pin!(feeding);
    let mut fed = None;
    let answer: Option<Result<Unpacked, GuestError>> = loop {
        // As long as it is fed, its silence means nothing.
        let patience =
            async { if fed.is_some() { sleep(SILENCE).await } else { std::future::pending().await } };
        tokio::select! {
            biased;
            answer = replies.next() => break answer.map_err(broken)?,
            done = &mut feeding, if fed.is_none() => fed = Some(done?),
            () = patience => return Err(gone(ConnectionFault::Silent { seconds })),
            () = progress.token().cancelled() => return Err(Error::Cancelled),
        }
    };
    let answer = answer.ok_or_else(|| gone(ConnectionFault::Ended))?;
    Ok(answer.map(|_| fed.unwrap_or_default()))
}

/// Packs a file or directory under this name; without one, the content of a directory. Gives the number of sockets,
/// which are left out.
pub(super) fn pack(
    path: &Path,
    links: SymlinkMode,
    name: Option<&str>,
    chunks: mpsc::Sender<Vec<u8>>,
) -> Result<u64, Error> {
    let bytes = path.as_os_str().as_bytes();
    let links = if bytes.ends_with(b"/") || bytes.ends_with(b"/.") { SymlinkMode::Follow } else { links };
    let unreadable = |path: PathBuf, source| Error::File { action: "read", path, source };
    let start = CString::new(bytes).map_err(|e| unreadable(path.to_owned(), e.into()))?;
    let pieces = Pieces::new(move |piece| chunks.blocking_send(piece).is_ok());
    microagent_tree::pack(&start, name.unwrap_or(".").as_bytes(), links, pieces).map_err(
        |error| match error {
            PackError::Open { path, source } | PackError::Read { path, source } => {
                unreadable(path.into(), source)
            }
            // A guest that takes no more says why itself.
            PackError::Unwanted => Error::Cancelled,
        },
    )
}

#[cfg(test)]
mod tests {
    use microagent_model::WorkspaceName;
    use microagent_proto::read_message;
    use tokio::net::UnixStream;
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// Feeds a guest with more than fits between it and the host; gives what came of it, and the guest's end.
    async fn fed(pieces: usize, guest: impl AsyncFnOnce(UnixStream)) -> Result<bool, Error> {
        let (stream, theirs) = UnixStream::pair().unwrap();
        let name: WorkspaceName = "web".parse().unwrap();
        let (chunks, chunked) = mpsc::channel(4);
        let packing = tokio::spawn(async move {
            for _ in 0..pieces {
                if chunks.send(vec![7; INPUT_CHUNK_LIMIT]).await.is_err() {
                    break;
                }
            }
            Ok(0)
        });
        let cancel = CancellationToken::new();
        let stream = AgentStream { name, stream, cancel: cancel.clone() };
        let progress = Progress::new();
        let feeding = feed(stream, chunked, packing, &progress);
        let (answer, ()) = tokio::join!(feeding, guest(theirs));
        answer.map(|answer| answer.is_ok())
    }

    #[track_caller]
    fn says(answer: Result<bool, Error>, text: &str) {
        match answer {
            Err(Error::GuestGone { source, .. }) => assert!(source.to_string().contains(text), "{source}"),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_takes_or_says_nothing_is_given_up() {
        let day = std::time::Duration::from_secs(24 * 60 * 60);
        let deaf = async |stream| {
            sleep(day).await;
            drop(stream);
        };
        says(fed(100, deaf).await, "it read nothing for 300 s");
        let mute = async |mut stream: UnixStream| {
            while let Ok(Some(UnpackInput::Data(_))) = read_message(&mut stream, INPUT_LIMIT).await {}
            sleep(day).await;
        };
        says(fed(100, mute).await, "it sent nothing for 300 s");
        says(fed(0, async |stream| drop(stream)).await, "");
    }

    #[tokio::test]
    async fn an_answer_ends_it_at_any_time() {
        let early = async |mut stream: UnixStream| {
            let answer: Result<Unpacked, GuestError> = Ok(Unpacked { entries: 1, attributes_dropped: 0 });
            write_message(&mut stream, &answer, REPLY_LIMIT).await.unwrap();
        };
        assert!(fed(100, early).await.unwrap());
    }
}
