//! `microagent system`: what the state directory holds, and removing what nothing needs.

use std::collections::BTreeSet;

use clap::{Args, Subcommand};
use microagent::volume::PrunedVolumes;
use microagent::{Engine, Error, Progress, image, template};

use crate::context::Context;
use crate::documents::system::{DiskUseDocument, SystemPruneDocument, UseDocument};
use crate::escape::one_line;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text, size};
use crate::prompt::confirmed;
use crate::table::table;

const EXAMPLES: &str = "\
Examples:
  Show what takes space:
    microagent system df

  Remove unused data:
    microagent system prune";

const DF_EXAMPLES: &str = "\
Examples:
  Show what takes space:
    microagent system df

  Print the bytes of all images:
    microagent system df --json | jq .images.bytes";

const PRUNE_EXAMPLES: &str = "\
Examples:
  Remove incomplete downloads, unreferenced blobs and unusable templates:
    microagent system prune --yes

  Also remove unused images, all templates, and unused volumes:
    microagent system prune --all --volumes --yes";

/// Show and free the disk space of microagent
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct SystemArgs {
    #[command(subcommand)]
    pub(crate) command: Option<SystemCommand>,
}

/// What is done with the state directory.
#[derive(Debug, Subcommand)]
pub(crate) enum SystemCommand {
    Df(DfArgs),
    Prune(PruneArgs),
}

/// Show the disk space of images, workspaces, snapshots, volumes and templates
///
/// Counts the blocks that files take on the host's disk. Disk layers that snapshots share with workspaces count as snapshots.
#[derive(Debug, Args)]
#[command(after_long_help = DF_EXAMPLES)]
pub(crate) struct DfArgs {}

/// Remove unused data
///
/// Removes incomplete downloads, blobs and base disks that no image needs, disk layers that no workspace and no snapshot needs,
/// and templates that cannot be used. Workspaces
/// are never removed, and volumes only with --volumes.
#[derive(Debug, Args)]
#[command(after_long_help = PRUNE_EXAMPLES)]
pub(crate) struct PruneArgs {
    /// Also remove images, and names of images, that no workspace uses, and all templates
    #[arg(short, long)]
    all: bool,

    /// Also delete volumes that no workspace attaches, with everything on them
    #[arg(long)]
    volumes: bool,

    /// Do not ask for confirmation
    #[arg(short, long, alias = "force", short_alias = 'f')]
    yes: bool,
}

/// Does what the subcommand says.
pub(crate) fn execute(context: &Context, args: SystemArgs) -> Result<(), Failure> {
    match args.command {
        Some(SystemCommand::Df(DfArgs {})) => df(context),
        Some(SystemCommand::Prune(args)) => prune(context, &args),
        None => unreachable!("a group without a subcommand was answered with its help page"),
    }
}

fn df(context: &Context) -> Result<(), Failure> {
    let engine = context.engine();
    let document = context.call(disk_use(&engine))?;
    match context.format {
        Format::Json => print_json(&document),
        Format::Text => print_text(&listing(&document)),
    }
}

async fn disk_use(engine: &Engine) -> Result<DiskUseDocument, Error> {
    let sum = |bytes: Vec<u64>| UseDocument { count: bytes.len(), bytes: bytes.iter().sum() };
    let images = engine.images().list().await?.images;
    // Several names of one image are one image.
    let images: BTreeSet<String> = images.into_iter().map(|image| image.digest).collect();
    let volumes = engine.volumes().list().await?;
    let (mut workspaces, mut snapshots) = (Vec::new(), 0);
    for workspace in engine.list().await? {
        // One that is damaged or was deleted meanwhile has no size to tell.
        let inspection = engine.workspace(&workspace.name).inspect().ok();
        workspaces.push(inspection.as_ref().map_or(0, |inspection| inspection.disk_bytes));
        snapshots += inspection.map_or(0, |inspection| inspection.snapshots);
    }
    Ok(DiskUseDocument {
        images: UseDocument { count: images.len(), bytes: engine.images().stored_bytes().await? },
        workspaces: sum(workspaces),
        snapshots: UseDocument { count: snapshots, bytes: engine.snapshot_bytes().await? },
        volumes: sum(volumes.iter().map(|volume| volume.bytes).collect()),
        templates: sum(engine.templates().list().await?.iter().map(|template| template.bytes).collect()),
    })
}

fn listing(document: &DiskUseDocument) -> String {
    let DiskUseDocument { images, workspaces, snapshots, volumes, templates } = document;
    let rows = [
        ("images", images),
        ("workspaces", workspaces),
        ("snapshots", snapshots),
        ("volumes", volumes),
        ("templates", templates),
    ];
    let rows = rows.map(|(kind, used)| [kind.to_owned(), used.count.to_string(), size(used.bytes)]);
    table([("TYPE", 12), ("COUNT", 6), ("SIZE", 0)], &rows)
}

fn prune(context: &Context, args: &PruneArgs) -> Result<(), Failure> {
    if !args.yes && (args.all || args.volumes) && !confirmed(question(args), "removing this", "add --yes")? {
        return print_text("Nothing was removed.\n");
    }
    let engine = context.engine();
    let (templates, images) = match args.all {
        true => (template::TemplatePrune::All, image::ImagePrune::All),
        false => (template::TemplatePrune::Stale, image::ImagePrune::Unused),
    };
    let (templates, layers, images, volumes) = context.block_on(async |token| {
        let progress = Progress::new().cancel(token);
        let templates = engine.templates().prune(templates).await?;
        let layers = engine.free_layers().await?;
        let images = engine.images().prune(images).await?;
        let volumes = if args.volumes { Some(engine.volumes().prune(&progress).await?) } else { None };
        Ok((templates, layers, images, volumes))
    })?;
    let (volumes, of_volumes) = volumes.map_or((Vec::new(), 0), |pruned| {
        let PrunedVolumes { volumes, freed_bytes, .. } = pruned;
        (volumes.iter().map(ToString::to_string).collect(), freed_bytes)
    });
    let of_templates: u64 = templates.iter().map(|template| template.bytes).sum();
    let document = SystemPruneDocument {
        images: images.references,
        templates: templates.len(),
        volumes,
        freed_bytes: images.freed_bytes + layers + of_templates + of_volumes,
    };
    match context.format {
        Format::Json => print_json(&document),
        Format::Text => print_text(&pruned(&document)),
    }
}

fn question(args: &PruneArgs) -> &'static str {
    match (args.all, args.volumes) {
        (true, true) => "Remove all unused images and templates, and all unused volumes with their data?",
        (false, true) => "Remove all unused volumes with their data?",
        _ => "Remove all unused images and all templates?",
    }
}

fn pruned(document: &SystemPruneDocument) -> String {
    let SystemPruneDocument { images, templates, volumes, freed_bytes } = document;
    let mut text: String =
        images.iter().map(|image| format!("Deleted image: {}\n", one_line(image))).collect();
    text.extend(volumes.iter().map(|volume| format!("Deleted volume: {volume}\n")));
    if *templates > 0 {
        text += &format!("Removed templates: {templates}\n");
    }
    text + &format!("Freed: {}\n", size(*freed_bytes))
}
