//! Repeats a sync whenever something changes in the host's directory.
//!
//! Events of the kernel say only that something has changed. What has is found by listing the host's directory, so no
//! event has to be understood, and a queue of events that overflows loses nothing. Of the guest's directory only the
//! paths are looked at that the host has changed.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use microagent_model::State;
use microagent_tree::pack::by_number;
use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init, remove_watch};
use rustix::io::{Errno, read};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::SyncReport;
use super::round::{Round, Scope};
use crate::Error;
use crate::error::{Action, SyncError};
use crate::streaming::hand_over;
use crate::workspace::Workspace;

/// Most directories that are watched; each costs the kernel about 1 KiB.
const WATCHES_MAX: usize = 200_000;

/// How long nothing must change before a sync: editors write and rename several files to save one.
const QUIET: Duration = Duration::from_millis(20);

/// How long a sync waits for that, at most.
const QUIET_MAX: Duration = Duration::from_millis(100);

/// Interval at which the workspace's state is looked at.
const STATE_INTERVAL: Duration = Duration::from_millis(500);

/// How long a machine that does not answer may take to get another state.
const STATE_PATIENCE: Duration = Duration::from_secs(20);

/// Bytes of events that are read at a time.
const EVENTS_BUFFER: usize = 16 * 1024;

/// What starts a sync: every change of names and metadata, and the end of writing to a file.
const EVENTS: WatchFlags = WatchFlags::ATTRIB
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::EXCL_UNLINK);

/// Watches directories of the host.
#[derive(Debug)]
pub(super) struct Watcher {
    events: AsyncFd<OwnedFd>,
    watches: Mutex<Watches>,
}

#[derive(Debug, Default)]
struct Watches {
    /// Those of the last listing.
    known: BTreeSet<i32>,
    /// Those of the listing that is being made.
    seen: BTreeSet<i32>,
}

fn cannot_watch(errno: Errno) -> Error {
    match errno {
        Errno::NOSPC | Errno::MFILE => SyncError::WatchLimit { source: errno.into() }.into(),
        errno => Error::File { action: "watch", path: PathBuf::from("."), source: errno.into() },
    }
}

impl Watcher {
    #[allow(unsafe_code)]
    fn new() -> Result<Watcher, Error> {
        let events = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(cannot_watch)?;
        // SAFETY: an `OwnedFd` is open and the same until it is dropped, and nothing takes this one out.
        let events = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) };
        let events = events.map_err(|error| SyncError::WatchLimit { source: error.into() })?;
        Ok(Watcher { events, watches: Mutex::default() })
    }

    /// Watches an open directory. One that is watched already stays so.
    pub(super) fn add(&self, dir: BorrowedFd<'_>) -> Result<(), Error> {
        // This path leads to what is open, whatever its name stands for by now.
        let watch = add_watch(self.events.get_ref(), by_number(dir), EVENTS).map_err(cannot_watch)?;
        let mut watches = self.watches.lock().expect("no holder of the lock panics");
        watches.seen.insert(watch);
        if watches.seen.len() > WATCHES_MAX {
            return Err(cannot_watch(Errno::NOSPC));
        }
        Ok(())
    }

    /// Forgets the directories that were not added since the last call: they were removed, moved away or excluded.
    pub(super) fn forget_others(&self) {
        let mut watches = self.watches.lock().expect("no holder of the lock panics");
        let seen = std::mem::take(&mut watches.seen);
        for watch in watches.known.difference(&seen) {
            // The kernel has forgotten those that were removed.
            let _ = remove_watch(self.events.get_ref(), *watch);
        }
        watches.known = seen;
    }

    /// Waits for an event, and takes all that have come.
    async fn event(&self) -> Result<(), Error> {
        let mut buffer = vec![0; EVENTS_BUFFER];
        loop {
            let mut ready =
                self.events.readable().await.map_err(|source| SyncError::WatchLimit { source })?;
            let taken = ready.try_io(|events| match read(events.get_ref().as_fd(), &mut buffer) {
                Ok(count) => Ok(count),
                Err(errno) => Err(io::Error::from(errno)),
            });
            // Another event of the same buffer may remain: it wakes the next call.
            if let Ok(Ok(_)) = taken {
                return Ok(());
            }
        }
    }

    /// Waits until something has changed and nothing has for a moment.
    async fn change(&self) -> Result<(), Error> {
        self.event().await?;
        let end = Instant::now() + QUIET_MAX;
        loop {
            tokio::select! {
                event = self.event() => event?,
                () = sleep(QUIET) => return Ok(()),
                () = sleep_until(end) => return Ok(()),
            }
        }
    }
}

/// A sync that is repeated.
pub(super) struct Watching {
    workspace: Workspace,
    round: Round,
    watcher: Arc<Watcher>,
    /// Conflicts that were reported.
    reported: BTreeSet<PathBuf>,
    /// Paths that were reported as unreadable.
    unreadable: BTreeSet<PathBuf>,
}

impl Watching {
    pub(super) fn start(workspace: &Workspace, mut round: Round) -> Result<Watching, Error> {
        let state = workspace.state()?;
        if !matches!(state, State::Running | State::Starting) {
            return Err(workspace.wrong_state(state, Action::Sync));
        }
        let watcher = Arc::new(Watcher::new()?);
        round.watcher = Some(Arc::clone(&watcher));
        let (reported, unreadable) = (BTreeSet::new(), BTreeSet::new());
        Ok(Watching { workspace: workspace.clone(), round, watcher, reported, unreadable })
    }

    /// Syncs until the machine ends, the caller cancels or nobody takes the reports.
    pub(super) async fn run(mut self, reports: mpsc::Sender<Result<SyncReport, Error>>) -> Result<(), Error> {
        let cancel = self.round.cancel.clone();
        tokio::select! {
            done = self.repeat(&reports) => done,
            () = cancel.cancelled() => Err(Error::Cancelled),
            () = reports.closed() => Ok(()),
        }
    }

    async fn repeat(&mut self, reports: &mpsc::Sender<Result<SyncReport, Error>>) -> Result<(), Error> {
        let mut scope = Scope::Everything;
        loop {
            let report = self.once(scope).await?;
            if let Some(report) = self.news(report, scope) {
                hand_over(reports, report).await?;
            }
            scope = Scope::HostChanges;
            self.change().await?;
        }
    }

    /// Syncs once, as soon as the machine is there for it.
    async fn once(&mut self, mut scope: Scope) -> Result<SyncReport, Error> {
        let workspace = self.workspace.clone();
        loop {
            let guest = workspace.running_guest(Action::Sync);
            let synced = match guest {
                Ok(guest) => self.round.run(&guest, scope).await,
                Err(error) => Err(error),
            };
            let error = match synced {
                Ok(report) => return Ok(report),
                Err(
                    error @ (Error::GuestGone { .. } | Error::Unreachable { .. } | Error::WrongState { .. }),
                ) => error,
                // Something has changed in the guest since it was looked at; a listing shows what.
                Err(Error::GuestRefused { .. }) if scope == Scope::HostChanges => {
                    scope = Scope::Everything;
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.explained(error).await?;
            self.resumed().await?;
        }
    }

    /// Whether the state of the workspace explains an error: a paused one is waited for.
    async fn explained(&self, error: Error) -> Result<(), Error> {
        let end = Instant::now() + STATE_PATIENCE;
        loop {
            match self.workspace.state()? {
                State::Paused => return Ok(()),
                // It was paused, and is not any more.
                State::Running if matches!(error, Error::WrongState { .. }) => return Ok(()),
                state if state.is_resting() => return Err(self.workspace.wrong_state(state, Action::Sync)),
                _ if Instant::now() >= end => return Err(error),
                _ => sleep(STATE_INTERVAL / 5).await,
            }
        }
    }

    /// Waits while the workspace is paused.
    async fn resumed(&self) -> Result<(), Error> {
        while self.check_state()? == State::Paused {
            sleep(STATE_INTERVAL).await;
        }
        Ok(())
    }

    /// Fails if the workspace has no machine.
    fn check_state(&self) -> Result<State, Error> {
        let state = self.workspace.state()?;
        if state.is_resting() || state == State::Quarantined {
            return Err(self.workspace.wrong_state(state, Action::Sync));
        }
        Ok(state)
    }

    /// Waits until the host's directory has changed, as long as the workspace has a machine.
    async fn change(&self) -> Result<(), Error> {
        let watching = async {
            loop {
                sleep(STATE_INTERVAL).await;
                if let Err(error) = self.check_state() {
                    return error;
                }
            }
        };
        tokio::select! {
            changed = self.watcher.change() => changed,
            error = watching => Err(error),
        }
    }

    /// What of a report is new; `None` if nothing.
    fn news(&mut self, mut report: SyncReport, scope: Scope) -> Option<SyncReport> {
        let all: BTreeSet<PathBuf> = report.conflicts.iter().map(|conflict| conflict.path.clone()).collect();
        report.conflicts.retain(|conflict| !self.reported.contains(&conflict.path));
        self.reported = all;
        let all: BTreeSet<PathBuf> = report.unreadable.iter().map(|found| found.path.clone()).collect();
        report.unreadable.retain(|found| !self.unreadable.contains(&found.path));
        self.unreadable = all;
        let is_news = !(report.copied.is_empty()
            && report.removed.is_empty()
            && report.conflicts.is_empty()
            && report.unreadable.is_empty());
        (is_news || scope == Scope::Everything).then_some(report)
    }
}
