//! What a command in a running workspace is.

use std::time::Duration;

use microagent_model::CommandLine;

/// A command in a running workspace. Start from [`ExecOptions::new`] and set what differs.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ExecOptions {
    /// What runs. The image's entrypoint has no part in it.
    pub command: CommandLine,
    /// Environment, over the workspace's; later entries win.
    pub env: Vec<(String, String)>,
    /// Working directory in place of the workspace's.
    pub working_dir: Option<String>,
    /// OCI user in place of the workspace's.
    pub user: Option<String>,
    /// How long it may take; then it is killed with everything that it started.
    pub timeout: Option<Duration>,
    /// A terminal as standard input, output and error.
    pub terminal: Option<Terminal>,
    /// Where its standard input comes from.
    pub stdin: StdinMode,
}

/// Where the standard input of a command comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StdinMode {
    /// It is empty.
    #[default]
    Empty,
    /// What is written to [`ExecStdin`](crate::ExecStdin).
    Piped,
}

/// A terminal as it is at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Terminal {
    /// Lines.
    pub rows: u16,
    /// Characters on a line.
    pub cols: u16,
    /// Value of `TERM`, unless the environment has one.
    pub term: String,
}

impl Terminal {
    /// A terminal with so many lines and characters on a line; `term` is the value of `TERM`.
    pub fn new(rows: u16, cols: u16, term: impl Into<String>) -> Terminal {
        Terminal { rows, cols, term: term.into() }
    }

    /// As the guest's agent takes it.
    pub(crate) fn request(self) -> microagent_proto::Terminal {
        microagent_proto::Terminal { rows: self.rows, cols: self.cols, term: self.term }
    }
}

impl ExecOptions {
    /// A program and its arguments.
    pub fn new<S: Into<String>>(words: impl IntoIterator<Item = S>) -> ExecOptions {
        ExecOptions::of(CommandLine::Argv(words.into_iter().map(Into::into).collect()))
    }

    /// A shell command line, evaluated by the guest's `/bin/sh`.
    pub fn shell(line: impl Into<String>) -> ExecOptions {
        ExecOptions::of(CommandLine::Shell(line.into()))
    }

    /// A program or a shell command line.
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

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> ExecOptions {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Runs it in this directory.
    #[must_use]
    pub fn working_dir(self, dir: impl Into<String>) -> ExecOptions {
        ExecOptions { working_dir: Some(dir.into()), ..self }
    }

    /// Runs it as this user: `user`, `uid`, `user:group`.
    #[must_use]
    pub fn user(self, user: impl Into<String>) -> ExecOptions {
        ExecOptions { user: Some(user.into()), ..self }
    }

    /// Kills it after this time.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> ExecOptions {
        ExecOptions { timeout: Some(timeout), ..self }
    }

    /// Gives it a terminal.
    #[must_use]
    pub fn terminal(self, terminal: Terminal) -> ExecOptions {
        ExecOptions { terminal: Some(terminal), ..self }
    }

    /// Says where its standard input comes from.
    #[must_use]
    pub fn stdin(self, stdin: StdinMode) -> ExecOptions {
        ExecOptions { stdin, ..self }
    }
}
