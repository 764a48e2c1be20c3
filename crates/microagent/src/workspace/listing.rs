//! Names and kinds of a workspace's files, without their content. Everything that the guest sends is checked: it may list
//! what it likes.

use microagent_proto::{
    Chunk, GuestErrorKind, LISTED_PATH_LIMIT, List, ListEvent, ListScope, ListedItem, ListedKind, PathKind,
    Request,
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Workspace;
use super::copy::{COPY_TIMEOUT, absolute};
use super::files::expect;
use crate::error::ConnectionFault;
use crate::guest::{GuestConnection, SILENCE};
use crate::{Error, Progress};

/// Most files that a listing passes over.
const FILES_MAX: u64 = 1_000_000;

/// Most levels of directories that a listing goes down.
const DEPTH_MAX: u32 = 64;

/// Which files [`Workspace::list_files`] lists. Create with [`FileListOptions::new`] and change with its methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileListOptions {
    /// How many levels of directories are listed: 1 for the directory's own entries. At most 64.
    pub depth: u32,
    /// Most entries that are kept; the others are counted.
    pub limit: usize,
}

impl FileListOptions {
    /// Lists the own entries of a directory, at most `limit`.
    pub fn new(limit: usize) -> FileListOptions {
        FileListOptions { depth: 1, limit }
    }

    /// Sets how many levels are listed.
    #[must_use]
    pub fn depth(self, depth: u32) -> FileListOptions {
        FileListOptions { depth, ..self }
    }
}

/// The files of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileList {
    /// In the order of their names; a directory comes before what is in it.
    pub entries: Vec<FileEntry>,
    /// How many there were in addition.
    pub omitted: u64,
}

/// An entry of a [`FileList`]: a file, directory, link or other entry of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileEntry {
    /// Path from the directory that is listed. Bytes that are not UTF-8 are replaced.
    pub path: String,
    /// What it is.
    pub kind: FileKind,
    /// Permissions with the setuid, setgid and sticky bits.
    pub mode: u16,
}

/// What a [`FileEntry`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// A regular file of so many bytes.
    File {
        /// Its length in bytes.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Where it points, as it is written. Bytes that are not UTF-8 are replaced.
        target: String,
    },
    /// A device, a FIFO or a socket.
    Special,
}

impl Workspace {
    /// Lists the files of a directory of the workspace, which is running or
    /// [resting](microagent_model::State::is_resting) (then its disk is booted). Links on the way to the directory are
    /// followed, those in it are not. A relative path begins at `/`. What the kernel makes up (`/proc`, `/sys`) is only
    /// listed where it is named.
    ///
    /// # Errors
    /// Fails if the path does not exist ([`NotFound`](crate::ErrorKind::NotFound)) or is not a directory
    /// ([`Invalid`](crate::ErrorKind::Invalid)), the directory has more than a million files, the guest cannot be reached ([`RunFailed`](crate::ErrorKind::RunFailed)), or `progress` is
    /// cancelled.
    pub async fn list_files(
        &self,
        guest_path: &str,
        options: FileListOptions,
        progress: &Progress,
    ) -> Result<FileList, Error> {
        let dir = absolute(guest_path);
        let guest = self.guest(progress).await?;
        let listed = list(&guest, &dir, options, progress.token()).await;
        guest.leave().await?;
        listed
    }
}

async fn list(
    guest: &GuestConnection,
    dir: &str,
    options: FileListOptions,
    cancel: &CancellationToken,
) -> Result<FileList, Error> {
    let refused =
        |not_found, message| Error::GuestRefused { workspace: guest.name().clone(), not_found, message };
    expect(guest, dir, PathKind::Directory, "a directory").await?;
    let scope = ListScope::Levels { depth: options.depth.clamp(1, DEPTH_MAX) };
    let mut found = FileList { entries: Vec::new(), omitted: 0 };
    let exists = receive_items(guest, dir, scope, cancel, |path, item| {
        if found.entries.len() < options.limit {
            found.entries.push(FileEntry::of(&path, item));
            return Ok(());
        }
        found.omitted += 1;
        match found.omitted < FILES_MAX {
            true => Ok(()),
            false => {
                Err(refused(false, format!("`{dir}` has more than {FILES_MAX} files: list fewer levels")))
            }
        }
    });
    match exists.await? {
        true => Ok(found),
        false => Err(refused(true, format!("`{dir}` does not exist"))),
    }
}

impl FileEntry {
    fn of(path: &[u8], item: ListedItem) -> FileEntry {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let kind = match item.kind {
            ListedKind::File { len } => FileKind::File { size: len },
            ListedKind::Directory => FileKind::Directory,
            ListedKind::Symlink { target } => FileKind::Symlink { target: text(target.as_slice()) },
            ListedKind::Special => FileKind::Special,
        };
        FileEntry { path: text(path), kind, mode: item.mode }
    }
}

/// Receives the items of a listing, with their paths from the directory. `false`: the directory does not exist.
pub(super) async fn receive_items(
    guest: &GuestConnection,
    dir: &str,
    scope: ListScope,
    cancel: &CancellationToken,
    mut take: impl FnMut(Vec<u8>, ListedItem) -> Result<(), Error>,
) -> Result<bool, Error> {
    let lie = |what| guest.gone(ConnectionFault::Listing { what });
    let request = Request::List(List { dir: Chunk::from(dir.as_bytes().to_vec()), scope });
    let mut stream = guest.request(&request).await?;
    let receiving = async {
        loop {
            let event = timeout(SILENCE, stream.reply())
                .await
                .map_err(|_| guest.gone(ConnectionFault::Silent { seconds: SILENCE.as_secs() }))?;
            match event? {
                ListEvent::Items(items) if items.is_empty() => return Err(lie("a message of it is empty")),
                ListEvent::Items(items) => {
                    for mut item in items {
                        let path = std::mem::take(&mut item.path).into_vec();
                        check(&path, &item).map_err(lie)?;
                        take(path, item)?;
                    }
                }
                ListEvent::End => return Ok(true),
                ListEvent::Failed(error) if error.kind == GuestErrorKind::NotFound => return Ok(false),
                ListEvent::Failed(error) => return Err(guest.refusal(error)),
            }
        }
    };
    tokio::select! {
        received = timeout(COPY_TIMEOUT, receiving) => received.unwrap_or_else(|_| {
            Err(guest.gone(ConnectionFault::Late { seconds: COPY_TIMEOUT.as_secs() }))
        }),
        () = cancel.cancelled() => Err(Error::Cancelled),
    }
}

/// Whether an item can be one below a directory.
fn check(path: &[u8], item: &ListedItem) -> Result<(), &'static str> {
    let is_name = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0);
    if path.len() > LISTED_PATH_LIMIT || !path.split(|byte| *byte == b'/').all(is_name) {
        return Err("a path of it is not valid");
    }
    if let ListedKind::Symlink { target } = &item.kind
        && (target.len() > LISTED_PATH_LIMIT || target.contains(&0))
    {
        return Err("a link of it is not valid");
    }
    if item.mode > 0o7777 || item.mtime.1 >= 1_000_000_000 {
        return Err("a mode or a time of it is not valid");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(kind: ListedKind) -> ListedItem {
        ListedItem { path: Chunk::new(), kind, mode: 0o644, mtime: (0, 0), sha256: None }
    }

    #[test]
    fn what_is_no_path_is_refused() {
        let file = item(ListedKind::File { len: u64::MAX });
        for path in [&b"a"[..], b"a/b", b"\xff\n", b"...", b"a..b"] {
            check(path, &file).unwrap();
        }
        for path in
            [&b""[..], b"/", b"/a", b"a/", b"a//b", b"..", b"a/../b", b"./a", b"a/.", b"a\0b", &[b'a'; 5000]]
        {
            check(path, &file).unwrap_err();
        }
        check(b"a", &item(ListedKind::Symlink { target: b"a\0".to_vec().into() })).unwrap_err();
        check(b"a", &item(ListedKind::Symlink { target: vec![b'a'; 5000].into() })).unwrap_err();
        check(b"a", &ListedItem { mode: 0o10000, ..file.clone() }).unwrap_err();
        check(b"a", &ListedItem { mtime: (0, 1_000_000_000), ..file }).unwrap_err();
    }
}
