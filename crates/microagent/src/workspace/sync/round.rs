//! One sync from the listings to the record of what it has left.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use microagent_store::Lock;
use microagent_tree::{Item, ItemKind, Removal, Tree, TreeError};
use tokio_util::sync::CancellationToken;

use super::base::{BaseFile, LoadedBase};
use super::guest::{GuestDir, batches};
use super::host::{self, HostDir, HostListing, Unreadable, found};
use super::ignore::Ignore;
use super::plan::{Base, Found, Listing, Pair, Plan, PlanRules, TreePath, plan, undecided};
use super::watch::Watcher;
use super::{SyncConflict, SyncOptions, SyncReport, SyncUnreadable};
use crate::blocking::blocking;
use crate::error::ConnectionFault;
use crate::guest::GuestConnection;
use crate::workspace::Workspace;
use crate::workspace::copy::COPY_TIMEOUT;
use crate::{Error, Progress};

/// Permissions that a file of the host can get from a guest: set-id bits would be somebody else's rights.
const HOST_MODES: u16 = 0o1777;

/// Permissions that a file of the guest can have.
const GUEST_MODES: u16 = 0o7777;

/// Permissions that a new directory of the host has besides its own until everything is in it.
const UNFINISHED: u16 = 0o700;

/// How much of both directories a sync looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Both as a whole.
    Everything,
    /// The whole of the host's, and of the guest's what the host has changed since the last sync.
    HostChanges,
}

/// A sync, or the repetition of one.
pub(super) struct Round {
    workspace: Workspace,
    options: SyncOptions,
    guest_path: String,
    host: Arc<HostDir>,
    file: BaseFile,
    loaded: LoadedBase,
    pub(super) cancel: CancellationToken,
    /// Receives the host's directories.
    pub(super) watcher: Option<Arc<Watcher>>,
}

/// The two sides by their roles, and what is known of them.
struct Sides {
    from: Listing,
    to: Listing,
    base: Base,
    /// What of the host could not be read; neither side has it.
    unreadable: Unreadable,
}

impl Round {
    pub(super) fn new(
        workspace: &Workspace,
        options: &SyncOptions,
        progress: &Progress,
    ) -> Result<Round, Error> {
        progress.check()?;
        let guest_path = options.guest_dir()?;
        let dir = workspace.existing()?;
        let host = HostDir::open(&options.host_dir, workspace.engine.state_dir())?;
        // A pattern that is not valid is reported before anything is booted.
        Ignore::new(&host.path, &options.excludes, options.gitignore)?;
        let file = BaseFile::of(&dir, workspace.name(), &host.path, &guest_path);
        Ok(Round {
            workspace: workspace.clone(),
            options: options.clone(),
            guest_path,
            host: Arc::new(host),
            file,
            loaded: LoadedBase::default(),
            cancel: progress.token().clone(),
            watcher: None,
        })
    }

    /// Syncs once.
    pub(super) async fn run(&mut self, guest: &GuestConnection, scope: Scope) -> Result<SyncReport, Error> {
        let _lock = self.load().await?;
        let rules = PlanRules {
            delete: self.options.delete,
            overwrite: self.options.overwrite,
            // A file that is missing in the guest may never have been there: its disk can be older than the last sync.
            restore: !self.options.back,
            mode_mask: if self.options.back { HOST_MODES } else { GUEST_MODES },
        };
        // The connection borrows from this and not from the round.
        let (path, cancel) = (self.guest_path.clone(), self.cancel.clone());
        let guest = GuestDir { guest, path: &path, cancel: &cancel };
        let sides = self.list(&guest, scope).await?;
        let undecided = undecided(&sides.from, &sides.to, &sides.base, rules);
        let equal = self.compare(&guest, undecided).await?;
        let plan = plan(&sides.from, &sides.to, &sides.base, &equal, rules);
        let mut report = self.report(&sides, &plan);
        if self.options.dry_run {
            return Ok(report);
        }
        let Done { kept, copied, unreadable } = if self.options.back {
            self.carry_out_on_host(&guest, &sides, &plan).await?
        } else {
            self.carry_out_in_guest(&guest, &plan).await?
        };
        if kept > 0 && scope == Scope::HostChanges {
            // Something is in a directory that was to be removed: only a listing shows what.
            drop(_lock);
            return Box::pin(self.run(guest.guest, Scope::Everything)).await;
        }
        report.copied.retain(|path| copied.contains_key(&tree_path(path)));
        report.copied_bytes = bytes_of(copied.values().map(|pair| &pair.from));
        report.unreadable.extend(shown(&unreadable));
        self.record(sides, &plan, copied).await?;
        Ok(report)
    }

    /// Reads what the last sync has left. Only a sync that changes something keeps others away.
    async fn load(&mut self) -> Result<Option<Lock>, Error> {
        let (file, mut loaded) = (self.file.clone(), std::mem::take(&mut self.loaded));
        let changes = !self.options.dry_run;
        let (lock, loaded) = blocking(move || {
            let lock = changes.then(|| file.lock()).transpose()?;
            file.refresh(&mut loaded)?;
            Ok((lock, loaded))
        })
        .await?;
        self.loaded = loaded;
        Ok(lock)
    }

    /// Lists both sides.
    async fn list(&self, guest: &GuestDir<'_>, scope: Scope) -> Result<Sides, Error> {
        let (host, options, watcher) = (Arc::clone(&self.host), self.options.clone(), self.watcher.clone());
        let (ignore, found) = blocking(move || {
            let mut ignore = Ignore::new(&host.path, &options.excludes, options.gitignore)?;
            let watch = |dir: std::os::fd::BorrowedFd<'_>| match &watcher {
                Some(watcher) => watcher.add(dir),
                None => Ok(()),
            };
            let found = host::list(&host, &mut ignore, watch)?;
            if let Some(watcher) = &watcher {
                watcher.forget_others();
            }
            Ok((ignore, found))
        })
        .await?;
        let HostListing { listing, closed, unreadable } = found;
        let mut base = self.loaded.base.clone();
        unreadable.leave_out_of_base(&mut base);
        if scope == Scope::HostChanges {
            let changed = changed_paths(&listing, &base, &ignore);
            let to = if changed.is_empty() { Listing::default() } else { guest.inspect(&changed).await? };
            return Ok(only(&changed, listing, to, &base, unreadable));
        }
        let mut in_guest = guest.list(closed, &ignore).await?;
        if let Some(in_guest) = &mut in_guest {
            unreadable.leave_out_of(in_guest);
        }
        if !self.options.back {
            return Ok(Sides { from: listing, to: in_guest.unwrap_or_default(), base, unreadable });
        }
        let from = in_guest.ok_or_else(|| Error::GuestRefused {
            workspace: self.workspace.name().clone(),
            not_found: true,
            message: format!("`{}` does not exist", self.guest_path),
        })?;
        Ok(Sides { from, to: listing, base: swapped(&base), unreadable })
    }

    /// Those of these files whose content is the same on both sides.
    async fn compare(&self, guest: &GuestDir<'_>, paths: Vec<TreePath>) -> Result<BTreeSet<TreePath>, Error> {
        if paths.is_empty() {
            return Ok(BTreeSet::new());
        }
        let in_guest = guest.hashes(&paths).await?;
        let host = Arc::clone(&self.host);
        let on_host = blocking(move || host::hashes(&host, &paths)).await?;
        Ok(host::equal(&on_host, &in_guest))
    }

    fn report(&self, sides: &Sides, plan: &Plan) -> SyncReport {
        let conflicts = plan.conflicts.iter();
        SyncReport {
            workspace: self.workspace.name().clone(),
            copied_bytes: bytes_of(plan.put.iter().filter_map(|path| sides.from.items.get(path))),
            copied: plan.put.iter().map(path_of).collect(),
            removed: plan.remove.iter().map(|(path, _)| path_of(path)).collect(),
            conflicts: conflicts
                .map(|(path, reason)| SyncConflict { path: path_of(path), reason: *reason })
                .collect(),
            kept: plan.kept.iter().map(path_of).collect(),
            unreadable: shown(&sides.unreadable).collect(),
            unchanged: plan.same.len() as u64,
            special: sides.from.special,
            dry_run: self.options.dry_run,
        }
    }

    /// Removes from the guest and copies into it.
    async fn carry_out_in_guest(&self, guest: &GuestDir<'_>, plan: &Plan) -> Result<Done, Error> {
        let kept = guest.remove(&plan.remove).await?.kept;
        if plan.put.is_empty() || kept > 0 {
            return Ok(Done { kept, ..Done::default() });
        }
        let (packed, unreadable) = guest.put(&self.host, plan.put.clone()).await?;
        let copied = packed.into_iter().filter_map(|Item { path, kind, mode, mtime }| {
            let found = found(kind, mode, mtime)?;
            Some((TreePath(path), Pair { from: found.clone(), to: found }))
        });
        Ok(Done { kept: 0, copied: copied.collect(), unreadable })
    }

    /// The same on the host.
    async fn carry_out_on_host(
        &self,
        guest: &GuestDir<'_>,
        sides: &Sides,
        plan: &Plan,
    ) -> Result<Done, Error> {
        let found_at = |path: &TreePath| sides.from.items[path].clone();
        let (dirs, files): (Vec<_>, Vec<_>) =
            plan.put.iter().cloned().partition(|path| found_at(path).is_directory());
        let dirs: Vec<(TreePath, u16)> = dirs
            .into_iter()
            .map(|path| match found_at(&path) {
                Found::Directory { mode } => (path, mode),
                _ => unreachable!("these are directories"),
            })
            .collect();
        let (host, remove, unfinished) = (Arc::clone(&self.host), plan.remove.clone(), dirs.clone());
        blocking(move || prepare(&host, &remove, &unfinished)).await?;
        let most = self.workspace.tar_limits(COPY_TIMEOUT)?.bytes;
        for some in batches(&files) {
            let bytes = bytes_of(some.iter().map(|path| &sides.from.items[path]));
            if bytes > most {
                return Err(guest.guest.gone(ConnectionFault::TooMuch));
            }
            let staged = guest.fetch(&self.host, some, bytes).await?;
            let planned: Vec<_> = some.iter().map(|path| (path.clone(), found_at(path))).collect();
            let host = Arc::clone(&self.host);
            let placed = blocking(move || place(&host, staged.path(), &planned)).await?;
            if !placed {
                return Err(guest.guest.gone(ConnectionFault::Listing { what: "it sent something else" }));
            }
        }
        let (host, put) = (Arc::clone(&self.host), plan.put.clone());
        let now = blocking(move || finish(&host, &dirs, &put)).await?;
        let copied = now.into_iter().map(|(path, to)| {
            let from = found_at(&path);
            (path, Pair { from, to })
        });
        Ok(Done { copied: copied.collect(), ..Done::default() })
    }

    /// Records what both sides have now.
    async fn record(
        &mut self,
        sides: Sides,
        plan: &Plan,
        copied: BTreeMap<TreePath, Pair>,
    ) -> Result<(), Error> {
        let Sides { from, to, base, .. } = sides;
        let mut changes: BTreeMap<TreePath, Option<Pair>> = BTreeMap::new();
        for path in &plan.same {
            let pair = Pair { from: from.items[path].clone(), to: to.items[path].clone() };
            if base.get(path) != Some(&pair) {
                changes.insert(path.clone(), Some(pair));
            }
        }
        // What neither side has any more, and what was removed.
        let gone = base.keys().filter(|path| !from.items.contains_key(path) && !to.items.contains_key(path));
        changes.extend(gone.map(|path| (path.clone(), None)));
        let removed = plan.remove.iter().filter(|(path, _)| base.contains_key(path));
        changes.extend(removed.map(|(path, _)| (path.clone(), None)));
        changes.extend(copied.into_iter().map(|(path, pair)| (path, Some(pair))));
        let back = self.options.back;
        let changes = changes.into_iter().map(|(path, pair)| {
            let pair = pair
                .map(|Pair { from, to }| if back { Pair { from: to, to: from } } else { Pair { from, to } });
            (path, pair)
        });
        let changes = changes.collect();
        let (file, mut loaded) = (self.file.clone(), std::mem::take(&mut self.loaded));
        self.loaded = blocking(move || file.record(&mut loaded, changes).map(|()| loaded)).await?;
        Ok(())
    }
}

/// What was done of a plan.
#[derive(Default)]
struct Done {
    /// Number of paths that could not be removed.
    kept: u64,
    /// What was copied, as both sides have it now.
    copied: BTreeMap<TreePath, Pair>,
    /// What of the host could not be read.
    unreadable: Unreadable,
}

/// Bytes of these files.
fn bytes_of<'a>(found: impl Iterator<Item = &'a Found>) -> u64 {
    let lengths = found.map(|found| match found {
        Found::File { len, .. } => *len,
        _ => 0,
    });
    lengths.fold(0, u64::saturating_add)
}

fn shown(unreadable: &Unreadable) -> impl Iterator<Item = SyncUnreadable> {
    unreadable.paths().map(|(path, reason)| SyncUnreadable { path: path_of(path), reason: reason.clone() })
}

/// Paths that the host has changed, added or removed since the last sync.
fn changed_paths(host: &Listing, base: &Base, ignore: &Ignore) -> Vec<TreePath> {
    let changed =
        host.items.iter().filter(|(path, found)| base.get(path).is_none_or(|pair| pair.from != **found));
    // What is excluded now is not missing.
    let removed = base.iter().filter(|(path, pair)| {
        !host.items.contains_key(path) && !ignore.leaves_out_anywhere(path, pair.from.is_directory())
    });
    let all: BTreeSet<&TreePath> =
        changed.map(|(path, _)| path).chain(removed.map(|(path, _)| path)).collect();
    all.into_iter().cloned().collect()
}

/// Both sides as if they had nothing but these paths.
fn only(paths: &[TreePath], host: Listing, to: Listing, base: &Base, unreadable: Unreadable) -> Sides {
    let Listing { mut items, pinned, special } = host;
    let from = paths.iter().filter_map(|path| items.remove_entry(path)).collect();
    let base = paths.iter().filter_map(|path| Some((path.clone(), base.get(path)?.clone()))).collect();
    Sides { from: Listing { items: from, pinned, special }, to, base, unreadable }
}

fn swapped(base: &Base) -> Base {
    let swap = |pair: &Pair| Pair { from: pair.to.clone(), to: pair.from.clone() };
    base.iter().map(|(path, pair)| (path.clone(), swap(pair))).collect()
}

/// Removes from the host's directory, and makes directories in it.
fn prepare(host: &HostDir, remove: &[(TreePath, bool)], dirs: &[(TreePath, u16)]) -> Result<(), Error> {
    host.check()?;
    let failed = |error| tree_error(host, error);
    let mut tree = Tree::new(&host.dir);
    for (path, is_directory) in remove {
        if tree.remove(&path.0, *is_directory).map_err(failed)? == Removal::Kept {
            let source = std::io::Error::from(std::io::ErrorKind::DirectoryNotEmpty);
            return Err(Error::File { action: "remove", path: host.path.join(path_of(path)), source });
        }
    }
    for (path, mode) in dirs {
        tree.make_directory(&path.0, mode | UNFINISHED).map_err(failed)?;
    }
    Ok(())
}

/// Moves files that a guest has sent to their places. `false`: it has sent something else than what it has listed.
fn place(host: &HostDir, staged: &Path, planned: &[(TreePath, Found)]) -> Result<bool, Error> {
    let failed = |error| tree_error(host, error);
    let read = |source| Error::File { action: "read", path: staged.to_owned(), source };
    let staged = std::fs::File::open(staged).map_err(read)?.into();
    let (mut from, mut to) = (Tree::new(&staged), Tree::new(&host.dir));
    for (path, wanted) in planned {
        let kind = from.item(&path.0).map_err(|error| failed(error.into()))?.map(|item| item.kind);
        match (kind, wanted) {
            (Some(ItemKind::File(_)), Found::File { .. })
            | (Some(ItemKind::Symlink(_)), Found::Symlink { .. }) => {
                to.take(&mut from, &path.0).map_err(failed)?;
            }
            // Removed in the guest since it was listed.
            (None, _) => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// Gives directories their permissions, and tells what is at these paths now.
fn finish(
    host: &HostDir,
    dirs: &[(TreePath, u16)],
    put: &[TreePath],
) -> Result<Vec<(TreePath, Found)>, Error> {
    let failed = |error| tree_error(host, error);
    let mut tree = Tree::new(&host.dir);
    for (path, mode) in dirs.iter().rev() {
        tree.make_directory(&path.0, *mode).map_err(failed)?;
    }
    let mut all = Vec::new();
    for path in put {
        let item = tree.item(&path.0).map_err(|error| failed(error.into()))?;
        let now = item.and_then(|item| found(item.kind, item.mode, item.mtime));
        all.extend(now.map(|found| (path.clone(), found)));
    }
    Ok(all)
}

fn tree_error(host: &HostDir, error: TreeError) -> Error {
    let at = |path: String| host.path.join(path);
    match error {
        TreeError::Read(error) => host::below(&host.path, host::unread(error)),
        TreeError::Write { path, source } => Error::File { action: "write", path: at(path), source },
        TreeError::Remove { path, source } => Error::File { action: "remove", path: at(path), source },
    }
}

fn path_of(path: &TreePath) -> PathBuf {
    PathBuf::from(OsString::from_vec(path.0.clone()))
}

fn tree_path(path: &Path) -> TreePath {
    TreePath(path.as_os_str().as_encoded_bytes().to_vec())
}
