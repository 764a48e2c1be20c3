//! Commands in a running workspace, and what all commands have in common.

use std::collections::BTreeMap;
use std::time::Duration;

use microagent::{
    CommandLine, ExecOptions, ExecStdin, Execution, OutputFrame, OutputStream, RunResult, StdinMode,
    Workspace, WorkspaceOptions,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::call::Call;
use crate::error::ToolError;
use crate::output::{self, Clipped, Encoding};
use crate::server::Server;

/// Bytes of each stream that a result has, where the call does not say.
const OUTPUT_DEFAULT: usize = 64 * 1024;

/// Most bytes of each stream that a result can have.
const OUTPUT_MAX: usize = 1024 * 1024;

/// Most words of a command, and most variables: more than a model writes.
const WORDS_MAX: usize = 4096;

/// Exit code of a command that reached its time limit, as `timeout(1)` has it.
pub(super) const TIMED_OUT: i32 = 124;

/// A command, as every tool takes one.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub(crate) struct CommandArguments {
    /// Program and its arguments, without a shell (in `run` they follow the image's entrypoint, if it has one). Give this
    /// or `shell`.
    #[serde(default)]
    command: Option<Vec<String>>,
    /// A line for /bin/sh, with pipes and variables. Give this or `command`.
    #[serde(default)]
    shell: Option<String>,
    /// Text for the standard input of the command, such as a script; without it that is empty.
    #[serde(default)]
    stdin: Option<String>,
    /// Environment variables in addition to those of the image and the workspace.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Working directory instead of the image's.
    #[serde(default)]
    working_dir: Option<String>,
    /// User of the guest instead of the image's, such as `root` or `1000`.
    #[serde(default)]
    user: Option<String>,
}

/// A command in a workspace.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExecArguments {
    /// Name of the workspace.
    name: String,
    #[serde(flatten)]
    command: CommandArguments,
    /// Seconds after which the command is killed; 50 without it. Many clients give a call up after 60 s.
    #[serde(default)]
    timeout_s: Option<u64>,
    /// Most bytes of each output stream in the result; 65536 without it, at most 1048576. Of more, beginning and end are
    /// kept.
    #[serde(default)]
    max_output_bytes: Option<usize>,
}

/// How a command ended, and what it printed.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct CommandResult {
    /// `exited`, `signaled`, `timed_out`, or `not_started`.
    pub(super) status: CommandStatus,
    /// Exit code; 0 is success, 124 the time limit, 127 not found, 128 + N signal N.
    pub(super) exit_code: i32,
    /// The signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) signal: Option<i32>,
    /// Why it could not be started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) start_error: Option<String>,
    /// A program that the guest killed because memory ran out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) out_of_memory: Option<String>,
    /// Mount point of a disk of the guest that was full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) disk_full: Option<String>,
    /// Milliseconds that the command ran.
    pub(super) duration_ms: u64,
    /// Standard output.
    stdout: String,
    /// How `stdout` is encoded.
    stdout_encoding: Encoding,
    /// Bytes of standard output that were left out.
    stdout_omitted_bytes: u64,
    /// Standard error.
    stderr: String,
    /// How `stderr` is encoded.
    stderr_encoding: Encoding,
    /// Bytes of standard error that were left out.
    stderr_omitted_bytes: u64,
    /// What was left out of output that is not text.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CommandStatus {
    Exited,
    Signaled,
    TimedOut,
    NotStarted,
}

/// What a command has printed so far.
pub(super) struct Output {
    stdout: Clipped,
    stderr: Clipped,
}

impl Output {
    /// Nothing yet; a result has at most so many bytes of each stream.
    pub(super) fn new(limit: Option<usize>) -> Result<Output, ToolError> {
        let limit = limit.unwrap_or(OUTPUT_DEFAULT);
        if limit > OUTPUT_MAX {
            return Err(ToolError::invalid(format!("max_output_bytes is more than {OUTPUT_MAX}"))
                .hint("write the output to a file and read it with `read_file`"));
        }
        Ok(Output { stdout: Clipped::new(limit), stderr: Clipped::new(limit) })
    }

    /// Takes what was printed.
    pub(super) fn push(&mut self, call: &Call, frame: &OutputFrame) {
        match frame.stream {
            OutputStream::Stdout => self.stdout.push(&frame.bytes),
            OutputStream::Stderr => self.stderr.push(&frame.bytes),
        }
        call.set_stage(format!(
            "the command runs and has printed {} bytes",
            self.stdout.len() + self.stderr.len()
        ));
    }

    /// The result of a command that ended so.
    pub(super) fn result(self, status: CommandStatus, exit_code: i32, duration: Duration) -> CommandResult {
        let (stdout, stdout_encoding, stdout_omitted_bytes) = self.stdout.into_text();
        let (stderr, stderr_encoding, stderr_omitted_bytes) = self.stderr.into_text();
        let stdout_note = output::cut_note("stdout", stdout_encoding, stdout_omitted_bytes);
        let stderr_note = output::cut_note("stderr", stderr_encoding, stderr_omitted_bytes);
        let notes: Vec<String> = stdout_note.into_iter().chain(stderr_note).collect();
        CommandResult {
            status,
            exit_code,
            signal: None,
            start_error: None,
            out_of_memory: None,
            disk_full: None,
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            stdout,
            stdout_encoding,
            stdout_omitted_bytes,
            stderr,
            stderr_encoding,
            stderr_omitted_bytes,
            note: (!notes.is_empty()).then(|| notes.join("; ")),
        }
    }
}

impl CommandResult {
    fn of_execution(output: Output, execution: Execution, duration: Duration) -> CommandResult {
        let status = match &execution {
            Execution { timed_out: true, .. } => CommandStatus::TimedOut,
            Execution { start_error: Some(_), .. } => CommandStatus::NotStarted,
            Execution { signal: Some(_), .. } => CommandStatus::Signaled,
            _ => CommandStatus::Exited,
        };
        let result = output.result(status, execution.exit_code, duration);
        CommandResult {
            signal: execution.signal,
            start_error: execution.start_error,
            out_of_memory: execution.out_of_memory,
            disk_full: execution.disk_full,
            ..result
        }
    }

    /// The result of a run.
    pub(super) fn of_run(output: Output, result: RunResult) -> CommandResult {
        let status = match &result {
            RunResult { start_error: Some(_), .. } => CommandStatus::NotStarted,
            RunResult { signal: Some(_), .. } => CommandStatus::Signaled,
            _ => CommandStatus::Exited,
        };
        let duration = result.exited_at.duration_since(result.started_at).unsigned_abs();
        CommandResult {
            signal: result.signal,
            start_error: result.start_error,
            out_of_memory: result.out_of_memory,
            disk_full: result.disk_full,
            ..output.result(status, result.exit_code, duration)
        }
    }
}

/// Which command a call names.
#[derive(Debug)]
pub(super) enum Line {
    /// The image's own.
    Unnamed,
    Words(Vec<String>),
    Shell(String),
}

impl CommandArguments {
    /// Takes the command out, if it is not more than a model writes.
    pub(super) fn take_line(&mut self) -> Result<Line, ToolError> {
        check_words(self.command.as_ref().map_or(0, Vec::len).max(self.env.len()))?;
        match (self.command.take(), self.shell.take()) {
            (None, None) => Ok(Line::Unnamed),
            (Some(words), None) if words.is_empty() => Err(ToolError::invalid("`command` has no word")
                .hint("give its words, or `shell`; a run of an image's own command omits both")),
            (Some(words), None) => Ok(Line::Words(words)),
            (None, Some(line)) => Ok(Line::Shell(line)),
            (Some(_), Some(_)) => {
                Err(ToolError::invalid("there are two commands").hint("give `command` or `shell`"))
            }
        }
    }

    /// The text for standard input, and how the command gets it.
    pub(super) fn take_stdin(&mut self) -> (Option<String>, StdinMode) {
        match self.stdin.take() {
            Some(text) => (Some(text), StdinMode::Piped),
            None => (None, StdinMode::Empty),
        }
    }

    /// What a run of it gives its workspace.
    pub(super) fn lay_over(self, workspace: &mut WorkspaceOptions) {
        workspace.env.extend(self.env);
        workspace.working_dir = self.working_dir.or(workspace.working_dir.take());
        workspace.user = self.user.or(workspace.user.take());
    }

    /// As a run of an image has it: with its entrypoint, or its own command.
    pub(super) fn of_image(mut self, entrypoint: &[String], own: &[String]) -> CommandArguments {
        if self.shell.is_none() {
            let words = self.command.unwrap_or_else(|| own.to_vec());
            self.command = Some(entrypoint.iter().cloned().chain(words).collect());
        }
        self
    }

    /// Options of a command in a workspace, and the text for its standard input.
    pub(super) fn into_exec(mut self, timeout: Duration) -> Result<(ExecOptions, Option<String>), ToolError> {
        let line = match self.take_line()? {
            Line::Words(words) => CommandLine::Argv(words),
            Line::Shell(line) => CommandLine::Shell(line),
            Line::Unnamed => {
                return Err(ToolError::invalid("there is no command").hint("give `command` or `shell`"));
            }
        };
        let (text, stdin) = self.take_stdin();
        let mut options = ExecOptions::of(line);
        options.env = self.env.into_iter().collect();
        options.working_dir = self.working_dir;
        options.user = self.user;
        options.timeout = Some(timeout);
        options.stdin = stdin;
        Ok((options, text))
    }
}

/// Refuses more words or variables than a command of a model has.
pub(super) fn check_words(count: usize) -> Result<(), ToolError> {
    match count <= WORDS_MAX {
        true => Ok(()),
        false => Err(ToolError::invalid(format!("more than {WORDS_MAX} words or variables"))
            .hint("pass data as stdin or in a file")),
    }
}

/// Feeds a command that reads, until it has everything or has ended.
pub(super) fn feed(stdin: Option<ExecStdin>, text: Option<String>) {
    if let (Some(stdin), Some(text)) = (stdin, text) {
        tokio::spawn(async move {
            // A command that has ended takes no more.
            let _ = stdin.write(text).await;
        });
    }
}

/// Runs a command in a workspace.
pub(super) async fn exec(
    server: Server,
    call: Call,
    arguments: ExecArguments,
) -> Result<CommandResult, ToolError> {
    let timeout = server.policy().check_timeout(arguments.timeout_s)?;
    let output = Output::new(arguments.max_output_bytes)?;
    let (options, stdin) = arguments.command.into_exec(timeout)?;
    let workspace = server.workspaces().find(&arguments.name)?;
    run_in(&workspace, &call, options, stdin, output).await
}

/// Runs a command in a workspace to its end.
pub(super) async fn run_in(
    workspace: &Workspace,
    call: &Call,
    options: ExecOptions,
    stdin: Option<String>,
    mut output: Output,
) -> Result<CommandResult, ToolError> {
    let started = Instant::now();
    let mut exec = workspace.exec(options).await?;
    call.set_stage("the command runs");
    feed(exec.take_stdin(), stdin);
    let control = exec.control();
    let mut is_cancelled = false;
    loop {
        tokio::select! {
            frame = exec.next() => match frame {
                Some(frame) => output.push(call, &frame),
                None => break,
            },
            () = call.token().cancelled(), if !is_cancelled => {
                is_cancelled = true;
                // One that has ended meanwhile needs no kill.
                let _ = control.kill().await;
            }
        }
    }
    let execution = exec.wait().await?;
    match is_cancelled {
        true => Err(ToolError::cancelled()),
        false => Ok(CommandResult::of_execution(output, execution, started.elapsed())),
    }
}
