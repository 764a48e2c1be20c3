//! `microagent start`: boots a resting workspace.

use clap::Args;
use microagent::{Event, Observer, WorkspaceName};

use crate::commands::change;
use crate::context::Context;
use crate::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  Start, use, park:
    microagent start web
    microagent exec web -- uname -r
    microagent halt web

  Without a template, for instance to see the kernel's messages in the log:
    microagent start web --cold && microagent logs web";

/// Start a workspace
///
/// Boots its disk and returns when the guest answers and its service, if it has one, runs. The machine then goes on
/// by itself. A workspace that is prepared, halted, stopped or failed can be started.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct StartArgs {
    /// Workspace
    name: WorkspaceName,

    /// Boot the kernel instead of starting from a template, and make none
    #[arg(long)]
    cold: bool,

    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Starts.
pub(crate) fn execute(context: &Context, args: StartArgs) -> Result<(), Failure> {
    let engine = context.engine_for_run(None, args.cold);
    let progress = context.progress(args.quiet);
    // The ports are in the answer.
    let observer = |event| {
        if !matches!(event, Event::Published(_)) {
            progress.event(event);
        }
    };
    let started = context.block_on(async |token| Ok(engine.start(&args.name, &observer, &token).await));
    progress.end();
    match started? {
        Ok(started) => change::print(context, started.details),
        Err(error) => Err(crate::commands::run::failed(context, error)?),
    }
}
