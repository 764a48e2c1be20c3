//! All automation of this repository: `cargo xtask VERB`.

#![allow(clippy::print_stderr, reason = "a program for people at a terminal")]

mod fixtures;

use clap::{Parser, Subcommand};

/// All automation of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Fixtures(fixtures::Fixtures),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().verb {
        Verb::Fixtures(arguments) => arguments.run(),
    }
}
