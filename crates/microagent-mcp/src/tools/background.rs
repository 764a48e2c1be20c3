//! Commands in the background of a workspace: jobs of the library.

use std::borrow::Cow;
use std::time::Duration;

use microagent::{
    Job, JobDetails, JobId, JobOutput, JobOutputOptions, JobOutputPiece, JobState, OutputStream,
    signal_number,
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use tokio::time::{Instant, sleep};

use super::command::CommandArguments;
use crate::call::Call;
use crate::error::ToolError;
use crate::output::{self, Encoding};
use crate::schema;
use crate::server::Server;

/// Bytes of output that a result has, where the call does not say.
const OUTPUT_DEFAULT: usize = 64 * 1024;

/// Most bytes of output that a result can have.
const OUTPUT_MAX: usize = 1024 * 1024;

/// Longest time that a call waits for output: below the 60 s after which clients give a call up.
const WAIT_MAX: u64 = 50;

/// How often output is looked for meanwhile.
const WAIT_INTERVAL: Duration = Duration::from_millis(100);

/// Longest beginning of a character of UTF-8, in bytes.
const PART_OF_A_CHARACTER: usize = 3;

/// A command to start.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExecStartArguments {
    /// Name of the workspace.
    name: String,
    #[serde(flatten)]
    command: CommandArguments,
    /// Seconds after which the command is killed; without it the longest time that the server allows.
    #[serde(default)]
    timeout_s: Option<u64>,
}

/// The number of a command, as `exec_start` gives it, or as the number that it is.
#[derive(Debug)]
struct JobNumber(String);

impl<'de> Deserialize<'de> for JobNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<JobNumber, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Spelling {
            Number(u64),
            Text(String),
        }
        Ok(JobNumber(match Spelling::deserialize(deserializer)? {
            Spelling::Number(number) => number.to_string(),
            Spelling::Text(text) => text,
        }))
    }
}

impl JsonSchema for JobNumber {
    fn schema_name() -> Cow<'static, str> {
        "JobNumber".into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": schema::DIGITS })
    }
}

/// Which output of a command.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExecPollArguments {
    /// Name of the workspace.
    name: String,
    /// Number of the command, from `exec_start`.
    job: JobNumber,
    /// `next_position` of the result before, to get what was printed since; 0 without it.
    #[serde(default)]
    position: u64,
    /// Seconds to wait for output or for the end of the command, where there is nothing new; 0 without it, at most 50.
    #[serde(default)]
    wait_s: u64,
    /// Most bytes of output in the result; 65536 without it, at most 1048576. The rest is in the next result.
    #[serde(default)]
    max_output_bytes: Option<usize>,
}

/// Which command to end.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExecStopArguments {
    /// Name of the workspace.
    name: String,
    /// Number of the command, from `exec_start`.
    job: JobNumber,
    /// Signal to send instead of killing the command and its child processes, such as `INT` or `TERM`.
    #[serde(default)]
    signal: Option<String>,
}

/// A command in the background.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct JobDocument {
    /// Number of the command in its workspace.
    job: String,
    /// One of `running`, `exited`, `signaled`, `timed_out`, `machine_ended`.
    status: String,
    /// Exit code when it has ended; 0 is success, 124 the time limit, 128 + N signal N.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    /// A program that the guest killed because memory ran out.
    #[serde(skip_serializing_if = "Option::is_none")]
    out_of_memory: Option<String>,
    /// Mount point of a disk of the guest that was full.
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_full: Option<String>,
}

/// What a command has printed.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct JobOutputDocument {
    /// The command, as it was before its output was read.
    #[serde(flatten)]
    job: JobDocument,
    /// Standard output.
    stdout: String,
    /// How `stdout` is encoded.
    stdout_encoding: Encoding,
    /// Standard error.
    stderr: String,
    /// How `stderr` is encoded.
    stderr_encoding: Encoding,
    /// Bytes of both streams that are no longer kept.
    omitted_bytes: u64,
    /// `position` of the next call. There is no more output if the command has ended and a result has none.
    next_position: u64,
}

impl From<JobDetails> for JobDocument {
    fn from(details: JobDetails) -> JobDocument {
        JobDocument {
            job: details.id.to_string(),
            status: details.state.to_string(),
            exit_code: details.exit_code,
            signal: details.signal,
            out_of_memory: details.out_of_memory,
            disk_full: details.disk_full,
        }
    }
}

impl From<JobOutput> for JobOutputDocument {
    fn from(output: JobOutput) -> JobOutputDocument {
        let (mut stdout, mut stderr, mut omitted_bytes) = (Vec::new(), Vec::new(), 0);
        let mut next_position = output.next_position;
        let mut pieces = output.pieces;
        next_position -= leave_part_of_a_character(&mut pieces);
        for piece in pieces {
            match piece {
                JobOutputPiece::Printed(frame) if frame.stream == OutputStream::Stdout => {
                    stdout.extend(frame.bytes);
                }
                JobOutputPiece::Printed(frame) => stderr.extend(frame.bytes),
                JobOutputPiece::Dropped(count) => omitted_bytes += count,
            }
        }
        let (stdout, stdout_encoding) = output::text(stdout);
        let (stderr, stderr_encoding) = output::text(stderr);
        JobOutputDocument {
            job: output.details.into(),
            stdout,
            stdout_encoding,
            stderr,
            stderr_encoding,
            omitted_bytes,
            next_position,
        }
    }
}

/// Leaves the beginning of a character at the end of the output for the next result, where there is more than that. Gives
/// the number of bytes.
fn leave_part_of_a_character(pieces: &mut [JobOutputPiece]) -> u64 {
    let has_more = pieces.len() > 1;
    let Some(JobOutputPiece::Printed(frame)) = pieces.last_mut() else { return 0 };
    let len = frame.bytes.len();
    let whole = output::whole_head(&frame.bytes).len();
    match len - whole {
        cut @ 1..=PART_OF_A_CHARACTER if whole > 0 || has_more => {
            frame.bytes.truncate(whole);
            cut as u64
        }
        _ => 0,
    }
}

/// Starts a command in the background.
pub(super) async fn start(
    server: Server,
    call: Call,
    arguments: ExecStartArguments,
) -> Result<JobDocument, ToolError> {
    let timeout = match arguments.timeout_s {
        None => server.policy().max_timeout,
        seconds => server.policy().check_timeout(seconds)?,
    };
    let (options, stdin) = arguments.command.into_exec(timeout)?;
    let job = server.workspaces().find(&arguments.name)?.start_job(options).await?;
    call.set_stage("passing the standard input");
    if let Some(text) = stdin {
        tokio::select! {
            () = feed(&job, &text) => {}
            () = call.token().cancelled() => {
                job.kill().await?;
                return Err(ToolError::cancelled());
            }
        }
    }
    Ok(job.details()?.into())
}

/// Passes a text on, and closes the standard input. A command that has ended takes no more.
async fn feed(job: &Job, text: &str) {
    let Ok(mut stdin) = job.stdin().await else { return };
    if stdin.write(text.as_bytes()).await.is_ok() {
        let _ = stdin.close().await;
    }
}

/// Reads what a command has printed since the last call.
pub(super) async fn poll(
    server: Server,
    call: Call,
    arguments: ExecPollArguments,
) -> Result<JobOutputDocument, ToolError> {
    let limit = arguments.max_output_bytes.unwrap_or(OUTPUT_DEFAULT);
    if limit == 0 || limit > OUTPUT_MAX {
        return Err(ToolError::invalid(format!("max_output_bytes is not from 1 to {OUTPUT_MAX}"))
            .hint("the rest of the output is in the results of further calls"));
    }
    if arguments.wait_s > WAIT_MAX {
        return Err(
            ToolError::invalid(format!("wait_s is more than {WAIT_MAX}")).hint("call again to wait longer")
        );
    }
    let job = find(&server, &arguments.name, &arguments.job)?;
    let options = JobOutputOptions::new().position(arguments.position).limit(limit);
    let until = Instant::now() + Duration::from_secs(arguments.wait_s);
    call.set_stage("waiting for output");
    loop {
        let output = job.output(options).await?;
        let has_news = !output.pieces.is_empty() || output.details.state != JobState::Running;
        if has_news || Instant::now() >= until {
            return Ok(output.into());
        }
        tokio::select! {
            () = sleep(WAIT_INTERVAL) => {}
            () = call.token().cancelled() => return Err(ToolError::cancelled()),
        }
    }
}

/// Ends a command, or sends it a signal.
pub(super) async fn stop(
    server: Server,
    _call: Call,
    arguments: ExecStopArguments,
) -> Result<JobDocument, ToolError> {
    let job = find(&server, &arguments.name, &arguments.job)?;
    let Some(signal) = arguments.signal else {
        return match job.details()? {
            details if details.state == JobState::Running => Ok(job.kill().await?.into()),
            ended => Ok(ended.into()),
        };
    };
    let number = signal_number(&signal).ok_or_else(|| {
        ToolError::invalid(format!("`{}` is not a signal", signal.escape_debug()))
            .hint("give a name such as INT, TERM or HUP, or a number")
    })?;
    job.signal(number).await?;
    Ok(job.details()?.into())
}

fn find(server: &Server, name: &str, job: &JobNumber) -> Result<Job, ToolError> {
    let workspace = server.workspaces().find(name)?;
    let id: JobId = job.0.parse().map_err(|error: microagent::JobIdError| {
        ToolError::invalid(error.to_string()).hint("give `job` of the result of `exec_start`")
    })?;
    Ok(workspace.job(id))
}

#[cfg(test)]
mod tests {
    use microagent::OutputFrame;

    use super::*;

    fn printed(text: &[u8]) -> JobOutputPiece {
        JobOutputPiece::Printed(OutputFrame { stream: OutputStream::Stdout, bytes: text.to_vec() })
    }

    #[test]
    fn a_character_is_not_divided_between_two_results() {
        for (pieces, left) in [
            (vec![printed("aü".as_bytes())], 0),
            (vec![printed(b"a\xc3")], 1),
            (vec![printed(b"a"), printed(b"\xf0\x9f\x98")], 3),
            // Or nothing would ever be read.
            (vec![printed(b"\xf0\x9f\x98")], 0),
            // Not a text at all.
            (vec![printed(b"a\xff\xff\xff\xff")], 0),
            (vec![printed(b"a\xc3"), JobOutputPiece::Dropped(2)], 0),
            (vec![], 0),
        ] {
            let mut pieces = pieces;
            assert_eq!(leave_part_of_a_character(&mut pieces), left, "{pieces:?}");
        }
    }
}
