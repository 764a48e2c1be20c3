//! The options that every command takes.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::environment;

/// Options that every command takes, before or after its name.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalArgs {
    /// Directory of workspaces, images and caches [default: ~/.microagent]
    #[arg(long, global = true, value_name = "DIR", env = environment::STATE_DIR, hide_env_values = true)]
    pub(crate) state_dir: Option<PathBuf>,

    /// How to run guest code: auto (KVM if backed by hardware, else TCG), kvm, or tcg (software emulation)
    #[arg(
        long,
        global = true,
        value_name = "WHICH",
        env = environment::ACCEL,
        hide_env_values = true,
        default_value = "auto",
        ignore_case = true,
        hide_possible_values = true
    )]
    pub(crate) accel: Accel,

    /// Start machines even where the kernel lacks seccomp filters or Landlock
    #[arg(
        long,
        global = true,
        env = environment::ALLOW_WEAK_JAIL,
        hide_env_values = true,
        value_parser = clap::builder::FalseyValueParser::new()
    )]
    pub(crate) allow_weak_jail: bool,

    /// Print one JSON document instead of text, errors included; --json=stream prints one line for each thing that happens
    /// [env: MICROAGENT_OUTPUT]
    #[arg(
        long,
        global = true,
        value_name = "FORM",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "document",
        hide_possible_values = true
    )]
    pub(crate) json: Option<JsonForm>,

    /// How to report progress on standard error: auto (bars on a terminal), plain (lines), or off
    #[arg(
        long,
        global = true,
        value_name = "HOW",
        env = environment::PROGRESS,
        hide_env_values = true,
        default_value = "auto",
        ignore_case = true,
        hide_possible_values = true
    )]
    pub(crate) progress: ProgressChoice,

    /// Print without colours
    #[arg(long, global = true)]
    pub(crate) no_color: bool,

    /// Print help
    #[arg(short, long, global = true, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// `--json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum JsonForm {
    /// One document at the end
    Document,
    /// Lines as things happen
    Stream,
}

/// `--accel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Accel {
    /// Hardware virtualisation if available, else emulation
    Auto,
    /// Hardware virtualisation only
    Kvm,
    /// Software emulation only
    Tcg,
}

/// `--progress`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressChoice {
    /// Bars on a terminal, plain lines elsewhere
    Auto,
    /// Plain lines
    Plain,
    /// Nothing
    Off,
}
