//! `microagent restart`: halts a workspace and starts it again.

use std::sync::Arc;

use clap::Args;
use microagent::{Error, Event, Observer, StartOptions, WorkspaceName};

use crate::args::stop_timeout::StopTimeout;
use crate::context::Context;
use crate::failure::Failure;
use crate::{run_output, state_output};

const EXAMPLES: &str = "\
Examples:
  Restart a workspace:
    microagent restart web

  Restart several:
    microagent restart web api";

/// Halt workspaces and start them again
///
/// Each workspace is shut down as with `microagent halt`, then started as with `microagent start`. A workspace without a
/// machine is only started. The requirements of a start are checked first: if a private network, a volume or a secret is
/// missing, the workspace keeps running.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct RestartArgs {
    /// Workspaces
    #[arg(value_name = "NAME", required = true)]
    names: Vec<WorkspaceName>,

    #[command(flatten)]
    timeout: StopTimeout,

    /// Do not report progress
    #[arg(short, long)]
    quiet: bool,
}

/// Restarts one after the other; stops at the first that cannot be restarted.
pub(crate) fn execute(context: &Context, args: RestartArgs) -> Result<(), Failure> {
    let engine = context.engine();
    for name in &args.names {
        let progress = context.progress(args.quiet);
        let workspace = engine.workspace(name);
        let shown = Arc::clone(&progress);
        let started = context.block_on(async |token| {
            // A workspace that could not start again keeps running.
            let before = microagent::Progress::new().cancel(token.clone());
            if let Err(error) = workspace.check_start(&before).await {
                return Ok(Err(error));
            }
            let halted = tokio::select! {
                halted = args.timeout.halt(&workspace) => halted,
                () = token.cancelled() => Err(Error::Cancelled),
            };
            // The ports are in the answer.
            let work = microagent::Progress::new().cancel(token).observer(move |event: Event| {
                if !matches!(event, Event::Published(_)) {
                    shown.event(event);
                }
            });
            Ok(match halted {
                Ok(_) => workspace.start(StartOptions::new(), &work).await,
                Err(error) => Err(error),
            })
        });
        progress.end();
        match started? {
            Ok(details) => state_output::print(context, details)?,
            Err(error) => return Err(run_output::failed(context, error)?),
        }
    }
    Ok(())
}
