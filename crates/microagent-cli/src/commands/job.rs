//! `microagent job`: one job of a workspace.

mod logs;
mod stdin;

use std::time::Duration;

use clap::{Args, Subcommand};
use microagent::spec::value::duration;
use microagent::{Error, Job, JobDetails, JobId, JobState, WorkspaceName, signal_number};

use self::logs::LogsArgs;
use self::stdin::StdinArgs;
use crate::context::Context;
use crate::documents::job::JobDocument;
use crate::escape;
use crate::exit_reason::note_ending;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};

const EXAMPLES: &str = "\
Examples:
  Start a job, wait for its end, and show what it printed:
    job=$(microagent exec --detach web -- make test)
    microagent job wait web $job
    microagent job logs web $job

  Follow what it prints, and end it:
    microagent job logs -f web 1
    microagent job signal web 1";

const STATUS_EXAMPLES: &str = "\
Examples:
  Show a job:
    microagent job status web 1

  Print its exit code, for a script:
    microagent job status web 1 --json | jq .exit_code";

const WAIT_EXAMPLES: &str = "\
Examples:
  Wait for a job and use its exit code:
    microagent job wait web 1 && echo passed

  Wait at most ten minutes:
    microagent job wait web 1 --timeout 10m";

const SIGNAL_EXAMPLES: &str = "\
Examples:
  Ask a job to end:
    microagent job signal web 1

  Have it read its configuration again:
    microagent job signal web 1 HUP";

const KILL_EXAMPLES: &str = "\
Examples:
  Kill a job:
    microagent job kill web 1

  Kill it and show what it had printed:
    microagent job kill web 1 && microagent job logs web 1";

/// Show, follow and end jobs of a workspace
///
/// A job is a command that `microagent exec --detach` started. It runs without this program: closing the terminal does not
/// end it. What it prints and how it ends are kept in the workspace's directory, and can be read when the machine has
/// ended. A job ends with its machine at the latest; its state is then `machine_ended`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES, subcommand_value_name = "COMMAND")]
pub(crate) struct JobArgs {
    #[command(subcommand)]
    pub(crate) command: Option<JobCommand>,
}

/// What is done with a job.
#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    #[command(visible_alias = "inspect")]
    Status(StatusArgs),
    Logs(LogsArgs),
    Wait(WaitArgs),
    Signal(SignalArgs),
    Stdin(StdinArgs),
    Kill(KillArgs),
}

/// Which job.
#[derive(Debug, Args)]
struct OneJob {
    /// Workspace
    name: WorkspaceName,

    /// Number of the job, as `microagent jobs` shows it
    #[arg(value_name = "ID")]
    id: JobId,
}

/// Show a job
///
/// States: running, exited, signaled, timed_out, machine_ended. Changes nothing.
#[derive(Debug, Args)]
#[command(after_long_help = STATUS_EXAMPLES)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    job: OneJob,
}

/// Wait until a job ends
///
/// Exits with the exit code of the job: 124 for its time limit, 128 + N for signal N. Exits with 1 if the job ended with
/// its machine and its exit code is not known, or if the time limit of the wait is reached.
#[derive(Debug, Args)]
#[command(after_long_help = WAIT_EXAMPLES)]
pub(crate) struct WaitArgs {
    #[command(flatten)]
    job: OneJob,

    /// Give up after this time: seconds, or with units such as 1m30s
    #[arg(long, value_name = "SECONDS", value_parser = duration)]
    timeout: Option<Duration>,
}

/// Send a signal to a job
///
/// The signal goes to the process group of the job's command.
#[derive(Debug, Args)]
#[command(after_long_help = SIGNAL_EXAMPLES)]
pub(crate) struct SignalArgs {
    #[command(flatten)]
    job: OneJob,

    /// Signal, by name or number
    #[arg(value_name = "SIGNAL", default_value = "TERM", value_parser = signal)]
    signal: u8,
}

/// Kill a job with everything that it started
///
/// Waits until the job has ended. What it printed is kept.
#[derive(Debug, Args)]
#[command(after_long_help = KILL_EXAMPLES)]
pub(crate) struct KillArgs {
    #[command(flatten)]
    job: OneJob,
}

fn signal(text: &str) -> Result<u8, String> {
    signal_number(text).ok_or_else(|| format!("`{text}` is not a signal such as TERM or 15"))
}

impl JobArgs {
    /// Whether it has lines of `--json=stream`.
    pub(crate) fn prints_lines(&self) -> bool {
        matches!(&self.command, Some(JobCommand::Logs(_)))
    }

    /// Whether output is followed, which Ctrl-C ends.
    pub(crate) fn follows(&self) -> bool {
        matches!(&self.command, Some(JobCommand::Logs(args)) if args.follow)
    }
}

/// Does what the subcommand says; gives the exit code.
pub(crate) fn execute(context: &Context, args: JobArgs) -> Result<u8, Failure> {
    match args.command {
        Some(JobCommand::Status(args)) => {
            let job = args.job.of(context);
            print(context, &job, job.details()?).map(|()| 0)
        }
        Some(JobCommand::Logs(args)) => logs::execute(context, args).map(|()| 0),
        Some(JobCommand::Wait(args)) => wait(context, &args),
        Some(JobCommand::Signal(args)) => {
            let job = args.job.of(context);
            context.block_on(async |_| Ok(job.signal(args.signal).await?))?;
            print(context, &job, job.details()?).map(|()| 0)
        }
        Some(JobCommand::Stdin(args)) => stdin::execute(context, args).map(|()| 0),
        Some(JobCommand::Kill(args)) => {
            let job = args.job.of(context);
            let details = context.block_on(async |token| {
                tokio::select! {
                    details = job.kill() => Ok(details?),
                    () = token.cancelled() => Err(Error::Cancelled.into()),
                }
            })?;
            print(context, &job, details).map(|()| 0)
        }
        None => unreachable!("a group without a subcommand was answered with its help page"),
    }
}

impl OneJob {
    fn of(&self, context: &Context) -> Job {
        context.engine().workspace(&self.name).job(self.id)
    }
}

fn wait(context: &Context, args: &WaitArgs) -> Result<u8, Failure> {
    let OneJob { name, id } = &args.job;
    let job = args.job.of(context);
    let limit = async {
        match args.timeout {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let details = context.block_on(async |token| {
        tokio::select! {
            details = job.wait() => Ok(details?),
            () = token.cancelled() => Err(Error::Cancelled.into()),
            () = limit => Err(Failure::Other {
                message: format!("the time limit was reached; job {id} of workspace `{name}` still runs"),
                hint: Some(format!("show what it prints: microagent job logs -f {name} {id}")),
            }),
        }
    })?;
    let (exit_code, state) = (details.exit_code, details.state);
    let signal = if state == JobState::Signaled { details.signal } else { None };
    let (memory, disk) = (details.out_of_memory.as_deref(), details.disk_full.as_deref());
    note_ending(&context.progress(true), job.workspace(), signal, memory, disk)?;
    print(context, &job, details)?;
    match exit_code {
        Some(code) => Ok(u8::try_from(code).unwrap_or(1)),
        None if state == JobState::MachineEnded => Err(Failure::Other {
            message: format!("job {id} of workspace `{name}` ended with its machine"),
            hint: Some(format!("microagent events {name} shows why the machine ended")),
        }),
        None => Ok(1),
    }
}

/// Prints a job.
fn print(context: &Context, job: &Job, details: JobDetails) -> Result<(), Failure> {
    let document = JobDocument::new(job.workspace().name(), details);
    match context.format {
        Format::Json => print_json(&document),
        Format::Text => print_text(&text(&document)),
    }
}

fn text(job: &JobDocument) -> String {
    let mut lines = vec![
        ("Workspace", job.workspace.to_string()),
        ("Job", job.job.to_string()),
        ("State", job.state.to_string()),
    ];
    lines.extend(job.exit_code.map(|code| ("Exit code", code.to_string())));
    lines.push(("Command", escape::one_line(&job.command)));
    lines.push(("Started", job.started_at.to_string()));
    lines.extend(job.ended_at.map(|at| ("Ended", at.to_string())));
    lines.extend(job.printed_bytes.map(|bytes| ("Printed", format!("{bytes} bytes"))));
    lines.iter().map(|(key, value)| format!("{key}: {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_shown_with_what_is_known_of_it() {
        let running = JobDocument {
            workspace: "web".parse().unwrap(),
            job: "3".parse().unwrap(),
            state: JobState::Running,
            command: "sleep 60".to_owned(),
            started_at: jiff::Timestamp::UNIX_EPOCH,
            ended_at: None,
            exit_code: None,
            signal: None,
            stdin: false,
            printed_bytes: None,
            out_of_memory: None,
            disk_full: None,
        };
        assert_eq!(
            text(&running),
            "Workspace: web\nJob: 3\nState: running\nCommand: sleep 60\nStarted: 1970-01-01T00:00:00Z\n"
        );
        let ended = JobDocument {
            state: JobState::MachineEnded,
            ended_at: Some(jiff::Timestamp::UNIX_EPOCH),
            exit_code: Some(143),
            printed_bytes: Some(7),
            ..running
        };
        assert_eq!(
            text(&ended),
            "Workspace: web\nJob: 3\nState: machine_ended\nExit code: 143\nCommand: sleep 60\n\
             Started: 1970-01-01T00:00:00Z\nEnded: 1970-01-01T00:00:00Z\nPrinted: 7 bytes\n"
        );
    }
}
