//! `microagent volume`: disks that belong to no workspace.

use clap::{Args, Subcommand};
use microagent::volume::{SIZE_MIB, Volume, VolumeDeleteMode};
use microagent::{Error, VolumeName, WorkspaceName};

use crate::args::listing::{Entries, ListingArgs};
use crate::args::values::disk_mib;
use crate::context::Context;
use crate::documents::volume::{
    DeletedVolume, VolumeDeleteDocument, VolumeDocument, VolumeListDocument, VolumePruneDocument,
};
use crate::escape::one_line;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text, size, unstartable};
use crate::prompt::{confirm, confirmed};
use crate::table::table;

const EXAMPLES: &str = "\
Examples:
  Keep data after its workspace is deleted:
    microagent volume create data --size-mib 4096
    microagent run -v data:/work --image debian:12 --exec 'date >> /work/log'
    microagent run -v data:/work --image debian:12 --exec 'cat /work/log'

  List volumes and the workspaces that use them:
    microagent volume list";

const CREATE_EXAMPLES: &str = "\
Examples:
  Create a volume of the default size:
    microagent volume create data

  Create a larger volume; it takes space on the host only as the guest writes:
    microagent volume create archive --size-mib 65536";

const LIST_EXAMPLES: &str = "\
Examples:
  List volumes:
    microagent volume list

  List the volumes that no machine uses:
    microagent volume list -q --filter attached_to=";

const STATUS_EXAMPLES: &str = "\
Examples:
  Show its size and the workspace that uses it:
    microagent volume status data

  Print the path of its disk on the host:
    microagent volume status data --json | jq -r .path";

const RESIZE_EXAMPLES: &str = "\
Examples:
  Enlarge the disk of a database:
    microagent halt db
    microagent volume resize data --size-mib 8192
    microagent start db

  Double the size:
    microagent volume resize data \\
      --size-mib $(microagent volume status data --json | jq '.size_mib * 2')";

const DELETE_EXAMPLES: &str = "\
Examples:
  Delete a volume that nothing uses:
    microagent volume delete data

  Delete several volumes, even if they are in use:
    microagent volume delete --force data scratch";

const PRUNE_EXAMPLES: &str = "\
Examples:
  Delete what no workspace needs any more:
    microagent volume prune

  The same in a script:
    microagent volume prune --yes";

/// Create, show, enlarge and delete volumes
///
/// A volume is an ext4 disk with a name. `run` and `create` attach it with `-v NAME:/guest/path`. One machine can use it at
/// a time. It is kept when the workspace is deleted. It starts empty, without `lost+found`; its root takes owner and mode
/// of the image's directory at the path where it is first mounted.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES, subcommand_value_name = "COMMAND")]
pub(crate) struct VolumeArgs {
    #[command(subcommand)]
    pub(crate) command: Option<VolumeCommand>,
}

/// What is done with volumes.
#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    Create(CreateArgs),
    #[command(visible_alias = "ls")]
    List(ListArgs),
    #[command(visible_alias = "inspect")]
    Status(StatusArgs),
    Resize(ResizeArgs),
    #[command(visible_alias = "rm")]
    Delete(DeleteArgs),
    Prune(PruneArgs),
}

/// Create an empty volume
#[derive(Debug, Args)]
#[command(after_long_help = CREATE_EXAMPLES)]
pub(crate) struct CreateArgs {
    /// Name: letters, digits, `_` and `-`
    name: VolumeName,

    /// Size in MiB, or with a unit such as 10g
    #[arg(long, alias = "size", value_name = "MIB", value_parser = disk_mib, default_value_t = SIZE_MIB)]
    size_mib: u64,
}

/// List the volumes
///
/// ATTACHED is the workspace whose machine uses the volume now.
#[derive(Debug, Args)]
#[command(after_long_help = LIST_EXAMPLES)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    listing: ListingArgs,
}

/// Show one volume
#[derive(Debug, Args)]
#[command(after_long_help = STATUS_EXAMPLES)]
pub(crate) struct StatusArgs {
    /// Volume
    name: VolumeName,
}

/// Enlarge a volume
///
/// The volume must not be attached. The guest's kernel grows the file system when it is next attached for writing. A
/// volume cannot shrink.
#[derive(Debug, Args)]
#[command(after_long_help = RESIZE_EXAMPLES)]
pub(crate) struct ResizeArgs {
    /// Volume
    name: VolumeName,

    /// New size in MiB, or with a unit such as 10g
    #[arg(long, alias = "size", value_name = "MIB", value_parser = disk_mib)]
    size_mib: u64,
}

/// Delete volumes and everything on them
///
/// Asks for confirmation on a terminal. Refuses a volume that a machine uses or that a resting workspace attaches. --force
/// deletes it anyway: a workspace that uses it is killed first, without a flush, and workspaces that attach it cannot
/// start until a volume of that name exists again.
#[derive(Debug, Args)]
#[command(after_long_help = DELETE_EXAMPLES)]
pub(crate) struct DeleteArgs {
    /// Volumes
    #[arg(required = true, value_name = "NAME")]
    names: Vec<VolumeName>,

    /// Do not ask, and ignore names that do not exist
    #[arg(short, long)]
    yes: bool,

    /// As --yes, and kill the workspace that uses the volume
    #[arg(short, long)]
    force: bool,
}

/// Delete all volumes that no workspace attaches, with everything on them
///
/// Asks for confirmation; without a terminal --yes is required.
#[derive(Debug, Args)]
#[command(after_long_help = PRUNE_EXAMPLES)]
pub(crate) struct PruneArgs {
    /// Accepted and ignored: a volume always has a name
    #[arg(short, long, hide = true)]
    all: bool,

    /// Do not ask for confirmation
    #[arg(short, long, alias = "force", short_alias = 'f')]
    yes: bool,
}

/// Does what the subcommand says.
pub(crate) fn execute(context: &Context, args: VolumeArgs) -> Result<(), Failure> {
    match args.command {
        Some(VolumeCommand::Create(args)) => create(context, &args),
        Some(VolumeCommand::List(args)) => list(context, &args.listing),
        Some(VolumeCommand::Status(args)) => {
            show(context, context.call(context.engine().volumes().get(&args.name))?)
        }
        Some(VolumeCommand::Resize(args)) => {
            show(context, context.call(context.engine().volumes().resize(&args.name, args.size_mib))?)
        }
        Some(VolumeCommand::Delete(args)) => delete(context, args),
        Some(VolumeCommand::Prune(args)) => prune(context, &args),
        None => unreachable!("a group without a subcommand was answered with its help page"),
    }
}

fn create(context: &Context, args: &CreateArgs) -> Result<(), Failure> {
    let volume = context.call(context.engine().volumes().create(&args.name, args.size_mib))?;
    match context.format {
        Format::Json => print_json(&VolumeDocument::from(volume)),
        Format::Text => print_text(&format!("Created volume \"{}\" ({} MiB)\n", args.name, args.size_mib)),
    }
}

fn list(context: &Context, listing_args: &ListingArgs) -> Result<(), Failure> {
    let volumes = context.call(context.engine().volumes().list())?;
    let mut volumes: Vec<_> = volumes.into_iter().map(VolumeDocument::from).collect();
    let values = volumes.iter().map(|volume| serde_json::json!(volume));
    let entries = Entries::new(values, &[("mountpoint", "path")], "name");
    let selected = listing_args.select(&entries)?;
    if listing_args.is_custom() && context.format == Format::Text {
        return print_text(&listing_args.lines(&entries, &selected)?);
    }
    let mut index = 0..;
    volumes.retain(|_| index.next().is_some_and(|index| selected.contains(&index)));
    match context.format {
        Format::Json => print_json(&VolumeListDocument { volumes }),
        Format::Text => print_text(&listing(&volumes)),
    }
}

fn show(context: &Context, volume: Volume) -> Result<(), Failure> {
    let volume = VolumeDocument::from(volume);
    match context.format {
        Format::Json => print_json(&volume),
        Format::Text => print_text(&text(&volume)),
    }
}

/// Deletes all that can be deleted; the first failure is reported after that.
fn delete(context: &Context, args: DeleteArgs) -> Result<(), Failure> {
    let volumes = context.engine().volumes();
    let mode = if args.force { VolumeDeleteMode::Force } else { VolumeDeleteMode::Unused };
    if !args.yes && !args.force {
        for name in &args.names {
            context.call(volumes.get(name))?;
        }
        // Without a terminal there is nobody to ask; scripts name what they mean.
        if confirm(&question(&args.names)) == Some(false) {
            return print_text("Nothing was deleted.\n");
        }
    }
    let (mut done, mut failures) = (Vec::new(), Vec::new());
    context.block_on(async |token| {
        for name in args.names {
            let deleted = tokio::select! {
                deleted = volumes.delete(&name, mode) => deleted,
                () = token.cancelled() => return Err(Error::Cancelled.into()),
            };
            match deleted {
                Ok(deletion) => done.push(DeletedVolume::new(name, deletion)),
                Err(error) => failures.push(error),
            }
        }
        Ok(())
    })?;
    match context.format {
        Format::Json => print_json(&VolumeDeleteDocument { volumes: done })?,
        Format::Text => print_text(&done.iter().map(line).collect::<String>())?,
    }
    failures.into_iter().next().map_or(Ok(()), |error| Err(error.into()))
}

fn prune(context: &Context, args: &PruneArgs) -> Result<(), Failure> {
    if !args.yes
        && !confirmed(
            "Delete all volumes that no workspace attaches, with everything on them?",
            "deleting volumes",
            "add --yes",
        )?
    {
        return print_text("Nothing was deleted.\n");
    }
    let pruned = context.block_on(async |token| {
        Ok(context.engine().volumes().prune(&microagent::Progress::new().cancel(token)).await?)
    })?;
    let document = VolumePruneDocument::from(pruned);
    match context.format {
        Format::Json => print_json(&document),
        Format::Text => {
            let deleted = document.volumes.iter().map(|name| format!("Deleted volume \"{name}\"\n"));
            print_text(&(deleted.collect::<String>() + &format!("Freed: {}\n", size(document.freed_bytes))))
        }
    }
}

fn question(names: &[VolumeName]) -> String {
    let names: Vec<_> = names.iter().map(VolumeName::as_str).collect();
    format!("Delete {} and everything on {}?", names.join(", "), if names.len() == 1 { "it" } else { "them" })
}

fn line(deleted: &DeletedVolume) -> String {
    let DeletedVolume { name, deleted, killed, also_killed, missed_by } = deleted;
    if !deleted {
        return format!("Nothing to delete: {name}\n");
    }
    let killed: Vec<_> = killed.iter().chain(also_killed).map(WorkspaceName::as_str).collect();
    let text = match killed.as_slice() {
        [] => format!("Deleted volume \"{name}\"\n"),
        killed => format!("Killed {} and deleted volume \"{name}\"\n", killed.join(", ")),
    };
    text + &unstartable(missed_by)
}

fn listing(volumes: &[VolumeDocument]) -> String {
    if volumes.is_empty() {
        return "No volumes.\n".to_owned();
    }
    let row = |volume: &VolumeDocument| {
        let size_mib = match &volume.problem {
            Some(_) => "damaged".to_owned(),
            None => volume.size_mib.map(|mib| mib.to_string()).unwrap_or_default(),
        };
        [volume.name.to_string(), size_mib, attached(volume).unwrap_or_default()]
    };
    let rows: Vec<_> = volumes.iter().map(row).collect();
    table([("NAME", 20), ("SIZE-MIB", 8), ("ATTACHED", 0)], &rows)
}

/// The workspaces whose machines have it.
fn attached(volume: &VolumeDocument) -> Option<String> {
    match volume.readers.as_slice() {
        [] => volume.attached_to.clone(),
        readers => Some(format!("{} (read-only)", readers.join(", "))),
    }
}

fn text(volume: &VolumeDocument) -> String {
    let known = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let mut text = format!("Name: {}\n", volume.name);
    if let Some(problem) = &volume.problem {
        text += &format!("Problem: {}\n", one_line(problem));
    }
    text + &format!(
        "Size: {}\nCreated: {}\nAttached: {}\nPath: {}\nOn the host: {}\n",
        known(volume.size_mib.map(|mib| format!("{mib} MiB"))),
        known(volume.created_at.map(|at| at.to_string())),
        one_line(&known(attached(volume))),
        one_line(&volume.path.display().to_string()),
        size(volume.bytes),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str, attached_to: Option<&str>) -> VolumeDocument {
        VolumeDocument {
            name: name.parse().unwrap(),
            size_mib: Some(512),
            created_at: Some(jiff::Timestamp::UNIX_EPOCH),
            attached_to: attached_to.map(str::to_owned),
            readers: Vec::new(),
            bytes: 1 << 20,
            path: "/state/volumes/data/disk.ext4".into(),
            problem: None,
        }
    }

    #[test]
    fn the_listing_says_who_has_it() {
        let damaged = VolumeDocument { problem: Some("torn".into()), size_mib: None, ..volume("old", None) };
        assert_eq!(
            listing(&[volume("cache", None), volume("data", Some("db")), damaged]),
            "NAME                 SIZE-MIB ATTACHED\ncache                512      -\n\
             data                 512      db\nold                  damaged  -\n"
        );
        let read = VolumeDocument { readers: vec!["a".into(), "b".into()], ..volume("data", Some("a")) };
        assert!(listing(&[read]).ends_with("data                 512      a, b (read-only)\n"));
        assert_eq!(listing(&[]), "No volumes.\n");
        assert_eq!(
            text(&volume("data", None)),
            "Name: data\nSize: 512 MiB\nCreated: 1970-01-01T00:00:00Z\nAttached: -\n\
             Path: /state/volumes/data/disk.ext4\nOn the host: 1.00 MiB\n"
        );
    }

    #[test]
    fn deleting_says_what_else_it_did() {
        let name: VolumeName = "data".parse().unwrap();
        let (killed, also_killed, missed_by) = (None, Vec::new(), Vec::new());
        let nothing = DeletedVolume { name, deleted: false, killed, also_killed, missed_by };
        assert_eq!(line(&nothing), "Nothing to delete: data\n");
        let plain = DeletedVolume { deleted: true, ..nothing };
        assert_eq!(line(&plain), "Deleted volume \"data\"\n");
        let [web, api] = ["web", "api"].map(|name| name.parse::<WorkspaceName>().unwrap());
        let (killed, missed_by) = (Some(web.clone()), vec![web]);
        assert_eq!(
            line(&DeletedVolume { killed, also_killed: vec![api], missed_by, ..plain }),
            "Killed web, api and deleted volume \"data\"\nCannot start without it: web\n"
        );
        let names = ["a", "b"].map(|name| name.parse().unwrap());
        assert_eq!(question(&names), "Delete a, b and everything on them?");
    }
}
