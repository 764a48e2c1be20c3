//! The guest's side of a sync. Everything that the guest sends is checked: it may list what it likes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use microagent_proto::{
    Chunk, GuestError, ListScope, ListedItem, ListedKind, PackListed, Remove, Removed, RemovedPath, Request,
    Unpack,
};
use microagent_tree::{Item, ItemKind, Pieces, SymlinkRule, Tree};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::host::{Collected, FILES_MAX, HostDir, Unreadable, below, found, unread};
use super::ignore::Ignore;
use super::plan::{Listing, TreePath};
use crate::error::{ConnectionFault, SyncError};
use crate::guest::GuestConnection;
use crate::tar_stream::{TarReader, unpack};
use crate::workspace::copy::{COPY_TIMEOUT, send};
use crate::workspace::listing::receive_items;
use crate::{Error, Progress};

/// Most bytes of paths in one request.
const REQUEST_PATH_BYTES: usize = 2 * 1024 * 1024;

/// Bytes that a path takes in a request besides its own, at most.
const PATH_OVERHEAD: usize = 16;

/// Pieces of a tar stream that wait between two sides.
const QUEUE: usize = 16;

/// Bytes of headers and attributes that a file may have in a tar stream: two attributes of the largest size.
const MEMBER_OVERHEAD: u64 = 160 * 1024;

const _: () = assert!(2 * REQUEST_PATH_BYTES <= microagent_proto::REQUEST_LIMIT);

/// The synced directory of the guest.
pub(super) struct GuestDir<'a> {
    pub(super) guest: &'a GuestConnection,
    /// Its absolute path.
    pub(super) path: &'a str,
    pub(super) cancel: &'a CancellationToken,
}

/// A path as a message has it.
fn chunk(path: &TreePath) -> Chunk {
    Chunk::from(path.0.clone())
}

impl GuestDir<'_> {
    fn dir(&self) -> Chunk {
        Chunk::from(self.path.as_bytes().to_vec())
    }

    fn lie(&self, what: &'static str) -> Error {
        self.guest.gone(ConnectionFault::Listing { what })
    }

    /// Lists the directory without what is in these ones; `None` if it does not exist.
    pub(super) async fn list(&self, closed: Vec<Vec<u8>>, ignore: &Ignore) -> Result<Option<Listing>, Error> {
        let mut bytes = 0;
        let closed = closed.into_iter().take_while(|path| {
            bytes += path.len() + PATH_OVERHEAD;
            bytes <= REQUEST_PATH_BYTES
        });
        let scope = ListScope::Everything { closed: closed.map(Chunk::from).collect() };
        let mut filter = Filter { ignore, known: HashMap::new() };
        let mut collected = Collected::default();
        let exists = self
            .items(scope, |path, item| {
                let is_directory = item.kind == ListedKind::Directory;
                if filter.leaves_out(&path.0, is_directory) {
                    collected.listing.pin(&path);
                    return Ok(());
                }
                let (kind, mode, mtime) = (kind_of(item.kind), item.mode, item.mtime);
                if collected.listing.items.contains_key(&path) {
                    return Err(self.lie("a path is in it twice"));
                }
                if collected.add(path, found(kind, mode, mtime)) {
                    Ok(())
                } else {
                    Err(SyncError::TooManyFiles { max: FILES_MAX }.into())
                }
            })
            .await?;
        Ok(exists.then_some(collected.listing))
    }

    /// Looks at these paths only. A directory that does not exist has none of them.
    pub(super) async fn inspect(&self, paths: &[TreePath]) -> Result<Listing, Error> {
        let mut collected = Collected::default();
        self.named(paths, false, |path, item| {
            collected.add(path, found(kind_of(item.kind), item.mode, item.mtime));
        })
        .await?;
        Ok(collected.listing)
    }

    /// Hashes these files. Those that do not exist any more are missing.
    pub(super) async fn hashes(&self, paths: &[TreePath]) -> Result<BTreeMap<TreePath, [u8; 32]>, Error> {
        let mut hashes = BTreeMap::new();
        self.named(paths, true, |path, item| hashes.extend(item.sha256.map(|hash| (path, hash)))).await?;
        Ok(hashes)
    }

    async fn named(
        &self,
        paths: &[TreePath],
        hash: bool,
        mut take: impl FnMut(TreePath, ListedItem),
    ) -> Result<(), Error> {
        for some in batches(paths) {
            let mut asked: BTreeSet<&TreePath> = some.iter().collect();
            let scope = ListScope::Paths { paths: some.iter().map(chunk).collect(), hash };
            self.items(scope, |path, item| {
                if !asked.remove(&path) {
                    return Err(self.lie("a path of it was not requested"));
                }
                take(path, item);
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Receives the items of a listing. `false`: the directory does not exist.
    async fn items(
        &self,
        scope: ListScope,
        mut take: impl FnMut(TreePath, ListedItem) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        receive_items(self.guest, self.path, scope, self.cancel, |path, item| take(TreePath(path), item))
            .await
    }

    /// Removes these paths. Returns how many exist no longer, and how many were kept.
    pub(super) async fn remove(&self, paths: &[(TreePath, bool)]) -> Result<Removed, Error> {
        let mut removed = Removed { gone: 0, kept: 0 };
        for some in batches_by(paths, |(path, _)| path) {
            let paths: Vec<RemovedPath> = some
                .iter()
                .map(|(path, is_directory)| RemovedPath { path: chunk(path), is_directory: *is_directory })
                .collect();
            let request = Request::Remove(Remove { dir: self.dir(), paths });
            let mut stream = self.guest.request(&request).await?;
            let answer: Result<Removed, GuestError> = tokio::select! {
                answer = stream.reply() => answer?,
                () = self.cancel.cancelled() => return Err(Error::Cancelled),
            };
            let answer = answer.map_err(|error| self.guest.refusal(error))?;
            removed.gone = removed.gone.saturating_add(answer.gone);
            removed.kept = removed.kept.saturating_add(answer.kept);
        }
        Ok(removed)
    }

    /// A sync reports its files, not their bytes.
    fn unobserved(&self) -> Progress {
        Progress::new().cancel(self.cancel.clone())
    }

    /// Copies these paths of the host into the directory, which is made if it does not exist. Returns what was copied,
    /// as it was then, and what could not be read.
    pub(super) async fn put(
        &self,
        host: &Arc<HostDir>,
        paths: Vec<TreePath>,
    ) -> Result<(Vec<Item>, Unreadable), Error> {
        let (pieces, packed) = mpsc::channel(QUEUE);
        let host = Arc::clone(host);
        let packing = tokio::task::spawn_blocking(move || {
            let pieces = Pieces::new(move |piece| pieces.blocking_send(piece).is_ok());
            let paths = paths.iter().map(|path| path.0.as_slice());
            let mut unreadable = Unreadable::default();
            let skip = |path: &[u8], error| {
                unreadable.add(TreePath(path.to_vec()), &error);
                Ok(())
            };
            let packed = Tree::new(&host.dir).pack(paths, pieces, skip);
            packed.map(|items| (items, unreadable)).map_err(|error| below(&host.path, unread(error)))
        });
        let request = Request::Unpack(Unpack { dir: self.dir(), exact: true });
        let stream = self.guest.request(&request).await?;
        send::feed(stream, packed, packing, &self.unobserved())
            .await?
            .map_err(|error| self.guest.refusal(error))
    }

    /// Fetches these paths into a new directory beside the files of the host. `bytes` bounds their content.
    pub(super) async fn fetch(
        &self,
        host: &Arc<HostDir>,
        paths: &[TreePath],
        bytes: u64,
    ) -> Result<TempDir, Error> {
        let request =
            Request::PackListed(PackListed { dir: self.dir(), paths: paths.iter().map(chunk).collect() });
        let limit =
            bytes.saturating_mul(2).saturating_add(MEMBER_OVERHEAD.saturating_mul(paths.len() as u64 + 1));
        let (pieces, received) = mpsc::channel(QUEUE);
        let reader = TarReader::new(received, limit);
        let beside = host.path.clone();
        let consuming = tokio::task::spawn_blocking(move || {
            let failed = |source| Error::File { action: "write", path: beside.clone(), source };
            unpack(reader, &beside, SymlinkRule::All).map(|(dir, _)| dir).map_err(failed)
        });
        let sent = timeout(COPY_TIMEOUT, self.guest.send_tar(&request, pieces, &self.unobserved())).await;
        let late = |_| Err(self.guest.gone(ConnectionFault::Late { seconds: COPY_TIMEOUT.as_secs() }));
        let sent = sent.unwrap_or_else(late);
        let fetched = consuming.await.unwrap_or_else(|_| Err(self.guest.gone(ConnectionFault::Interrupted)));
        // The guest's reason comes first: the reader only saw its stream end.
        sent?;
        fetched
    }
}

/// Paths in groups that fit in one request each.
pub(super) fn batches(paths: &[TreePath]) -> impl Iterator<Item = &[TreePath]> {
    batches_by(paths, |path| path)
}

fn batches_by<T>(all: &[T], path: impl Fn(&T) -> &TreePath) -> impl Iterator<Item = &[T]> {
    let mut rest = all;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|item| {
            bytes += path(item).0.len() + PATH_OVERHEAD;
            bytes <= REQUEST_PATH_BYTES
        });
        let (some, after) = rest.split_at(fits.count());
        rest = after;
        (!some.is_empty()).then_some(some)
    })
}

fn kind_of(kind: ListedKind) -> ItemKind {
    match kind {
        ListedKind::File { len } => ItemKind::File(len),
        ListedKind::Directory => ItemKind::Directory,
        ListedKind::Symlink { target } => ItemKind::Symlink(target.into_vec()),
        ListedKind::Special => ItemKind::Special,
    }
}

/// Decides which of a guest's paths are part of the sync, in whatever order they come.
struct Filter<'a> {
    ignore: &'a Ignore,
    /// Directories, and whether they are not part of it.
    known: HashMap<Vec<u8>, bool>,
}

impl Filter<'_> {
    fn leaves_out(&mut self, path: &[u8], is_directory: bool) -> bool {
        let mut ends: Vec<usize> =
            path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).collect();
        if is_directory {
            ends.push(path.len());
        }
        for end in ends {
            let dir = &path[..end];
            let is_out = match self.known.get(dir) {
                Some(is_out) => *is_out,
                None => {
                    let is_out = self.ignore.leaves_out(dir, true);
                    self.known.insert(dir.to_vec(), is_out);
                    is_out
                }
            };
            if is_out {
                return true;
            }
        }
        !is_directory && self.ignore.leaves_out(path, false)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_order_of_a_listing_gets_nothing_past_the_filter() {
        let dir = tempfile::tempdir().unwrap();
        let ignore = Ignore::new(dir.path(), &["/out/".to_owned()], true).unwrap();
        let mut filter = Filter { ignore: &ignore, known: HashMap::new() };
        for path in [&b".git/hooks/pre-commit"[..], b"a/.git/config", b"out/x", b".GIT/config"] {
            assert!(filter.leaves_out(path, false), "{}", path.escape_ascii());
        }
        assert!(filter.leaves_out(b"out", true) && !filter.leaves_out(b"out", false));
        assert!(!filter.leaves_out(b"a/b", false));
        assert!(Path::new("out").is_relative());
    }

    #[test]
    fn paths_are_divided_into_requests() {
        let paths: Vec<TreePath> = (0..2000).map(|_| TreePath(vec![b'a'; 4096])).collect();
        let sizes: Vec<usize> = batches(&paths).map(<[_]>::len).collect();
        assert_eq!(sizes.iter().sum::<usize>(), 2000);
        assert!(
            sizes.len() > 3 && sizes.iter().all(|count| count * (4096 + PATH_OVERHEAD) <= REQUEST_PATH_BYTES)
        );
        assert_eq!(batches(&[]).count(), 0);
    }
}
