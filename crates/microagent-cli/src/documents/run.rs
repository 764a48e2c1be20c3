//! `microagent run`, in JSON.

use microagent::{NetworkMode, RunReport, StartMode, State};
use serde::Serialize;

use crate::documents::image::ImageDocument;
use crate::documents::output::OutputDocument;
#[cfg(test)]
use crate::documents::schema::Words;
use crate::documents::shared::{PortForwardDocument, ResourcesDocument, TimelineDocument};
use crate::failure::Failure;
use crate::run_output::unreadable;

/// The document. Field names are stable; fields are only added.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct RunDocument {
    workspace: String,
    #[cfg_attr(test, schemars(with = "Words<microagent::State>"))]
    final_state: State,
    profile: String,
    #[cfg_attr(test, schemars(with = "Words<microagent::NetworkMode>"))]
    network: NetworkMode,
    port_forwards: Vec<PortForwardDocument>,
    hostname: String,
    resources: ResourcesDocument,
    image: ImageDocument,
    backend: String,
    kept: bool,
    start: StartDocument,
    result: ResultDocument,
    /// Microseconds from the start of the supervisor.
    timeline: TimelineDocument,
    notices: Vec<String>,
}

/// How the machine came up.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct StartDocument {
    mode: &'static str,
    reason: String,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct ResultDocument {
    started_at: String,
    exited_at: String,
    exit_code: i32,
    signal: Option<i32>,
    start_error: Option<String>,
    out_of_memory: Option<String>,
    disk_full: Option<String>,
    #[serde(flatten)]
    output: OutputDocument,
    dropped_bytes: u64,
}

impl RunDocument {
    /// Takes a report apart, output included.
    pub(crate) fn new(mut report: RunReport) -> Result<RunDocument, Failure> {
        let output = OutputDocument::read(&mut report.output).map_err(unreadable)?;
        let start = match report.start {
            StartMode::Warm { mounted } => {
                let what = if mounted { "template of this image" } else { "template of this machine" };
                StartDocument { mode: "warm", reason: format!("restored from a {what}") }
            }
            StartMode::Cold { reason } => StartDocument { mode: "cold", reason },
        };
        Ok(RunDocument {
            workspace: report.workspace.to_string(),
            final_state: report.final_state,
            profile: report.profile,
            network: report.network,
            port_forwards: report.published.iter().map(PortForwardDocument::from).collect(),
            hostname: report.hostname,
            resources: report.resources.into(),
            image: report.image.into(),
            backend: report.backend,
            kept: report.kept,
            start,
            result: ResultDocument {
                started_at: report.result.started_at.to_string(),
                exited_at: report.result.exited_at.to_string(),
                exit_code: report.result.exit_code,
                signal: report.result.signal,
                start_error: report.result.start_error,
                out_of_memory: report.result.out_of_memory,
                disk_full: report.result.disk_full,
                output,
                dropped_bytes: report.result.dropped_bytes,
            },
            timeline: report.timeline.into(),
            notices: report.notices,
        })
    }
}
