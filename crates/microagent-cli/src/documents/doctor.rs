//! `microagent doctor`, in JSON.

use microagent::doctor::{Check, Status};
use serde::Serialize;

#[cfg(test)]
use crate::documents::schema::Words;
use crate::hints;

/// `microagent doctor`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct DoctorDocument {
    pub(crate) ok: bool,
    pub(crate) verdict: &'static str,
    pub(crate) backend: String,
    pub(crate) checks: Vec<CheckDocument>,
}

/// One check.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct CheckDocument {
    pub(crate) name: &'static str,
    #[cfg_attr(test, schemars(with = "Words<microagent::doctor::Status>"))]
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
