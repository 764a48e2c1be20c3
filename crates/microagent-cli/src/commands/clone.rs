//! `microagent clone`: a copy of a resting workspace.

use clap::Args;
use microagent::{Error, WorkspaceName};

use crate::context::Context;
use crate::failure::Failure;
use crate::state_output::{self, shared_disk};

const EXAMPLES: &str = "\
Examples:
  Try something on a copy of a workspace:
    microagent halt web
    microagent clone web trial
    microagent start trial

  Delete the copy:
    microagent delete trial --yes";

/// Copy a resting workspace
///
/// The copy has the same image, settings and disk contents under another name, and its own identity. It takes as much disk
/// space as the source's overlay. Bundles are copied. Named volumes and disk images are not: the copy attaches the same
/// ones, and one machine can write to them at a time; `microagent fork --copy-volumes` copies volumes.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct CloneArgs {
    /// Workspace to copy
    source: WorkspaceName,

    /// Name of the copy
    target: WorkspaceName,
}

/// Clones.
pub(crate) fn execute(context: &Context, args: CloneArgs) -> Result<(), Failure> {
    let source = context.engine().workspace(&args.source);
    let copied = context.block_on(async |token| {
        tokio::select! {
            copied = source.clone_to(&args.target) => Ok(copied?),
            // A copy that is not complete is never seen.
            () = token.cancelled() => Err(Error::Cancelled.into()),
        }
    })?;
    let copy = copied.details()?;
    let shared: Vec<_> = copy.disks.iter().filter_map(shared_disk).collect();
    if !shared.is_empty() {
        let disks = shared.join(", ");
        context.progress(false).note(&format!(
            "{} attaches the same {disks} as {}; only one of them can run at a time",
            args.target, args.source
        ));
    }
    state_output::print(context, copy)
}
