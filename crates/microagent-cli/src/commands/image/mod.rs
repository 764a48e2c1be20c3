//! `microagent image`: the images in the cache.

mod history;
mod list;
mod load;
mod push;
mod remove;
mod save;
mod tag;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use microagent::image::{Image, ImportSource, PullOptions, PullPolicy};

use crate::args::image_change;
use crate::context::Context;
use crate::documents::image::PulledImageDocument;
use crate::documents::stream::StreamLine;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};
use crate::stream::print_line;

pub(crate) use history::HistoryArgs;
pub(crate) use list::ListArgs;
pub(crate) use load::LoadArgs;
pub(crate) use push::PushArgs;
pub(crate) use remove::DeleteArgs;
pub(crate) use save::SaveArgs;
pub(crate) use tag::TagArgs;

const EXAMPLES: &str = "\
Examples:
  List the images in the cache:
    microagent image list

  Pull an image before it is needed:
    microagent image pull docker.io/library/debian:12

  Free disk space:
    microagent image prune";

const PULL_EXAMPLES: &str = "\
Examples:
  From a registry; short names work as in Docker:
    microagent image pull alpine:3.20

  From files that other tools made:
    microagent image pull oci:./layout:latest
    microagent image pull docker-archive:./saved.tar

  From Docker or podman on this machine:
    microagent image pull docker-daemon:app:2

  From a private registry, after `docker login` or `podman login`:
    microagent image pull registry.example.com/team/app@sha256:…";

const IMPORT_EXAMPLES: &str = "\
Examples:
  Import a root file system from a tar file, plain or compressed with gzip or zstd:
    microagent image import rootfs.tar.gz myroot:1

  Import from standard input and set the image's command:
    tar -C rootfs -c . | microagent image import --change 'CMD [\"/bin/sh\"]' - myroot:1
    microagent run myroot:1";

/// List, pull, import, tag, push, save and remove images
///
/// Images are cached by digest: their blobs, and one read-only base disk that all workspaces of an image share.
/// microagent does not build images; it runs images that Docker, Buildah and other tools build.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES, subcommand_value_name = "COMMAND")]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    pub(crate) command: Option<ImageCommand>,
}

impl From<ImageCommand> for ImageArgs {
    fn from(command: ImageCommand) -> ImageArgs {
        ImageArgs { command: Some(command) }
    }
}

/// What is done with images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    #[command(visible_alias = "ls")]
    List(ListArgs),
    Pull(PullArgs),
    Load(LoadArgs),
    Import(ImportArgs),
    History(HistoryArgs),
    Tag(TagArgs),
    Save(SaveArgs),
    Push(PushArgs),
    #[command(visible_alias = "rm")]
    Delete(DeleteArgs),
    Prune(remove::PruneArgs),
}

/// Docker's verbs without `image`.
#[derive(Debug, Subcommand)]
pub(crate) enum ShortForm {
    #[command(hide = true)]
    Images(ListArgs),
    #[command(hide = true)]
    Pull(PullArgs),
    #[command(hide = true)]
    Push(PushArgs),
    #[command(hide = true)]
    Tag(TagArgs),
    #[command(hide = true)]
    Save(SaveArgs),
    #[command(hide = true)]
    Import(ImportArgs),
    #[command(hide = true)]
    Load(LoadArgs),
    #[command(hide = true)]
    History(HistoryArgs),
    #[command(hide = true)]
    Rmi(DeleteArgs),
}

impl From<ShortForm> for ImageCommand {
    fn from(short: ShortForm) -> ImageCommand {
        match short {
            ShortForm::Images(args) => ImageCommand::List(args),
            ShortForm::Pull(args) => ImageCommand::Pull(args),
            ShortForm::Push(args) => ImageCommand::Push(args),
            ShortForm::Tag(args) => ImageCommand::Tag(args),
            ShortForm::Save(args) => ImageCommand::Save(args),
            ShortForm::Import(args) => ImageCommand::Import(args),
            ShortForm::Load(args) => ImageCommand::Load(args),
            ShortForm::History(args) => ImageCommand::History(args),
            ShortForm::Rmi(args) => ImageCommand::Delete(args),
        }
    }
}

/// Pull an image and make its base disk
///
/// Always asks the source; layers that are in the cache are not fetched again. An interrupted pull resumes where it
/// stopped. Uses the logins of Docker and podman.
#[derive(Debug, Args)]
#[command(after_long_help = PULL_EXAMPLES)]
pub(crate) struct PullArgs {
    /// Registry reference, `oci:DIR[:TAG]`, `oci-archive:FILE`, `docker-archive:FILE` (`-` is standard input) or
    /// `docker-daemon:NAME`
    #[arg(value_name = "REF")]
    reference: String,

    /// Do not report progress
    #[arg(short, long)]
    quiet: bool,
}

/// Make an image from a root file system tar
///
/// The tar becomes the only layer of the new image, as with `docker import`.
#[derive(Debug, Args)]
#[command(after_long_help = IMPORT_EXAMPLES)]
pub(crate) struct ImportArgs {
    /// Tar of the root file system; `-` reads standard input
    #[arg(value_name = "FILE")]
    source: PathBuf,

    /// Name of the image
    #[arg(value_name = "REF")]
    reference: String,

    /// Change the image's configuration, as a line of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or
    /// WORKDIR (repeatable)
    #[arg(short, long, value_name = "LINE", value_parser = image_change::parse)]
    change: Vec<image_change::Change>,

    /// Do not report progress
    #[arg(short, long)]
    quiet: bool,
}

/// Does what the subcommand says.
pub(crate) fn execute(context: &Context, args: ImageArgs) -> Result<(), Failure> {
    match args.command {
        Some(ImageCommand::List(args)) => list::execute(context, args),
        Some(ImageCommand::Pull(args)) => pull(context, args),
        Some(ImageCommand::Load(args)) => load::execute(context, args),
        Some(ImageCommand::Import(args)) => import(context, args),
        Some(ImageCommand::History(args)) => history::execute(context, &args),
        Some(ImageCommand::Tag(args)) => tag::execute(context, args),
        Some(ImageCommand::Save(args)) => save::execute(context, args),
        Some(ImageCommand::Push(args)) => push::execute(context, args),
        Some(ImageCommand::Delete(args)) => remove::delete(context, args),
        Some(ImageCommand::Prune(args)) => remove::prune(context, args),
        None => unreachable!("a group without a subcommand was answered with its help page"),
    }
}

fn pull(context: &Context, args: PullArgs) -> Result<(), Failure> {
    let engine = context.engine();
    engine.prepare()?;
    let progress = context.progress(args.quiet);
    let options = PullOptions::default().policy(PullPolicy::Always);
    let pulled = context.block_on(async |token| {
        Ok(engine.images().create(&args.reference, &options, &progress.of_work(&token)).await?)
    });
    progress.end();
    print(context, pulled?)
}

fn import(context: &Context, args: ImportArgs) -> Result<(), Failure> {
    let engine = context.engine();
    engine.prepare()?;
    let progress = context.progress(args.quiet);
    let changes = image_change::combine(args.change);
    let source = if args.source.as_os_str() == "-" {
        ImportSource::Reader(Box::new(std::io::stdin()))
    } else {
        ImportSource::Path(args.source)
    };
    let imported = context.block_on(async |token| {
        let images = engine.images();
        Ok(images.import(source, &args.reference, &changes, &progress.of_work(&token)).await?)
    });
    progress.end();
    print(context, imported?)
}

/// Says what is here now.
fn print(context: &Context, image: Image) -> Result<(), Failure> {
    match context.format {
        Format::Json if context.streams() => {
            print_line(&StreamLine::ImagePull(Box::new(PulledImageDocument::from(image))))
        }
        Format::Json => print_json(&PulledImageDocument::from(image)),
        Format::Text => print_text(&lines(&image)),
    }
}

fn lines(image: &Image) -> String {
    format!(
        "Image: {}\nDigest: {}\nSize: {}\n",
        crate::escape::one_line(&image.resolved_reference),
        image.digest,
        crate::output::size(image.content_bytes),
    )
}
