//! `microagent rename`: gives a resting workspace another name.

use clap::Args;
use microagent::WorkspaceName;

use crate::context::Context;
use crate::failure::Failure;
use crate::state_output;

const EXAMPLES: &str = "\
Examples:
  Rename a workspace:
    microagent halt web
    microagent rename web shop
    microagent start shop

  Replace a workspace with a new one:
    microagent rename web web-old
    microagent rename web-new web";

/// Rename a resting workspace
///
/// Disk, settings, logs and identity stay. The host name in the guest changes if it was made from the name. A unit that
/// `microagent supervise --install` installed keeps starting the old name; install it again.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct RenameArgs {
    /// Workspace to rename
    source: WorkspaceName,

    /// New name
    target: WorkspaceName,
}

/// Renames.
pub(crate) fn execute(context: &Context, args: &RenameArgs) -> Result<(), Failure> {
    let workspace = context.engine().workspace(&args.source);
    // Killed at any moment it leaves the workspace whole, so a signal is not waited for.
    let renamed = context.block_on(async |_| Ok(workspace.rename_to(&args.target).await?))?;
    state_output::print(context, renamed.details()?)
}
