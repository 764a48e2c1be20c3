//! Measures microagent beside its peers and prints one table.
//!
//! Everything that is compared is measured in the same run, in turn (A B A B …), on the same files, after a
//! warm-up; the table has medians and ranges. Figures of a busy machine mean little: ratios mean more.
//! Nothing is asserted here, and nothing outside the work directory is written.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod agents;
mod brokers;
mod cold;
mod commit;
mod disk;
mod fixture;
mod host;
mod memory;
mod network;
mod podman;
mod program;
mod sample;
mod serving;
mod snapshots;
mod storage;
mod unpack;
mod warm;
mod workspaces;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

use sample::Table;

/// Measure microagent beside raw QEMU, umoci and podman
#[derive(Debug, Parser)]
struct Arguments {
    /// How often each thing is done
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(3..=1000))]
    runs: u32,

    /// Where images and scratch state are kept; images are made once
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    dir: PathBuf,

    /// The command that is measured
    #[arg(long, default_value = "target/release/microagent", value_name = "FILE")]
    microagent: PathBuf,

    /// Only these parts (repeatable)
    #[arg(long, value_enum)]
    only: Vec<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// One command in a machine, against raw QEMU and podman
    Run,
    /// Starts from templates: against podman and our own boots, many at once, and idle side by side
    Warm,
    /// An image becomes a base disk, against umoci and podman
    Unpack,
    /// A workspace's disk, from a small and a large image
    Disk,
    /// Reading and writing on root disk and volume, against raw QEMU with a raw file
    Storage,
    /// Bytes, connections, processor time and memory of the network, against raw QEMU with its user network and with
    /// passt; private networks; the network stack without a guest
    Network,
    /// A workspace's changes become an image, against podman
    Commit,
    /// What a running machine costs the host
    Memory,
    /// Workspaces that stay: commands, transfers, making and idling, against podman
    Workspaces,
    /// Snapshots of running workspaces, and forks, against workspaces that are created and started
    Snapshots,
    /// Tools of `serve mcp` against the command, and what an idle server costs
    Agents,
    /// Requests and downloads through a broker, against a forwarded and a published port
    Brokers,
}

/// Where things are and how often they are done.
struct Bench {
    runs: u32,
    dir: PathBuf,
    microagent: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    std::fs::create_dir_all(&arguments.dir)?;
    let bench = Bench {
        runs: arguments.runs,
        dir: std::path::absolute(&arguments.dir)?,
        microagent: std::path::absolute(&arguments.microagent)?,
    };
    let wants = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let mut table = Table::default();
    for line in host::facts(&bench)? {
        println!("{line}");
    }
    if wants(Part::Run) {
        cold::measure(&bench, &mut table).context("measuring runs")?;
    }
    if wants(Part::Warm) {
        warm::measure(&bench, &mut table).context("measuring warm starts")?;
    }
    if wants(Part::Unpack) {
        unpack::measure(&bench, &mut table).context("measuring images")?;
    }
    if wants(Part::Disk) {
        disk::measure(&bench, &mut table).context("measuring disks")?;
    }
    if wants(Part::Storage) {
        storage::measure(&bench, &mut table).context("measuring storage")?;
    }
    if wants(Part::Network) {
        network::measure(&bench, &mut table).context("measuring the network")?;
    }
    if wants(Part::Commit) {
        commit::measure(&bench, &mut table).context("measuring commits")?;
    }
    if wants(Part::Memory) {
        memory::measure(&bench, &mut table).context("measuring memory")?;
    }
    if wants(Part::Workspaces) {
        workspaces::measure(&bench, &mut table).context("measuring workspaces")?;
    }
    if wants(Part::Snapshots) {
        snapshots::measure(&bench, &mut table).context("measuring snapshots")?;
    }
    if wants(Part::Agents) {
        agents::measure(&bench, &mut table).context("measuring agents")?;
    }
    if wants(Part::Brokers) {
        brokers::measure(&bench, &mut table).context("measuring brokers")?;
    }
    println!("\n{table}");
    Ok(())
}
