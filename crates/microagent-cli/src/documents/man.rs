//! `microagent man`, in JSON.

use std::path::PathBuf;

use serde::Serialize;

/// `microagent man`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ManPageDocument {
    pub(crate) name: String,
    pub(crate) page: String,
}

/// `microagent man --dir`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ManPagesDocument {
    pub(crate) written: Vec<PathBuf>,
}
