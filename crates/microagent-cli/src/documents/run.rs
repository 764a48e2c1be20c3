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
            notices: report.notices.iter().map(ToString::to_string).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use microagent::image::Origin;
    use microagent::{OutputReader, Resources, Timeline};
    use snapbox::{Assert, str};

    use super::*;

    fn document() -> RunDocument {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output");
        std::fs::write(&path, b"\x01\x02\0\0\0a\n\x02\x02\0\0\0\xffe\x01\x02\0\0\0b\n").unwrap();
        RunDocument {
            workspace: "run-1781167799699801876".to_owned(),
            final_state: State::Stopped,
            profile: "small".to_owned(),
            network: NetworkMode::User,
            port_forwards: Vec::new(),
            hostname: "run-1781167799699801876".to_owned(),
            resources: Resources { memory_mib: 512, cpu_count: 2, size_mib: 1024 }.into(),
            image: ImageDocument {
                reference: "alpine:3.20".to_owned(),
                resolved_reference: "docker.io/library/alpine:3.20".to_owned(),
                digest: "sha256:0a".to_owned(),
                origin: Origin::Cache,
            },
            backend: "linux-tcg".to_owned(),
            kept: false,
            start: StartDocument { mode: "cold", reason: "asked for".to_owned() },
            result: ResultDocument {
                started_at: jiff::Timestamp::UNIX_EPOCH.to_string(),
                exited_at: jiff::Timestamp::UNIX_EPOCH.to_string(),
                exit_code: 0,
                signal: None,
                start_error: None,
                out_of_memory: None,
                disk_full: None,
                output: OutputDocument::read(&mut OutputReader::open(&path).unwrap()).unwrap(),
                dropped_bytes: 0,
            },
            timeline: Timeline::default().into(),
            notices: Vec::new(),
        }
    }

    #[test]
    fn the_document_has_the_documented_fields() {
        let document = serde_json::to_string_pretty(&document()).unwrap();
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
    "out_of_memory": null,
    "disk_full": null,
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
