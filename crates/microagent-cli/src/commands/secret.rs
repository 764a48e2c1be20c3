//! `microagent secret`: whether the values of secrets can be read.

use std::fmt::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use microagent::{SecretCheck, chain};

use crate::args::secret;
use crate::context::Context;
use crate::documents::secret::SecretCheckDocument;
use crate::escape;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};

const EXAMPLES: &str = "\
Examples:
  Check whether a start could read these secrets:
    microagent secret check TOKEN=env:GITHUB_TOKEN DB=vault:secret/data/app/db#password

  Check all variables of a file:
    microagent secret check --secrets-env-file .env";

const CHECK_ABOUT: &str = "\
Looks up the value of each secret as a start would, and prints a line for each: its name, whether the value was found, \
the kind of its source, and its length. Never prints a value. Exits with 1 if a value cannot be read.";

/// Check secret references
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct SecretArgs {
    #[command(subcommand)]
    pub(crate) command: Option<SecretCommand>,
}

/// What to do with secrets.
#[derive(Debug, Subcommand)]
pub(crate) enum SecretCommand {
    Check(CheckArgs),
}

/// Check whether the values of secrets can be read
#[derive(Debug, Args)]
#[command(long_about = CHECK_ABOUT, after_long_help = EXAMPLES)]
pub(crate) struct CheckArgs {
    /// Secrets as with `run --secret`: a name and a reference
    // Not parsed by clap, which would repeat what it does not understand.
    #[arg(value_name = "NAME=SCHEME:REF", required_unless_present = "secrets_env_file")]
    secrets: Vec<String>,

    /// Check every variable of a file of NAME=VALUE lines (repeatable)
    #[arg(long, value_name = "FILE")]
    secrets_env_file: Vec<PathBuf>,
}

/// Checks; gives the exit code.
pub(crate) fn execute(context: &Context, args: SecretArgs) -> Result<u8, Failure> {
    let SecretCommand::Check(args) =
        args.command.expect("a group without a command was answered with its help");
    let named = args.secrets.iter().map(|text| secret::reference(text)).collect::<Result<Vec<_>, _>>()?;
    let references = secret::all_of(named, &args.secrets_env_file)?;
    let engine = context.engine();
    let checks = context.block_on(async |token| {
        let work = microagent::Progress::new().cancel(token);
        Ok(engine.check_secrets(&references, &work).await?)
    })?;
    let documents: Vec<SecretCheckDocument> = checks.iter().map(SecretCheckDocument::new).collect();
    match context.format {
        Format::Json => print_json(&documents)?,
        Format::Text => print_text(&documents.iter().map(SecretCheckDocument::text).collect::<String>())?,
    }
    Ok(u8::from(documents.iter().any(|document| !document.ok)))
}

impl SecretCheckDocument {
    fn new(check: &SecretCheck) -> SecretCheckDocument {
        let ok = check.outcome.is_ok();
        SecretCheckDocument {
            name: check.reference.name.clone(),
            ok,
            source: check.reference.source.scheme(),
            bytes: check.outcome.as_ref().ok().copied(),
            warning: check.warning().filter(|_| ok),
            error: check.outcome.as_ref().err().map(|error| chain(&error.fault)),
        }
    }

    fn text(&self) -> String {
        let word = if self.ok { "ok" } else { "failed" };
        let mut line = format!("{}\t{word}\tsource={}", self.name, self.source);
        // Writing to a text does not fail.
        if let Some(bytes) = self.bytes {
            let _ = write!(line, "\tbytes={bytes}");
        }
        if let Some(warning) = self.warning {
            let _ = write!(line, "\twarning: {warning}");
        }
        if let Some(error) = &self.error {
            let _ = write!(line, "\terror: {}", escape::one_line(error));
        }
        line + "\n"
    }
}
