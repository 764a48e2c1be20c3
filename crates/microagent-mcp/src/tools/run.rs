//! One command in a machine of its own.

use std::collections::BTreeMap;

use microagent::{
    AttachOptions, AttachedOutput, DeleteMode, Error, FailureKind, RunCommand, RunOptions, RunReport,
    StdinMode, WorkspaceName,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::command::{CommandResult, CommandStatus, Output, TIMED_OUT, check_words, feed};
use crate::call::Call;
use crate::error::ToolError;
use crate::server::Server;

/// A run.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunArguments {
    /// Image reference, such as `python:3.12`; `list` shows which can be used.
    image: String,
    /// Words for the image's entrypoint, or program and arguments where it has none. Without `command` and `shell` the
    /// image's own command runs.
    #[serde(default)]
    command: Option<Vec<String>>,
    /// A line for /bin/sh, with pipes and variables, instead of `command`.
    #[serde(default)]
    shell: Option<String>,
    /// Text for the standard input of the command, such as a script; without it that is empty.
    #[serde(default)]
    stdin: Option<String>,
    /// Environment variables in addition to the image's.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Working directory instead of the image's.
    #[serde(default)]
    working_dir: Option<String>,
    /// Seconds from the start of the machine after which it is killed; 50 without it. Many clients give a call up after
    /// 60 s.
    #[serde(default)]
    timeout_s: Option<u64>,
    /// Most bytes of each output stream in the result; 65536 without it, at most 1048576. Of more, beginning and end are
    /// kept.
    #[serde(default)]
    max_output_bytes: Option<usize>,
}

/// How the command of a run ended.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RunDocument {
    #[serde(flatten)]
    command: CommandResult,
    /// Digest of the image that ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    image_digest: Option<String>,
    /// What else is worth knowing, such as connections that were refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notices: Vec<String>,
}

/// Runs one command in a machine of its own.
pub(super) async fn run(
    server: Server,
    call: Call,
    arguments: RunArguments,
) -> Result<RunDocument, ToolError> {
    check_words(arguments.command.as_ref().map_or(0, Vec::len), arguments.env.len())?;
    let mut output = Output::new(arguments.max_output_bytes)?;
    let options = options(&server, &arguments)?;
    let _place = server.workspaces().place()?;
    let stdin = if arguments.stdin.is_some() { StdinMode::Piped } else { StdinMode::Empty };
    let attach = AttachOptions::new().stdin(stdin).output(AttachedOutput::Command);
    let started = Instant::now();
    let ended = async {
        let mut run = server.engine().run_attached(options, attach, &call.progress()).await?;
        feed(run.take_stdin(), arguments.stdin);
        // Cancellation ends the machine, and with it the output.
        while let Some(frame) = run.next().await {
            output.push(&call, &frame);
        }
        run.wait().await
    };
    match ended.await {
        Ok(report) => Ok(RunDocument::of(output, report)),
        Err(error) => {
            remove_failed(&server, &error).await;
            match error {
                Error::RunFailed { kind: FailureKind::Timeout, .. } => Ok(RunDocument {
                    command: output.result(CommandStatus::TimedOut, TIMED_OUT, started.elapsed()),
                    image_digest: None,
                    notices: Vec::new(),
                }),
                Error::RunCancelled { .. } | Error::Cancelled => Err(ToolError::cancelled()),
                error => Err(error.into()),
            }
        }
    }
}

fn options(server: &Server, arguments: &RunArguments) -> Result<RunOptions, ToolError> {
    let mut options = RunOptions::new("");
    options.workspace = server.workspace_options(&arguments.image)?;
    options.workspace.env.extend(arguments.env.clone());
    if arguments.working_dir.is_some() {
        options.workspace.working_dir.clone_from(&arguments.working_dir);
    }
    options.timeout = Some(server.policy().check_timeout(arguments.timeout_s)?);
    options.command = match (&arguments.command, &arguments.shell) {
        (None, None) => RunCommand::Image,
        (Some(words), None) => RunCommand::Argv(words.clone()),
        (None, Some(line)) => RunCommand::Shell(line.clone()),
        (Some(_), Some(_)) => {
            return Err(ToolError::invalid("there are two commands").hint("give `command` or `shell`"));
        }
    };
    Ok(options)
}

/// Removes what a failed run left for its logs, which are in the error.
async fn remove_failed(server: &Server, error: &Error) {
    if let Some(name) = failed_workspace(error) {
        // It is a record without a machine, and the error that a model is told is the run's.
        let _ = server.engine().workspace(name).delete(DeleteMode::Resting).await;
    }
}

fn failed_workspace(error: &Error) -> Option<&WorkspaceName> {
    match error {
        Error::RunFailed { workspace, .. } | Error::SetupFailed { workspace, .. } => Some(workspace),
        _ => None,
    }
}

impl RunDocument {
    fn of(output: Output, report: RunReport) -> RunDocument {
        RunDocument {
            image_digest: Some(report.image.digest),
            notices: report.notices,
            command: CommandResult::of_run(output, report.result),
        }
    }
}
