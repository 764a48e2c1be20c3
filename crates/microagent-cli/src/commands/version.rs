//! `microagent version`.

use clap::Args;

use crate::context::Context;
use crate::documents::version::VersionDocument;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};

const EXAMPLES: &str = "\
Examples:
  Print as text:
    microagent version

  Print one value, for a script:
    microagent version --json | jq -r .version";

/// Print the version
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct VersionArgs {}

/// Prints it.
pub(crate) fn execute(context: &Context, _args: VersionArgs) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    match context.format {
        Format::Json => {
            print_json(&VersionDocument { name: "microagent", version, architecture: std::env::consts::ARCH })
        }
        Format::Text => print_text(&format!("microagent {version}\n")),
    }
}
