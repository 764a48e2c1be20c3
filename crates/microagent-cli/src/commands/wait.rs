//! `microagent wait`: until a workspace rests.

use std::time::Duration;

use clap::Args;
use microagent::spec::value::duration;
use microagent::{State, WorkspaceName};
use tokio::time::timeout;

use crate::context::Context;
use crate::documents::wait::WaitDocument;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};

const EXAMPLES: &str = "\
Examples:
  Wait until its service has ended, at most an hour:
    microagent wait job --timeout 1h && microagent result job

  Wait in the background:
    microagent wait job > job.state &";

/// Wait until the machine of a workspace ends
///
/// Exits with 0 if the workspace is then prepared, halted or stopped, with 1 if it failed or the time limit is reached.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct WaitArgs {
    /// Workspace
    name: WorkspaceName,

    /// Give up after this time: seconds, or with units such as 1m30s
    #[arg(long, value_name = "SECONDS", value_parser = duration)]
    timeout: Option<Duration>,
}

/// Waits; gives the exit code.
pub(crate) fn execute(context: &Context, args: WaitArgs) -> Result<u8, Failure> {
    let workspace = context.engine().workspace(&args.name);
    let details = context.block_on(async |token| {
        let work = microagent::Progress::new().cancel(token);
        let rests = workspace.wait(&work);
        match args.timeout {
            None => Ok(rests.await?),
            Some(limit) => match timeout(limit, rests).await {
                Ok(details) => Ok(details?),
                Err(_) => Err(Failure::Other {
                    message: format!(
                        "the time limit was reached; workspace `{}` still has a machine",
                        args.name
                    ),
                    hint: Some(format!("show its state: microagent status {}", args.name)),
                }),
            },
        }
    })?;
    let state = details.state;
    let ok = !matches!(state, State::Failed | State::Quarantined);
    match context.format {
        Format::Json => print_json(&WaitDocument { workspace: args.name, state, ok })?,
        Format::Text => print_text(&format!("Workspace: {}\nState: {state}\n", args.name))?,
    }
    Ok(u8::from(!ok))
}
