//! Errors, in JSON.

use microagent::ErrorKind;
use serde::Serialize;

use crate::documents::output::OutputDocument;

/// What a program reads on standard error.
#[derive(Debug, Serialize)]
pub(crate) struct ErrorDocument<'a> {
    pub(crate) kind: ErrorKind,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    pub(crate) retryable: bool,
    /// Only where something had been printed, as by the steps of a failed setup.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) output: Option<&'a OutputDocument>,
}
