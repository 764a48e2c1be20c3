//! Snapshots by name.

use std::str::FromStr;

use microagent::{NameError, SnapshotTag, SnapshotTagError, WorkspaceName};

/// A workspace and a tag of it.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotName {
    pub(crate) workspace: WorkspaceName,
    pub(crate) tag: SnapshotTag,
}

impl FromStr for SnapshotName {
    type Err = String;

    fn from_str(text: &str) -> Result<SnapshotName, String> {
        let (workspace, tag) =
            text.split_once(':').ok_or_else(|| format!("`{text}` is not of the form WORKSPACE:TAG"))?;
        Ok(SnapshotName {
            workspace: workspace.parse().map_err(|error: NameError| error.to_string())?,
            tag: tag.parse().map_err(|error: SnapshotTagError| error.to_string())?,
        })
    }
}
