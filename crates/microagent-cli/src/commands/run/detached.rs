//! A run in the background: a workspace whose service is the command.

use std::sync::Arc;

use microagent::{Engine, RunOptions};

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Format, print_text};
use crate::progress::Progress;
use crate::{run_output, state_output};

/// Starts it and prints its name.
pub(super) fn run(
    context: &Context,
    engine: &Engine,
    options: RunOptions,
    progress: &Arc<Progress>,
) -> Result<(), Failure> {
    if options.timeout.is_some() {
        return Err(Failure::usage(
            "--timeout cannot be combined with -d: a command in the background has no time limit",
            "omit --timeout; to limit the command itself: -d IMAGE timeout SECONDS COMMAND",
        ));
    }
    let started =
        context.block_on(async |token| Ok(engine.run_detached(options, &progress.of_work(&token)).await))?;
    progress.end();
    match (started, context.format) {
        (Ok(details), Format::Json) => state_output::print(context, details),
        (Ok(details), Format::Text) => print_text(&format!("{}\n", details.name)),
        (Err(error), _) => Err(run_output::failed(context, error)?),
    }
}
