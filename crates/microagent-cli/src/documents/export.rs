//! `microagent export`, in JSON.

use std::path::PathBuf;

use microagent::WorkspaceName;
use serde::Serialize;

/// `microagent export`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ExportDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) workspace: WorkspaceName,
    pub(crate) file: PathBuf,
    pub(crate) bytes: u64,
}
