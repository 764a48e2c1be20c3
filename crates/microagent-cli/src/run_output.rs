//! What a run or a setup printed, passed on or put into a document, and the summary of a run.

use std::io::{self, Write};

use microagent::{Error, OutputReader, OutputStream, Resources, RunReport};

use crate::context::Context;
use crate::documents::output::OutputDocument;
use crate::failure::Failure;
use crate::output::{Format, finish, stdout};

/// The summary block, with the blank line after it.
pub(crate) fn summary(report: &RunReport) -> String {
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

/// What the steps of a failed setup printed belongs to the answer.
pub(crate) fn failed(context: &Context, error: Error) -> Result<Failure, Failure> {
    match (error, context.format) {
        (Error::SetupFailed { workspace, failure, mut output }, format) => {
            let mut captured = None;
            match format {
                Format::Json => captured = Some(OutputDocument::read(&mut output).map_err(unreadable)?),
                Format::Text => {
                    // Nobody reads the output any more, but the error is still to be told.
                    match write_output(&mut output, stdout(), io::stderr()) {
                        Ok(()) | Err(Failure::ClosedOutput) => {}
                        Err(failure) => return Err(failure),
                    }
                }
            }
            let error = Error::SetupFailed { workspace, failure, output };
            Ok(match captured {
                Some(output) => Failure::WithOutput { error, output: Box::new(output) },
                None => Failure::Engine(error),
            })
        }
        (error, _) => Ok(Failure::Engine(error)),
    }
}

/// Passes output on, each stream to its own, in the order of arrival.
pub(crate) fn write_output(
    output: &mut OutputReader,
    mut out: impl Write,
    mut err: impl Write,
) -> Result<(), Failure> {
    for frame in output {
        let frame = frame.map_err(unreadable)?;
        match frame.stream {
            OutputStream::Stdout => out.write_all(&frame.bytes)?,
            OutputStream::Stderr => {
                // What came before on the other stream is seen before.
                out.flush()?;
                err.write_all(&frame.bytes)?;
            }
        }
    }
    finish(out)
}

pub(crate) fn unreadable(source: io::Error) -> Failure {
    Failure::Other { message: format!("cannot read the output of the run: {source}"), hint: None }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use microagent::image::Origin;
    use microagent::{ImageReport, NetworkMode, RunResult, StartMode, State, Timeline};
    use snapbox::{Assert, str};

    use super::*;
    use crate::documents::run::RunDocument;

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
                command: Vec::new(),
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
                out_of_memory: None,
                disk_full: None,
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
        write_output(&mut report(RECORDED).output, &mut out, &mut err).unwrap();
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
