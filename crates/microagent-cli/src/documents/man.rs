//! `microagent man`, in JSON.

use std::path::PathBuf;

use serde::Serialize;

/// `microagent man`.
#[derive(Debug, Serialize)]
pub(crate) struct ManPageDocument {
    pub(crate) name: String,
    pub(crate) page: String,
}

/// `microagent man --dir`.
#[derive(Debug, Serialize)]
pub(crate) struct ManPagesDocument {
    pub(crate) written: Vec<PathBuf>,
}
