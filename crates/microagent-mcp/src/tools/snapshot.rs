//! Snapshots of a workspace.

use microagent::snapshot::{Snapshot, SnapshotContents};
use microagent::{Progress, SnapshotTag, SnapshotTagError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::call::Call;
use crate::error::ToolError;
use crate::server::Server;

/// Most snapshots of a workspace: more than a model makes on purpose.
const SNAPSHOTS_MAX: usize = 64;

/// A snapshot to make.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SnapshotArguments {
    /// Name of the workspace.
    name: String,
    /// Tag: letters, digits, `.`, `_` and `-`; one with the time is made up without it.
    #[serde(default)]
    tag: Option<String>,
}

/// A snapshot to return to.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RestoreArguments {
    /// Name of the workspace.
    name: String,
    /// Tag of the snapshot.
    tag: String,
}

/// A snapshot, and which others there are.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct SnapshotDocument {
    /// Name of the workspace.
    name: String,
    /// Tag of the snapshot.
    tag: String,
    /// Tags of all snapshots of the workspace, the oldest first.
    tags: Vec<String>,
}

impl SnapshotDocument {
    fn new(name: String, tag: &SnapshotTag, all: &[Snapshot]) -> SnapshotDocument {
        let tags = all.iter().map(|snapshot| snapshot.tag.to_string()).collect();
        SnapshotDocument { name, tag: tag.to_string(), tags }
    }
}

/// Makes a snapshot.
pub(super) async fn create(
    server: Server,
    _call: Call,
    arguments: SnapshotArguments,
) -> Result<SnapshotDocument, ToolError> {
    let tag = arguments.tag.as_deref().map(parse_tag).transpose()?;
    let snapshots = server.workspaces().find(&arguments.name)?.snapshots();
    if snapshots.list().await?.len() >= SNAPSHOTS_MAX {
        return Err(ToolError::refused(format!("the workspace has {SNAPSHOTS_MAX} snapshots"))
            .hint("a person can delete some of them"));
    }
    let snapshot = snapshots.create(tag.as_ref(), SnapshotContents::MemoryAndDisk).await?;
    Ok(SnapshotDocument::new(arguments.name, &snapshot.tag, &snapshots.list().await?))
}

/// Restores files.
pub(super) async fn restore(
    server: Server,
    _call: Call,
    arguments: RestoreArguments,
) -> Result<SnapshotDocument, ToolError> {
    let tag = parse_tag(&arguments.tag)?;
    let snapshots = server.workspaces().find(&arguments.name)?.snapshots();
    snapshots.restore(&tag, &Progress::new()).await?;
    Ok(SnapshotDocument::new(arguments.name, &tag, &snapshots.list().await?))
}

fn parse_tag(tag: &str) -> Result<SnapshotTag, ToolError> {
    tag.parse().map_err(|error: SnapshotTagError| ToolError::invalid(error.to_string()))
}
