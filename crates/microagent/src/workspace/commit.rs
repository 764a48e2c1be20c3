//! Commits a resting workspace as an image, with one new layer on top of its image's layers.
//!
//! The workspace's disk is booted without its service, together with the image's base disk, and the agent sends the
//! differences as a tar stream. The host parses neither disk. The stream is not trusted, and is read as any other
//! layer.

use std::time::Duration;

use microagent_image::{Committed, ConfigChanges, NetworkOptions, Pushed};
use microagent_model::WorkspaceName;
use microagent_proto::{Diff, DiffForm, Request};
use microagent_vm::machine::{EXTRA_SCSI_TARGET, ROOT_SCSI_TARGET};
use microagent_vm::{Claim, ExtraDisk};

use super::Workspace;
use super::copy::STREAM_SLACK;
use crate::error::Action;
use crate::guest::TarLimits;
use crate::provision::MIB;
use crate::{Error, Event, Progress};

/// Deadline for the comparison of two disks.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// Options of [`Workspace::commit`]. Create with [`CommitOptions::new`] and change with its methods.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CommitOptions {
    /// Name of the new image: a repository and a tag, such as `example.com/web:1`. A name without registry is completed
    /// as Docker does: `web` is `docker.io/library/web:latest`.
    pub reference: String,
    /// Changes to the image's configuration.
    pub changes: ConfigChanges,
    /// Message, for the image's history.
    pub message: Option<String>,
    /// Author, for the image's history.
    pub author: Option<String>,
    /// Description of the operation, for the image's history. If absent, it has the workspace's name.
    pub created_by: Option<String>,
    /// Whether the image is pushed to its registry afterwards.
    pub push: bool,
}

impl CommitOptions {
    /// Creates options for an image of this name (see [`CommitOptions::reference`]) with the configuration of the
    /// workspace's image.
    pub fn new(reference: impl Into<String>) -> CommitOptions {
        CommitOptions {
            reference: reference.into(),
            changes: ConfigChanges::default(),
            message: None,
            author: None,
            created_by: None,
            push: false,
        }
    }

    /// Sets changes to the image's configuration.
    #[must_use]
    pub fn changes(self, changes: ConfigChanges) -> CommitOptions {
        CommitOptions { changes, ..self }
    }

    /// Sets the message of the image's history.
    #[must_use]
    pub fn message(self, message: impl Into<String>) -> CommitOptions {
        CommitOptions { message: Some(message.into()), ..self }
    }

    /// Sets the author of the image's history.
    #[must_use]
    pub fn author(self, author: impl Into<String>) -> CommitOptions {
        CommitOptions { author: Some(author.into()), ..self }
    }

    /// Pushes the image to its registry afterwards.
    #[must_use]
    pub fn push(self) -> CommitOptions {
        CommitOptions { push: true, ..self }
    }
}

/// The result of a commit.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CommitReport {
    /// The workspace.
    pub workspace: WorkspaceName,
    /// The new image.
    pub image: Committed,
    /// The result of the push, if there was one.
    pub pushed: Option<Pushed>,
}

impl Workspace {
    /// Creates an image from the [resting](microagent_model::State::is_resting) workspace ([`Workspace::halt`] it first):
    /// the image of the workspace with one more layer, which contains the changed, added and removed files. The workspace
    /// is not changed. The new image is in the cache of the engine ([`Engine::images`](crate::Engine::images)) and can be
    /// run by its name. If the cache has an image of this name, the name is moved to the new image.
    ///
    /// The host does not read the disk: a machine boots with it, without the service, and its guest sends the
    /// differences. `progress` receives [`Event::Booting`], [`Event::Booted`] and [`Event::Comparing`].
    ///
    /// # Errors
    /// Fails if the workspace is not resting ([`WrongState`](crate::ErrorKind::WrongState)) or in use
    /// ([`Busy`](crate::ErrorKind::Busy)), the name is not a tag ([`Invalid`](crate::ErrorKind::Invalid)), blobs of the
    /// workspace's image are missing and cannot be fetched ([`Image`](crate::ErrorKind::Image)), the guest cannot compare
    /// its disks ([`RunFailed`](crate::ErrorKind::RunFailed)), or the layer cannot be stored. Then no image is created.
    /// After a failed push the image exists.
    pub async fn commit(&self, options: CommitOptions, progress: &Progress) -> Result<CommitReport, Error> {
        progress.check()?;
        let record = self.observe()?;
        let state = record.observed_state();
        if !state.is_resting() {
            return Err(self.wrong_state(state, Action::Commit));
        }
        let (images, cancel) = (self.engine.image_store(), progress.token());
        let commit =
            images.begin_commit(&record.image.digest, &options.reference, &progress.images(), cancel).await?;
        let base =
            ExtraDisk { path: images.disk_path(&record.image.disk), read_only: true, claim: Claim::None };
        let guest = self.resting_guest(vec![base], Action::Commit, progress).await?;
        progress.event(Event::Comparing { workspace: self.name.to_string() });

        let request = Request::Diff(Diff {
            root_scsi_target: ROOT_SCSI_TARGET,
            base_scsi_target: EXTRA_SCSI_TARGET,
            form: DiffForm::Layer,
        });
        let limit = record.resources.size_mib.saturating_mul(MIB).saturating_mul(STREAM_SLACK);
        // One byte more than the limit shows that there was more.
        let limits = TarLimits { bytes: limit.saturating_add(1), time: COMMIT_TIMEOUT };
        let cancelled = cancel.clone();
        let consume = move |stream| {
            let layer = commit.take_layer(stream, limit, &|| cancelled.is_cancelled())?;
            Ok((commit, layer))
        };
        let (commit, layer) = guest.fetch_tar(&request, limits, consume, progress).await?;
        let image_options = microagent_image::CommitDetails {
            changes: options.changes,
            message: options.message,
            author: options.author,
            created_by: options.created_by.unwrap_or_else(|| format!("changes of workspace {}", self.name)),
        };
        let image = commit.finish(layer, &image_options)?;
        let pushed = match options.push {
            true => Some(
                images
                    .push(&options.reference, &NetworkOptions::default(), &progress.images(), cancel)
                    .await?,
            ),
            false => None,
        };
        Ok(CommitReport { workspace: self.name.clone(), image, pushed })
    }
}
