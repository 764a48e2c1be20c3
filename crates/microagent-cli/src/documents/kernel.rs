//! `microagent kernel`, in JSON.

use std::path::Path;

use serde::Serialize;

/// `microagent kernel verify`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct KernelDocument<'a> {
    pub(crate) ok: bool,
    pub(crate) version: &'a str,
    pub(crate) sha256: &'a str,
    pub(crate) path: &'a Path,
    pub(crate) problem: Option<&'a str>,
}
