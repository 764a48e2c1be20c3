//! `microagent clone`: a copy of a resting workspace.

use clap::Args;
use microagent::WorkspaceName;

use crate::commands::change;
use crate::context::Context;
use crate::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  Try something on a copy:
    microagent halt web
    microagent clone web trial
    microagent start trial

  Throw the copy away:
    microagent delete trial --yes";

/// Copy a resting workspace
///
/// The copy has the same image, settings and disk under another name, and an identity of its own. It costs as much as
/// the source has changed of its image.
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
    change::print(context, context.engine().clone_workspace(&args.source, &args.target)?)
}
