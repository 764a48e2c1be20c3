//! `microagent resize`: enlarges the disk of a resting workspace.

use clap::Args;
use microagent::WorkspaceName;
use microagent::apply::ApplyMode;
use microagent::spec::SpecFile;

use crate::args::values::disk_mib;
use crate::change_output;
use crate::context::Context;
use crate::environment;
use crate::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  Give a workspace a larger disk:
    microagent halt web
    microagent resize web 8g
    microagent start web

  See how large it is now:
    microagent status web --json | jq .resources.size_mib";

/// Enlarge the root disk of a resting workspace
///
/// The guest's kernel grows the file system at the next start. A disk cannot shrink. Space on the host is taken only as the
/// guest writes. Memory and CPUs are changed by `microagent apply`, or for one start by `microagent start --memory`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ResizeArgs {
    /// Workspace
    name: WorkspaceName,

    /// New size in MiB, or with a unit such as 8g
    #[arg(value_name = "SIZE", value_parser = disk_mib)]
    size: u64,
}

/// Enlarges.
pub(crate) fn execute(context: &Context, args: &ResizeArgs) -> Result<(), Failure> {
    let mut spec = SpecFile::default();
    spec.resources.size_mib = Some(args.size);
    let workspace = context.engine().workspace(&args.name);
    let applied = context.block_on(async |_| {
        Ok(workspace.apply(&spec, &environment::passed_through, ApplyMode::Write).await?)
    })?;
    change_output::print(context, applied)
}
