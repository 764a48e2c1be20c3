//! One command in a machine of its own.

use std::time::Duration;

use microagent::{
    AttachOptions, AttachedOutput, DeleteMode, Error, FailureKind, RunCommand, RunOptions, RunReport,
    WorkspaceName, WorkspaceOptions,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::command::{CommandArguments, CommandResult, CommandStatus, Line, Output, TIMED_OUT, feed};
use super::files::{FileDocument, NewFile};
use super::run_files::{self, Files};
use crate::call::Call;
use crate::error::ToolError;
use crate::server::Server;

/// A run.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunArguments {
    /// Image reference, such as `python:3.12`; `list` shows which can be used.
    image: String,
    #[serde(flatten)]
    command: CommandArguments,
    /// Files to write before the command runs; at most 64, with 4 MiB together.
    #[serde(default)]
    files: Vec<NewFile>,
    /// Paths of files that the command makes and that the result is to have; at most 16. Of each the first 65536 bytes.
    #[serde(default)]
    outputs: Vec<String>,
    /// Seconds after which the command is killed; 50 without it. Many clients give a call up after 60 s.
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
    /// The files of `outputs`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<FileDocument>,
    /// Those that could not be read, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unread_files: Vec<UnreadFile>,
}

/// A file that could not be read.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct UnreadFile {
    /// Path in the microVM.
    pub(super) path: String,
    /// Why.
    pub(super) problem: String,
}

/// Runs one command in a machine of its own.
pub(super) async fn run(
    server: Server,
    call: Call,
    arguments: RunArguments,
) -> Result<RunDocument, ToolError> {
    let output = Output::new(arguments.max_output_bytes)?;
    let timeout = server.policy().check_timeout(arguments.timeout_s)?;
    let workspace = server.workspace_options(&arguments.image)?;
    if arguments.files.is_empty() && arguments.outputs.is_empty() {
        return run_alone(&server, &call, workspace, arguments.command, timeout, output).await;
    }
    let files = Files::check(arguments.files, arguments.outputs)?;
    run_files::run(&server, &call, workspace, arguments.command, files, timeout, output).await
}

/// A run of the library: quicker than a workspace.
async fn run_alone(
    server: &Server,
    call: &Call,
    workspace: WorkspaceOptions,
    mut command: CommandArguments,
    timeout: Duration,
    mut output: Output,
) -> Result<RunDocument, ToolError> {
    let mut options = RunOptions::new("").timeout(timeout);
    options.command = match command.take_line()? {
        Line::Unnamed => RunCommand::Image,
        Line::Words(words) => RunCommand::Argv(words),
        Line::Shell(line) => RunCommand::Shell(line),
    };
    let (text, stdin) = command.take_stdin();
    options.workspace = workspace;
    command.lay_over(&mut options.workspace);
    let _place = server.workspaces().place()?;
    let attach = AttachOptions::new().stdin(stdin).output(AttachedOutput::Command);
    let started = Instant::now();
    let ended = async {
        let mut run = server.engine().run_attached(options, attach, &call.progress()).await?;
        feed(run.take_stdin(), text);
        // Cancellation ends the machine, and with it the output.
        while let Some(frame) = run.next().await {
            output.push(call, &frame);
        }
        run.wait().await
    };
    match ended.await {
        Ok(report) => Ok(RunDocument::of(output, report)),
        Err(error) => {
            remove_failed(server, &error).await;
            match error {
                Error::RunFailed { kind: FailureKind::Timeout, .. } => {
                    let result = output.result(CommandStatus::TimedOut, TIMED_OUT, started.elapsed());
                    Ok(RunDocument::new(result))
                }
                Error::RunCancelled { .. } | Error::Cancelled => Err(ToolError::cancelled()),
                error => Err(error.into()),
            }
        }
    }
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
    fn new(command: CommandResult) -> RunDocument {
        RunDocument {
            command,
            image_digest: None,
            notices: Vec::new(),
            files: Vec::new(),
            unread_files: Vec::new(),
        }
    }

    fn of(output: Output, report: RunReport) -> RunDocument {
        RunDocument {
            image_digest: Some(report.image.digest),
            notices: report.notices.iter().map(ToString::to_string).collect(),
            ..RunDocument::new(CommandResult::of_run(output, report.result))
        }
    }

    /// That of a command in a workspace, with files of it.
    pub(super) fn with_files(
        command: CommandResult,
        image_digest: String,
        files: Vec<FileDocument>,
        unread_files: Vec<UnreadFile>,
    ) -> RunDocument {
        RunDocument { image_digest: Some(image_digest), files, unread_files, ..RunDocument::new(command) }
    }
}
