//! `microagent image load`.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use clap::Args;
use microagent::image::{ImportSource, LoadOptions};

use crate::context::Context;
use crate::documents::image::{LoadedImagesDocument, PulledImageDocument};
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};

use super::lines;

const EXAMPLES: &str = "\
Examples:
  From Docker or podman:
    docker save app:2 | microagent image load
    podman save app:2 | microagent image load

  What a builder writes, with a name for it:
    docker build -o type=oci,dest=- . | microagent image load --name app:2

  From a file:
    microagent image load -i app.tar";

/// Load the images of an archive under their names
///
/// Takes what `docker save`, `podman save`, `skopeo` and builders write: Docker archives and OCI archives, told apart by
/// content, plain or compressed with gzip or zstd.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct LoadArgs {
    /// The archive; standard input without it, or with `-`
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,

    /// Name of an image that has none in the archive
    #[arg(long, value_name = "REF")]
    name: Option<String>,

    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Loads.
pub(super) fn execute(context: &Context, args: LoadArgs) -> Result<(), Failure> {
    let source = match args.input {
        Some(path) if path.as_os_str() != "-" => ImportSource::Path(path),
        _ if io::stdin().is_terminal() => {
            return Err(Failure::usage(
                "there is no archive on standard input",
                "pipe one in, as in `docker save app | microagent image load`, or give a file with -i FILE",
            ));
        }
        _ => ImportSource::Reader(Box::new(io::stdin())),
    };
    let engine = context.engine();
    engine.prepare()?;
    let progress = context.progress(args.quiet);
    let options = args.name.map_or_else(LoadOptions::new, |name| LoadOptions::new().name(name));
    let loaded = context.block_on(async |token| {
        Ok(engine.images().load(source, &options, &progress.of_work(&token)).await?)
    });
    progress.end();
    let loaded = loaded?;
    match context.format {
        Format::Json => {
            let loaded = loaded.into_iter().map(PulledImageDocument::from).collect();
            print_json(&LoadedImagesDocument { loaded })
        }
        Format::Text => print_text(&loaded.iter().map(lines).collect::<Vec<_>>().join("\n")),
    }
}
