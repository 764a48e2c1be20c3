//! `microagent supervise`, in JSON.

use std::path::PathBuf;

use microagent::WorkspaceName;
use serde::Serialize;

/// `microagent supervise --install` and `--uninstall`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct UnitDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) workspace: WorkspaceName,
    pub(crate) unit: PathBuf,
    pub(crate) installed: bool,
}
