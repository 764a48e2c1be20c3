//! Packs a file or a directory for the host.

use microagent_proto::{
    Chunk, FrameError, GuestError, GuestErrorKind, OUTPUT_CHUNK_LIMIT, Pack, PackEvent, REPLY_LIMIT, Stream,
    write_message,
};
use microagent_tree::pack::{PIECE_LIMIT, base_name};
use microagent_tree::{PackError, Pieces, SymlinkMode};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use crate::init;
use crate::inspect::{absolute, kind_of};

/// Pieces between the walker and the host.
const PIECES_IN_FLIGHT: usize = 4;

// A piece is one message.
const _: () = assert!(PIECE_LIMIT <= OUTPUT_CHUNK_LIMIT);

/// Packs for the host, speaking on this stream.
pub(crate) async fn serve(stream: Stream, pack: Pack) -> Result<(), FrameError> {
    send(stream, move |pieces| {
        let path = pack.path.as_slice();
        let start = absolute(path).ok_or_else(|| GuestError {
            kind: GuestErrorKind::Invalid,
            message: format!("`{}` is not an absolute path", String::from_utf8_lossy(path)),
        })?;
        let links = if pack.follow { SymlinkMode::Follow } else { SymlinkMode::Keep };
        microagent_tree::pack(&start, base_name(path), links, pieces).map(drop).map_err(guest_error)
    })
    .await
}

/// Sends what a walker writes, and how it ended.
pub(crate) async fn send<E: Into<GuestError> + Send + 'static>(
    mut stream: Stream,
    walk: impl FnOnce(Pieces) -> Result<(), E> + Send + 'static,
) -> Result<(), FrameError> {
    let (pieces, mut taken) = mpsc::channel(PIECES_IN_FLIGHT);
    // Disks block, so this has a thread of its own, which ends when nobody takes its pieces.
    let walker = tokio::task::spawn_blocking(move || {
        init::make_descriptors_reachable();
        walk(Pieces::new(move |piece| pieces.blocking_send(piece).is_ok()))
    });
    while let Some(piece) = taken.recv().await {
        write_message(&mut stream, &PackEvent::Data(Chunk::from(piece)), REPLY_LIMIT).await?;
    }
    let last = match walker.await {
        Ok(Ok(())) => PackEvent::End,
        Ok(Err(error)) => PackEvent::Failed(error.into()),
        Err(_) => PackEvent::Failed(GuestError {
            kind: GuestErrorKind::Other,
            message: "packing was interrupted".to_owned(),
        }),
    };
    write_message(&mut stream, &last, REPLY_LIMIT).await?;
    stream.shutdown().await.map_err(FrameError::Transport)
}

/// What an error means for the host.
pub(crate) fn guest_error(error: PackError) -> GuestError {
    let kind = match &error {
        PackError::Open { source, .. } | PackError::Read { source, .. } => kind_of(source),
        PackError::Unwanted => GuestErrorKind::Other,
    };
    GuestError { kind, message: microagent_proto::chain(&error) }
}

/// What a walker writes, in one piece.
#[cfg(test)]
pub(crate) fn collect<E>(walk: impl FnOnce(Pieces) -> Result<(), E>) -> Result<Vec<u8>, E> {
    use std::sync::{Arc, Mutex};

    let tar = Arc::new(Mutex::new(Vec::new()));
    let taken = Arc::clone(&tar);
    walk(Pieces::new(move |piece| {
        taken.lock().expect("no holder of the lock panics").extend(piece);
        true
    }))?;
    Ok(std::mem::take(&mut *tar.lock().expect("no holder of the lock panics")))
}
