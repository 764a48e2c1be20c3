//! Forks: machines that continue from one moment of another one.

use jiff::Timestamp;
use microagent_model::{SnapshotTag, State, WorkspaceName};

use super::Workspace;
use super::capture::Lifespan;
use super::snapshot::SnapshotContents;
use crate::error::SnapshotError;
use crate::invalid::InvalidRequest;
use crate::{Error, Progress};

impl Workspace {
    /// Creates workspaces that continue from this moment of the workspace, each as a machine of its own
    /// ([`Snapshots::start_workspace`](super::snapshot::Snapshots::start_workspace)). The source is stopped once, whatever
    /// their number, and continues. Of a resting workspace they are clones, which rest.
    ///
    /// # Errors
    /// Fails if a name is taken or given twice, or the source cannot be captured
    /// ([`Snapshots::create`](super::snapshot::Snapshots::create)): then nothing is created. If one of them does not start, it
    /// is kept in state `failed`, those before it run, and the others are not created.
    pub async fn fork(&self, names: &[WorkspaceName], progress: &Progress) -> Result<Vec<Workspace>, Error> {
        for (index, name) in names.iter().enumerate() {
            if names[..index].contains(name) {
                return Err(InvalidRequest::ForkedTwice { name: name.clone() }.into());
            }
            if self.engine.workspace(name).dir().path().exists() {
                return Err(Error::NameTaken { name: name.clone() });
            }
        }
        let mut forks = Vec::new();
        if !matches!(self.observe()?.observed_state(), State::Running | State::Paused) {
            for name in names {
                forks.push(self.clone_to(name).await?);
            }
            return Ok(forks);
        }
        let snapshots = self.snapshots();
        let tag = fork_tag(Timestamp::now())?;
        let contents = SnapshotContents::MemoryAndDisk;
        let snapshot = self.make_live_snapshot(Some(tag), contents, Lifespan::Passing).await?;
        let started = self.start_forks(&snapshot.tag, names, progress).await;
        // Machines that run have read the memory, and the layers are theirs as well.
        let deleted = snapshots.delete(&snapshot.tag).await;
        let forks = started?;
        deleted?;
        Ok(forks)
    }

    /// Starts two at a time: each of them waits for a part of its start.
    async fn start_forks(
        &self,
        tag: &SnapshotTag,
        names: &[WorkspaceName],
        progress: &Progress,
    ) -> Result<Vec<Workspace>, Error> {
        let snapshots = self.snapshots();
        let mut forks = Vec::new();
        for pair in names.chunks(2) {
            match pair {
                [one, other] => {
                    let (one, other) = tokio::join!(
                        snapshots.start_workspace(tag, one, progress),
                        snapshots.start_workspace(tag, other, progress),
                    );
                    forks.extend([one?, other?]);
                }
                rest => {
                    for name in rest {
                        forks.push(snapshots.start_workspace(tag, name, progress).await?);
                    }
                }
            }
        }
        Ok(forks)
    }

    /// Names for forks that are not taken: the workspace's with a number.
    ///
    /// # Errors
    /// Fails if the workspace's name is too long for a number.
    pub fn fork_names(&self, count: usize) -> Result<Vec<WorkspaceName>, Error> {
        let numbered =
            (1..=u32::MAX).map(|number| format!("{}-{number}", self.name).parse::<WorkspaceName>());
        let free = numbered.filter(|name| match name {
            Ok(name) => !self.engine.workspace(name).dir().path().exists(),
            Err(_) => true,
        });
        free.take(count)
            .collect::<Result<_, _>>()
            .map_err(|_| SnapshotError::NoForkName { workspace: self.name.clone() }.into())
    }
}

fn fork_tag(now: Timestamp) -> Result<SnapshotTag, Error> {
    let number = u32::from_le_bytes(crate::supervisor_spec::random::<4>()?);
    let tag = format!("{}-{number:08x}", now.strftime("fork-%Y%m%d-%H%M%S"));
    Ok(tag.parse().expect("letters, digits and hyphens make a tag"))
}
