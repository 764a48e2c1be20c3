//! `microagent apply`, in JSON.

use microagent::apply::{Applied, Change, ChangeKind};
use microagent::{State, WorkspaceName};
use serde::Serialize;

#[cfg(test)]
use crate::documents::schema::Words;

/// `microagent apply`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ApplyDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    workspace: WorkspaceName,
    #[cfg_attr(test, schemars(with = "Words<microagent::State>"))]
    state: State,
    changes: Vec<ChangeDocument>,
    dry_run: bool,
    notices: Vec<String>,
}

document! {
    /// Something in which a workspace and its file differed.
    ChangeDocument of Change {
        /// The key of the file; a list's entry is named in brackets.
        key: String,
        #[cfg_attr(test, schemars(with = "Words<microagent::apply::ChangeKind>"))]
        change: ChangeKind,
        /// `null` for values that are not shown.
        old: Option<String>,
        new: Option<String>,
        needs_rest: bool,
    }
}

impl From<Applied> for ApplyDocument {
    fn from(applied: Applied) -> ApplyDocument {
        ApplyDocument {
            workspace: applied.workspace,
            state: applied.state,
            changes: applied.changes.into_iter().map(ChangeDocument::from).collect(),
            dry_run: applied.dry_run,
            notices: applied.notices,
        }
    }
}
