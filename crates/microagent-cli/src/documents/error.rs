//! Errors, in JSON.

use microagent::ErrorKind;
use serde::Serialize;

use crate::documents::output::OutputDocument;
#[cfg(test)]
use crate::documents::schema::Words;

/// What a program reads on standard error.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ErrorDocument<'a> {
    #[cfg_attr(test, schemars(with = "Words<microagent::ErrorKind>"))]
    pub(crate) kind: ErrorKind,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    pub(crate) retryable: bool,
    /// Only where something had been printed, as by the steps of a failed setup.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) output: Option<&'a OutputDocument>,
}
