//! `microagent secret`, in JSON.

use serde::Serialize;

/// A secret of `microagent secret check`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct SecretCheckDocument {
    pub(crate) name: String,
    pub(crate) ok: bool,
    pub(crate) source: &'static str,
    pub(crate) bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) warning: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}
