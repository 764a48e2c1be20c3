//! `cargo xtask demo`: from sources to an answer out of a microVM.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{capture, cargo, program, root, run, words};

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
    let rootfs = dir.join("rootfs");
    make_rootfs(&rootfs)?;
    let tar = dir.join("busybox.tar");
    let pack = ["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "-cf"];
    run(program("tar").args(pack).arg(&tar).arg("-C").arg(&rootfs).arg("."))?;

    eprintln!("State is kept in target/demo/state; your own ~/.microagent is left alone.\n");
    show(["image", "import", "target/demo/busybox.tar", IMAGE])?;
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

/// A root file system of one static program under the names of all its applets.
fn make_rootfs(rootfs: &Path) -> Result<()> {
    if rootfs.exists() {
        fs::remove_dir_all(rootfs)?;
    }
    let bin = rootfs.join("bin");
    for dir in [&bin, &rootfs.join("etc"), &rootfs.join("root"), &rootfs.join("tmp")] {
        fs::create_dir_all(dir)?;
    }
    fs::set_permissions(rootfs.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(rootfs.join("etc/group"), "root:x:0:\n")?;
    let busybox = Path::new("/bin/busybox");
    fs::copy(busybox, bin.join("busybox")).context("busybox-static is not installed")?;
    for applet in capture(program(busybox).arg("--list"))?.lines().filter(|name| *name != "busybox") {
        symlink("busybox", bin.join(applet)).with_context(|| format!("cannot make applet `{applet}`"))?;
    }
    Ok(())
}
