//! `microagent doctor`, in JSON.

use microagent::doctor::{Check, Status};
use serde::Serialize;

use crate::hints;

/// `microagent doctor`.
#[derive(Debug, Serialize)]
pub(crate) struct DoctorDocument {
    pub(crate) ok: bool,
    pub(crate) verdict: &'static str,
    pub(crate) backend: String,
    pub(crate) checks: Vec<CheckDocument>,
}

/// One check.
#[derive(Debug, Serialize)]
pub(crate) struct CheckDocument {
    pub(crate) name: &'static str,
    pub(crate) status: Status,
    pub(crate) detail: String,
    pub(crate) remedy: Option<String>,
}

impl From<Check> for CheckDocument {
    fn from(check: Check) -> CheckDocument {
        let remedy = check.remedy.as_ref().map(hints::text);
        CheckDocument { name: check.name, status: check.status, detail: check.detail, remedy }
    }
}
