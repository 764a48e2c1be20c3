//! `microagent exec`: a command in a running workspace.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use microagent::spec::value::duration;
use microagent::{Error, ExecOptions, ExecOutput, Execution, StdinMode, Workspace, WorkspaceName};

use crate::args::values::{env_file, env_variable};
use crate::context::Context;
use crate::documents::exec::ExecDocument;
use crate::documents::job::JobDocument;
use crate::documents::output::json_bytes;
use crate::documents::stream::StreamLine;
use crate::exit_reason::note_ending;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};
use crate::session::{Ended, Session, Stdin};
use crate::stream::{Passing, print_line};
use crate::terminal;

/// Most bytes of each stream that a JSON document holds; the rest is counted.
const DOCUMENT_LIMIT: usize = 64 * 1024 * 1024;

const EXAMPLES: &str = "\
Examples:
  Run one command and exit with its exit code; print one JSON document, for programs:
    microagent exec web -- ls -la /srv
    microagent exec web --json -- uname -r

  Set user, directory, a variable and a time limit:
    microagent exec web -u nobody --cwd /tmp -e LEVEL=3 --timeout 60 -- sh -c 'id; echo $LEVEL'

  Run an editor on this terminal; read standard input from a file:
    microagent exec -it web -- vi /etc/motd
    microagent exec --stdin dump.sql db -- psql -U postgres

  Run a command in the background; see what it printed and how it ended:
    job=$(microagent exec --detach web -- make test)
    microagent job logs -f web $job
    microagent job wait web $job";

const LONG_ABOUT: &str = "\
Runs a command in a running workspace and prints its output as it comes, standard output and standard error separately. \
Exits with the command's exit code.

Ctrl-C and other signals go to the command; the third Ctrl-C kills it.

With --detach the command becomes a job: its number is printed once it has started, and `microagent job` shows, follows \
and ends it. -i gives it a standard input that stays open for `microagent job stdin`.

Exit codes that microagent sets: 124 the time limit was reached, 126 the command could not be executed, 127 it was not \
found, 128 + N signal N ended it. Killing the command also kills its child processes.";

/// Run a command in a running workspace
#[derive(Debug, Args)]
#[command(
    long_about = LONG_ABOUT,
    after_long_help = EXAMPLES,
    override_usage = "microagent exec [OPTIONS] NAME -- COMMAND [ARG]..."
)]
pub(crate) struct ExecArgs {
    /// Workspace
    name: WorkspaceName,

    /// Command and its arguments, verbatim
    #[arg(value_name = "COMMAND", trailing_var_arg = true, required = true)]
    words: Vec<String>,

    /// Set an environment variable; without a value, pass the host's (repeatable)
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,

    /// Read variables from a file of NAME=VALUE lines; --env overrides it (repeatable)
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,

    /// Working directory instead of the workspace's
    #[arg(short = 'w', long, visible_alias = "workdir", value_name = "DIR")]
    cwd: Option<String>,

    /// User, or user and group, instead of the workspace's
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,

    /// Kill the command after this time: seconds, or with units such as 1m30s
    #[arg(long, value_name = "SECONDS", value_parser = duration)]
    timeout: Option<Duration>,

    /// Pass standard input to the command, as --stdin - does
    #[arg(short, long)]
    interactive: bool,

    /// Allocate a terminal connected to this one
    #[arg(short, long)]
    tty: bool,

    /// Run the command in the background and print the number of its job
    #[arg(short, long, conflicts_with = "stdin")]
    detach: bool,

    /// Read standard input from FILE (- for this process's)
    #[arg(long, value_name = "FILE", conflicts_with = "interactive")]
    stdin: Option<PathBuf>,
}

/// Runs the command; gives its exit code.
pub(crate) fn execute(context: &Context, args: ExecArgs) -> Result<u8, Failure> {
    let options = args.options()?;
    let workspace = context.engine().workspace(&args.name);
    if args.detach && context.streams() {
        return Err(Failure::usage("--detach and --json=stream cannot be combined", "use --json"));
    }
    if args.detach {
        let mode = if args.interactive { StdinMode::Piped } else { StdinMode::Empty };
        return start_job(context, &workspace, options.stdin(mode)).map(|()| 0);
    }
    if context.streams() && args.tty {
        return Err(Failure::usage("--tty and --json=stream cannot be combined", "omit one of them"));
    }
    let session = Session { stdin: args.stdin()?, raw: args.tty, detach: None };
    if context.format == Format::Json && !context.streams() {
        let output = session.collect(context, &workspace, options, DOCUMENT_LIMIT)?;
        let code = u8::try_from(output.execution.exit_code).unwrap_or(1);
        let ExecOutput { stdout, stderr, dropped_bytes, execution, .. } = output;
        print_json(&ExecDocument::new(args.name, (stdout, stderr), dropped_bytes, execution))?;
        return Ok(code);
    }
    let passing = if context.streams() { Passing::lines() } else { Passing::Bytes };
    let execution = match session.run(context, &workspace, options, passing)? {
        Ended::Command(execution) => execution,
        Ended::Detached => unreachable!("a command has no key to detach with"),
    };
    if context.streams() {
        let code = u8::try_from(execution.exit_code).unwrap_or(1);
        let document =
            ExecDocument::new(args.name, (Vec::new(), Vec::new()), execution.dropped_bytes, execution);
        return print_line(&StreamLine::Exec(Box::new(document))).map(|()| code);
    }
    let progress = context.progress(true);
    if let Some(error) = &execution.start_error {
        progress.note(&format!("the command could not be started: {error}"));
    }
    if execution.timed_out {
        progress
            .note("the time limit (--timeout) was reached; the command and its child processes were killed");
    }
    let Execution { signal, out_of_memory, disk_full, timed_out, .. } = &execution;
    let signal = if *timed_out { None } else { *signal };
    note_ending(&progress, &workspace, signal, out_of_memory.as_deref(), disk_full.as_deref())?;
    Ok(u8::try_from(execution.exit_code).unwrap_or(1))
}

/// Starts the command in the background and prints the number of its job.
fn start_job(context: &Context, workspace: &Workspace, options: ExecOptions) -> Result<(), Failure> {
    let job = context.block_on(async |token| {
        tokio::select! {
            job = workspace.start_job(options) => Ok(job?),
            () = token.cancelled() => Err(Error::Cancelled.into()),
        }
    })?;
    match context.format {
        Format::Json => print_json(&JobDocument::new(job.workspace().name(), job.details()?)),
        Format::Text => print_text(&format!("{}\n", job.id())),
    }
}

impl ExecArgs {
    fn options(&self) -> Result<ExecOptions, Failure> {
        let mut options = ExecOptions::new(self.words.iter().cloned());
        for path in &self.env_file {
            options.env.extend(env_file(path)?);
        }
        for text in &self.env {
            options.env.extend(env_variable(text)?);
        }
        options.working_dir.clone_from(&self.cwd);
        options.user.clone_from(&self.user);
        options.timeout = self.timeout;
        if self.tty {
            options.terminal = Some(if self.detach { terminal::detached() } else { terminal::ours()? });
        }
        Ok(options)
    }

    fn stdin(&self) -> Result<Option<Stdin>, Failure> {
        match &self.stdin {
            Some(path) if path.as_os_str() != "-" => match File::open(path) {
                Ok(file) => Ok(Some(Stdin::File(file))),
                Err(source) => Err(Failure::File { action: "read", path: path.clone(), source }),
            },
            Some(_) => Ok(Some(Stdin::Ours)),
            // A terminal without its keyboard is of use only for what it shows.
            None => Ok(self.interactive.then_some(Stdin::Ours)),
        }
    }
}

impl ExecDocument {
    fn new(
        workspace: WorkspaceName,
        (stdout, stderr): (Vec<u8>, Vec<u8>),
        dropped_bytes: u64,
        execution: Execution,
    ) -> ExecDocument {
        let status = match &execution {
            Execution { timed_out: true, .. } => "timed_out",
            Execution { start_error: Some(_), .. } => "not_started",
            Execution { signal: Some(_), .. } => "signaled",
            _ => "exited",
        };
        let (stdout, stdout_encoding) = json_bytes(stdout);
        let (stderr, stderr_encoding) = json_bytes(stderr);
        ExecDocument {
            workspace,
            status,
            exit_code: execution.exit_code,
            signal: execution.signal,
            start_error: execution.start_error,
            out_of_memory: execution.out_of_memory,
            disk_full: execution.disk_full,
            started_at: execution.started_at.to_string(),
            exited_at: execution.exited_at.to_string(),
            stdout,
            stdout_encoding,
            stderr,
            stderr_encoding,
            dropped_bytes,
        }
    }
}
