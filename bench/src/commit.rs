//! A workspace's changes become an image, against `podman commit` of a container with the same changes.
//!
//! The image has 500 MB in ten thousand files: what a commit has to look through. The change is one file of a
//! megabyte that does not compress.

use std::process::Command;

use anyhow::Result;

use crate::Bench;
use crate::program::run;
use crate::sample::{Peer, Table, interleave, time};

/// The image with many files.
const MANY: &str = "bench/many:1";

/// Writes the change.
const CHANGE: [&str; 6] = ["/bin/busybox", "dd", "if=/dev/urandom", "of=/change", "bs=1M", "count=1"];

pub(crate) fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    let tar = bench.many_files_tar()?;
    bench.import(&tar, MANY)?;
    for (name, command) in [("bench-changed", &CHANGE[..]), ("bench-same", &["/bin/true"])] {
        run(bench.microagent(&bench.state()).args(["delete", "--force", "--yes", name]))?;
        let mut keep = bench.microagent(&bench.state());
        run(keep.args(["run", "--keep", "--name", name, "--network", "isolated", MANY]).args(command))?;
    }
    let podman = bench.podman().and_then(|podman| {
        podman.import(&tar, MANY)?;
        podman.keep("bench-changed", MANY, &CHANGE)?;
        Ok(podman)
    });
    let commit = |name: &'static str| {
        move || {
            let mut command: Command = bench.microagent(&bench.state());
            time(|| run(command.args(["commit", name, "bench/committed:1"])))
        }
    };
    let mut names = vec!["microagent commit", "microagent commit, nothing changed"];
    let mut peers: Vec<Peer<'_>> =
        vec![(names[0], Box::new(commit("bench-changed"))), (names[1], Box::new(commit("bench-same")))];
    match &podman {
        Ok(podman) => {
            names.push("podman commit");
            peers.push((
                "podman commit",
                Box::new(|| {
                    let took = time(|| podman.commit("bench-changed", "bench/committed:1"))?;
                    podman.remove_image("bench/committed:1")?;
                    Ok(took)
                }),
            ));
        }
        Err(error) => eprintln!("note: not measured against podman: {error:#}"),
    }
    let samples = interleave(bench.runs, &mut peers)?;
    drop(peers);
    table.add_times("1 MB changed on 500 MB in 10 000 files", &names, &samples);
    Ok(())
}
