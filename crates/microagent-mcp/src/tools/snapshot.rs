//! Snapshots of a workspace.

use microagent::snapshot::{ForkOptions, Snapshot, SnapshotContents, SnapshotDeleteMode};
use microagent::{Error, Progress, SnapshotTag, SnapshotTagError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::workspace::WorkspaceDocument;
use crate::call::Call;
use crate::error::ToolError;
use crate::server::Server;
use crate::workspaces::parse_name;

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

/// A snapshot that there is.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TagArguments {
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
    /// Tags of all snapshots that the workspace has now, the oldest first.
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
            .hint("delete one that is not needed with the tool `delete_snapshot`"));
    }
    let snapshot = snapshots.create(tag.as_ref(), SnapshotContents::MemoryAndDisk).await?;
    Ok(SnapshotDocument::new(arguments.name, &snapshot.tag, &snapshots.list().await?))
}

/// Restores files.
pub(super) async fn restore(
    server: Server,
    _call: Call,
    arguments: TagArguments,
) -> Result<SnapshotDocument, ToolError> {
    let tag = parse_tag(&arguments.tag)?;
    let snapshots = server.workspaces().find(&arguments.name)?.snapshots();
    snapshots.restore(&tag, &Progress::new()).await?;
    Ok(SnapshotDocument::new(arguments.name, &tag, &snapshots.list().await?))
}

/// Deletes a snapshot.
pub(super) async fn delete(
    server: Server,
    _call: Call,
    arguments: TagArguments,
) -> Result<SnapshotDocument, ToolError> {
    let tag = parse_tag(&arguments.tag)?;
    let snapshots = server.workspaces().find(&arguments.name)?.snapshots();
    snapshots.get(&tag).await?;
    snapshots.delete(&tag, SnapshotDeleteMode::Ordinary).await?;
    Ok(SnapshotDocument::new(arguments.name, &tag, &snapshots.list().await?))
}

/// A workspace to fork.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ForkArguments {
    /// Name of the workspace.
    name: String,
    /// Name of the new workspace; the workspace's with a number without it.
    #[serde(default)]
    new_name: Option<String>,
}

/// Forks a workspace. The fork has the labels of its source, so it goes with the same server.
pub(super) async fn fork(
    server: Server,
    call: Call,
    arguments: ForkArguments,
) -> Result<WorkspaceDocument, ToolError> {
    let workspace = server.workspaces().find(&arguments.name)?;
    let place = server.workspaces().place()?;
    let name = arguments.new_name.as_deref().map(parse_name).transpose()?;
    // Copies of volumes would outlive the workspaces that a model can delete.
    let options = ForkOptions::new();
    let forked = match &name {
        Some(name) => workspace.fork(std::slice::from_ref(name), options, &call.progress()).await,
        None => workspace.fork_numbered(1, options, &call.progress()).await,
    };
    let name = match &forked {
        Ok(forks) => forks.first().map(|fork| fork.workspace.name().clone()),
        // One that did not start stays, for its logs.
        Err(Error::StartFailed { workspace, .. } | Error::SetupFailed { workspace, .. }) => {
            Some(workspace.clone())
        }
        Err(_) => name.filter(|name| server.workspaces().find(name.as_str()).is_ok()),
    };
    if let Some(name) = &name
        && server.workspaces().find(name.as_str()).is_ok()
    {
        server.workspaces().take(name.clone(), place);
    }
    let forks = forked?;
    let fork = forks.first().ok_or(Error::NoSuchWorkspace { name: workspace.name().clone() })?;
    Ok(WorkspaceDocument::forked(fork)?)
}

fn parse_tag(tag: &str) -> Result<SnapshotTag, ToolError> {
    tag.parse().map_err(|error: SnapshotTagError| ToolError::invalid(error.to_string()))
}
