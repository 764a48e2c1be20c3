//! A workspace's disk on a cached image: the same for a small and a large one.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use microagent_vm::{Backing, create_overlay};

use crate::Bench;
use crate::fixture::{LARGE, SMALL};
use crate::sample::{Peer, Table, interleave, time};

/// Size of the disks that are made.
const DISK_BYTES: u64 = 8 << 30;

/// A disk is made in a fraction of a millisecond, so more rounds cost nothing.
const ROUNDS_MIN: u32 = 100;

const DISK_NAMES: [&str; 2] = ["5 MB image", "1 GB image"];

pub(crate) fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    bench.import(&bench.small_tar()?, SMALL)?;
    bench.import(&bench.large_tar()?, LARGE)?;
    let (small, large) = (base_disk(bench, SMALL)?, base_disk(bench, LARGE)?);
    let disk = bench.dir.join("disk.qcow2");
    let overlay = |base: PathBuf| {
        let disk = &disk;
        move || {
            let took =
                time(|| create_overlay(disk, Backing::Base(&base), DISK_BYTES).context("making a disk"))?;
            fs::remove_file(disk)?;
            Ok(took)
        }
    };
    let mut peers: [Peer<'_>; 2] =
        [(DISK_NAMES[0], Box::new(overlay(small))), (DISK_NAMES[1], Box::new(overlay(large)))];
    let samples = interleave(bench.runs.max(ROUNDS_MIN), &mut peers)?;
    table.add_times("making a disk", &DISK_NAMES, &samples);

    let run =
        |image: &'static str| move || time(|| bench.run_json(&["--network", "isolated"], image, &["true"]));
    let mut peers: [Peer<'_>; 2] =
        [(DISK_NAMES[0], Box::new(run(SMALL))), (DISK_NAMES[1], Box::new(run(LARGE)))];
    let samples = interleave(bench.runs, &mut peers)?;
    table.add_times("`microagent run … true`", &DISK_NAMES, &samples);
    Ok(())
}

/// The base disk of an image, as a workspace's record names it.
fn base_disk(bench: &Bench, image: &str) -> Result<PathBuf> {
    let machine = crate::memory::Running::start(bench, &["--network", "isolated"], image)?;
    let line = machine.qemu_command_line()?;
    let blockdev = line.iter().find(|word| word.contains("qcow2")).context("QEMU has no disk")?;
    let blockdev: serde_json::Value = serde_json::from_str(blockdev)?;
    let base = blockdev["backing"]["file"]["filename"].as_str().context("QEMU's disk has no base")?;
    Ok(base.into())
}
