//! `cargo xtask demo`: from sources to an answer out of a microVM.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use crate::fixtures::busybox_tar;
use crate::process::{cargo, program, root, run, words};

/// How the demo's image is called.
const IMAGE: &str = "busybox:demo";

/// What the guest is asked.
const QUESTION: &str =
    "echo \"Hello from $(hostname): Linux $(uname -r), $(nproc) CPUs, process 1 is $(cat /proc/1/comm)\"";

/// Builds, makes a small image, runs a command in it.
pub(crate) fn demo() -> Result<()> {
    eprintln!("Building (a few minutes the first time) …");
    run(cargo().args(["build", "--release", "--locked", "--quiet", "--package", "microagent-cli"]))?;

    let dir = root().join("target/demo");
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("busybox.tar"), busybox_tar()?).context("cannot write the image")?;

    eprintln!("State is kept in target/demo/state; your own ~/.microagent is left alone.\n");
    show(["image", "import", "--change", "CMD sh", "target/demo/busybox.tar", IMAGE])?;
    show(["run", "--image", IMAGE, "--exec", QUESTION])?;
    eprintln!("\nTry another command, or see what this machine offers:");
    eprintln!("  export MICROAGENT_STATE_DIR=target/demo/state");
    eprintln!("  target/release/microagent run {IMAGE} ls -l /");
    eprintln!("  target/release/microagent doctor");
    Ok(())
}

/// Shows a command as a person would type it, and runs it.
fn show<const N: usize>(args: [&str; N]) -> Result<()> {
    let mut command = microagent();
    command.args(args);
    eprintln!("$ {}", words(&command));
    run(&mut command)
}

fn microagent() -> Command {
    let mut command = program("target/release/microagent");
    command.env("MICROAGENT_STATE_DIR", "target/demo/state");
    command
}
