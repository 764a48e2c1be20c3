//! `microagent snapshot`: earlier states of a workspace.

mod portable;

use std::sync::Arc;

use clap::{Args, Subcommand};
use microagent::snapshot::{Snapshot, SnapshotContents, SnapshotDeleteMode};
use microagent::{Error, Event, Observer, SnapshotTag, WorkspaceName};

use crate::args::listing::{Entries, ListingArgs};
use crate::context::Context;
use crate::documents::snapshot::{
    DeletedSnapshot, SnapshotDeleteDocument, SnapshotDocument, SnapshotListDocument,
};
use crate::escape::one_line;
use crate::failure::Failure;
use crate::notices::Notices;
use crate::output::{Format, print_json, print_text, size};
use crate::prompt::{confirm, confirmed};
use crate::table::table;
use crate::{run_output, state_output};

use portable::{ExportArgs, ImportArgs};

const EXAMPLES: &str = "\
Examples:
  Undo what happened since a snapshot:
    microagent snapshot create web --tag before
    microagent exec web -- rm -r /srv
    microagent snapshot restore web before --yes

  Create a workspace that continues from a snapshot:
    microagent create trial --from-snapshot web:before --start";

const CREATE_EXAMPLES: &str = "\
Examples:
  Make a snapshot of a workspace, running or not:
    microagent snapshot create web --tag before

  Without the memory:
    microagent snapshot create web --tag disk --disk-only

  Let the time be the tag, and print it:
    microagent snapshot create web --json | jq -r .tag";

const LIST_EXAMPLES: &str = "\
Examples:
  List the snapshots of a workspace, the oldest first:
    microagent snapshot list web

  Print the tag of the newest one:
    microagent snapshot list web -q | tail -n 1";

const RESTORE_EXAMPLES: &str = "\
Examples:
  Restore a workspace, after a confirmation:
    microagent snapshot restore web before

  The same in a script:
    microagent snapshot restore web before --yes";

const DELETE_EXAMPLES: &str = "\
Examples:
  Delete a snapshot:
    microagent snapshot delete web before

  Delete all snapshots of a workspace:
    microagent snapshot list web -q | xargs -r microagent snapshot delete web --yes";

/// Make, list, restore, delete, export and import snapshots of workspaces
///
/// A snapshot is a workspace at one time: the root disk, and the memory with its processes if the workspace was
/// running. The disk is not copied: the data written so far becomes a disk layer that never changes, and later changes
/// are written to a new overlay. Snapshots belong to their workspace and are deleted with it. Volumes and disk images
/// are not part of a snapshot.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES, subcommand_value_name = "COMMAND")]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    pub(crate) command: Option<SnapshotCommand>,
}

/// What is done with snapshots.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    Create(CreateArgs),
    #[command(visible_alias = "ls")]
    List(ListArgs),
    Restore(RestoreArgs),
    #[command(visible_alias = "rm")]
    Delete(DeleteArgs),
    Export(ExportArgs),
    Import(ImportArgs),
}

/// Make a snapshot of a workspace
///
/// A running workspace is stopped for a moment and continues. Takes the same time for a large disk as for a small one,
/// except that every 16th snapshot in a row merges disk layers into one, which copies what the workspace has changed of its
/// image. The memory is written to a file. A snapshot with memory is refused for a workspace with secrets, because the
/// memory contains their values, or with further disks that it can write to. Disks of bundles are copied.
#[derive(Debug, Args)]
#[command(after_long_help = CREATE_EXAMPLES)]
pub(crate) struct CreateArgs {
    /// Workspace
    name: WorkspaceName,

    /// Tag: letters, digits, `.`, `_` and `-` [default: snap- and the time]
    #[arg(long, value_name = "TAG")]
    tag: Option<SnapshotTag>,

    /// Without the memory of a running workspace
    #[arg(long)]
    disk_only: bool,

    /// Memory and disk of a quarantined workspace, as evidence that nothing starts, restores or exports
    #[arg(long, conflicts_with = "disk_only")]
    forensic: bool,
}

/// List the snapshots of a workspace, the oldest first
///
/// SIZE is what was written to the disk between the previous snapshot and this one, and the memory. KIND shows whether
/// the snapshot has memory and disk, or only the disk.
#[derive(Debug, Args)]
#[command(after_long_help = LIST_EXAMPLES)]
pub(crate) struct ListArgs {
    /// Workspace
    name: WorkspaceName,

    #[command(flatten)]
    listing: ListingArgs,
}

/// Restore a workspace to a snapshot
///
/// A resting workspace gets the disk of the snapshot and rests. A running one gets disk and memory, and runs again, with the
/// processes of that time; its connections are reset. What was written to the disk since the snapshot is lost, unless
/// another snapshot has it. Settings, volumes and logs are not changed, and a disk that was enlarged keeps its size. Asks for
/// confirmation; without a terminal --yes is required.
#[derive(Debug, Args)]
#[command(after_long_help = RESTORE_EXAMPLES)]
pub(crate) struct RestoreArgs {
    /// Workspace
    name: WorkspaceName,

    /// Snapshot
    tag: SnapshotTag,

    /// Do not ask for confirmation
    #[arg(short, long, alias = "force", short_alias = 'f')]
    yes: bool,
}

/// Delete snapshots of a workspace
///
/// Frees the disk layers that no other snapshot and no workspace needs. Workspaces that were created from the snapshot keep
/// their disks. Asks for confirmation on a terminal. Evidence (a forensic snapshot, or any of a quarantined workspace) is
/// deleted only with --force.
#[derive(Debug, Args)]
#[command(after_long_help = DELETE_EXAMPLES)]
pub(crate) struct DeleteArgs {
    /// Workspace
    name: WorkspaceName,

    /// Snapshots
    #[arg(required = true, value_name = "TAG")]
    tags: Vec<SnapshotTag>,

    /// Do not ask, and ignore snapshots that do not exist
    #[arg(short, long)]
    yes: bool,

    /// As --yes, and delete evidence
    #[arg(short, long)]
    force: bool,
}

/// Does what the subcommand says.
pub(crate) fn execute(context: &Context, args: SnapshotArgs) -> Result<(), Failure> {
    match args.command {
        Some(SnapshotCommand::Create(args)) => create(context, &args),
        Some(SnapshotCommand::List(args)) => list(context, &args),
        Some(SnapshotCommand::Restore(args)) => restore(context, &args),
        Some(SnapshotCommand::Delete(args)) => delete(context, args),
        Some(SnapshotCommand::Export(args)) => portable::export(context, args),
        Some(SnapshotCommand::Import(args)) => portable::import(context, args),
        None => unreachable!("a group without a subcommand was answered with its help page"),
    }
}

fn create(context: &Context, args: &CreateArgs) -> Result<(), Failure> {
    let snapshots = context.engine().workspace(&args.name).snapshots();
    let contents = match (args.disk_only, args.forensic) {
        (true, _) => SnapshotContents::Disk,
        (_, true) => SnapshotContents::Evidence,
        _ => SnapshotContents::MemoryAndDisk,
    };
    let snapshot = context.block_on(async |token| {
        tokio::select! {
            made = snapshots.create(args.tag.as_ref(), contents) => Ok(made?),
            // Half a snapshot is never seen.
            () = token.cancelled() => Err(Error::Cancelled.into()),
        }
    })?;
    if !snapshot.volumes.is_empty() {
        let volumes = snapshot.volumes.join(", ");
        context.progress(false).note(&format!("the snapshot does not contain the volumes {volumes}"));
    }
    match context.format {
        Format::Json => print_json(&SnapshotDocument::from(snapshot)),
        Format::Text => print_text(&created(&snapshot)),
    }
}

pub(super) fn created(snapshot: &Snapshot) -> String {
    let at = snapshot.created_at.map(|at| format!(" at {at}")).unwrap_or_default();
    let contents = match (&snapshot.resources, snapshot.memory_bytes) {
        (Some(resources), Some(_)) => {
            format!("{} MiB RAM, {} vCPU", resources.memory_mib, resources.cpu_count)
        }
        _ => "disk".to_owned(),
    };
    format!("snapshot {} created ({contents}){at}\n", snapshot.tag)
}

fn list(context: &Context, args: &ListArgs) -> Result<(), Failure> {
    let snapshots = context.engine().workspace(&args.name).snapshots();
    let snapshots = context.block_on(async |_| Ok(snapshots.list().await?))?;
    let mut snapshots: Vec<_> = snapshots.into_iter().map(SnapshotDocument::from).collect();
    let values = snapshots.iter().map(|snapshot| serde_json::json!(snapshot));
    let entries = Entries::new(values, &[("size", "bytes")], "tag");
    let selected = args.listing.select(&entries)?;
    if args.listing.is_custom() && context.format == Format::Text {
        return print_text(&args.listing.lines(&entries, &selected)?);
    }
    let mut index = 0..;
    snapshots.retain(|_| index.next().is_some_and(|index| selected.contains(&index)));
    match context.format {
        Format::Json => print_json(&SnapshotListDocument { snapshots }),
        Format::Text => print_text(&listing(&snapshots)),
    }
}

fn listing(snapshots: &[SnapshotDocument]) -> String {
    if snapshots.is_empty() {
        return "No snapshots.\n".to_owned();
    }
    let row = |snapshot: &SnapshotDocument| {
        let damaged = snapshot.problem.as_ref().map(|_| "damaged".to_owned());
        [
            snapshot.tag.to_string(),
            damaged.unwrap_or_else(|| size(snapshot.bytes)),
            snapshot.kind.unwrap_or_default().to_owned(),
            snapshot.created_at.map(|at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()).unwrap_or_default(),
            one_line(snapshot.image.as_deref().unwrap_or_default()),
        ]
    };
    let rows: Vec<_> = snapshots.iter().map(row).collect();
    table([("TAG", 24), ("SIZE", 10), ("KIND", 8), ("CREATED", 20), ("IMAGE", 0)], &rows)
}

fn restore(context: &Context, args: &RestoreArgs) -> Result<(), Failure> {
    let workspace = context.engine().workspace(&args.name);
    let snapshots = workspace.snapshots();
    let snapshot = context.block_on(async |_| Ok(snapshots.get(&args.tag).await?))?;
    if !args.yes && !confirmed(&question(&snapshot), "restoring a snapshot", "add --yes")? {
        return print_text("Nothing was changed.\n");
    }
    let progress = context.progress(false);
    let notices = Arc::new(Notices::default());
    let restored = context.block_on(async |token| {
        let (shown, notices) = (Arc::clone(&progress), Arc::clone(&notices));
        let work = microagent::Progress::new().cancel(token).observer(move |event: Event| {
            notices.take(&event);
            shown.event(event);
        });
        Ok(snapshots.restore(&args.tag, &work).await)
    });
    progress.end();
    if let Err(error) = restored? {
        return Err(run_output::failed(context, error)?);
    }
    if !snapshot.volumes.is_empty() {
        let volumes = snapshot.volumes.join(", ");
        context.progress(false).note(&format!("the volumes {volumes} were not changed"));
    }
    state_output::print_started(context, workspace.details()?, notices.taken())
}

fn question(snapshot: &Snapshot) -> String {
    let at = snapshot.created_at.map(|at| format!(" of {at}")).unwrap_or_default();
    let Snapshot { workspace, tag, .. } = snapshot;
    format!("Restore {workspace} to snapshot {tag}{at}? What it has done since then is lost.")
}

/// Deletes all that can be deleted; the first failure is reported after that.
fn delete(context: &Context, args: DeleteArgs) -> Result<(), Failure> {
    let snapshots = context.engine().workspace(&args.name).snapshots();
    let mode = if args.force { SnapshotDeleteMode::Force } else { SnapshotDeleteMode::Ordinary };
    if !args.yes && !args.force {
        context.block_on(async |_| {
            for tag in &args.tags {
                snapshots.get(tag).await?;
            }
            Ok(())
        })?;
        // Without a terminal there is nobody to ask; scripts name what they mean.
        let tags: Vec<_> = args.tags.iter().map(SnapshotTag::as_str).collect();
        if confirm(&format!("Delete {} of {}?", tags.join(", "), args.name)) == Some(false) {
            return print_text("Nothing was deleted.\n");
        }
    }
    let (done, failures) = context.block_on(async |_| {
        let (mut done, mut failures) = (Vec::new(), Vec::new());
        for tag in args.tags {
            match snapshots.delete(&tag, mode).await {
                Ok(deletion) => done.push(DeletedSnapshot::new(tag, deletion)),
                Err(error) => failures.push(error),
            }
        }
        Ok((done, failures))
    })?;
    match context.format {
        Format::Json => print_json(&SnapshotDeleteDocument { snapshots: done })?,
        Format::Text => print_text(&done.iter().map(line).collect::<String>())?,
    }
    failures.into_iter().next().map_or(Ok(()), |error| Err(error.into()))
}

fn line(deleted: &DeletedSnapshot) -> String {
    let DeletedSnapshot { tag, deleted, freed_bytes } = deleted;
    match deleted {
        true => format!("Deleted snapshot \"{tag}\" (freed: {})\n", size(*freed_bytes)),
        false => format!("Nothing to delete: {tag}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listing_has_the_columns_and_says_what_is_damaged() {
        let good = SnapshotDocument {
            workspace: "web".parse().unwrap(),
            tag: "before".parse().unwrap(),
            kind: Some("memory"),
            created_at: Some(jiff::Timestamp::UNIX_EPOCH),
            image: Some("docker.io/library/debian:12".into()),
            resources: None,
            bytes: 1 << 20,
            memory_bytes: Some(1 << 19),
            standstill_us: None,
            volumes: Vec::new(),
            problem: None,
        };
        let damaged = SnapshotDocument {
            workspace: "web".parse().unwrap(),
            tag: "torn".parse().unwrap(),
            kind: None,
            created_at: None,
            image: None,
            resources: None,
            bytes: 0,
            memory_bytes: None,
            standstill_us: None,
            volumes: Vec::new(),
            problem: Some("no record".into()),
        };
        let text = listing(&[good, damaged]);
        let lines: Vec<_> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        assert_eq!(lines[0], ["TAG", "SIZE", "KIND", "CREATED", "IMAGE"]);
        assert_eq!(
            lines[1],
            ["before", "1.00", "MiB", "memory", "1970-01-01T00:00:00Z", "docker.io/library/debian:12"]
        );
        assert_eq!(lines[2], ["torn", "damaged", "-", "-", "-"]);
        assert_eq!(listing(&[]), "No snapshots.\n");
    }

    #[test]
    fn deleting_says_what_it_freed() {
        let gone = DeletedSnapshot { tag: "a".parse().unwrap(), deleted: true, freed_bytes: 1 << 20 };
        assert_eq!(line(&gone), "Deleted snapshot \"a\" (freed: 1.00 MiB)\n");
        let missing = DeletedSnapshot { deleted: false, ..gone };
        assert_eq!(line(&missing), "Nothing to delete: a\n");
    }
}
