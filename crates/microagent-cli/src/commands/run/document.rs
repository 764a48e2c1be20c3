//! What `run` answers: the summary for people, the document for programs.

use std::io;

use microagent::{
    NetworkMode, OutputReader, OutputStream, PortForward, Resources, RunReport, StartMode, State,
};
use serde::Serialize;

use crate::failure::Failure;
use crate::output::{ImageDocument, json_bytes};

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
    port_forwards: Vec<PortForward>,
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
            port_forwards: report.published.iter().map(PortForward::from).collect(),
            hostname: report.hostname,
            resources: report.resources,
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
                output,
                dropped_bytes: report.result.dropped_bytes,
            },
            timeline: report.timeline,
            notices: report.notices,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use microagent::image::Origin;
    use microagent::{ImageReport, RunResult, Timeline};
    use snapbox::{Assert, str};

    use super::*;

    /// A report with the output that is recorded in a file: stream (1 or 2), length, bytes, and so on.
    fn report(recorded: &[u8]) -> RunReport {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output");
        std::fs::write(&path, recorded).unwrap();
        RunReport {
            workspace: "run-1781167799699801876".parse().unwrap(),
            final_state: State::Stopped,
            profile: "small".to_owned(),
            resources: Resources { memory_mib: 512, cpu_count: 2, size_mib: 1024 },
            network: NetworkMode::User,
            published: Vec::new(),
            hostname: "run-1781167799699801876".to_owned(),
            image: ImageReport {
                reference: "alpine:3.20".to_owned(),
                resolved_reference: "docker.io/library/alpine:3.20".to_owned(),
                digest: "sha256:0a".to_owned(),
                origin: Origin::Cache,
            },
            backend: "linux-tcg".to_owned(),
            kept: false,
            start: StartMode::Cold { reason: "asked for".to_owned() },
            result: RunResult {
                started_at: jiff::Timestamp::UNIX_EPOCH,
                exited_at: jiff::Timestamp::UNIX_EPOCH,
                exit_code: 0,
                signal: None,
                start_error: None,
                dropped_bytes: 0,
            },
            output: OutputReader::open(Path::new(&path)).unwrap(),
            timeline: Timeline::default(),
            notices: Vec::new(),
        }
    }

    const RECORDED: &[u8] = b"\x01\x02\0\0\0a\n\x02\x02\0\0\0\xffe\x01\x02\0\0\0b\n";

    #[test]
    fn the_summary_is_the_documented_one() {
        assert_eq!(
            summary(&report(b"")),
            "\
Workspace: run-1781167799699801876
State: stopped
Profile: small
Network: user
Resources: memory=512MiB cpus=2 disk=1024MiB
Exit code: 0

"
        );
    }

    #[test]
    fn streams_go_apart_in_the_order_of_arrival() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        super::super::write_output(&mut report(RECORDED).output, &mut out, &mut err).unwrap();
        assert_eq!((out.as_slice(), err.as_slice()), (&b"a\nb\n"[..], &b"\xffe"[..]));
    }

    #[test]
    fn the_document_has_the_documented_fields() {
        let document = serde_json::to_string_pretty(&RunDocument::new(report(RECORDED)).unwrap()).unwrap();
        Assert::new().action_env("SNAPSHOTS").normalize_paths(false).eq(
            document,
            str![[r#"
{
  "workspace": "run-1781167799699801876",
  "final_state": "stopped",
  "profile": "small",
  "network": "user",
  "port_forwards": [],
  "hostname": "run-1781167799699801876",
  "resources": {
    "memory_mib": 512,
    "cpu_count": 2,
    "size_mib": 1024
  },
  "image": {
    "reference": "alpine:3.20",
    "resolved_reference": "docker.io/library/alpine:3.20",
    "digest": "sha256:0a",
    "origin": "cache"
  },
  "backend": "linux-tcg",
  "kept": false,
  "start": {
    "mode": "cold",
    "reason": "asked for"
  },
  "result": {
    "started_at": "1970-01-01T00:00:00Z",
    "exited_at": "1970-01-01T00:00:00Z",
    "exit_code": 0,
    "signal": null,
    "start_error": null,
    "stdout": "a\nb\n",
    "stdout_encoding": "utf-8",
    "stderr": "/2U=",
    "stderr_encoding": "base64",
    "dropped_bytes": 0
  },
  "timeline": {
    "spawned_us": 0,
    "ready_us": 0,
    "freeze_us": 0,
    "configured_us": 0,
    "command_us": 0,
    "exited_us": 0,
    "gone_us": 0,
    "guest_boot_us": 0,
    "guest_disk_us": 0,
    "guest_network_us": 0
  },
  "notices": []
}
"#]],
        );
    }
}
