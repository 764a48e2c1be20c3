//! Files into and out of a workspace, running or resting, by the rules of `docker cp`.
//!
//! The guest's agent packs and unpacks tar streams; where the workspace rests, its disk is booted for that
//! ([`crate::attach`]). What comes out is hostile: it is unpacked into a fresh directory first and moved to its place
//! when it is complete, so a failed copy leaves nothing and nothing lands outside the destination.

mod place;
mod receive;
mod send;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use microagent_proto::{
    GuestError, GuestErrorKind, INPUT_CHUNK_LIMIT, Pack, PackEvent, PathInfo, PathKind, Request, Stat,
    Unpack, Unpacked,
};
use microagent_store::WorkspaceName;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::attach::GuestConnection;
use crate::provision::invalid;
use crate::{Engine, Error, Observer};
use place::{Kind, Misfit, Place, base, place};
pub(crate) use receive::{Stream, unpack};

/// Pieces that wait between guest and host.
const QUEUE: usize = 4;

/// What a tar stream may have beyond the size of the disks: headers, and files with holes that it fills.
const STREAM_SLACK: u64 = 2;

/// How long a guest may take from one piece of a tar stream to the next: it may look at many names in between.
const SILENCE: Duration = Duration::from_secs(5 * 60);

/// Where files that go into a workspace come from.
pub enum CopySource {
    /// A file or directory of the host.
    Path(PathBuf),
    /// A tar stream, unpacked into an existing directory of the guest.
    Tar(Box<dyn Read + Send>),
}

/// Where files that come out of a workspace go.
pub enum CopyTarget {
    /// A file or directory of the host.
    Path(PathBuf),
    /// A tar stream with owners, modes, times, links and attributes, as the guest sends it.
    Tar(Box<dyn Write + Send>),
}

impl Engine {
    /// Copies into a workspace. Owners, modes, times, links and attributes are kept.
    ///
    /// # Errors
    /// Fails when the source cannot be read, the destination does not fit it, the guest cannot write it, or `cancel`
    /// says so. Files that were complete by then stay in the guest.
    pub async fn copy_in(
        &self,
        name: &WorkspaceName,
        source: CopySource,
        guest_path: &str,
        follow: bool,
        observer: &dyn Observer,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        let guest_path = &absolute(guest_path);
        let host = match &source {
            CopySource::Path(path) => Some(host_kind(path, follow)?),
            CopySource::Tar(_) => None,
        };
        let guest = self.guest(name, observer, cancel).await?;
        let copied = self.send(&guest, source, host, guest_path, follow, cancel).await;
        let left = guest.leave().await;
        copied.and(left)
    }

    async fn send(
        &self,
        guest: &GuestConnection,
        source: CopySource,
        host: Option<Kind>,
        guest_path: &str,
        follow: bool,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        let there = self.look_at(guest, guest_path, true).await?.map(|info| Kind::of(&info.kind));
        let (dir, name) = match (&source, host) {
            (CopySource::Path(path), Some(kind)) => {
                let shown = path.to_string_lossy();
                let Place { dir, name } =
                    place(&shown, kind, guest_path, there).map_err(|misfit| misfit.error(guest_path))?;
                (dir, name)
            }
            _ if there == Some(Kind::Directory) => (guest_path.to_owned(), None),
            _ => return Err(Misfit::NoDirectory.error(guest_path)),
        };
        let (chunks, chunked) = mpsc::channel(QUEUE);
        let packing = tokio::task::spawn_blocking(move || match source {
            CopySource::Path(path) => send::pack(&path, follow, name.as_deref(), chunks),
            CopySource::Tar(stream) => send::pass_on(stream, chunks),
        });
        let request = Request::Unpack(Unpack { dir: dir.clone().into_bytes().into() });
        let talk = self.ask(guest, &request).await?;
        match send::feed(talk, chunked, packing, cancel).await? {
            Ok(Unpacked { .. }) => Ok(()),
            Err(error) => Err(refused(guest, error)),
        }
    }

    /// Copies out of a workspace. Nothing of the host is overwritten before the copy is complete; onto a host's file
    /// system come files, directories and links with their modes and times, without owners and set-id bits, and
    /// nothing else.
    ///
    /// # Errors
    /// Fails when the guest cannot read the path, the destination does not fit it or cannot be written, or `cancel`
    /// says so.
    pub async fn copy_out(
        &self,
        name: &WorkspaceName,
        guest_path: &str,
        target: CopyTarget,
        follow: bool,
        observer: &dyn Observer,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        let guest_path = &absolute(guest_path);
        let record = self.load(name)?;
        let bytes = self.disk_bytes(record.resources.size_mib, &record.disks, &self.existing(name)?);
        let limit = bytes.saturating_mul(STREAM_SLACK);
        let guest = self.guest(name, observer, cancel).await?;
        let copied = self.take(&guest, guest_path, target, follow, limit, cancel).await;
        let left = guest.leave().await;
        copied.and(left)
    }

    async fn take(
        &self,
        guest: &GuestConnection,
        guest_path: &str,
        target: CopyTarget,
        follow: bool,
        limit: u64,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        let follow = follow || guest_path.ends_with('/') || guest_path.ends_with("/.");
        let Some(info) = self.look_at(guest, guest_path, follow).await? else {
            let message = format!("`{guest_path}` does not exist");
            return Err(Error::GuestRefused { workspace: guest.name().clone(), not_found: true, message });
        };
        let (chunks, received) = sync_channel(QUEUE);
        let writing = match target {
            CopyTarget::Tar(mut to) => {
                let too_much = guest.late(receive::TOO_MUCH);
                tokio::task::spawn_blocking(move || write_all(received, &mut to, limit, too_much))
            }
            CopyTarget::Path(path) => {
                let kind = Kind::of(&info.kind);
                let shown = path.to_string_lossy().into_owned();
                let there = std::fs::metadata(&path).ok().map(|found| Kind::of_file(found.file_type()));
                let place = place(guest_path, kind, &shown, there).map_err(|misfit| misfit.error(&shown))?;
                let stream = Stream::new(received).up_to(limit);
                let content = guest_path.ends_with("/.") || base(guest_path).is_none();
                tokio::task::spawn_blocking(move || {
                    receive::receive(stream, Path::new(&place.dir), place.name.as_deref(), content)
                })
            }
        };
        let packed = self.pack(guest, guest_path, follow, chunks, cancel).await;
        let written = writing.await.map_err(|_| guest.late("writing was interrupted"))?;
        // The guest's reason comes first: the writer only saw its stream end.
        packed.and(written)
    }

    /// Has the guest pack a path, and passes the stream on.
    pub(crate) async fn pack(
        &self,
        guest: &GuestConnection,
        path: &str,
        follow: bool,
        chunks: SyncSender<Vec<u8>>,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        let request = Request::Pack(Pack { path: path.as_bytes().to_vec().into(), follow });
        self.tar_stream(guest, &request, chunks, cancel).await
    }

    /// Asks the guest for a tar stream and passes it on. Dropped chunks end it.
    pub(crate) async fn tar_stream(
        &self,
        guest: &GuestConnection,
        request: &Request,
        chunks: SyncSender<Vec<u8>>,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        let mut talk = self.ask(guest, request).await?;
        loop {
            let event = tokio::select! {
                event = timeout(SILENCE, talk.reply()) => event,
                () = cancel.cancelled() => return Err(Error::Cancelled),
            };
            match event.map_err(|_| guest.late("it stopped in the middle of its answer"))?? {
                // Waits in place for the writer: this task has nothing else to do meanwhile.
                PackEvent::Data(bytes) => {
                    if chunks.send(bytes.into_vec()).is_err() {
                        // A writer that failed takes no more; its own error is reported.
                        return Ok(());
                    }
                }
                PackEvent::End => {
                    // The mark of the end: without it a stream that breaks off could be taken for a whole one.
                    let _ = chunks.send(Vec::new());
                    return Ok(());
                }
                PackEvent::Failed(error) => return Err(refused(guest, error)),
            }
        }
    }

    /// What stands at a path of the guest, if anything does.
    async fn look_at(
        &self,
        guest: &GuestConnection,
        path: &str,
        follow: bool,
    ) -> Result<Option<PathInfo>, Error> {
        let request = Request::Stat(Stat { path: path.as_bytes().to_vec().into(), follow });
        let answer: Result<PathInfo, GuestError> = self.ask(guest, &request).await?.reply().await?;
        match answer {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.kind == GuestErrorKind::NotFound => Ok(None),
            Err(error) => Err(refused(guest, error)),
        }
    }
}

impl Kind {
    fn of(kind: &PathKind) -> Kind {
        match kind {
            PathKind::Directory => Kind::Directory,
            PathKind::File | PathKind::Symlink { .. } | PathKind::Special => Kind::File,
        }
    }

    fn of_file(kind: std::fs::FileType) -> Kind {
        if kind.is_dir() { Kind::Directory } else { Kind::File }
    }
}

impl Misfit {
    fn error(self, path: &str) -> Error {
        let (message, hint) = self.text(path);
        invalid(message, hint)
    }
}

fn refused(guest: &GuestConnection, error: GuestError) -> Error {
    Error::GuestRefused {
        workspace: guest.name().clone(),
        not_found: error.kind == GuestErrorKind::NotFound,
        message: error.message,
    }
}

/// What stands at a path of the host.
fn host_kind(path: &Path, follow: bool) -> Result<Kind, Error> {
    let bytes = path.as_os_str().as_encoded_bytes();
    let found = if follow || bytes.ends_with(b"/") || bytes.ends_with(b"/.") {
        std::fs::metadata(path)
    } else {
        std::fs::symlink_metadata(path)
    };
    found.map(|found| Kind::of_file(found.file_type())).map_err(|source| Error::File {
        action: "read",
        path: path.to_owned(),
        source,
    })
}

/// Paths in a workspace start at its root, as in docker.
fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

/// Passes a tar stream on, up to a limit.
fn write_all(
    received: Receiver<Vec<u8>>,
    to: &mut dyn Write,
    limit: u64,
    too_much: Error,
) -> Result<(), Error> {
    let failed = |source| Error::File { action: "write", path: "standard output".into(), source };
    let mut left = limit;
    for bytes in received {
        let Some(rest) = left.checked_sub(bytes.len() as u64) else { return Err(too_much) };
        left = rest;
        to.write_all(&bytes).map_err(failed)?;
    }
    to.flush().map_err(failed)
}

/// Cuts a stream into pieces, until nobody takes them any more.
fn chunked(mut from: impl Read, mut sink: impl FnMut(Vec<u8>) -> bool) -> io::Result<()> {
    loop {
        let mut bytes = Vec::with_capacity(INPUT_CHUNK_LIMIT);
        if (&mut from).take(INPUT_CHUNK_LIMIT as u64).read_to_end(&mut bytes)? == 0 || !sink(bytes) {
            return Ok(());
        }
    }
}
