//! How a machine boots, for the commands that start one.

use clap::Args;

/// How a machine starts.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct BootModeArgs {
    /// Boot instead of restoring a template, and do not build one
    #[arg(long)]
    pub(crate) cold: bool,

    /// Have the guest kernel print all of its messages to the log, not only warnings and errors; implies --cold
    #[arg(long)]
    pub(crate) verbose_boot: bool,
}
