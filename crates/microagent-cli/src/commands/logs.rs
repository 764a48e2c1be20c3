//! `microagent logs`: what the guest's console showed.

use std::io::Write;

use clap::Args;
use microagent::WorkspaceName;
use serde::Serialize;

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Format, finish, json_bytes, print_json, stdout};

const EXAMPLES: &str = "\
Examples:
  Why did it fail?
    microagent logs run-1781167843059951259

  The last lines:
    microagent logs web | tail -n 20";

/// Show the console log of a workspace
///
/// Prints what the guest's console showed during the workspace's last life, oldest first: kernel messages, and
/// what setup and command printed. The bytes are the guest's own. The log is bounded; its oldest part goes first.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct LogsArgs {
    /// Workspace
    name: WorkspaceName,
}

#[derive(Debug, Serialize)]
struct Document {
    workspace: WorkspaceName,
    logs: String,
    logs_encoding: &'static str,
}

/// Prints the log.
pub(crate) fn execute(context: &Context, args: LogsArgs) -> Result<(), Failure> {
    let bytes = context.engine().logs(&args.name)?;
    match context.format {
        Format::Json => {
            let (logs, logs_encoding) = json_bytes(bytes);
            print_json(&Document { workspace: args.name, logs, logs_encoding })
        }
        Format::Text => {
            if bytes.is_empty() {
                context.progress(true).note("the guest printed nothing");
            }
            let mut out = stdout();
            out.write_all(&bytes)?;
            finish(out)
        }
    }
}
