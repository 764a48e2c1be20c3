//! `microagent apply`: an existing workspace follows a changed spec file.

use std::path::PathBuf;

use clap::Args;
use microagent::apply::ApplyMode;
use microagent::{Error, SpecFile, WorkspaceName};

use crate::args::workspace::idle_keys;
use crate::change_output;
use crate::context::Context;
use crate::environment;
use crate::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  Show what would change:
    microagent apply --file microagent.yaml --dry-run

  Change a running workspace; only restart policy and outputs change without a halt:
    microagent halt web
    microagent apply web --file microagent.yaml
    microagent start web";

const LONG_ABOUT: &str = "\
Updates a workspace to match a spec file and lists what changed. Settings that the file does not contain are not changed.

Restart policy and outputs can change in any state. Service, shell, host name, user, working directory, variables, sizes \
(a disk can only grow), network, published ports, egress policy, secrets and attached disks can change while the \
workspace has no machine. The image, bundles, and setup steps that have run cannot change. If one change is not \
possible, nothing is changed.";

/// Update a workspace to match a spec file
#[derive(Debug, Args)]
#[command(
    long_about = LONG_ABOUT,
    after_long_help = EXAMPLES,
    override_usage = "microagent apply [OPTIONS] [NAME] --file SPEC"
)]
pub(crate) struct ApplyArgs {
    /// Workspace [default: the file's name]
    #[arg(value_name = "NAME")]
    name: Option<WorkspaceName>,

    /// Spec file, such as `microagent.yaml`
    #[arg(long, value_name = "SPEC")]
    file: PathBuf,

    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,

    /// Do not report progress
    #[arg(short, long)]
    quiet: bool,
}

/// Applies.
pub(crate) fn execute(context: &Context, args: ApplyArgs) -> Result<(), Failure> {
    let spec = SpecFile::read(&args.file).map_err(Error::from)?;
    let Some(name) = args.name.or_else(|| spec.name.clone()) else {
        return Err(Failure::usage(
            "no workspace was named",
            "microagent apply NAME --file SPEC, or give the file a `name`",
        ));
    };
    if let Some(note) = idle_keys(&spec.only_for_run(), "apply") {
        context.progress(args.quiet).note(&note);
    }
    let workspace = context.engine().workspace(&name);
    let mode = if args.dry_run { ApplyMode::DryRun } else { ApplyMode::Write };
    let applied =
        context.block_on(async |_| Ok(workspace.apply(&spec, &environment::passed_through, mode).await?))?;
    for notice in &applied.notices {
        context.progress(args.quiet).note(notice);
    }
    change_output::print(context, applied)
}
