//! `microagent wait`: until a workspace rests.

use std::time::Duration;

use clap::Args;
use microagent::text::duration;
use microagent::{State, WorkspaceName};
use tokio::time::timeout;

use crate::context::Context;
use crate::documents::wait::WaitDocument;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};

const EXAMPLES: &str = "\
Examples:
  Until its service has ended, for at most an hour:
    microagent wait job --timeout 1h && microagent result job

  In the background:
    microagent wait job > job.state &";

/// Wait until a workspace rests
///
/// Exits with 0 when it is prepared, halted or stopped, and with 1 when it failed or the time is up.
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
    let engine = context.engine();
    let details = context.block_on(async |token| {
        let rests = engine.wait(&args.name, &token);
        match args.timeout {
            None => Ok(rests.await?),
            Some(limit) => match timeout(limit, rests).await {
                Ok(details) => Ok(details?),
                Err(_) => Err(Failure::Other {
                    message: format!("workspace `{}` does not rest yet", args.name),
                    hint: Some(format!("microagent status {} shows what it does", args.name)),
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
