//! What `run` answers: the summary for people, the document for programs.

use std::io;

use microagent::{NetworkMode, OutputReader, OutputStream, Resources, RunReport, StartMode, State};
use serde::Serialize;

use crate::failure::Failure;
use crate::output::json_bytes;

/// The summary block, with the blank line after it.
pub(super) fn summary(report: &RunReport) -> String {
    let Resources { memory_mib, cpu_count, size_mib } = report.resources;
    format!(
        "Workspace: {}\n\
         State: {}\n\
         Profile: {}\n\
         Network: {}\n\
         Resources: memory={memory_mib}MiB cpus={cpu_count} disk={size_mib}MiB\n\
         Exit code: {}\n\
         \n",
        report.workspace, report.final_state, report.profile, report.network, report.result.exit_code,
    )
}

/// The document. Field names are stable; fields are only added.
#[derive(Debug, Serialize)]
pub(super) struct RunDocument {
    workspace: String,
    final_state: State,
    profile: String,
    network: NetworkMode,
    hostname: String,
    resources: Resources,
    image: ImageDocument,
    backend: String,
    kept: bool,
    start: StartDocument,
    result: ResultDocument,
    /// Microseconds from the start of the supervisor.
    timeline: microagent::Timeline,
    notices: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ImageDocument {
    reference: String,
    resolved_reference: String,
    digest: String,
    origin: microagent::image::Origin,
}

/// How the machine came up.
#[derive(Debug, Serialize)]
struct StartDocument {
    mode: &'static str,
    reason: String,
}

#[derive(Debug, Serialize)]
struct ResultDocument {
    started_at: String,
    exited_at: String,
    exit_code: i32,
    signal: Option<i32>,
    start_error: Option<String>,
    #[serde(flatten)]
    output: OutputDocument,
    dropped_bytes: u64,
}

/// Both streams: as text when they are UTF-8, else in base64, which `*_encoding` says.
#[derive(Debug, Serialize)]
pub(crate) struct OutputDocument {
    stdout: String,
    stdout_encoding: &'static str,
    stderr: String,
    stderr_encoding: &'static str,
}

impl OutputDocument {
    /// Reads all that is left; the run bounded it.
    pub(super) fn read(output: &mut OutputReader) -> io::Result<OutputDocument> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        for frame in output {
            let frame = frame?;
            match frame.stream {
                OutputStream::Stdout => out.extend(frame.bytes),
                OutputStream::Stderr => err.extend(frame.bytes),
            }
        }
        let (stdout, stdout_encoding) = json_bytes(out);
        let (stderr, stderr_encoding) = json_bytes(err);
        Ok(OutputDocument { stdout, stdout_encoding, stderr, stderr_encoding })
    }
}

impl RunDocument {
    /// Takes a report apart, output included.
    pub(super) fn new(mut report: RunReport) -> Result<RunDocument, Failure> {
        let output = OutputDocument::read(&mut report.output).map_err(super::unreadable)?;
        let start = match report.start {
            StartMode::Warm => StartDocument { mode: "warm", reason: "restored from a template".to_owned() },
            StartMode::Cold { reason } => StartDocument { mode: "cold", reason },
        };
        Ok(RunDocument {
            workspace: report.workspace.to_string(),
            final_state: report.final_state,
            profile: report.profile,
            network: report.network,
            hostname: report.hostname,
            resources: report.resources,
            image: ImageDocument {
                reference: report.image.reference,
                resolved_reference: report.image.resolved_reference,
                digest: report.image.digest,
                origin: report.image.origin,
            },
            backend: report.backend,
            kept: report.kept,
            start,
            result: ResultDocument {
                started_at: report.result.started_at.to_string(),
                exited_at: report.result.exited_at.to_string(),
                exit_code: report.result.exit_code,
                signal: report.result.signal,
                start_error: report.result.start_error,
                output,
                dropped_bytes: report.result.dropped_bytes,
            },
            timeline: report.timeline,
            notices: report.notices,
        })
    }
}
