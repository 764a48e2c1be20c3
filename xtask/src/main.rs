//! All automation of this repository: `cargo xtask VERB`, one file per verb. The `Makefile` only gives names.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod book;
mod deb;
mod demo;
mod deps;
mod docs;
mod fixtures;
mod fuzz;
mod hosts;
mod kernel_arm64;
mod kvm_trial;
mod process;
mod programs;
mod test;
mod tidy;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// All automation of this repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make the images that tests run, into target/fixtures
    Fixtures(fixtures::Fixtures),
    /// Build, make a small image, run a command in a microVM
    Demo,
    /// Check everything and run all tests
    Test,
    /// Check licences, sources and versions of dependencies, and advisories where they can be had
    Deps,
    /// Check that links in documents lead somewhere
    Docs,
    /// Make a book of the documents, with a search, in target/book
    Book,
    /// Make a Debian package; --try installs, uses and removes it in clean roots
    Deb(deb::DebArguments),
    /// Run end-to-end tests on other Debian releases, each with its own QEMU
    Hosts(hosts::Hosts),
    /// Run end-to-end tests under KVM in an outer machine with emulated virtualisation
    KvmTrial(kvm_trial::KvmTrial),
    /// Build the guest kernel for 64-bit ARM, and boot it under emulation
    KernelArm64,
    /// Run real programs in guests, and print the time and memory of each
    Programs(programs::Programs),
    /// Check the rules about the whole repository: layers, sizes, Markdown, words
    Tidy(tidy::TidyArguments),
    /// Fuzz each decoder of hostile bytes; needs a nightly compiler and cargo-fuzz
    Fuzz(fuzz::FuzzArguments),
    /// Measure against raw QEMU, umoci and podman; prints one table
    Bench(bench::BenchArguments),
}

fn main() -> Result<()> {
    match Arguments::parse().verb {
        Verb::Fixtures(arguments) => arguments.run(),
        Verb::Demo => demo::demo(),
        Verb::Test => test::test(),
        Verb::Deps => deps::check(),
        Verb::Docs => docs::check(),
        Verb::Book => book::make(),
        Verb::Deb(arguments) => arguments.run(),
        Verb::Hosts(arguments) => arguments.run(),
        Verb::KvmTrial(arguments) => arguments.run(),
        Verb::KernelArm64 => kernel_arm64::run_trial(),
        Verb::Programs(arguments) => arguments.run(),
        Verb::Tidy(arguments) => tidy::check(&arguments),
        Verb::Fuzz(arguments) => arguments.run(),
        Verb::Bench(arguments) => bench::bench(&arguments),
    }
}
