//! From a [`MachineSpec`] to QEMU's command line. Pure.
//!
//! The machine is QEMU's `microvm`: no PCI, no ACPI, eight virtio-mmio slots. It has a serial console, one
//! virtio-serial port (the control channel), a random number device, one SCSI controller for all disks
//! and, with network `user`, one network device. Every channel is a socket that QEMU inherits: there is no
//! path to it and nobody else can connect.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use microagent_proto::PORT_NAME;
use microagent_qemu::argv::{Accel, CommandLine, Durability, Microvm, qcow2_overlay, raw_file_read_only};
use serde_json::json;

use crate::spec::MachineSpec;

/// SCSI target of the root disk.
pub const ROOT_SCSI_TARGET: u8 = 0;

/// Kernel command line. `reboot=t` and `panic=-1`: a machine without ACPI ends by a triple fault, which
/// QEMU takes as a reset and, with `-no-reboot`, as the end. `scsi_mod.scan=manual`: walking hundreds of
/// empty SCSI targets takes very long under TCG; the agent names the one it wants.
pub const KERNEL_COMMAND_LINE: &str = "console=ttyS0 reboot=t panic=-1 quiet scsi_mod.scan=manual \
                                       random.trust_cpu=on tsc=reliable no_timer_check";

/// The supervisor's sockets, from the side that QEMU inherits.
#[derive(Debug, Clone, Copy)]
pub struct Sockets<'a> {
    /// Serial console.
    pub console: BorrowedFd<'a>,
    /// Monitor.
    pub monitor: BorrowedFd<'a>,
    /// Control channel.
    pub control: BorrowedFd<'a>,
    /// passt, with network `user`.
    pub network: Option<BorrowedFd<'a>>,
}

/// A path that cannot be handed to QEMU.
#[derive(Debug, thiserror::Error)]
#[error("`{}` is not UTF-8; QEMU takes no other paths", path.display())]
pub struct PathError {
    /// The path.
    pub path: PathBuf,
}

/// QEMU's command line for a cold boot.
///
/// # Errors
/// Fails when a path is not UTF-8.
pub fn command_line(spec: &MachineSpec, sockets: Sockets<'_>) -> Result<CommandLine, PathError> {
    let mut line = CommandLine::new();
    let accel = if spec.kvm { Accel::Kvm } else { Accel::Tcg };
    line.machine(&Microvm { accel, memory_backend: None })
        .switch("-cpu", if spec.kvm { "host" } else { "max" })
        .switch("-m", spec.memory_mib.to_string())
        .switch("-smp", spec.cpu_count.to_string())
        .flag("-nodefaults")
        .flag("-no-user-config")
        .flag("-nographic")
        .flag("-no-reboot")
        .switch("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
        .switch("-kernel", &spec.kernel)
        .switch("-initrd", &spec.initramfs)
        .switch("-append", KERNEL_COMMAND_LINE)
        .chardev_fd("console", sockets.console)
        .switch("-serial", "chardev:console")
        .chardev_fd("monitor", sockets.monitor)
        .switch("-mon", "chardev=monitor,mode=control")
        .chardev_fd("control", sockets.control)
        .device(&json!({ "driver": "virtio-serial-device", "id": "serial0", "max_ports": 2 }))
        .device(&json!({ "driver": "virtserialport", "bus": "serial0.0", "chardev": "control", "name": PORT_NAME }))
        .device(&json!({ "driver": "virtio-rng-device" }))
        .device(&json!({ "driver": "virtio-scsi-device", "id": "scsi0" }));
    add_disk(&mut line, spec)?;
    if let Some(network) = sockets.network {
        line.netdev_stream_fd("net0", network)
            .device(&json!({ "driver": "virtio-net-device", "netdev": "net0" }));
    }
    Ok(line)
}

fn add_disk(line: &mut CommandLine, spec: &MachineSpec) -> Result<(), PathError> {
    let durability = if spec.keep_disk { Durability::Kept } else { Durability::Scratch };
    let not_utf8 = |path: &PathBuf| PathError { path: path.clone() };
    let base = raw_file_read_only(&spec.base).ok_or_else(|| not_utf8(&spec.base))?;
    let disk = qcow2_overlay("root", &spec.disk, base, durability).ok_or_else(|| not_utf8(&spec.disk))?;
    line.blockdev(&disk);
    // A full host disk stops the machine (and the supervisor hears of it), any other error is the guest's.
    line.device(&json!({
        "driver": "scsi-hd", "drive": "root", "bus": "scsi0.0",
        "scsi-id": ROOT_SCSI_TARGET, "lun": 0, "werror": "enospc", "rerror": "report",
    }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn spec() -> MachineSpec {
        MachineSpec {
            qemu: "/usr/bin/qemu-system-x86_64".into(),
            kvm: false,
            kernel: "/g/vmlinux".into(),
            initramfs: "/g/initramfs".into(),
            memory_mib: 512,
            cpu_count: 2,
            disk: "/w/disk.qcow2".into(),
            base: "/i/base.ext4".into(),
            keep_disk: true,
        }
    }

    fn words(spec: &MachineSpec, with_network: bool) -> Vec<String> {
        let null = std::fs::File::open("/dev/null").unwrap();
        let fd = null.as_fd();
        let sockets = Sockets { console: fd, monitor: fd, control: fd, network: with_network.then_some(fd) };
        let line = command_line(spec, sockets).unwrap();
        line.args().iter().map(|arg| arg.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn an_isolated_machine_has_no_network_device() {
        let words = words(&spec(), false);
        assert!(!words.iter().any(|word| word.contains("net")), "{words:?}");
    }

    #[test]
    fn a_user_network_is_one_inherited_socket() {
        let words = words(&spec(), true);
        assert_eq!(words.iter().filter(|word| word.contains("virtio-net-device")).count(), 1);
        assert!(words.iter().any(|word| word.starts_with("stream,id=net0,server=off,addr.type=fd")));
    }

    #[test]
    fn the_base_disk_is_never_writable() {
        let words = words(&spec(), false);
        let blockdev: serde_json::Value = words
            .iter()
            .find(|word| word.contains("qcow2"))
            .map(|word| serde_json::from_str(word).unwrap())
            .unwrap();
        assert_eq!(blockdev["backing"]["file"]["read-only"], true);
    }
}
