//! `microagent cp`, in JSON.

use microagent::WorkspaceName;
use serde::Serialize;

/// `microagent cp`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct CopyDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) workspace: WorkspaceName,
    pub(crate) source: String,
    pub(crate) target: String,
}
