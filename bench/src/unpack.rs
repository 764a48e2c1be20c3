//! A minimal Debian (one gzip layer, OCI layout) becomes something that can be run.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::Bench;
use crate::podman::Podman;
use crate::program::run;
use crate::sample::{Peer, Table, interleave, time};

const NAMES: [&str; 3] = ["umoci unpack", "microagent image pull", "podman load"];

pub(crate) fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    let layout = bench.debian_layout()?;
    let archive = bench.debian_archive()?;
    let image = format!("{}:1", layout.display());
    let umoci = || -> Result<Duration> {
        let bundle = bench.dir.join("unpacked");
        let mut command = Command::new("umoci");
        command.args(["unpack", "--image", &image]);
        if !rustix::process::geteuid().is_root() {
            command.arg("--rootless");
        }
        let took = time(|| run(command.arg(&bundle)))?;
        fs::remove_dir_all(bundle)?;
        Ok(took)
    };
    let microagent = || -> Result<Duration> {
        let state = bench.dir.join("state-of-pull");
        let took = time(|| run(bench.microagent(&state).args(["image", "pull", &format!("oci:{image}")])))?;
        fs::remove_dir_all(state)?;
        Ok(took)
    };
    let podman = || -> Result<Duration> {
        let podman = Podman::at(bench.dir.join("podman-of-load"));
        let took = time(|| podman.load(&archive))?;
        podman.remove()?;
        Ok(took)
    };
    let mut peers: [Peer<'_>; 3] =
        [(NAMES[0], Box::new(umoci)), (NAMES[1], Box::new(microagent)), (NAMES[2], Box::new(podman))];
    let samples = interleave(bench.runs, &mut peers)?;
    table.add_times("Debian image to disk", &NAMES, &samples);
    Ok(())
}
