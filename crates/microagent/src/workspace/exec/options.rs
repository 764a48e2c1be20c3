//! Options of a command in a running workspace.

use std::time::Duration;

use microagent_model::CommandLine;
use microagent_proto::Exec as ExecRequest;
use microagent_store::{Workload, WorkspaceRecord};

use crate::broker::with_brokers;
use crate::error::InvalidRequest;
use crate::limits::check_command;
use crate::provision::{check_variables, exec_request};
use crate::{Error, Workspace};

/// Options of a command in a running workspace.
///
/// ```
/// use std::time::Duration;
///
/// use microagent::{ExecOptions, StdinMode};
///
/// let options = ExecOptions::new(["make", "-j2"]).working_dir("/src").timeout(Duration::from_secs(600));
/// let piped = ExecOptions::shell("sort | uniq").env("LC_ALL", "C").stdin(StdinMode::Piped);
/// ```
///
/// Create with [`ExecOptions::new`] and change with its methods.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ExecOptions {
    /// The command. The image's entrypoint is not used.
    pub command: CommandLine,
    /// Environment variables, in addition to the workspace's; later entries win.
    pub env: Vec<(String, String)>,
    /// Working directory; replaces the workspace's.
    pub working_dir: Option<String>,
    /// OCI user; replaces the workspace's.
    pub user: Option<String>,
    /// Time limit, after which the command and its child processes are killed. 0 is not valid.
    pub timeout: Option<Duration>,
    /// A terminal as standard input, output and error.
    pub terminal: Option<Terminal>,
    /// Source of the standard input.
    pub stdin: StdinMode,
}

/// Source of a command's standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StdinMode {
    /// Empty.
    #[default]
    Empty,
    /// The bytes that are written to [`ExecStdin`](crate::ExecStdin).
    Piped,
}

/// A terminal for a command, with its initial size.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Terminal {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
    /// Value of `TERM`, if the environment does not set one.
    pub term: String,
}

impl Terminal {
    /// Creates a terminal with this number of lines and columns; `term` is the value of `TERM`.
    pub fn new(rows: u16, cols: u16, term: impl Into<String>) -> Terminal {
        Terminal { rows, cols, term: term.into() }
    }

    /// As the guest's agent takes it.
    pub(crate) fn request(self) -> microagent_proto::Terminal {
        microagent_proto::Terminal { rows: self.rows, cols: self.cols, term: self.term }
    }
}

impl Workspace {
    /// Returns the request to the guest's agent: the command in the environment of the workspace.
    pub(in crate::workspace) fn exec_request(&self, options: ExecOptions) -> Result<ExecRequest, Error> {
        if options.timeout == Some(Duration::ZERO) {
            return Err(InvalidRequest::NoTime.into());
        }
        check_variables(&options.env)?;
        let dir = self.existing()?;
        let brokers = WorkspaceRecord::load(&dir)?.brokers;
        let stored = Workload::load(&dir).map_err(|e| self.damaged(e))?;
        let mut workload = with_brokers(&stored, &brokers);
        let make_working_dir = options.working_dir.is_none();
        workload.env.extend(options.env);
        if let Some(dir) = options.working_dir {
            workload.working_dir = dir;
        }
        if let Some(user) = options.user {
            workload.user = user;
        }
        check_command(&workload, &options.command)?;
        Ok(ExecRequest {
            // The directory of the image is created; one that the user named may be a typing error.
            make_working_dir,
            stdin: options.stdin == StdinMode::Piped,
            terminal: options.terminal.map(Terminal::request),
            ..exec_request(&workload, &options.command)
        })
    }
}

impl ExecOptions {
    /// Creates options for a program and its arguments: `["ls", "-l"]`.
    pub fn new<S: Into<String>>(words: impl IntoIterator<Item = S>) -> ExecOptions {
        ExecOptions::of(CommandLine::Argv(words.into_iter().map(Into::into).collect()))
    }

    /// Creates options for a shell line, which the `/bin/sh` of the guest runs.
    pub fn shell(line: impl Into<String>) -> ExecOptions {
        ExecOptions::of(CommandLine::Shell(line.into()))
    }

    /// Creates options for a command that was parsed before: a program with arguments, or a shell line.
    pub fn of(command: CommandLine) -> ExecOptions {
        ExecOptions {
            command,
            env: Vec::new(),
            working_dir: None,
            user: None,
            timeout: None,
            terminal: None,
            stdin: StdinMode::Empty,
        }
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> ExecOptions {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn working_dir(self, dir: impl Into<String>) -> ExecOptions {
        ExecOptions { working_dir: Some(dir.into()), ..self }
    }

    /// Sets the user: `user`, `uid`, `user:group`.
    #[must_use]
    pub fn user(self, user: impl Into<String>) -> ExecOptions {
        ExecOptions { user: Some(user.into()), ..self }
    }

    /// Sets the time limit, from the request on; 0 is not valid. A command that reaches it is killed:
    /// [`Execution::timed_out`](crate::Execution::timed_out) is set, and the exit code is 124.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> ExecOptions {
        ExecOptions { timeout: Some(timeout), ..self }
    }

    /// Gives the command a terminal as standard input, output and error. Then all output is
    /// [`OutputStream::Stdout`](crate::OutputStream::Stdout).
    #[must_use]
    pub fn terminal(self, terminal: Terminal) -> ExecOptions {
        ExecOptions { terminal: Some(terminal), ..self }
    }

    /// Sets the source of the standard input; the default is [`StdinMode::Empty`].
    #[must_use]
    pub fn stdin(self, stdin: StdinMode) -> ExecOptions {
        ExecOptions { stdin, ..self }
    }
}
