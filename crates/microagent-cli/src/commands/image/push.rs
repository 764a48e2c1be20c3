//! `microagent image push`.

use clap::Args;
use microagent::image::{NetworkOptions, Pushed};

use crate::context::Context;
use crate::documents::image::PushDocument;
use crate::escape::one_line;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text, size};

const EXAMPLES: &str = "\
Examples:
  Push to the registry in the name, after `docker login` or `podman login`:
    microagent image push registry.example.com/team/app:2

  Push under another name:
    microagent image tag app:2 registry.example.com/team/app:2
    microagent image push registry.example.com/team/app:2";

/// Push an image to a registry
///
/// Uploads the blobs that the registry does not have, then the manifest. Uses the logins of Docker and podman. Plain HTTP
/// is used for this machine only.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct PushArgs {
    /// Name of an image in the cache, with its registry
    #[arg(value_name = "REF")]
    reference: String,

    /// Do not report progress
    #[arg(short, long)]
    quiet: bool,
}

/// Pushes.
pub(super) fn execute(context: &Context, args: PushArgs) -> Result<(), Failure> {
    let images = context.engine().images();
    let progress = context.progress(args.quiet);
    let network = NetworkOptions::default();
    let pushed = context.block_on(async |token| {
        Ok(images.push(&args.reference, &network, &progress.of_work(&token)).await?)
    });
    progress.end();
    let pushed = pushed?;
    match context.format {
        Format::Json => print_json(&PushDocument::from(pushed)),
        Format::Text => print_text(&lines(&pushed)),
    }
}

fn lines(pushed: &Pushed) -> String {
    let Pushed { resolved_reference, digest, blobs_sent, blobs_present, bytes_sent, .. } = pushed;
    format!(
        "Image: {}\nDigest: {digest}\nSent: {} in {blobs_sent} blobs, {blobs_present} were there\n",
        one_line(resolved_reference),
        size(*bytes_sent),
    )
}
