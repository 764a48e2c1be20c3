//! `microagent completions`, in JSON.

use serde::Serialize;

/// `microagent completions`.
#[derive(Debug, Serialize)]
pub(crate) struct CompletionsDocument {
    pub(crate) shell: String,
    pub(crate) script: String,
}
