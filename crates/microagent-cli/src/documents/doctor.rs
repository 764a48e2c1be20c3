//! `microagent doctor`, in JSON.

use microagent::Check;
use serde::Serialize;

/// `microagent doctor`.
#[derive(Debug, Serialize)]
pub(crate) struct DoctorDocument {
    pub(crate) ok: bool,
    pub(crate) verdict: &'static str,
    pub(crate) backend: String,
    pub(crate) checks: Vec<Check>,
}
