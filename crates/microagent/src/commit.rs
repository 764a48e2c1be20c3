//! The changes of a resting workspace as an image: one new layer on top of its image's layers.
//!
//! The workspace's disk is booted without its workload, with the image's base disk beside it, and the agent sends
//! what differs as a tar stream. The host parses neither disk; the stream is as hostile as the guest that wrote the
//! disk, and is taken as any layer from anywhere is.

use std::io::{self, Read};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use microagent_image::{Committed, ConfigChanges, NetworkOptions, Pushed};
use microagent_proto::{Diff, Request};
use microagent_store::WorkspaceName;
use microagent_vm::machine::{EXTRA_SCSI_TARGET, ROOT_SCSI_TARGET};
use microagent_vm::{Claim, ExtraDisk};
use serde::Serialize;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::copy::Stream;
use crate::supervisor_events::Forward;
use crate::{Engine, Error, Event, Observer};

/// How long the comparison of two disks may take; it ends sooner when nothing differs.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// Chunks that wait between the guest and the writer.
const QUEUE: usize = 16;

/// What a layer may have beyond the disk's size: headers, and files with holes that it fills.
const STREAM_SLACK: u64 = 2;

/// What is done so that a workspace's state does not allow it.
const ACTION: &str = "commit it";

/// What a commit is asked to say and do.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// Changes to how the image runs.
    pub changes: ConfigChanges,
    /// Why, for the image's history.
    pub message: Option<String>,
    /// By whom, for the image's history.
    pub author: Option<String>,
    /// Whether the image is sent to its registry afterwards.
    pub push: bool,
}

/// What came of a commit.
#[derive(Debug, Clone, Serialize)]
pub struct CommitReport {
    /// The workspace.
    pub workspace: WorkspaceName,
    /// The new image.
    #[serde(flatten)]
    pub image: Committed,
    /// What sending it did, if that was asked for.
    pub pushed: Option<Pushed>,
}

impl Engine {
    /// Makes an image of a resting workspace: its image with one layer more, which holds what the workspace has
    /// changed, added and removed. The workspace stays as it is.
    ///
    /// # Errors
    /// Fails when the workspace lives or is in use, the name is no plain tag, blobs of its image are missing and
    /// cannot be had again, the guest cannot tell the changes, or the cache cannot take them. No image has been
    /// made then; after a push that failed it has.
    pub async fn commit(
        &self,
        name: &WorkspaceName,
        reference: &str,
        options: &CommitOptions,
        observer: &dyn Observer,
        cancel: &CancellationToken,
    ) -> Result<CommitReport, Error> {
        let record = self.observe(name)?;
        let state = record.observed_state();
        if !state.is_resting() {
            return Err(Error::WrongState { name: name.clone(), state, action: ACTION });
        }
        let images = self.images();
        let progress = Forward(observer);
        let commit = images.begin_commit(&record.image.digest, reference, &progress, cancel).await?;
        let base =
            ExtraDisk { path: images.disk_path(&record.image.disk), read_only: true, claim: Claim::None };
        let guest = self.resting_guest(name, vec![base], ACTION, observer, cancel).await?;
        observer.event(Event::Comparing { workspace: name.to_string() });

        let request =
            Request::Diff(Diff { root_scsi_target: ROOT_SCSI_TARGET, base_scsi_target: EXTRA_SCSI_TARGET });
        let (chunks, received) = sync_channel(QUEUE);
        let limit = record.resources.size_mib.saturating_mul(1024 * 1024).saturating_mul(STREAM_SLACK);
        let writer = {
            let cancel = cancel.clone();
            tokio::task::spawn_blocking(move || {
                // One byte more than the limit shows that there was more.
                let stream = Stream::new(received).take(limit.saturating_add(1));
                let layer = commit.take_layer(stream, limit, &|| cancel.is_cancelled());
                layer.map(|layer| (commit, layer))
            })
        };
        let told = timeout(COMMIT_TIMEOUT, self.tar_stream(&guest, &request, chunks, cancel)).await;
        let taken = writer.await.map_err(|e| Error::File {
            action: "write",
            path: images.disk_path(&record.image.disk),
            source: io::Error::other(e),
        })?;
        let told = told.unwrap_or_else(|_| Err(guest.late("it did not compare its disk in time")));
        let left = guest.leave().await;
        // The guest's reason comes first: the writer only saw its stream end.
        told?;
        left?;
        let (commit, layer) = taken?;
        let image_options = microagent_image::CommitOptions {
            changes: options.changes.clone(),
            message: options.message.clone(),
            author: options.author.clone(),
            created_by: format!("microagent commit {name}"),
        };
        let image = commit.finish(layer, &image_options)?;
        let pushed = match options.push {
            true => Some(images.push(reference, &NetworkOptions::default(), &progress, cancel).await?),
            false => None,
        };
        Ok(CommitReport { workspace: name.clone(), image, pushed })
    }
}
