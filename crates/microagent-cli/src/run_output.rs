//! What a run or a setup printed, passed on or put into a document, and the summary of a run.

use std::fmt;
use std::io::{self, Write};

use microagent::{
    Error, NetworkMode, OutputReader, OutputStream, Resources, RunReport, State, WorkspaceName,
};

use crate::context::Context;
use crate::documents::output::OutputDocument;
use crate::failure::Failure;
use crate::output::{Format, finish, stdout};

/// The summary block of a run, with the blank line after it.
pub(crate) struct Summary<'a> {
    workspace: &'a WorkspaceName,
    state: State,
    profile: &'a str,
    network: NetworkMode,
    resources: Resources,
    exit_code: i32,
}

impl<'a> From<&'a RunReport> for Summary<'a> {
    fn from(report: &'a RunReport) -> Summary<'a> {
        Summary {
            workspace: &report.workspace,
            state: report.final_state,
            profile: &report.profile,
            network: report.network,
            resources: report.resources,
            exit_code: report.result.exit_code,
        }
    }
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Resources { memory_mib, cpu_count, size_mib } = self.resources;
        writeln!(f, "Workspace: {}", self.workspace)?;
        writeln!(f, "State: {}", self.state)?;
        writeln!(f, "Profile: {}", self.profile)?;
        writeln!(f, "Network: {}", self.network)?;
        writeln!(f, "Resources: memory={memory_mib}MiB cpus={cpu_count} disk={size_mib}MiB")?;
        writeln!(f, "Exit code: {}\n", self.exit_code)
    }
}

/// What was printed before a failure belongs to the answer.
pub(crate) fn failed(context: &Context, mut error: Error) -> Result<Failure, Failure> {
    let output = match &mut error {
        Error::SetupFailed { output, .. }
        | Error::RunFailed { output: Some(output), .. }
        | Error::RunCancelled { output: Some(output), .. } => &mut **output,
        _ => return Ok(Failure::Engine(error)),
    };
    match context.format {
        Format::Json => {
            let output = Box::new(OutputDocument::read(output).map_err(unreadable)?);
            Ok(Failure::WithOutput { error, output })
        }
        Format::Text => {
            // Nobody reads the output any more, but the error is still to be told.
            match write_output(output, stdout(), io::stderr()) {
                Ok(()) | Err(Failure::ClosedOutput) => Ok(Failure::Engine(error)),
                Err(failure) => Err(failure),
            }
        }
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
    use super::*;

    /// Output as a run recorded it: stream (1 or 2), length, bytes, and so on.
    fn recorded(bytes: &[u8]) -> OutputReader {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output");
        std::fs::write(&path, bytes).unwrap();
        OutputReader::open(&path).unwrap()
    }

    const RECORDED: &[u8] = b"\x01\x02\0\0\0a\n\x02\x02\0\0\0\xffe\x01\x02\0\0\0b\n";

    #[test]
    fn the_summary_is_the_documented_one() {
        let name = "run-1781167799699801876".parse().unwrap();
        let summary = Summary {
            workspace: &name,
            state: State::Stopped,
            profile: "small",
            network: NetworkMode::User,
            resources: Resources { memory_mib: 512, cpu_count: 2, size_mib: 1024 },
            exit_code: 0,
        };
        assert_eq!(
            summary.to_string(),
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
        write_output(&mut recorded(RECORDED), &mut out, &mut err).unwrap();
        assert_eq!((out.as_slice(), err.as_slice()), (&b"a\nb\n"[..], &b"\xffe"[..]));
    }
}
