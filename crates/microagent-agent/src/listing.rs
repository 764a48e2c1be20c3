//! Lists, packs and removes files below one directory, for the host's `sync`.
//!
//! Programs of the guest may replace a directory by a link at any moment, to have the agent read or remove files that
//! they cannot. So no link is followed: neither on the way to the directory nor below it.

use std::collections::HashSet;
use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::{BorrowedFd, OwnedFd};

use microagent_proto::{
    Chunk, FrameError, GuestError, GuestErrorKind, LISTED_BYTES, LISTED_ITEM_BYTES, LISTED_PATH_LIMIT, List,
    ListEvent, ListScope, ListedItem, ListedKind, PackListed, REPLY_LIMIT, Remove, Removed, Stream,
    write_message,
};
use microagent_tree::{Item, ItemKind, PackError, Removal, Tree, TreeError, Visitor};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use crate::inspect::{absolute, kind_of};
use crate::{init, pack};

/// Messages between the walker and the host.
const MESSAGES_IN_FLIGHT: usize = 4;

/// Bytes of a file that are hashed at a time.
const HASH_BUFFER: usize = 64 * 1024;

/// Mode of directories that are made.
const MADE_MODE: Mode = Mode::from_raw_mode(0o755);

/// Why a request about a directory failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListingError {
    #[error("`{path}` is not an absolute path")]
    NotAbsolute { path: String },
    #[error("`{path}` is a symbolic link, or one is on the way to it")]
    Link { path: String },
    #[error("cannot open the directory `{path}`")]
    Open { path: String, source: io::Error },
    #[error("the target of the link `{path}` is too long")]
    LongTarget { path: String },
    #[error(transparent)]
    Pack(#[from] PackError),
    #[error(transparent)]
    Tree(#[from] TreeError),
}

impl From<ListingError> for GuestError {
    fn from(error: ListingError) -> GuestError {
        let kind = match &error {
            ListingError::NotAbsolute { .. } | ListingError::LongTarget { .. } => GuestErrorKind::Invalid,
            ListingError::Link { .. } => GuestErrorKind::Mismatch,
            ListingError::Open { source, .. }
            | ListingError::Pack(PackError::Open { source, .. } | PackError::Read { source, .. })
            | ListingError::Tree(
                TreeError::Read(PackError::Open { source, .. } | PackError::Read { source, .. })
                | TreeError::Write { source, .. }
                | TreeError::Remove { source, .. },
            ) => kind_of(source),
            ListingError::Pack(PackError::Unwanted)
            | ListingError::Tree(TreeError::Read(PackError::Unwanted)) => GuestErrorKind::Other,
        };
        GuestError { kind, message: microagent_proto::chain(&error) }
    }
}

/// Opens a directory to which no link leads. With `make`, missing directories are made.
pub(crate) fn open_exactly(path: &[u8], make: bool) -> Result<OwnedFd, ListingError> {
    let shown = || String::from_utf8_lossy(path).into_owned();
    let failed = |errno: Errno| match errno {
        Errno::LOOP => ListingError::Link { path: shown() },
        errno => ListingError::Open { path: shown(), source: errno.into() },
    };
    let whole = absolute(path).ok_or_else(|| ListingError::NotAbsolute { path: shown() })?;
    let open = |path: &CString| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
    };
    match open(&whole) {
        Err(Errno::NOENT) if make => {}
        opened => return opened.map_err(failed),
    }
    let mut dir = open(&c"/".to_owned()).map_err(failed)?;
    let names = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    for name in names {
        let name = CString::new(name).map_err(|_| ListingError::NotAbsolute { path: shown() })?;
        match mkdirat(&dir, &name, MADE_MODE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        dir = openat2(&dir, &name, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).map_err(failed)?;
    }
    Ok(dir)
}

/// Opens a directory, wherever links on the way to it lead.
fn open_behind_links(path: &[u8]) -> Result<OwnedFd, ListingError> {
    let shown = || String::from_utf8_lossy(path).into_owned();
    let whole = absolute(path).ok_or_else(|| ListingError::NotAbsolute { path: shown() })?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, &whole, flags, Mode::empty())
        .map_err(|errno| ListingError::Open { path: shown(), source: errno.into() })
}

/// Lists for the host, speaking on this stream.
pub(crate) async fn serve(mut stream: Stream, request: List) -> Result<(), FrameError> {
    let (events, mut taken) = mpsc::channel(MESSAGES_IN_FLIGHT);
    // Disks block, so this has a thread of its own, which ends when nobody takes its messages.
    let walker = tokio::task::spawn_blocking(move || {
        init::make_descriptors_reachable();
        list(&request, Batch::new(events))
    });
    while let Some(event) = taken.recv().await {
        write_message(&mut stream, &event, REPLY_LIMIT).await?;
    }
    let last = match walker.await {
        Ok(Ok(())) => ListEvent::End,
        Ok(Err(error)) => ListEvent::Failed(error.into()),
        Err(_) => ListEvent::Failed(GuestError {
            kind: GuestErrorKind::Other,
            message: "listing was interrupted".to_owned(),
        }),
    };
    write_message(&mut stream, &last, REPLY_LIMIT).await?;
    stream.shutdown().await.map_err(FrameError::Transport)
}

fn list(request: &List, mut batch: Batch) -> Result<(), ListingError> {
    let dir = match &request.scope {
        ListScope::Levels { .. } => open_behind_links(&request.dir)?,
        _ => open_exactly(&request.dir, false)?,
    };
    match &request.scope {
        ListScope::Levels { depth } => {
            let mut levels = Levels { depth: *depth, batch };
            microagent_tree::list(&dir, &mut levels)?;
            levels.batch.flush()
        }
        ListScope::Everything { closed } => {
            let closed: HashSet<&[u8]> = closed.iter().map(|path| path.as_slice()).collect();
            let mut all = Everything { closed, batch };
            microagent_tree::list(&dir, &mut all)?;
            all.batch.flush()
        }
        ListScope::Paths { paths, hash } => {
            let mut tree = Tree::new(&dir);
            for path in paths {
                let (item, sum) =
                    if *hash { hashed(&mut tree, path, &mut batch)? } else { (tree.item(path)?, None) };
                if let Some(item) = item {
                    batch.add(item, sum)?;
                }
            }
            batch.flush()
        }
    }
}

/// Describes a file with the hash of its content.
fn hashed(
    tree: &mut Tree<'_>,
    path: &[u8],
    batch: &mut Batch,
) -> Result<(Option<Item>, Option<[u8; 32]>), ListingError> {
    let Some((mut file, item)) = tree.open(path)? else { return Ok((tree.item(path)?, None)) };
    if matches!(item.kind, ItemKind::File(len) if len > HASH_BUFFER as u64) {
        // What is known need not wait for a large file.
        batch.flush()?;
    }
    let failed = |source| PackError::Read { path: String::from_utf8_lossy(path).into_owned(), source };
    let mut hash = Sha256::new();
    let mut buffer = vec![0; HASH_BUFFER];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((Some(item), Some(hash.finalize().into()))),
            Ok(count) => hash.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(failed(source).into()),
        }
    }
}

/// Items that fit in one message.
struct Batch {
    items: Vec<ListedItem>,
    bytes: usize,
    events: mpsc::Sender<ListEvent>,
}

impl Batch {
    fn new(events: mpsc::Sender<ListEvent>) -> Batch {
        Batch { items: Vec::new(), bytes: 0, events }
    }

    fn add(&mut self, item: Item, sha256: Option<[u8; 32]>) -> Result<(), ListingError> {
        let mut bytes = item.path.len() + LISTED_ITEM_BYTES;
        let kind = match item.kind {
            ItemKind::File(len) => ListedKind::File { len },
            ItemKind::Directory => ListedKind::Directory,
            ItemKind::Special => ListedKind::Special,
            ItemKind::Symlink(target) if target.len() > LISTED_PATH_LIMIT => {
                let path = String::from_utf8_lossy(&item.path).into_owned();
                return Err(ListingError::LongTarget { path });
            }
            ItemKind::Symlink(target) => {
                bytes += target.len();
                ListedKind::Symlink { target: Chunk::from(target) }
            }
        };
        self.bytes += bytes;
        let path = Chunk::from(item.path);
        self.items.push(ListedItem { path, kind, mode: item.mode, mtime: item.mtime, sha256 });
        if self.bytes > LISTED_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), ListingError> {
        self.bytes = 0;
        let items = std::mem::take(&mut self.items);
        if items.is_empty() || self.events.blocking_send(ListEvent::Items(items)).is_ok() {
            return Ok(());
        }
        Err(PackError::Unwanted.into())
    }
}

struct Everything<'a> {
    closed: HashSet<&'a [u8]>,
    batch: Batch,
}

impl Visitor for Everything<'_> {
    type Error = ListingError;

    fn item(&mut self, item: Item) -> Result<bool, ListingError> {
        let enters = !self.closed.contains(item.path.as_slice());
        self.batch.add(item, None)?;
        Ok(enters)
    }

    fn enter(&mut self, _path: &[u8], _dir: BorrowedFd<'_>) -> Result<(), ListingError> {
        Ok(())
    }
}

struct Levels {
    depth: u32,
    batch: Batch,
}

impl Visitor for Levels {
    type Error = ListingError;

    fn item(&mut self, item: Item) -> Result<bool, ListingError> {
        let level = 1 + item.path.iter().filter(|byte| **byte == b'/').count();
        self.batch.add(item, None)?;
        Ok(level < self.depth as usize)
    }

    fn enter(&mut self, _path: &[u8], _dir: BorrowedFd<'_>) -> Result<(), ListingError> {
        Ok(())
    }
}

/// Packs for the host, speaking on this stream.
pub(crate) async fn serve_pack(stream: Stream, request: PackListed) -> Result<(), FrameError> {
    pack::send(stream, move |pieces| {
        let dir = open_exactly(&request.dir, false)?;
        let paths = request.paths.iter().map(|path| path.as_slice());
        Tree::new(&dir).pack(paths, pieces, |_, error| Err(error)).map(drop).map_err(ListingError::from)
    })
    .await
}

/// Removes for the host. Disks block, so this has a thread of its own.
pub(crate) async fn remove(request: Remove) -> Result<Removed, GuestError> {
    let removing = tokio::task::spawn_blocking(move || {
        init::make_descriptors_reachable();
        remove_all(&request)
    });
    match removing.await {
        Ok(removed) => removed.map_err(GuestError::from),
        Err(_) => {
            Err(GuestError { kind: GuestErrorKind::Other, message: "removing was interrupted".to_owned() })
        }
    }
}

fn remove_all(request: &Remove) -> Result<Removed, ListingError> {
    let dir = open_exactly(&request.dir, false)?;
    let mut tree = Tree::new(&dir);
    let mut removed = Removed { gone: 0, kept: 0 };
    for path in &request.paths {
        match tree.remove(&path.path, path.is_directory)? {
            Removal::Gone => removed.gone += 1,
            Removal::Kept => removed.kept += 1,
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use microagent_proto::RemovedPath;

    use super::*;

    fn bytes(path: &Path) -> Chunk {
        path.as_os_str().as_bytes().to_vec().into()
    }

    /// All items of a listing, and how many messages they took.
    fn listed(dir: &Path, scope: ListScope) -> Result<(Vec<ListedItem>, usize), GuestError> {
        let (sender, mut events) = mpsc::channel(10_000);
        list(&List { dir: bytes(dir), scope }, Batch::new(sender))?;
        let (mut items, mut messages) = (Vec::new(), 0);
        while let Ok(ListEvent::Items(more)) = events.try_recv() {
            assert!(!more.is_empty());
            items.extend(more);
            messages += 1;
        }
        Ok((items, messages))
    }

    #[test]
    fn a_listing_fits_its_messages_and_leaves_out_what_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir_all(root.join("closed/inner")).unwrap();
        for number in 0..1000 {
            symlink("t".repeat(200), root.join(format!("{number:0200}"))).unwrap();
        }
        let closed = vec![Chunk::from(b"closed".to_vec())];
        let (items, messages) = listed(&root, ListScope::Everything { closed }).unwrap();
        assert_eq!(items.len(), 1001);
        assert!(messages > 8 && messages < 20, "{messages}");
        assert_eq!(items[1000].kind, ListedKind::Directory);
        let full = vec![
            ListedItem {
                path: vec![b'p'; LISTED_PATH_LIMIT].into(),
                kind: ListedKind::Symlink { target: vec![b't'; LISTED_PATH_LIMIT].into() },
                mode: u16::MAX,
                mtime: (i64::MIN, u32::MAX),
                sha256: Some([7; 32]),
            };
            LISTED_BYTES / (2 * LISTED_PATH_LIMIT) + 1
        ];
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(write_message(&mut Vec::new(), &ListEvent::Items(full), REPLY_LIMIT)).unwrap();
    }

    #[test]
    fn levels_are_listed_behind_links_and_no_deeper() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir_all(root.join("real/one/two/three")).unwrap();
        symlink("real", root.join("link")).unwrap();
        symlink("/", root.join("real/away")).unwrap();
        let paths = |dir: &str, depth| {
            let (items, _) = listed(&root.join(dir), ListScope::Levels { depth })?;
            Ok(items
                .into_iter()
                .map(|item| String::from_utf8(item.path.into_vec()).unwrap())
                .collect::<Vec<_>>())
        };
        assert_eq!(paths("link", 1), Ok(vec!["away".to_owned(), "one".into()]));
        assert_eq!(paths("real", 2), Ok(vec!["away".into(), "one".into(), "one/two".into()]));
        let refused = |dir| paths(dir, 1).map_err(|error: GuestError| error.kind);
        assert_eq!(refused("none"), Err(GuestErrorKind::NotFound));
        fs::write(root.join("file"), "").unwrap();
        assert_eq!(refused("file"), Err(GuestErrorKind::Mismatch));
    }

    #[test]
    fn named_paths_are_hashed_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir(root.join("real")).unwrap();
        fs::write(root.join("real/file"), "abc").unwrap();
        symlink("real", root.join("link")).unwrap();
        let paths =
            ["real/file", "real", "link", "link/file", "gone"].map(|path| path.as_bytes().to_vec().into());
        let scope = ListScope::Paths { paths: paths.to_vec(), hash: true };
        let (items, _) = listed(&root, scope.clone()).unwrap();
        let names: Vec<_> = items.iter().map(|item| item.path.as_slice()).collect();
        assert_eq!(names, [&b"real/file"[..], b"real", b"link"]);
        assert_eq!(items[0].sha256.unwrap()[..4], [0xba, 0x78, 0x16, 0xbf]);
        assert!(items[1].sha256.is_none() && items[2].sha256.is_none());

        let error = listed(&root.join("link"), scope.clone()).unwrap_err();
        assert_eq!(error.kind, GuestErrorKind::Mismatch);
        assert!(error.message.contains("symbolic link"), "{}", error.message);
        assert_eq!(listed(&root.join("gone"), scope.clone()).unwrap_err().kind, GuestErrorKind::NotFound);
        assert_eq!(listed(Path::new("real"), scope).unwrap_err().kind, GuestErrorKind::Invalid);
    }

    #[test]
    fn directories_are_made_on_demand_and_never_behind_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir(root.join("real")).unwrap();
        symlink("real", root.join("link")).unwrap();
        open_exactly(&bytes(&root.join("a//b/./c")), true).unwrap();
        assert!(root.join("a/b/c").is_dir());
        assert!(matches!(open_exactly(&bytes(&root.join("link/new")), true), Err(ListingError::Link { .. })));
        assert_eq!(fs::read_dir(root.join("real")).unwrap().count(), 0);
        let remove = |path: &str| Remove {
            dir: bytes(&root),
            paths: vec![RemovedPath { path: path.as_bytes().to_vec().into(), is_directory: true }],
        };
        assert_eq!(remove_all(&remove("a")).unwrap(), Removed { gone: 0, kept: 1 });
        assert_eq!(remove_all(&remove("a/b/c")).unwrap(), Removed { gone: 1, kept: 0 });
    }
}
