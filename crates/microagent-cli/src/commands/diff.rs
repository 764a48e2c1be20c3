//! `microagent diff`: the paths that a workspace has changed since its image.

use std::io::Write;

use clap::Args;
use microagent::{PathChangeKind, WorkspaceName};

use crate::context::Context;
use crate::documents::diff::DiskChangesDocument;
use crate::escape::one_line;
use crate::failure::Failure;
use crate::output::{Format, finish, print_json, stdout};

const EXAMPLES: &str = "\
Examples:
  List what a workspace has changed:
    microagent diff web

  Only what it has added below a directory:
    microagent diff web | grep '^A /srv/'";

const LONG_ABOUT: &str = "\
Lists the paths that were added (A), changed (C) and deleted (D) on a workspace's disk since its image, as `docker \
diff` does. The workspace may run. One without a machine is booted for the comparison, without its service.

Volumes, file systems in memory, and the files that name the machine (/etc/hosts and the like) are left out. \
`microagent commit` makes an image of the changes.";

/// List the paths that changed since the image
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_long_help = EXAMPLES)]
pub(crate) struct DiffArgs {
    /// Workspace
    name: WorkspaceName,

    /// Do not report progress
    #[arg(short, long)]
    quiet: bool,
}

/// Lists.
pub(crate) fn execute(context: &Context, args: &DiffArgs) -> Result<(), Failure> {
    let workspace = context.engine().workspace(&args.name);
    let progress = context.progress(args.quiet);
    let listed = context.block_on(async |token| Ok(workspace.changes(&progress.of_work(&token)).await?));
    progress.end();
    let listed = listed?;
    if listed.is_cut {
        context.progress(false).note("there are more changes: the list is cut at 64 MiB");
    }
    if context.format == Format::Json {
        return print_json(&DiskChangesDocument::from(listed));
    }
    let mut out = stdout();
    for change in &listed.changes {
        writeln!(out, "{} {}", letter(change.kind), one_line(&change.path))?;
    }
    finish(out)
}

fn letter(kind: PathChangeKind) -> char {
    match kind {
        PathChangeKind::Added => 'A',
        PathChangeKind::Deleted => 'D',
        _ => 'C',
    }
}
