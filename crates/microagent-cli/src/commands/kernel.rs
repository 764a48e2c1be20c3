//! `microagent kernel`: the guest kernel.

use clap::{Args, Subcommand};
use microagent::doctor::KernelReport;

use crate::context::Context;
use crate::documents::kernel::KernelDocument;
use crate::escape::one_line;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};

/// Exit code when the kernel is not the one that it should be.
const EXIT_DAMAGED: u8 = 1;

const EXAMPLES: &str = "\
Examples:
  Verify the guest kernel:
    microagent kernel verify

  In a script:
    microagent kernel verify --json | jq -r .sha256";

/// Inspect the guest kernel
///
/// The guest kernel is part of the microagent binary; nothing is downloaded. `run --kernel FILE` boots another one.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES, subcommand_value_name = "COMMAND")]
pub(crate) struct KernelArgs {
    #[command(subcommand)]
    pub(crate) command: Option<KernelCommand>,
}

/// What is done with the kernel.
#[derive(Debug, Subcommand)]
pub(crate) enum KernelCommand {
    Verify(VerifyArgs),
}

/// Verify the guest kernel against the checksum of this build
///
/// Compares the SHA-256 sum of the file that guests boot with the sum recorded at build time. Exits with 1 if they
/// differ.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct VerifyArgs {}

/// Verifies and prints.
pub(crate) fn execute(context: &Context, args: KernelArgs) -> Result<u8, Failure> {
    let Some(KernelCommand::Verify(VerifyArgs {})) = args.command else {
        unreachable!("a group without a subcommand was answered with its help page");
    };
    let KernelReport { version, sha256, path, ok, problem, .. } =
        context.call(context.engine().verify_kernel())?;
    match context.format {
        Format::Json => print_json(&KernelDocument {
            ok,
            version: &version,
            sha256: &sha256,
            path: &path,
            problem: problem.as_deref(),
        })?,
        Format::Text => print_text(&format!(
            "Kernel: {}\nPath: {}\nSHA-256: {}\nStatus: {}\n",
            one_line(&version),
            one_line(&path.display().to_string()),
            one_line(&sha256),
            problem.map_or_else(|| "ok".to_owned(), |problem| format!("damaged: {}", one_line(&problem))),
        ))?,
    }
    Ok(if ok { 0 } else { EXIT_DAMAGED })
}
