//! What workspaces are made from: the files of a snapshot, or of a capture that only its command uses.

use std::path::PathBuf;

use microagent_model::{SnapshotName, SnapshotTag, State, WorkspaceName};
use microagent_store::{SnapshotDir, WorkspaceRecord};

use super::Workspace;
use super::snapshot::Snapshots;
use crate::Error;
use crate::error::{Action, SnapshotError};

/// A snapshot, or the capture of a fork, which has a tag for messages only.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub(super) tag: SnapshotTag,
    pub(super) files: SnapshotDir,
    pub(super) kind: OriginKind,
}

/// How long an origin lasts.
#[derive(Debug, Clone)]
pub(super) enum OriginKind {
    /// It is a snapshot.
    Snapshot,
    /// It is a capture for forks, with copies of the volumes that its machine could write to, if the forks get some.
    Capture { volumes: Option<PathBuf> },
}

impl Origin {
    /// Its name in messages.
    pub(super) fn shown(&self, workspace: &WorkspaceName) -> String {
        format!("{workspace}:{}", self.tag)
    }

    /// Copies of volumes for forks.
    pub(super) fn volumes(&self) -> Option<&PathBuf> {
        match &self.kind {
            OriginKind::Snapshot => None,
            OriginKind::Capture { volumes } => volumes.as_ref(),
        }
    }

    /// What a workspace was created from, for its record.
    pub(super) fn name(&self, workspace: &WorkspaceName) -> Option<SnapshotName> {
        let name = || SnapshotName { workspace: workspace.clone(), tag: self.tag.clone() };
        matches!(self.kind, OriginKind::Snapshot).then(name)
    }

    /// The error that its files are damaged.
    pub(super) fn damaged(&self, workspace: &WorkspaceName, reason: String) -> Error {
        SnapshotError::Damaged { workspace: workspace.clone(), tag: self.tag.clone(), reason }.into()
    }
}

impl Snapshots {
    /// The files of a snapshot, which may not exist.
    pub(super) fn origin(&self, tag: &SnapshotTag) -> Result<Origin, Error> {
        let files = self.workspace().existing()?.snapshot(tag);
        Ok(Origin { tag: tag.clone(), files, kind: OriginKind::Snapshot })
    }

    /// Fails if the workspace is quarantined: its snapshots are kept for examination as it is.
    pub(super) fn check_free(&self, action: Action) -> Result<(), Error> {
        self.workspace().check_free(action)
    }
}

impl Workspace {
    /// Fails if the workspace is quarantined. Whatever ends a machine without being a request to do that asks here
    /// immediately before: only a request of a person releases a quarantine.
    pub(crate) fn check_free(&self, action: Action) -> Result<(), Error> {
        match self.observe().map(|record| record.observed_state()) {
            Ok(state @ State::Quarantined) => Err(self.wrong_state(state, action)),
            // A damaged record says nothing of a quarantine, and must not keep snapshots from being deleted.
            _ => Ok(()),
        }
    }

    /// Reads a snapshot and checks that all of its disk is there.
    pub(super) fn load_snapshot(&self, origin: &Origin) -> Result<WorkspaceRecord, Error> {
        if !origin.files.path().is_dir() {
            return Err(self.snapshots().no_such(&origin.tag));
        }
        if origin.files.load().is_ok_and(|manifest| manifest.forensic) {
            let (workspace, tag) = (self.name.clone(), origin.tag.clone());
            return Err(SnapshotError::Forensic { workspace, tag }.into());
        }
        let loaded = origin.files.load().and_then(|_| WorkspaceRecord::load(origin.files.files()));
        let record = match loaded {
            Ok(record) => record,
            Err(source) => {
                let (workspace, tag) = (self.name.clone(), origin.tag.clone());
                return Err(SnapshotError::Record { workspace, tag, source }.into());
            }
        };
        match self.engine.missing_part(&record, origin.files.files()) {
            None => Ok(record),
            Some(reason) => Err(origin.damaged(&self.name, reason)),
        }
    }
}
