//! `microagent clone`: a copy of a resting workspace.

use clap::Args;
use microagent::{Attachment, DiskSource, WorkspaceName};

use crate::context::Context;
use crate::failure::Failure;
use crate::state_output;

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
/// the source has changed of its image. Bundles are copied, too; named volumes and disk images are not: the copy attaches
/// the same ones, and one machine has them at a time.
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
    let copy = context.engine().clone_workspace(&args.source, &args.target)?;
    let shared: Vec<_> = copy.record.disks.iter().filter_map(shared).collect();
    if !shared.is_empty() {
        let disks = shared.join(", ");
        context.progress(false).note(&format!(
            "{} attaches the same {disks} as {}; one of them can have it at a time",
            args.target, args.source
        ));
    }
    state_output::print(context, copy)
}

/// What a disk is called that the copy does not have for itself.
fn shared(disk: &Attachment) -> Option<String> {
    match &disk.source {
        DiskSource::Volume(name) => Some(format!("volume {name}")),
        DiskSource::Image(path) if !disk.read_only => Some(path.display().to_string()),
        DiskSource::Image(_) | DiskSource::Bundle(_) => None,
    }
}
