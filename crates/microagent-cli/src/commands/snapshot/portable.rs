//! `microagent snapshot export` and `microagent snapshot import`: snapshots as files.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use clap::Args;
use microagent::image::ImportSource;
use microagent::snapshot::SnapshotContents;
use microagent::{SnapshotName, WorkspaceName};

use crate::context::Context;
use crate::documents::snapshot::{SnapshotDocument, SnapshotExportDocument};
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text, size};
use crate::writer;

const EXPORT_EXAMPLES: &str = "\
Examples:
  Write a snapshot to a file, with its memory:
    microagent snapshot export web:before web.snapshot

  Send the disk of one to another host:
    microagent snapshot export web:before - --disk-only | ssh host microagent snapshot import - web";

const IMPORT_EXAMPLES: &str = "\
Examples:
  Make a workspace of a file, and continue where it was:
    microagent snapshot import web.snapshot web
    microagent start web --from-snapshot before

  Its disk only, which boots on any host:
    microagent snapshot import web.snapshot web --disk-only && microagent start web";

/// Write a snapshot to one file
///
/// The file has the base disk of the image, the disk and the memory, compressed with zstd, and a sum that an import checks.
/// What names things of this host is left out: published ports, volumes and other disks, secrets, brokers, networks,
/// policies. A file is replaced when the new one is complete.
#[derive(Debug, Args)]
#[command(after_long_help = EXPORT_EXAMPLES)]
pub(crate) struct ExportArgs {
    /// Snapshot
    #[arg(value_name = "WORKSPACE:TAG")]
    snapshot: SnapshotName,

    /// File to write; `-` for standard output
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Without the memory
    #[arg(long)]
    disk_only: bool,

    /// Do not report progress
    #[arg(short, long)]
    quiet: bool,
}

/// Make a workspace of the file of a snapshot
///
/// The workspace rests, with the disk of the snapshot, and has the snapshot under its tag. Size, service and network mode are
/// those of its source; everything else is as in a new workspace. A memory that does not fit the QEMU, release and processor
/// of this host is refused, and nothing is created. QEMU reads the memory in its jail: take one only from people whose
/// programs you would run.
#[derive(Debug, Args)]
#[command(after_long_help = IMPORT_EXAMPLES)]
pub(crate) struct ImportArgs {
    /// File to read; `-` for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Name of the new workspace
    name: WorkspaceName,

    /// Without the memory
    #[arg(long)]
    disk_only: bool,

    /// Do not report progress
    #[arg(short, long)]
    quiet: bool,
}

fn contents(disk_only: bool) -> SnapshotContents {
    if disk_only { SnapshotContents::Disk } else { SnapshotContents::MemoryAndDisk }
}

/// Exports. On standard output the file is all that is printed.
pub(super) fn export(context: &Context, args: ExportArgs) -> Result<(), Failure> {
    let to_stdout = args.file.as_os_str() == "-";
    if to_stdout && io::stdout().is_terminal() {
        return Err(Failure::usage(
            "a snapshot cannot be written to a terminal",
            "name a file, or pipe it: … | ssh host microagent snapshot import - NAME",
        ));
    }
    if to_stdout && context.format == Format::Json {
        return Err(Failure::usage(
            "a snapshot and a JSON document cannot both go to standard output",
            "name a file, or omit --json",
        ));
    }
    let SnapshotName { workspace, tag } = args.snapshot;
    let snapshots = context.engine().workspace(&workspace).snapshots();
    let progress = context.progress(args.quiet);
    let exported = context.block_on(async |token| {
        let (work, contents) = (progress.of_work(&token), contents(args.disk_only));
        if !to_stdout {
            return Ok(Some(snapshots.export_to(&tag, contents, &args.file, &work).await?));
        }
        let mut stream = snapshots.export(&tag, contents, &work).await?;
        writer::pass_on(&mut stream, |bytes| bytes, &token).await.map(|()| None)
    });
    progress.end();
    let Some(bytes) = exported? else { return Ok(()) };
    match context.format {
        Format::Json => print_json(&SnapshotExportDocument { workspace, tag, file: args.file, bytes }),
        Format::Text => print_text(&format!("File: {}\nSize: {}\n", args.file.display(), size(bytes))),
    }
}

/// Imports.
pub(super) fn import(context: &Context, args: ImportArgs) -> Result<(), Failure> {
    let source = match args.file.as_os_str() == "-" {
        false => ImportSource::Path(args.file),
        true if io::stdin().is_terminal() => {
            return Err(Failure::usage(
                "there is no snapshot on standard input",
                "pipe one in, or name a file",
            ));
        }
        true => ImportSource::Reader(Box::new(io::stdin())),
    };
    let engine = context.engine();
    let progress = context.progress(args.quiet);
    let imported = context.block_on(async |token| {
        let (work, contents) = (progress.of_work(&token), contents(args.disk_only));
        Ok(engine.import_snapshot(source, &args.name, contents, &work).await?)
    });
    progress.end();
    let document = SnapshotDocument::from(imported?.snapshot);
    match context.format {
        Format::Json => print_json(&document),
        Format::Text => print_text(&format!(
            "Workspace: {}\nSnapshot: {} ({})\n",
            document.workspace,
            document.tag,
            document.kind.unwrap_or_default()
        )),
    }
}
