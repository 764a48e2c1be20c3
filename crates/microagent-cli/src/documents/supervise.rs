//! `microagent supervise`, in JSON.

use std::path::PathBuf;

use microagent::WorkspaceName;
use serde::Serialize;

/// `microagent supervise --install` and `--uninstall`.
#[derive(Debug, Serialize)]
pub(crate) struct UnitDocument {
    pub(crate) workspace: WorkspaceName,
    pub(crate) unit: PathBuf,
    pub(crate) installed: bool,
}
