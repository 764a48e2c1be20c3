//! `microagent result`: how the last command or service of a workspace ended.

use clap::Args;
use microagent::{RunResult, WorkspaceName};
use serde::Serialize;

use crate::context::Context;
use crate::escape;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};

const EXAMPLES: &str = "\
Examples:
  How did the kept run end?
    microagent result report-run

  Its exit code for a script:
    microagent result report-run --json | jq .result.exit_code";

/// Show how the last command or service of a workspace ended
///
/// The command of a kept run, or the service of a workspace that was made with one. What it printed is in
/// `microagent logs`. Fails when nothing has ended yet.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ResultArgs {
    /// Workspace
    name: WorkspaceName,
}

#[derive(Debug, Serialize)]
struct Document {
    workspace: WorkspaceName,
    result: ResultDocument,
}

/// How something ended.
#[derive(Debug, Serialize)]
pub(crate) struct ResultDocument {
    started_at: String,
    exited_at: String,
    pub(crate) exit_code: i32,
    signal: Option<i32>,
    start_error: Option<String>,
}

impl From<RunResult> for ResultDocument {
    fn from(result: RunResult) -> ResultDocument {
        ResultDocument {
            started_at: result.started_at.to_string(),
            exited_at: result.exited_at.to_string(),
            exit_code: result.exit_code,
            signal: result.signal,
            start_error: result.start_error,
        }
    }
}

/// Shows.
pub(crate) fn execute(context: &Context, args: ResultArgs) -> Result<(), Failure> {
    let Some(result) = context.engine().result(&args.name)? else {
        return Err(Failure::Other {
            message: format!("nothing has ended in workspace `{}` yet", args.name),
            hint: Some(format!("microagent wait {} waits for it", args.name)),
        });
    };
    let result = ResultDocument::from(result);
    match context.format {
        Format::Json => print_json(&Document { workspace: args.name, result }),
        Format::Text => print_text(&format!(
            "Workspace: {}\nExit code: {}\nStarted: {}\nExited: {}\n{}",
            args.name,
            result.exit_code,
            result.started_at,
            result.exited_at,
            result
                .start_error
                .map_or_else(String::new, |error| format!("Problem: {}\n", escape::one_line(&error))),
        )),
    }
}
