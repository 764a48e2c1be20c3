//! `microagent config`, in JSON.

use std::path::PathBuf;

use serde::Serialize;

use crate::config::Origin;

/// `microagent config show`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ConfigDocument {
    /// The file that is read; `null` without a home directory.
    pub(crate) file: Option<PathBuf>,
    pub(crate) exists: bool,
    pub(crate) settings: Vec<SettingDocument>,
}

/// A default.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct SettingDocument {
    pub(crate) key: String,
    /// A list is separated by commas.
    pub(crate) value: String,
    pub(crate) origin: Origin,
    /// The variable that goes before the file.
    pub(crate) variable: String,
}
