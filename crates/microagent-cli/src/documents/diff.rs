//! `microagent diff`, in JSON.

use microagent::{DiskChanges, PathChange, PathChangeKind, WorkspaceName};
use serde::Serialize;

/// `microagent diff`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct DiskChangesDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    workspace: WorkspaceName,
    changes: Vec<PathChangeDocument>,
    truncated: bool,
}

/// A changed path.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct PathChangeDocument {
    kind: ChangeWord,
    path: String,
}

/// What happened to a path.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
enum ChangeWord {
    Added,
    Changed,
    Deleted,
}

impl From<DiskChanges> for DiskChangesDocument {
    fn from(listed: DiskChanges) -> DiskChangesDocument {
        DiskChangesDocument {
            workspace: listed.workspace,
            changes: listed.changes.into_iter().map(PathChangeDocument::from).collect(),
            truncated: listed.is_cut,
        }
    }
}

impl From<PathChange> for PathChangeDocument {
    fn from(change: PathChange) -> PathChangeDocument {
        let kind = match change.kind {
            PathChangeKind::Added => ChangeWord::Added,
            PathChangeKind::Deleted => ChangeWord::Deleted,
            _ => ChangeWord::Changed,
        };
        PathChangeDocument { kind, path: change.path }
    }
}
