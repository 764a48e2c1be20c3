//! The health of a workspace, in JSON.

use jiff::Timestamp;
use microagent::{HealthPlan, HealthReport, HealthResult, HealthState};
use serde::Serialize;

#[cfg(test)]
use crate::documents::schema::Words;
use crate::documents::shared::words;

/// The health check of a workspace.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct HealthCheckDocument {
    /// Program and arguments.
    pub(crate) command: Vec<String>,
    pub(crate) interval_seconds: f64,
    pub(crate) timeout_seconds: f64,
    pub(crate) start_period_seconds: f64,
    pub(crate) start_interval_seconds: f64,
    pub(crate) retries: u32,
}

/// What the checks of the current or last machine say.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct HealthDocument {
    #[cfg_attr(test, schemars(with = "Words<microagent::HealthState>"))]
    pub(crate) state: HealthState,
    /// Failed checks in a row that count.
    pub(crate) failing_streak: u32,
    /// The newest checks, oldest first.
    pub(crate) checks: Vec<HealthResultDocument>,
}

/// One check.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct HealthResultDocument {
    pub(crate) started_at: Timestamp,
    pub(crate) ended_at: Timestamp,
    /// `null` if it did not end by itself.
    pub(crate) exit_code: Option<i32>,
    /// The end of what it printed.
    pub(crate) output: String,
    /// Why it has no exit code.
    pub(crate) problem: Option<String>,
}

impl From<HealthPlan> for HealthCheckDocument {
    fn from(HealthPlan { command, timing }: HealthPlan) -> HealthCheckDocument {
        HealthCheckDocument {
            command: words(command),
            interval_seconds: timing.interval.as_secs_f64(),
            timeout_seconds: timing.timeout.as_secs_f64(),
            start_period_seconds: timing.start_period.as_secs_f64(),
            start_interval_seconds: timing.start_interval.as_secs_f64(),
            retries: timing.retries,
        }
    }
}

impl From<HealthReport> for HealthDocument {
    fn from(report: HealthReport) -> HealthDocument {
        HealthDocument {
            state: report.state,
            failing_streak: report.failing_streak,
            checks: report.checks.into_iter().map(HealthResultDocument::from).collect(),
        }
    }
}

impl From<HealthResult> for HealthResultDocument {
    fn from(result: HealthResult) -> HealthResultDocument {
        HealthResultDocument {
            started_at: result.started_at,
            ended_at: result.ended_at,
            exit_code: result.exit_code,
            output: result.output,
            problem: result.problem,
        }
    }
}
