//! Forks: machines that continue from a capture of another one.

use jiff::Timestamp;
use microagent_model::{SnapshotTag, State, WorkspaceName};

use super::Workspace;
use super::origin::Origin;
use crate::error::{Action, SnapshotError};
use crate::invalid::InvalidRequest;
use crate::{Error, Progress};

impl Workspace {
    /// Creates workspaces that continue from this moment of the workspace, each as a machine of its own
    /// ([`Snapshots::start_workspace`](super::snapshot::Snapshots::start_workspace)). The source is stopped once,
    /// whatever their number, and continues. Forks of a resting workspace are clones, which rest.
    ///
    /// # Errors
    /// Fails if a name is taken or given twice, a secret has no value, or the source cannot be captured
    /// ([`Snapshots::create`](super::snapshot::Snapshots::create)): then nothing is created. If one of them does not start,
    /// those that were started before run and are named in the error
    /// ([`SnapshotError::ForksIncomplete`]), and the others are not created. One whose machine fails is kept in state
    /// `failed`. One whose start is cancelled is removed.
    pub async fn fork(&self, names: &[WorkspaceName], progress: &Progress) -> Result<Vec<Workspace>, Error> {
        for (index, name) in names.iter().enumerate() {
            if names[..index].contains(name) {
                return Err(InvalidRequest::ForkedTwice { name: name.clone() }.into());
            }
            if self.engine.workspace(name).dir().path().exists() {
                return Err(Error::NameTaken { name: name.clone() });
            }
        }
        self.fork_as(names, Naming::Given, progress).await
    }

    /// As [`Workspace::fork`], with generated names: that of the workspace with the lowest numbers that are not taken.
    ///
    /// # Errors
    /// As [`Workspace::fork`], and if the workspace's name is too long for a number.
    pub async fn fork_numbered(&self, count: usize, progress: &Progress) -> Result<Vec<Workspace>, Error> {
        let names: Vec<_> = self.fork_names().take(count).collect::<Result<_, _>>()?;
        self.fork_as(&names, Naming::Numbered, progress).await
    }

    async fn fork_as(
        &self,
        names: &[WorkspaceName],
        naming: Naming,
        progress: &Progress,
    ) -> Result<Vec<Workspace>, Error> {
        progress.check()?;
        let record = self.observe()?;
        match record.observed_state() {
            State::Running | State::Paused => {}
            state if state.is_resting() => return self.clone_all(names, naming, progress).await,
            state => return Err(self.wrong_state(state, Action::Fork)),
        }
        self.engine.prepare()?;
        self.check_capture(&record, Action::Fork)?;
        // What no fork could be started without is missed before the source is stopped.
        drop(self.engine.resolve_secrets(&record.secrets, &record.brokers, progress.token()).await?);
        let captured = self.capture_for(fork_tag(Timestamp::now())?).await?;
        let started = self.start_forks(&captured.origin, names, naming, progress).await;
        // Machines that run have read the memory, and the layers are theirs as well.
        drop(captured);
        let _ = self.engine.free_layers().await;
        started
    }

    async fn clone_all(
        &self,
        names: &[WorkspaceName],
        naming: Naming,
        progress: &Progress,
    ) -> Result<Vec<Workspace>, Error> {
        let mut made = Vec::new();
        for name in names {
            let cloned = match progress.check() {
                Ok(()) => self.make_fork(None, name, naming, progress).await,
                Err(cancelled) => (name.clone(), Err(cancelled)),
            };
            match cloned {
                (_, Ok(clone)) => made.push(clone),
                (name, Err(error)) => return Err(incomplete(made, &name, error)),
            }
        }
        Ok(made)
    }

    /// Starts two at a time: each of them waits for a part of its start.
    async fn start_forks(
        &self,
        origin: &Origin,
        names: &[WorkspaceName],
        naming: Naming,
        progress: &Progress,
    ) -> Result<Vec<Workspace>, Error> {
        let mut forks = Vec::new();
        for pair in names.chunks(2) {
            let start = async |name: Option<&WorkspaceName>| match name {
                Some(name) => Some(self.make_fork(Some(origin), name, naming, progress).await),
                None => None,
            };
            let (one, other) = tokio::join!(start(pair.first()), start(pair.get(1)));
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
        origin: Option<&Origin>,
        name: &WorkspaceName,
        naming: Naming,
        progress: &Progress,
    ) -> (WorkspaceName, Result<Workspace, Error>) {
        let mut name = name.clone();
        loop {
            let made = match origin {
                Some(origin) => self.snapshots().start_from(origin, &name, progress).await,
                None => self.clone_to(&name).await,
            };
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

/// Who has chosen the names of forks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Naming {
    /// The caller.
    Given,
    /// This module.
    Numbered,
}

/// The error of one of several forks, with those that were made.
fn incomplete(made: Vec<Workspace>, failed: &WorkspaceName, error: Error) -> Error {
    if made.is_empty() {
        return error;
    }
    let made = made.into_iter().map(|workspace| workspace.name).collect();
    SnapshotError::ForksIncomplete { made, failed: failed.clone(), source: Box::new(error) }.into()
}

fn fork_tag(now: Timestamp) -> Result<SnapshotTag, Error> {
    let number = u32::from_le_bytes(crate::supervisor_spec::random::<4>()?);
    let tag = format!("{}-{number:08x}", now.strftime("fork-%Y%m%d-%H%M%S"));
    Ok(tag.parse().expect("letters, digits and hyphens make a tag"))
}
