//! `microagent export`: the root file system of a workspace as a tar file.

use std::path::PathBuf;

use clap::Args;
use microagent::WorkspaceName;

use crate::context::Context;
use crate::documents::export::ExportDocument;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text, size};
use crate::writer;

const EXAMPLES: &str = "\
Examples:
  Write the root file system of a workspace to a file:
    microagent export web -o web.tar

  Make an image with one layer of it:
    microagent export web | microagent image import - web:flat";

/// Write the root file system of a workspace to a tar file
///
/// The tar has everything on the workspace's disk, with owners and all attributes, but nothing that is mounted over it:
/// no volumes and no file systems in memory. A workspace without a machine is booted for it, without its service. A file
/// is replaced when the new one is complete.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ExportArgs {
    /// Workspace
    name: WorkspaceName,

    /// File to write; `-` for standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,

    /// Do not report progress
    #[arg(short, long)]
    quiet: bool,
}

/// Exports. A tar stream on standard output is all that is printed.
pub(crate) fn execute(context: &Context, args: ExportArgs) -> Result<(), Failure> {
    let to_stdout = args.output.as_os_str() == "-";
    if to_stdout {
        writer::check_tar_output(context.format, "name a file with -o FILE")?;
    }
    let workspace = context.engine().workspace(&args.name);
    let progress = context.progress(args.quiet);
    let exported = context.block_on(async |token| {
        let work = progress.of_work(&token);
        if !to_stdout {
            return Ok(Some(workspace.export_to(&args.output, &work).await?));
        }
        let stream = workspace.export(&work).await?;
        writer::pass_on_to_its_end(stream, &token).await.map(|()| None)
    });
    progress.end();
    let Some(bytes) = exported? else { return Ok(()) };
    match context.format {
        Format::Json => print_json(&ExportDocument { workspace: args.name, file: args.output, bytes }),
        Format::Text => print_text(&format!("File: {}\nSize: {}\n", args.output.display(), size(bytes))),
    }
}
