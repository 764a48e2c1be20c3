//! Forks: machines that continue from a capture of another one.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use microagent_model::{SnapshotTag, State, WorkspaceName};

use super::Workspace;
use super::fork_volumes::{CopiedVolume, ForkVolumes};
use super::origin::Origin;
use crate::error::{Action, SnapshotError};
use crate::invalid::InvalidRequest;
use crate::{Error, Event, Progress};

/// Options of [`Workspace::fork`]. Create with [`ForkOptions::new`] and change with its methods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ForkOptions {
    /// What the forks get of the volumes that the source can write to.
    pub volumes: ForkVolumes,
}

impl ForkOptions {
    /// Creates options with which volumes are not copied.
    pub fn new() -> ForkOptions {
        ForkOptions::default()
    }

    /// Gives each fork copies of the volumes and bundles that the source can write to ([`ForkVolumes::Copied`]).
    #[must_use]
    pub fn copy_volumes(self) -> ForkOptions {
        ForkOptions { volumes: ForkVolumes::Copied }
    }
}

/// A workspace that continues from another one.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Fork {
    /// The workspace.
    pub workspace: Workspace,
    /// Volumes that were copied for it. Deleting the workspace does not delete them.
    pub copied_volumes: Vec<CopiedVolume>,
    /// What there is to know of its start: which of its hooks have failed.
    pub notices: Vec<String>,
}

impl Workspace {
    /// Creates workspaces that continue from this moment of the workspace, each as a machine of its own
    /// ([`Snapshots::start_workspace`](super::snapshot::Snapshots::start_workspace)). The source is stopped once,
    /// whatever their number, and continues. Forks of a resting workspace are clones, which rest.
    ///
    /// Volumes that the workspace only reads are shared. With [`ForkVolumes::Copied`], those that it can write to are copied
    /// while the source is stopped, which takes as long as copying their data unless the file system can share blocks, and at
    /// most 30 s.
    ///
    /// # Errors
    /// Fails if a name is taken or given twice, a secret has no value, or the source cannot be captured
    /// ([`Snapshots::create`](super::snapshot::Snapshots::create)): then nothing is created. If one of them does not start,
    /// those that were started before run and are named in the error
    /// ([`SnapshotError::ForksIncomplete`]), and the others are not created. One whose machine fails is kept in state
    /// `failed`. One whose start is cancelled is removed.
    pub async fn fork(
        &self,
        names: &[WorkspaceName],
        options: ForkOptions,
        progress: &Progress,
    ) -> Result<Vec<Fork>, Error> {
        for (index, name) in names.iter().enumerate() {
            if names[..index].contains(name) {
                return Err(InvalidRequest::ForkedTwice { name: name.clone() }.into());
            }
            if self.engine.workspace(name).dir().path().exists() {
                return Err(Error::NameTaken { name: name.clone() });
            }
        }
        self.fork_as(names, Naming::Given, options, progress).await
    }

    /// As [`Workspace::fork`], with generated names: that of the workspace with the lowest numbers that are not taken.
    ///
    /// # Errors
    /// As [`Workspace::fork`], and if the workspace's name is too long for a number.
    pub async fn fork_numbered(
        &self,
        count: usize,
        options: ForkOptions,
        progress: &Progress,
    ) -> Result<Vec<Fork>, Error> {
        let names: Vec<_> = self.fork_names().take(count).collect::<Result<_, _>>()?;
        self.fork_as(&names, Naming::Numbered, options, progress).await
    }

    async fn fork_as(
        &self,
        names: &[WorkspaceName],
        naming: Naming,
        options: ForkOptions,
        progress: &Progress,
    ) -> Result<Vec<Fork>, Error> {
        progress.check()?;
        let record = self.observe()?;
        if options.volumes == ForkVolumes::Copied {
            self.check_copies(&record, names)?;
        }
        match record.observed_state() {
            State::Running | State::Paused => {}
            state if state.is_resting() => {
                let source = Source::Resting(options.volumes);
                return self.make_forks(source, names, naming, progress).await;
            }
            state => return Err(self.wrong_state(state, Action::Fork)),
        }
        self.engine.prepare()?;
        self.check_capture(&record, Action::Fork, options.volumes)?;
        // What no fork could be started without is missed before the source is stopped.
        drop(self.engine.resolve_secrets(&record.secrets, &record.brokers, progress.token()).await?);
        let tag = fork_tag(Timestamp::now())?;
        let captured = self.capture_for(tag, options.volumes, progress.token()).await?;
        let started = self.make_forks(Source::Captured(&captured.origin), names, naming, progress).await;
        // Machines that run have read the memory, and the layers are theirs as well.
        drop(captured);
        let _ = self.engine.free_layers().await;
        started
    }

    /// Makes forks, two machines at a time: each of them waits for a part of its start.
    async fn make_forks(
        &self,
        source: Source<'_>,
        names: &[WorkspaceName],
        naming: Naming,
        progress: &Progress,
    ) -> Result<Vec<Fork>, Error> {
        let mut forks = Vec::new();
        let at_a_time = match source {
            Source::Captured(_) => 2,
            // The source is locked while it is copied.
            Source::Resting(_) => 1,
        };
        for names in names.chunks(at_a_time) {
            let start = async |name: Option<&WorkspaceName>| match name {
                Some(name) => Some(self.make_fork(source, name, naming, progress).await),
                None => None,
            };
            let (one, other) = tokio::join!(start(names.first()), start(names.get(1)));
            let mut failed = None;
            for (name, started) in [one, other].into_iter().flatten() {
                match started {
                    Ok(fork) => forks.push(fork),
                    // The first one says why; the other has mostly the same reason.
                    Err(error) => failed = failed.or(Some((name, error))),
                }
            }
            if let Some((name, error)) = failed {
                return Err(incomplete(forks, &name, error));
            }
        }
        Ok(forks)
    }

    /// Makes a fork: a machine that continues from a capture, or a clone. It has the next free name if another command has
    /// taken the generated one in the meantime.
    async fn make_fork(
        &self,
        source: Source<'_>,
        name: &WorkspaceName,
        naming: Naming,
        progress: &Progress,
    ) -> (WorkspaceName, Result<Fork, Error>) {
        let mut name = name.clone();
        loop {
            let notices = Notices::default();
            let made = match (progress.check(), source) {
                (Err(cancelled), _) => Err(cancelled),
                (Ok(()), Source::Captured(origin)) => {
                    let work = notices.of(&name, progress);
                    self.snapshots().start_from(origin, &name, None, &work).await
                }
                (Ok(()), Source::Resting(volumes)) => self.clone_with(&name, volumes, progress.token()).await,
            };
            let made = made.map(|(workspace, copied_volumes)| Fork {
                workspace,
                copied_volumes,
                notices: notices.taken(),
            });
            if naming == Naming::Given || !matches!(made, Err(Error::NameTaken { .. })) {
                return (name, made);
            }
            match self.fork_names().next() {
                Some(Ok(free)) => name = free,
                Some(Err(error)) => return (name, Err(error)),
                None => return (name, made),
            }
        }
    }

    /// Names for forks that are not taken: the workspace's with a number.
    fn fork_names(&self) -> impl Iterator<Item = Result<WorkspaceName, Error>> {
        let numbered =
            (1..=u32::MAX).map(|number| format!("{}-{number}", self.name).parse::<WorkspaceName>());
        let free = numbered.filter(|name| match name {
            Ok(name) => !self.engine.workspace(name).dir().path().exists(),
            Err(_) => true,
        });
        free.map(|name| name.map_err(|_| SnapshotError::NoForkName { workspace: self.name.clone() }.into()))
    }
}

/// What forks are made from.
#[derive(Debug, Clone, Copy)]
enum Source<'a> {
    /// A capture of the running workspace.
    Captured(&'a Origin),
    /// The resting workspace.
    Resting(ForkVolumes),
}

/// Notices of the start of one fork.
#[derive(Debug, Clone, Default)]
struct Notices(Arc<Mutex<Vec<String>>>);

impl Notices {
    /// Passes events on and keeps the notices, which name the fork for who sees those of several.
    fn of(&self, name: &WorkspaceName, progress: &Progress) -> Progress {
        let (kept, shown, name) = (self.clone(), progress.clone(), name.clone());
        Progress::new().cancel(progress.token().clone()).observer(move |event| match event {
            Event::Notice(notice) => {
                kept.0.lock().unwrap_or_else(PoisonError::into_inner).push(notice.clone());
                shown.event(Event::Notice(format!("{name}: {notice}")));
            }
            event => shown.event(event),
        })
    }

    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Who has chosen the names of forks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Naming {
    /// The caller.
    Given,
    /// This module.
    Numbered,
}

/// The error of one of several forks, with those that were made.
fn incomplete(made: Vec<Fork>, failed: &WorkspaceName, error: Error) -> Error {
    if made.is_empty() {
        return error;
    }
    let made = made.into_iter().map(|fork| fork.workspace.name).collect();
    SnapshotError::ForksIncomplete { made, failed: failed.clone(), source: Box::new(error) }.into()
}

fn fork_tag(now: Timestamp) -> Result<SnapshotTag, Error> {
    let number = u32::from_le_bytes(crate::supervisor_spec::random::<4>()?);
    let tag = format!("{}-{number:08x}", now.strftime("fork-%Y%m%d-%H%M%S"));
    Ok(tag.parse().expect("letters, digits and hyphens make a tag"))
}
