//! `microagent doctor`, in JSON.

use microagent::doctor::{Check, Report, Status};
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

impl From<Report> for DoctorDocument {
    fn from(report: Report) -> DoctorDocument {
        DoctorDocument {
            ok: report.ok(),
            verdict: verdict(report.checks.iter().map(|check| check.status)),
            backend: report.backend,
            checks: report.checks.into_iter().map(CheckDocument::from).collect(),
        }
    }
}

/// `degraded` is for a host on which runs work and something is worth knowing.
fn verdict(statuses: impl Iterator<Item = Status>) -> &'static str {
    statuses.fold("ok", |verdict, status| match (verdict, status) {
        ("failed", _) | (_, Status::Failed) => "failed",
        ("degraded", _) | (_, Status::Warning) => "degraded",
        (_, Status::Ok) => "ok",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_check_gives_the_verdict() {
        assert_eq!(verdict([].into_iter()), "ok");
        assert_eq!(verdict([Status::Ok, Status::Warning, Status::Ok].into_iter()), "degraded");
        assert_eq!(verdict([Status::Ok, Status::Failed, Status::Warning].into_iter()), "failed");
    }
}
