//! `microagent result`: how the last command or service of a workspace ended.

use clap::Args;
use microagent::WorkspaceName;

use crate::context::Context;
use crate::documents::result::{LastResultDocument, ResultDocument};
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};
use crate::{escape, exit_reason};

const EXAMPLES: &str = "\
Examples:
  Show how a kept run ended:
    microagent result report-run

  Print its exit code, for a script:
    microagent result report-run --json | jq .result.exit_code";

/// Show how the last command or service of a workspace ended
///
/// For a kept run this is its command, for a workspace with a service its service. `microagent logs` shows what it
/// printed. Fails if nothing has ended yet.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ResultArgs {
    /// Workspace
    name: WorkspaceName,
}

/// Shows.
pub(crate) fn execute(context: &Context, args: ResultArgs) -> Result<(), Failure> {
    let Some(result) = context.engine().workspace(&args.name).result()? else {
        return Err(Failure::Other {
            message: format!("nothing has ended in workspace `{}` yet", args.name),
            hint: Some(format!("wait for it: microagent wait {}", args.name)),
        });
    };
    let result = ResultDocument::from(result);
    match context.format {
        Format::Json => print_json(&LastResultDocument { workspace: args.name, result }),
        Format::Text => print_text(&format!(
            "Workspace: {}\nExit code: {}\nStarted: {}\nExited: {}\n{}{}",
            args.name,
            result.exit_code,
            result.started_at,
            result.exited_at,
            result.signal.map_or_else(String::new, |signal| match exit_reason::name(signal) {
                Some(name) => format!("Signal: {signal} ({name})\n"),
                None => format!("Signal: {signal}\n"),
            }),
            problem(&result)
                .map_or_else(String::new, |error| format!("Problem: {}\n", escape::one_line(&error))),
        )),
    }
}

/// What kept it from its work, if that is known.
fn problem(result: &ResultDocument) -> Option<String> {
    let ResultDocument { start_error, out_of_memory, disk_full, .. } = result;
    start_error
        .clone()
        .or_else(|| {
            out_of_memory.as_ref().map(|program| format!("memory ran out: the guest killed `{program}`"))
        })
        .or_else(|| disk_full.as_ref().map(|mount| format!("the disk at `{mount}` was full")))
}
