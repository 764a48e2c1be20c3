//! `cargo xtask kernel-arm64`: builds the guest kernel for 64-bit ARM with Debian's cross compiler, and boots it under
//! emulation with the devices of a guest.
//!
//! Nothing of microagent runs in it, because there is no agent for that architecture. Its first process, a small C program,
//! looks for what a guest needs and turns the machine off.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::fixtures::target_directory;
use crate::process::{capture, program, root, run};

/// How long the machine may take, in seconds.
const DEADLINE: &str = "300";

/// The processor of a guest on another architecture, and its kernel's command line.
const ARCHITECTURE: &str = "crates/microagent-vm/src/architecture/aarch64.rs";

/// Builds and boots it.
pub(crate) fn run_trial() -> Result<()> {
    run(program("xtask/install-packages").arg("arm64"))?;
    let dir = target_directory().join("kernel-arm64");
    run(program("kernel/arm64/build.sh").arg(&dir))?;
    let initramfs = initramfs(&dir)?;
    let disk = disk(&dir)?;
    let console = boot(&dir.join("Image"), &initramfs, &disk)?;
    let last = console.lines().rfind(|line| line.starts_with("arm64: ")).unwrap_or_default();
    let counts = last.rsplit_once(": ").and_then(|(_, counts)| counts.split_once(" of "));
    let (found, wanted) = counts.with_context(|| format!("the guest did not finish:\n{console}"))?;
    ensure!(found == wanted, "the kernel lacks something:\n{console}");
    Ok(())
}

/// An initramfs with the first process alone.
fn initramfs(dir: &Path) -> Result<PathBuf> {
    let init = dir.join("init");
    let mut compile = program("aarch64-linux-gnu-gcc");
    run(compile.args(["-static", "-O2", "-Wall", "-Werror", "-o"]).arg(&init).arg("kernel/arm64/init.c"))?;
    let pack = "echo init | cpio --quiet -o -H newc > initramfs.cpio";
    run(program("sh").current_dir(dir).args(["-c", pack]))?;
    Ok(dir.join("initramfs.cpio"))
}

/// A disk with a file, and with what an overlay needs.
fn disk(dir: &Path) -> Result<PathBuf> {
    let (tree, disk) = (dir.join("tree"), dir.join("disk.ext4"));
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir_all(tree.join(name))?;
    }
    fs::write(tree.join("marker"), "content")?;
    run(program("rm").arg("-f").arg(&disk))?;
    run(program("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&tree).arg(&disk).arg("16M"))?;
    Ok(disk)
}

/// Boots the kernel with the devices of a guest, and gives what the console showed.
fn boot(kernel: &Path, initramfs: &Path, disk: &Path) -> Result<String> {
    let node = serde_json::json!({
        "driver": "raw", "node-name": "root", "file": { "driver": "file", "filename": disk },
    });
    let mut qemu = Command::new("timeout");
    qemu.args([DEADLINE, "qemu-system-aarch64", "-machine", "virt", "-accel", "tcg"])
        .args(["-cpu", &constant("EMULATED_CPU")?, "-m", "512", "-smp", "2"])
        .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", &constant("KERNEL_COMMAND_LINE")?])
        .args(["-chardev", "null,id=control", "-device", "virtio-serial-device,id=serial0,max_ports=2"])
        .args(["-device", "virtserialport,bus=serial0.0,chardev=control,name=microagent.control"])
        .args(["-device", "virtio-rng-device", "-device", "virtio-scsi-device,id=scsi0"])
        .args(["-device", "virtio-balloon-device", "-blockdev", &node.to_string()])
        .args(["-device", "scsi-hd,drive=root,bus=scsi0.0"])
        .args(["-netdev", "hubport,id=net0,hubid=0", "-device", "virtio-net-device,netdev=net0"]);
    let console = capture(qemu.stdin(Stdio::null()))?;
    print!("{console}");
    Ok(console)
}

/// A text that the module of the architecture names.
fn constant(name: &str) -> Result<String> {
    let source = fs::read_to_string(root().join(ARCHITECTURE)).context("cannot read the architecture")?;
    let start = format!("const {name}: &str = \"");
    let value = source.split_once(&start).and_then(|(_, rest)| rest.split_once("\";"));
    Ok(value.with_context(|| format!("{ARCHITECTURE} has no {name}"))?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_tried_with_what_a_guest_would_be_given() {
        assert_eq!(constant("EMULATED_CPU").unwrap(), "max");
        assert!(constant("KERNEL_COMMAND_LINE").unwrap().contains("console=ttyAMA0"));
        assert!(constant("NOTHING").is_err());
    }
}
