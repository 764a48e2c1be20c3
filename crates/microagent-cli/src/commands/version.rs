//! `microagent version`.

use clap::Args;
use serde::Serialize;

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};

const EXAMPLES: &str = "\
Examples:
  For people:
    microagent version

  For scripts:
    microagent version --json | jq -r .version";

/// Print the version
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct VersionArgs {}

#[derive(Debug, Serialize)]
struct Document {
    name: &'static str,
    version: &'static str,
    architecture: &'static str,
}

/// Prints it.
pub(crate) fn execute(context: &Context, _args: VersionArgs) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    match context.format {
        Format::Json => {
            print_json(&Document { name: "microagent", version, architecture: std::env::consts::ARCH })
        }
        Format::Text => print_text(&format!("microagent {version}\n")),
    }
}
