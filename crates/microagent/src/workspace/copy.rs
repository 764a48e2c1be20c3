//! Copies files into and out of a workspace, running or resting, by the rules of `docker cp`.
//!
//! The guest's agent packs and unpacks tar streams; the disk of a resting workspace is booted offline for that
//! ([`crate::guest`]). Streams from a guest are not trusted: they are unpacked to a new directory, which is moved to
//! the destination when it is complete. So a failed copy leaves nothing, and nothing is written outside of the
//! destination.

mod place;
mod receive;
pub(super) mod send;

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use microagent_proto::{
    GuestError, GuestErrorKind, INPUT_CHUNK_LIMIT, Pack, PathInfo, PathKind, Request, Stat, Unpack,
};
pub use microagent_tree::SymlinkMode;
use tokio::sync::mpsc;

use super::Workspace;
use crate::error::{ConnectionFault, InvalidRequest};
use crate::guest::{GuestConnection, TarLimits};
use crate::streaming::{Streaming, hand_over};
use crate::{Error, Event, Progress};
use place::{Kind, Misfit, Place, base, place};

/// Length of the queue of a tar stream.
pub(super) const QUEUE: usize = 4;

/// Limit of a workspace's tar stream, as a multiple of the size of its disks; headers and filled holes need more.
pub(super) const STREAM_SLACK: u64 = 2;

/// Most links that are followed to a destination; the kernel's limit.
const LINKS_MAX: usize = 40;

/// Deadline of a copy out.
pub(super) const COPY_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Source of [`Workspace::copy_in`]: a path of the host or a tar stream.
///
/// ```no_run
/// # use microagent::{CopySource, Progress, Workspace};
/// # async fn example(web: &Workspace, progress: &Progress) -> Result<(), Box<dyn std::error::Error>> {
/// // The directory `site` becomes /srv/site, if /srv exists.
/// web.copy_in(CopySource::path("site"), "/srv", progress).await?;
/// // Its content is copied to /srv.
/// web.copy_in(CopySource::path("site/."), "/srv", progress).await?;
/// // A tar stream is unpacked to /srv.
/// let archive = std::fs::File::open("site.tar")?;
/// web.copy_in(CopySource::tar(archive), "/srv", progress).await?;
/// # Ok(())
/// # }
/// ```
pub struct CopySource {
    from: From,
    links: SymlinkMode,
}

enum From {
    Path(PathBuf),
    Tar(Box<dyn Read + Send>),
}

impl CopySource {
    /// Creates a source from a file or directory of the host.
    pub fn path(path: impl Into<PathBuf>) -> CopySource {
        CopySource { from: From::Path(path.into()), links: SymlinkMode::Keep }
    }

    /// Creates a source from a tar stream, which is unpacked to an existing directory of the guest. A thread of its own
    /// reads the stream, so `read` may block.
    pub fn tar(stream: impl Read + Send + 'static) -> CopySource {
        CopySource { from: From::Tar(Box::new(stream)), links: SymlinkMode::Keep }
    }

    /// Sets whether the path itself is followed if it is a symbolic link. The default is [`SymlinkMode::Keep`]: the link
    /// is copied. Links in a directory are always copied as links.
    #[must_use]
    pub fn symlinks(self, links: SymlinkMode) -> CopySource {
        CopySource { links, ..self }
    }
}

impl fmt::Debug for CopySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.from {
            From::Path(path) => f.debug_tuple("CopySource::path").field(path).finish(),
            From::Tar(_) => f.write_str("CopySource::tar"),
        }
    }
}

/// Destination of [`Workspace::copy_out`].
#[derive(Debug, Clone)]
pub struct CopyTarget {
    path: PathBuf,
    links: SymlinkMode,
}

impl CopyTarget {
    /// Creates a destination from a path of the host.
    pub fn path(path: impl Into<PathBuf>) -> CopyTarget {
        CopyTarget { path: path.into(), links: SymlinkMode::Keep }
    }

    /// Sets whether the path of the guest is followed if it is a symbolic link. The default is [`SymlinkMode::Keep`]: the
    /// link is copied. Links in a directory are always copied as links.
    #[must_use]
    pub fn symlinks(self, links: SymlinkMode) -> CopyTarget {
        CopyTarget { links, ..self }
    }
}

impl Workspace {
    /// Copies a file, a directory or a tar stream into the workspace, which is running or
    /// [resting](microagent_model::State::is_resting). The disk of a resting workspace is booted for the copy, without its
    /// service, and its state is the same afterwards.
    ///
    /// The rules for the destination are those of `docker cp`:
    ///
    /// | `guest_path` | Result |
    /// |---|---|
    /// | does not exist | the copy gets this path. The parent directory must exist ([`write_file`] creates it) |
    /// | is a directory | the copy is placed in it, under the name of the source. A second copy replaces its files |
    /// | is a file | a file replaces it; a directory is refused |
    ///
    /// A source that ends in `/.` stands for the content of the directory, without the directory. A tar stream is unpacked
    /// to an existing directory. A relative path begins at `/`. If `guest_path` is a symbolic link, it is followed. Owners,
    /// modes, times, links and extended attributes are kept.
    ///
    /// [`write_file`]: Workspace::write_file
    ///
    /// # Errors
    /// Fails if the source does not exist ([`NotFound`](crate::ErrorKind::NotFound)) or cannot be read, the destination
    /// does not fit the source ([`Invalid`](crate::ErrorKind::Invalid)), its directory does not exist
    /// ([`NotFound`](crate::ErrorKind::NotFound)), the guest cannot write it or the tar stream is damaged
    /// ([`GuestRefused`](crate::ErrorKind::GuestRefused)), the workspace is in another state
    /// ([`WrongState`](crate::ErrorKind::WrongState)), or `progress` is cancelled. Files that were already complete are
    /// kept in the guest.
    pub async fn copy_in(
        &self,
        source: CopySource,
        guest_path: &str,
        progress: &Progress,
    ) -> Result<(), Error> {
        let guest_path = &absolute(guest_path);
        let host = match &source.from {
            From::Path(path) => Some(host_kind(path, source.links)?),
            From::Tar(_) => None,
        };
        let guest = self.guest(progress).await?;
        let copied = send(&guest, source, host, guest_path, progress).await;
        let left = guest.leave().await;
        note_left_out(progress, copied?, ["socket", "sockets"]);
        left
    }

    /// Copies a file or directory of the workspace, which is running or [resting](microagent_model::State::is_resting), to
    /// the host. The rules for the destination are those of [`Workspace::copy_in`]: an existing directory gets the copy,
    /// another path becomes it, and missing parent directories are not created. A relative path of the host begins at
    /// the current directory, one of the guest at `/`.
    ///
    /// The host gets files, directories and links with their modes and times. Owners and set-id bits are not kept;
    /// FIFOs, devices and sockets are left out, and an [`Event::Notice`] has the number of FIFOs and devices. Nothing
    /// of the host is overwritten before the copy is complete.
    ///
    /// # Errors
    /// Fails if the path does not exist in the guest ([`NotFound`](crate::ErrorKind::NotFound)) or the guest cannot read
    /// it ([`GuestRefused`](crate::ErrorKind::GuestRefused)), the destination does not fit it ([`Invalid`](crate::ErrorKind::Invalid)) or cannot be written, the workspace
    /// is in another state ([`WrongState`](crate::ErrorKind::WrongState)), or `progress` is cancelled.
    pub async fn copy_out(
        &self,
        guest_path: &str,
        target: CopyTarget,
        progress: &Progress,
    ) -> Result<(), Error> {
        let guest_path = &absolute(guest_path);
        let limits = self.tar_limits(COPY_TIMEOUT)?;
        let guest = self.guest(progress).await?;
        let found = match look_up(&guest, guest_path, target.links).await {
            Ok((kind, request)) => follow_on_host(&target.path)
                .and_then(|path| destination(guest_path, kind, &path))
                .map(|place| (place, request)),
            Err(error) => Err(error),
        };
        let (place, request) = match found {
            Ok(found) => found,
            Err(error) => {
                guest.leave().await?;
                return Err(error);
            }
        };
        let content = guest_path.ends_with("/.") || base(guest_path).is_none();
        let receive =
            move |stream| receive::receive(stream, Path::new(&place.dir), place.name.as_deref(), content);
        let skipped = guest.fetch_tar(&request, limits, receive, progress).await?;
        note_left_out(progress, skipped, ["FIFO or device", "FIFOs and devices"]);
        Ok(())
    }

    /// Copies a path of the workspace to a stream of tar data with owners, modes, times, links and attributes. The data
    /// is what the guest sends: it is not checked.
    ///
    /// The names in it begin with the last part of the path, as with `docker cp`: `/srv/site` gives `site/…`. With a path
    /// that ends in `/.`, and with `/`, they begin with `./`.
    ///
    /// ```no_run
    /// # use microagent::{Progress, SymlinkMode, Workspace};
    /// use std::io::Write;
    ///
    /// # async fn example(web: &Workspace, progress: &Progress) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut file = std::fs::File::create("site.tar")?;
    /// let mut tar = web.copy_out_tar("/srv/site", SymlinkMode::Keep, progress).await?;
    /// while let Some(piece) = tar.next().await {
    ///     file.write_all(&piece?)?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Fails if the workspace does not exist or its guest cannot be reached. The stream fails if the guest cannot
    /// read the path, sends more than its disks can contain, or `progress` is cancelled; the data before that is an
    /// incomplete tar file.
    pub async fn copy_out_tar(
        &self,
        guest_path: &str,
        links: SymlinkMode,
        progress: &Progress,
    ) -> Result<Streaming<Vec<u8>>, Error> {
        let guest_path = absolute(guest_path);
        let limits = self.tar_limits(COPY_TIMEOUT)?;
        let guest = self.guest(progress).await?;
        let progress = progress.clone();
        Ok(Streaming::start(QUEUE, |sender| async move {
            let sent = send_out(&guest, &guest_path, links, limits.bytes, &sender, &progress).await;
            let left = guest.leave().await;
            sent.and(left)
        }))
    }

    /// What a tar stream of the workspace may have: its disks bound its bytes.
    pub(super) fn tar_limits(&self, time: Duration) -> Result<TarLimits, Error> {
        let record = self.load()?;
        let bytes = self.engine.disk_bytes(record.resources.size_mib, &record.disks, &self.existing()?);
        Ok(TarLimits { bytes: bytes.saturating_mul(STREAM_SLACK), time })
    }
}

/// Notes what was not copied, by its names in singular and plural.
fn note_left_out(progress: &Progress, count: u64, [one, several]: [&str; 2]) {
    let text = match count {
        0 => return,
        1 => format!("1 {one} was left out: it is not copied"),
        _ => format!("{count} {several} were left out: they are not copied"),
    };
    progress.event(Event::Notice(text));
}

/// Passes a tar stream of a path of the guest on to the sender.
async fn send_out(
    guest: &GuestConnection,
    guest_path: &str,
    links: SymlinkMode,
    limit: u64,
    sender: &mpsc::Sender<Result<Vec<u8>, Error>>,
    progress: &Progress,
) -> Result<(), Error> {
    let (_, request) = look_up(guest, guest_path, links).await?;
    pass_on(guest, &request, limit, sender, progress).await
}

/// Passes the tar stream that the guest sends for a request on to the sender.
pub(super) async fn pass_on(
    guest: &GuestConnection,
    request: &Request,
    limit: u64,
    sender: &mpsc::Sender<Result<Vec<u8>, Error>>,
    progress: &Progress,
) -> Result<(), Error> {
    let (pieces, mut received) = mpsc::channel::<Vec<u8>>(QUEUE);
    let passing = async {
        let mut left = limit;
        while let Some(piece) = received.recv().await {
            left =
                left.checked_sub(piece.len() as u64).ok_or_else(|| guest.gone(ConnectionFault::TooMuch))?;
            if !piece.is_empty() {
                hand_over(sender, piece).await?;
            }
        }
        Ok(())
    };
    // The pieces end with their sender, so neither half outlives the other.
    tokio::try_join!(guest.send_tar(request, pieces, progress), passing).map(|((), ())| ())
}

async fn send(
    guest: &GuestConnection,
    source: CopySource,
    host: Option<Kind>,
    guest_path: &str,
    progress: &Progress,
) -> Result<u64, Error> {
    let guest_path = &follow_in_guest(guest, guest_path).await?;
    let there = stat(guest, guest_path, SymlinkMode::Follow).await?.map(|info| Kind::of(&info.kind));
    let (dir, name) = match (&source.from, host) {
        (From::Path(path), Some(kind)) => {
            let shown = path.to_string_lossy();
            let Place { dir, name } =
                place(&shown, kind, guest_path, there).map_err(|misfit| misfit.error(guest_path))?;
            (dir, name)
        }
        _ => match there {
            Some(Kind::Directory) => (guest_path.to_owned(), None),
            Some(Kind::File) => return Err(Misfit::NotADirectory.error(guest_path)),
            None => return Err(Misfit::NoDirectory.error(guest_path)),
        },
    };
    let (pieces, packed) = mpsc::channel(QUEUE);
    let CopySource { from, links } = source;
    let packing = tokio::task::spawn_blocking(move || match from {
        From::Path(path) => send::pack(&path, links, name.as_deref(), pieces),
        From::Tar(stream) => send::pass_on(stream, pieces),
    });
    let request = Request::Unpack(Unpack { dir: dir.into_bytes().into(), exact: false });
    let stream = guest.request(&request).await?;
    match send::feed(stream, packed, packing, progress).await? {
        Ok(sockets) => Ok(sockets),
        Err(error) => Err(guest.refusal(error)),
    }
}

/// Returns the destination of a copy into the guest: a link is followed, also if its target does not exist.
async fn follow_in_guest(guest: &GuestConnection, path: &str) -> Result<String, Error> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        let Some(PathInfo { kind: PathKind::Symlink { target }, .. }) =
            stat(guest, &path, SymlinkMode::Keep).await?
        else {
            return Ok(path);
        };
        let Ok(target) = std::str::from_utf8(&target) else { return Ok(path) };
        path = behind_link(&path, target);
    }
    Err(Error::Invalid(InvalidRequest::LinkLoop { path }))
}

/// The same for a copy onto the host.
fn follow_on_host(path: &Path) -> Result<PathBuf, Error> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        let Ok(target) = std::fs::read_link(&path) else { return Ok(path) };
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    Err(Error::Invalid(InvalidRequest::LinkLoop { path: path.to_string_lossy().into_owned() }))
}

/// The path to which a link at `path` leads. `..` stays, for the system to resolve.
fn behind_link(path: &str, target: &str) -> String {
    if target.starts_with('/') {
        return target.to_owned();
    }
    let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
    format!("{dir}/{target}")
}

/// Returns the kind of a path of the guest, and the request for it.
async fn look_up(guest: &GuestConnection, path: &str, links: SymlinkMode) -> Result<(Kind, Request), Error> {
    let follow = links == SymlinkMode::Follow || path.ends_with('/') || path.ends_with("/.");
    let links = if follow { SymlinkMode::Follow } else { SymlinkMode::Keep };
    let Some(info) = stat(guest, path, links).await? else {
        let message = format!("`{path}` does not exist");
        return Err(Error::GuestRefused { workspace: guest.name().clone(), not_found: true, message });
    };
    let request = Request::Pack(Pack { path: path.as_bytes().to_vec().into(), follow });
    Ok((Kind::of(&info.kind), request))
}

/// Returns the place of a copy out, which depends on the kind of its destination.
fn destination(guest_path: &str, kind: Kind, path: &Path) -> Result<Place, Error> {
    let shown = path.to_string_lossy().into_owned();
    let there = std::fs::metadata(path).ok().map(|found| Kind::of_file(found.file_type()));
    place(guest_path, kind, &shown, there).map_err(|misfit| misfit.error(&shown))
}

/// Returns the kind of a path of the guest, if the path exists.
pub(super) async fn stat(
    guest: &GuestConnection,
    path: &str,
    links: SymlinkMode,
) -> Result<Option<PathInfo>, Error> {
    let follow = links == SymlinkMode::Follow;
    let request = Request::Stat(Stat { path: path.as_bytes().to_vec().into(), follow });
    let answer: Result<PathInfo, GuestError> = guest.request(&request).await?.reply().await?;
    match answer {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.kind == GuestErrorKind::NotFound => Ok(None),
        Err(error) => Err(guest.refusal(error)),
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
        let path = path.to_owned();
        Error::Invalid(match self {
            Misfit::NotADirectory => InvalidRequest::CopyOntoFile { path },
            Misfit::NoDirectory => InvalidRequest::CopyToNowhere { path },
            Misfit::Nameless => InvalidRequest::CopyWithoutName { path },
        })
    }
}

/// Returns the kind of a path of the host.
fn host_kind(path: &Path, links: SymlinkMode) -> Result<Kind, Error> {
    let bytes = path.as_os_str().as_encoded_bytes();
    let found = if links == SymlinkMode::Follow || bytes.ends_with(b"/") || bytes.ends_with(b"/.") {
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
pub(super) fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

/// Cuts a stream into pieces, until nobody takes them any more.
fn chunked(mut from: impl Read, mut sink: impl FnMut(Vec<u8>) -> bool) -> std::io::Result<()> {
    loop {
        let mut bytes = Vec::with_capacity(INPUT_CHUNK_LIMIT);
        if (&mut from).take(INPUT_CHUNK_LIMIT as u64).read_to_end(&mut bytes)? == 0 || !sink(bytes) {
            return Ok(());
        }
    }
}
