//! The changes of a resting workspace as an image: one new layer on top of its image's layers.
//!
//! The workspace's disk is booted without its workload, with the image's base disk beside it, and the agent sends
//! what differs as a tar stream. The host parses neither disk; the stream is as hostile as the guest that wrote the
//! disk, and is taken as any layer from anywhere is.

use std::time::Duration;

use microagent_image::{Committed, ConfigChanges, NetworkOptions, Pushed};
use microagent_model::WorkspaceName;
use microagent_proto::{Diff, Request};
use microagent_vm::machine::{EXTRA_SCSI_TARGET, ROOT_SCSI_TARGET};
use microagent_vm::{Claim, ExtraDisk};

use super::Workspace;
use super::copy::STREAM_SLACK;
use crate::error::Action;
use crate::guest::TarLimits;
use crate::provision::MIB;
use crate::{Error, Event, Progress};

/// How long the comparison of two disks may take; it ends sooner when nothing differs.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// What a commit makes. Start from [`CommitOptions::new`] and set what differs.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CommitOptions {
    /// Name of the new image.
    pub reference: String,
    /// Changes to how the image runs.
    pub changes: ConfigChanges,
    /// Why, for the image's history.
    pub message: Option<String>,
    /// By whom, for the image's history.
    pub author: Option<String>,
    /// By which operation, for the image's history; the workspace when absent.
    pub created_by: Option<String>,
    /// Whether the image is pushed to its registry afterwards.
    pub push: bool,
}

impl CommitOptions {
    /// An image of this name that runs as the workspace's image does.
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

    /// Changes how the image runs.
    #[must_use]
    pub fn changes(self, changes: ConfigChanges) -> CommitOptions {
        CommitOptions { changes, ..self }
    }

    /// Says why, for the image's history.
    #[must_use]
    pub fn message(self, message: impl Into<String>) -> CommitOptions {
        CommitOptions { message: Some(message.into()), ..self }
    }

    /// Says by whom, for the image's history.
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

/// What a commit made.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CommitReport {
    /// The workspace.
    pub workspace: WorkspaceName,
    /// The new image.
    pub image: Committed,
    /// What the push did, if there was one.
    pub pushed: Option<Pushed>,
}

impl Workspace {
    /// Makes an image of the resting workspace: its image with one layer more, which holds what the workspace has
    /// changed, added and removed. The workspace stays as it is.
    ///
    /// # Errors
    /// Fails when the workspace is running or in use, the name is no plain tag, blobs of its image are missing and
    /// cannot be fetched again, the guest cannot compare its disks, or the cache cannot take the layer. No image has
    /// been made then; after a push that failed it has.
    pub async fn commit(&self, options: CommitOptions, progress: &Progress) -> Result<CommitReport, Error> {
        let record = self.observe()?;
        let state = record.observed_state();
        if !state.is_resting() {
            return Err(self.wrong_state(state, Action::Commit));
        }
        let (images, cancel) = (self.engine.image_store(), progress.token());
        let commit = images.begin_commit(&record.image.digest, &options.reference, progress, cancel).await?;
        let base =
            ExtraDisk { path: images.disk_path(&record.image.disk), read_only: true, claim: Claim::None };
        let guest = self.resting_guest(vec![base], Action::Commit, progress).await?;
        progress.event(Event::Comparing { workspace: self.name.to_string() });

        let request =
            Request::Diff(Diff { root_scsi_target: ROOT_SCSI_TARGET, base_scsi_target: EXTRA_SCSI_TARGET });
        let limit = record.resources.size_mib.saturating_mul(MIB).saturating_mul(STREAM_SLACK);
        // One byte more than the limit shows that there was more.
        let limits = TarLimits { bytes: limit.saturating_add(1), time: COMMIT_TIMEOUT };
        let cancelled = cancel.clone();
        let consume = move |stream| {
            let layer = commit.take_layer(stream, limit, &|| cancelled.is_cancelled())?;
            Ok((commit, layer))
        };
        let (commit, layer) = guest.fetch_tar(&request, limits, consume, cancel).await?;
        let image_options = microagent_image::CommitOptions {
            changes: options.changes,
            message: options.message,
            author: options.author,
            created_by: options.created_by.unwrap_or_else(|| format!("changes of workspace {}", self.name)),
        };
        let image = commit.finish(layer, &image_options)?;
        let pushed = match options.push {
            true => {
                Some(images.push(&options.reference, &NetworkOptions::default(), progress, cancel).await?)
            }
            false => None,
        };
        Ok(CommitReport { workspace: self.name.clone(), image, pushed })
    }
}
