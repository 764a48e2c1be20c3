//! How a command fails: what is said on standard error, and the exit code.
//!
//! Everything ends here once, in `main`: `Error: <what: why>`, then `Hint: <what to do>`; with JSON output one
//! line `{kind, message, hint, retryable}`. Texts from outside are escaped here and nowhere else.

use std::io::{self, Write};
use std::path::PathBuf;

use microagent::error::JobError;
use microagent::{Error, ErrorKind, FailureKind, chain};
use owo_colors::OwoColorize;

use crate::documents::error::ErrorDocument;
use crate::documents::output::OutputDocument;
use crate::output::Format;
use crate::{escape, hints, stderr};

/// Exit code of a command that failed.
const EXIT_FAILED: u8 = 1;
/// Exit code of a usage error.
pub(crate) const EXIT_USAGE: u8 = 2;
/// Exit code when trying again later can help (`EX_TEMPFAIL` of sysexits.h).
const EXIT_RETRY: u8 = 75;
/// Exit code after Ctrl-C: 128 + SIGINT, as shells say it.
pub(crate) const EXIT_CANCELLED: u8 = 130;

/// Exit code after a hangup: 128 + SIGHUP.
const EXIT_HUNG_UP: u8 = 129;

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line is wrong, or asks for something that does not exist here.
    Usage {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The library failed.
    Engine(Error),
    /// The library failed, and something had been printed that belongs to the answer.
    WithOutput {
        /// Why.
        error: Error,
        /// What had been printed.
        output: Box<OutputDocument>,
    },
    /// A file of the user's could not be read or written.
    File {
        /// What was to be done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else failed.
    Other {
        /// What failed.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// Whoever read our output went away; there is nobody to tell.
    ClosedOutput,
    /// Whoever started us went away and said so by SIGHUP; there is nobody to tell either.
    HungUp,
}

impl Failure {
    /// The command line is wrong.
    pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Failure {
        Failure::Usage { message: message.into(), hint: Some(hint.into()) }
    }

    /// `--follow` with `--json`, which no command has.
    pub(crate) fn followed_as_json() -> Failure {
        Failure::usage(
            "--follow and --json cannot be combined",
            "--json=stream prints a line for each thing that happens",
        )
    }

    /// What the process exits with.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Failure::Usage { .. } => EXIT_USAGE,
            Failure::Engine(e) | Failure::WithOutput { error: e, .. } if e.is_retryable() => EXIT_RETRY,
            Failure::Engine(Error::Job(JobError::NotStarted { exit_code, .. })) => {
                u8::try_from(*exit_code).unwrap_or(EXIT_FAILED)
            }
            Failure::Engine(e) | Failure::WithOutput { error: e, .. } => match e.kind() {
                ErrorKind::Invalid => EXIT_USAGE,
                ErrorKind::Cancelled => EXIT_CANCELLED,
                _ => EXIT_FAILED,
            },
            Failure::File { .. } | Failure::Other { .. } => EXIT_FAILED,
            Failure::ClosedOutput => 0,
            Failure::HungUp => EXIT_HUNG_UP,
        }
    }

    /// Says it on standard error.
    pub(crate) fn report(&self, format: Format) {
        if matches!(self, Failure::ClosedOutput | Failure::HungUp) {
            return;
        }
        let mut text = Vec::new();
        let written = match format {
            Format::Text => self.write_text(&mut text),
            Format::Json => self.write_json(&mut text),
        };
        written.expect("memory takes every write");
        match self.exit_code() {
            EXIT_CANCELLED => stderr::write_at_the_end(text),
            // An error of standard error cannot be reported.
            _ => drop(anstream::stderr().lock().write_all(&text)),
        }
    }

    fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{} {}", "Error:".red().bold(), escape::one_line(&self.message()))?;
        if let Failure::Engine(Error::Spec(error)) = self
            && let Some(snippet) = error.snippet()
        {
            for line in escape::lines(snippet).lines() {
                writeln!(out, "  {line}")?;
            }
        }
        if let Some(tail) = self.console_tail() {
            writeln!(out, "The guest's console ends with:")?;
            for line in escape::lines(tail).lines() {
                writeln!(out, "  {line}")?;
            }
        }
        match self.hint() {
            Some(hint) => writeln!(out, "{} {}", "Hint:".cyan().bold(), escape::one_line(&hint)),
            None => Ok(()),
        }
    }

    /// Last lines of the guest's console, where they may say why it failed.
    fn console_tail(&self) -> Option<&str> {
        match self {
            // What was printed before the time was up has just been shown.
            Failure::Engine(Error::RunFailed { kind: FailureKind::Timeout, .. }) => None,
            Failure::Engine(
                Error::RunFailed { console_tail, .. } | Error::StartFailed { console_tail, .. },
            ) => console_tail.as_deref(),
            _ => None,
        }
    }

    fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        serde_json::to_writer(&mut *out, &self.document())?;
        writeln!(out)
    }

    fn document(&self) -> ErrorDocument<'_> {
        let kind = match self {
            Failure::Engine(e) | Failure::WithOutput { error: e, .. } => e.kind(),
            Failure::Usage { .. } => ErrorKind::Invalid,
            Failure::File { .. } | Failure::Other { .. } | Failure::ClosedOutput | Failure::HungUp => {
                ErrorKind::Host
            }
        };
        let output = match self {
            Failure::WithOutput { output, .. } if !output.is_empty() => Some(&**output),
            _ => None,
        };
        let retryable = self.exit_code() == EXIT_RETRY;
        ErrorDocument { kind, message: self.message(), hint: self.hint(), retryable, output }
    }

    fn message(&self) -> String {
        match self {
            Failure::Usage { message, .. } | Failure::Other { message, .. } => message.clone(),
            Failure::Engine(e) | Failure::WithOutput { error: e, .. } => chain(e),
            Failure::File { action, path, source } => {
                format!("cannot {action} `{}`: {source}", path.display())
            }
            Failure::ClosedOutput => "standard output was closed".to_owned(),
            Failure::HungUp => "whoever started it has hung up".to_owned(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Failure::Usage { hint, .. } | Failure::Other { hint, .. } => hint.clone(),
            Failure::Engine(e) | Failure::WithOutput { error: e, .. } => hints::of(e),
            Failure::File { .. } | Failure::ClosedOutput | Failure::HungUp => None,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Engine(error)
    }
}

/// Only standard output is written with `?` on an [`io::Error`]; files carry their path.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::ClosedOutput,
            _ => Failure::Other { message: format!("cannot write to standard output: {error}"), hint: None },
        }
    }
}
