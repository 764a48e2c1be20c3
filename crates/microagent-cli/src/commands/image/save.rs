//! `microagent image save`.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use clap::Args;
use microagent::image::{NetworkOptions, SaveTarget, Saved};

use crate::context::Context;
use crate::documents::image::SaveDocument;
use crate::escape::one_line;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text, size};

const EXAMPLES: &str = "\
Examples:
  Save one image for another machine:
    microagent image save app:2 -o app.tar
    microagent run oci-archive:app.tar

  Copy an image to podman:
    microagent image save app:2 -o - | podman load

  Save several images in one archive:
    microagent image save app:1 app:2 -o both.tar";

/// Write images into an OCI archive
///
/// `skopeo`, `podman load`, `docker load` (since Docker 25) and `oci-archive:` can read the archive. The same images
/// always give the same bytes.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct SaveArgs {
    /// References or digests of images in the cache
    #[arg(required = true, value_name = "REF")]
    references: Vec<String>,

    /// File to write; `-` for standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Do not report progress
    #[arg(short, long)]
    quiet: bool,
}

/// Saves. An archive on standard output is all that is printed.
pub(super) fn execute(context: &Context, args: SaveArgs) -> Result<(), Failure> {
    let to_stdout = args.output.as_os_str() == "-";
    if to_stdout && io::stdout().is_terminal() {
        return Err(Failure::usage(
            "an archive cannot be written to a terminal",
            "name a file with -o FILE, or pipe it: … -o - | podman load",
        ));
    }
    let target = match to_stdout {
        true => SaveTarget::Writer(Box::new(io::stdout())),
        false => SaveTarget::Path(args.output),
    };
    let images = context.engine().images();
    let progress = context.progress(args.quiet);
    let network = NetworkOptions::default();
    let saved = context.block_on(async |token| {
        Ok(images.save(&args.references, target, &network, &progress.of_work(&token)).await?)
    });
    progress.end();
    let saved = saved?;
    match context.format {
        _ if to_stdout => Ok(()),
        Format::Json => print_json(&SaveDocument::from(saved)),
        Format::Text => print_text(&lines(&saved)),
    }
}

fn lines(saved: &Saved) -> String {
    let image = |image: &microagent::image::SavedImage| {
        let name = image.name.as_deref().map_or_else(|| "(no name)".into(), one_line);
        format!("Image: {name}\nDigest: {}\n", image.digest)
    };
    let images = saved.images.iter().map(image);
    images.chain([format!("Size: {}\n", size(saved.bytes))]).collect()
}
