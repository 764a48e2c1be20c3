//! `microagent image tag`.

use clap::Args;

use crate::context::Context;
use crate::documents::image::TagDocument;
use crate::escape::one_line;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};

const EXAMPLES: &str = "\
Examples:
  Add a name with a registry, then push it:
    microagent image tag myroot:1 registry.example.com/team/myroot:1
    microagent image push registry.example.com/team/myroot:1

  Keep a name for the current `latest`:
    microagent image tag debian:latest debian:known-good";

/// Add a name to an image
///
/// If another image has the name, the name moves to this image.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct TagArgs {
    /// Reference or digest of an image in the cache
    #[arg(value_name = "REF")]
    image: String,

    /// The new name
    #[arg(value_name = "NAME")]
    name: String,
}

/// Tags.
pub(super) fn execute(context: &Context, args: TagArgs) -> Result<(), Failure> {
    let tagged = context.call(context.engine().images().tag(&args.image, &args.name))?;
    match context.format {
        Format::Json => print_json(&TagDocument::from(tagged)),
        Format::Text => print_text(&format!(
            "Image: {}\nDigest: {}\n",
            one_line(&tagged.resolved_reference),
            tagged.digest
        )),
    }
}
