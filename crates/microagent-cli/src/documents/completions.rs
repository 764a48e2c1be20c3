//! `microagent completions`, in JSON.

use serde::Serialize;

/// `microagent completions`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct CompletionsDocument {
    pub(crate) shell: String,
    pub(crate) script: String,
}
