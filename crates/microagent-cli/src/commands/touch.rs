//! `microagent touch`: renews the time to live of running machines.

use std::time::Duration;

use clap::Args;
use microagent::WorkspaceName;

use crate::args::values::ttl;
use crate::context::Context;
use crate::failure::Failure;
use crate::several::each;
use crate::state_output;

const EXAMPLES: &str = "\
Examples:
  Restart the time to live of a machine:
    microagent start web --ttl 1h
    microagent touch web

  Set another time, which begins now:
    microagent touch web --ttl 3h

  Remove the limit:
    microagent touch web --ttl none";

/// Renew the time to live of running workspaces
///
/// A machine that was started with --ttl is halted when this time has passed, also when no other command runs. This command
/// restarts the time. The next start has the workspace's own time to live.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct TouchArgs {
    /// Workspaces
    #[arg(value_name = "NAME", required = true)]
    names: Vec<WorkspaceName>,

    /// New time to live, which begins now: seconds, or units as in 1h30m, or `none` [default: as at the start]
    #[arg(long, value_name = "SECONDS", value_parser = ttl)]
    ttl: Option<Duration>,
}

/// Renews one after the other; the first failure is reported after the last.
pub(crate) fn execute(context: &Context, args: &TouchArgs) -> Result<(), Failure> {
    each(context, &args.names, |name| {
        let workspace = context.engine().workspace(name);
        let details = context.block_on(async |_| Ok(workspace.renew(args.ttl).await?))?;
        state_output::print(context, details)
    })
}
