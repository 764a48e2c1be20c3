//! From a [`MachineSpec`] to QEMU's command line. Pure.
//!
//! The machine is QEMU's `microvm`: no PCI, no ACPI, eight virtio-mmio slots. It has a serial console, one
//! virtio-serial port (the control channel), a random number device, one SCSI controller for all disks
//! and, with network `user`, one network device. Every channel is a socket that QEMU inherits: there is no
//! path to it and nobody else can connect.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

use microagent_proto::PORT_NAME;
use microagent_qemu::argv::{
    Accel, CommandLine, Durability, Microvm, qcow2_overlay, raw_file_read_only, raw_file_writable,
};
use serde_json::{Value, json};

use crate::spec::MachineSpec;

/// Version of the set of devices below, and of the processor; a template is good only for the layout that it was
/// frozen with.
pub const DEVICE_LAYOUT: u32 = 3;

/// The processor that QEMU emulates: all that it can, but for `rep movsb` and `rep stosb` being fast (ERMS). They are
/// not: emulated, they go byte by byte, and kernel and C library would copy and clear everything with them.
const EMULATED_CPU: &str = "max,erms=off";

/// Size of a disk that is none. The agent takes everything below 1 MiB for a placeholder, and looks again.
const PLACEHOLDER_BYTES: u64 = 512 * 1024;

/// QEMU's name for the host's end of the network.
pub(crate) const NETDEV: &str = "net0";

/// SCSI target of the root disk.
pub const ROOT_SCSI_TARGET: u8 = 0;

/// SCSI target of the first disk beside the root disk.
pub const EXTRA_SCSI_TARGET: u8 = 1;

/// Most disks beside the root disk: `virtio-scsi` has targets up to 255.
pub const EXTRA_DISKS_MAX: usize = 254;

/// Kernel command line. `reboot=t` and `panic=-1`: a machine without ACPI ends by a triple fault, which
/// QEMU takes as a reset and, with `-no-reboot`, as the end. `scsi_mod.scan=manual`: walking hundreds of
/// empty SCSI targets takes very long under TCG; the agent names the one it wants.
pub const KERNEL_COMMAND_LINE: &str = "console=ttyS0 reboot=t panic=-1 quiet scsi_mod.scan=manual";

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

/// How the machine comes to life.
#[derive(Debug, Clone, Copy)]
pub enum Start<'a> {
    /// The kernel is booted.
    Boot,
    /// The kernel is booted with its memory in this file, so that the guest can be frozen.
    BootToFreeze {
        /// The memory, shared with whoever copies it.
        memory: BorrowedFd<'a>,
    },
    /// A frozen guest goes on.
    Restore {
        /// Its memory, mapped privately.
        memory: BorrowedFd<'a>,
        /// The state of its devices.
        state: BorrowedFd<'a>,
    },
    /// A frozen guest goes on, to be frozen again.
    RestoreToFreeze {
        /// A copy of its memory, shared with whoever copies it next.
        memory: BorrowedFd<'a>,
        /// The state of its devices.
        state: BorrowedFd<'a>,
    },
}

impl<'a> Start<'a> {
    /// The state that the machine goes on from.
    pub(crate) fn state(&self) -> Option<BorrowedFd<'a>> {
        match self {
            Start::Boot | Start::BootToFreeze { .. } => None,
            Start::Restore { state, .. } | Start::RestoreToFreeze { state, .. } => Some(*state),
        }
    }
}

/// A path that cannot be handed to QEMU.
#[derive(Debug, thiserror::Error)]
#[error("`{}` is not UTF-8; QEMU takes no other paths", path.display())]
pub struct PathError {
    /// The path.
    pub path: PathBuf,
}

/// QEMU's command line. All starts of one shape have the same devices in the same order, because a frozen
/// state fits no others.
///
/// # Errors
/// Fails when a path is not UTF-8.
pub fn command_line(
    spec: &MachineSpec,
    start: Start<'_>,
    sockets: Sockets<'_>,
) -> Result<CommandLine, PathError> {
    let mut line = CommandLine::new();
    let accel = if spec.kvm { Accel::Kvm } else { Accel::Tcg };
    let memory_backend = add_memory(&mut line, spec, start);
    line.machine(&Microvm { accel, memory_backend })
        .switch("-cpu", if spec.kvm { "host" } else { EMULATED_CPU })
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
    add_disk(&mut line, spec, start)?;
    if let Some(network) = sockets.network {
        line.netdev_stream_fd(NETDEV, network)
            .device(&json!({ "driver": "virtio-net-device", "netdev": NETDEV }));
    }
    // A frozen state has every device that was there: these come afterwards, and at each start anew.
    if matches!(start, Start::Boot | Start::Restore { .. }) {
        for (node, device) in extra_disks(spec)? {
            line.blockdev(&node).device(&device);
        }
    }
    Ok(line)
}

/// Memory in a file for a guest that is or will be frozen; gives the backend's id.
fn add_memory(line: &mut CommandLine, spec: &MachineSpec, start: Start<'_>) -> Option<String> {
    let (memory, share) = match start {
        Start::Boot => return None,
        Start::BootToFreeze { memory } => (memory, true),
        Start::Restore { memory, .. } => (memory, false),
        Start::RestoreToFreeze { memory, .. } => (memory, true),
    };
    if start.state().is_some() {
        // The monitor says first that memory is not part of the state, then where the state is.
        line.switch("-incoming", "defer");
    }
    line.object(&json!({
        "qom-type": "memory-backend-file",
        "id": "mem",
        "size": u64::from(spec.memory_mib) * 1024 * 1024,
        "mem-path": format!("/proc/self/fd/{}", memory.as_raw_fd()),
        "share": share,
        "dump": false,
    }));
    Some("mem".to_owned())
}

/// A machine that is to be frozen has a placeholder where its disk will be: the kernel looks at a disk while it
/// boots, and what it has seen is in the template.
fn add_disk(line: &mut CommandLine, spec: &MachineSpec, start: Start<'_>) -> Result<(), PathError> {
    let node = match start {
        Start::BootToFreeze { .. } => {
            let nothing = json!({ "driver": "null-co", "size": PLACEHOLDER_BYTES, "read-zeroes": true });
            root_node(&nothing)
        }
        Start::Boot | Start::Restore { .. } | Start::RestoreToFreeze { .. } => match disk_node(spec, "root")?
        {
            Some(node) => node,
            None => json!({ "driver": "null-co", "node-name": "root", "size": PLACEHOLDER_BYTES }),
        },
    };
    line.blockdev(&node);
    // A full host disk stops the machine (and the supervisor hears of it), any other error is the guest's.
    line.device(&json!({
        "driver": "scsi-hd", "drive": "root", "bus": "scsi0.0",
        "scsi-id": ROOT_SCSI_TARGET, "lun": 0, "werror": "enospc", "rerror": "report",
    }));
    Ok(())
}

/// The block node that the guest's disk is while it is a placeholder: it passes everything on to what is under it,
/// which can be exchanged.
fn root_node(under: &Value) -> Value {
    json!({ "driver": "raw", "node-name": "root", "discard": "unmap", "file": under })
}

/// What the monitor is told to put the machine's disk in the place of the placeholder; nothing if it has none.
///
/// # Errors
/// Fails when a path is not UTF-8.
pub(crate) fn insert_disk(spec: &MachineSpec) -> Result<Vec<(&'static str, Value)>, PathError> {
    let Some(disk) = disk_node(spec, "disk")? else { return Ok(Vec::new()) };
    let reopened = json!({ "options": [root_node(&json!("disk"))] });
    Ok(vec![("blockdev-add", disk), ("blockdev-reopen", reopened)])
}

/// What the monitor is told to add the disks beside the root disk to a machine that was frozen without them.
///
/// # Errors
/// Fails when a path is not UTF-8.
pub(crate) fn add_extra_disks(spec: &MachineSpec) -> Result<Vec<(&'static str, Value)>, PathError> {
    let disks = extra_disks(spec)?.into_iter();
    Ok(disks.flat_map(|(node, device)| [("blockdev-add", node), ("device_add", device)]).collect())
}

/// The disks beside the root disk: block node and device of each.
fn extra_disks(spec: &MachineSpec) -> Result<Vec<(Value, Value)>, PathError> {
    let targets = EXTRA_SCSI_TARGET..=u8::MAX;
    let disks = targets.zip(&spec.extra_disks).map(|(target, disk)| {
        let node =
            if disk.read_only { raw_file_read_only(&disk.path) } else { raw_file_writable(&disk.path) };
        let mut node = node.ok_or_else(|| PathError { path: disk.path.clone() })?;
        let name = format!("extra{target}");
        node["node-name"] = json!(name);
        let device = json!({
            "driver": "scsi-hd", "drive": name, "id": format!("disk{target}"), "bus": "scsi0.0",
            "scsi-id": target, "lun": 0, "werror": "enospc", "rerror": "report",
        });
        Ok((node, device))
    });
    disks.collect()
}

/// The machine's disk as a block node, if it has one.
fn disk_node(spec: &MachineSpec, node_name: &str) -> Result<Option<Value>, PathError> {
    let Some(disk) = &spec.disk else { return Ok(None) };
    let durability = if disk.keep { Durability::Kept } else { Durability::Scratch };
    let not_utf8 = |path: &PathBuf| PathError { path: path.clone() };
    let base = raw_file_read_only(&disk.base).ok_or_else(|| not_utf8(&disk.base))?;
    let node = qcow2_overlay(node_name, &disk.overlay, base, durability);
    Ok(Some(node.ok_or_else(|| not_utf8(&disk.overlay))?))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::spec::{Claim, DiskSpec, ExtraDisk};

    fn spec() -> MachineSpec {
        MachineSpec {
            qemu: "/usr/bin/qemu-system-x86_64".into(),
            kvm: false,
            kernel: "/g/vmlinux".into(),
            initramfs: "/g/initramfs".into(),
            memory_mib: 512,
            cpu_count: 2,
            disk: Some(DiskSpec {
                overlay: "/w/disk.qcow2".into(),
                base: "/i/base.ext4".into(),
                keep: true,
                fresh: false,
            }),
            extra_disks: Vec::new(),
        }
    }

    fn words(spec: &MachineSpec, with_network: bool) -> Vec<String> {
        let null = std::fs::File::open("/dev/null").unwrap();
        let fd = null.as_fd();
        let sockets = Sockets { console: fd, monitor: fd, control: fd, network: with_network.then_some(fd) };
        let line = command_line(spec, Start::Boot, sockets).unwrap();
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
    fn every_start_has_the_same_devices_in_the_same_order() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let fd = null.as_fd();
        let sockets = Sockets { console: fd, monitor: fd, control: fd, network: Some(fd) };
        let devices = |spec: &MachineSpec, start| {
            let line = command_line(spec, start, sockets).unwrap();
            let words: Vec<_> = line.args().iter().map(|arg| arg.to_str().unwrap().to_owned()).collect();
            let device = |pair: &[String]| (pair[0] == "-device").then(|| pair[1].clone());
            words.windows(2).filter_map(device).collect::<Vec<_>>()
        };
        let booted = devices(&spec(), Start::Boot);
        assert_eq!(devices(&spec(), Start::BootToFreeze { memory: fd }), booted);
        assert_eq!(devices(&spec(), Start::Restore { memory: fd, state: fd }), booted);
        assert_eq!(devices(&spec(), Start::RestoreToFreeze { memory: fd, state: fd }), booted);
        let without_disk = MachineSpec { disk: None, ..spec() };
        assert_eq!(devices(&without_disk, Start::BootToFreeze { memory: fd }), booted);
    }

    #[test]
    fn a_machine_that_is_to_be_frozen_sees_its_disk_only_afterwards() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let fd = null.as_fd();
        let sockets = Sockets { console: fd, monitor: fd, control: fd, network: None };
        let line = command_line(&spec(), Start::BootToFreeze { memory: fd }, sockets).unwrap();
        let words: Vec<_> = line.args().iter().map(|arg| arg.to_str().unwrap()).collect();
        assert!(!words.iter().any(|word| word.contains("/w/") || word.contains("/i/")), "{words:?}");
        let inserted = insert_disk(&spec()).unwrap();
        assert_eq!(inserted[0].1["file"]["filename"], "/w/disk.qcow2");
        assert_eq!(inserted[0].1["backing"]["file"]["filename"], "/i/base.ext4");
        assert_eq!(inserted[1].1["options"][0]["file"], inserted[0].1["node-name"]);
        assert!(insert_disk(&MachineSpec { disk: None, ..spec() }).unwrap().is_empty());
    }

    #[test]
    fn further_disks_come_last_and_never_into_a_template() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let fd = null.as_fd();
        let sockets = Sockets { console: fd, monitor: fd, control: fd, network: None };
        let disk = |path: &str, read_only| ExtraDisk { path: path.into(), read_only, claim: Claim::None };
        let spec =
            MachineSpec { extra_disks: vec![disk("/i/other", true), disk("/v/data", false)], ..spec() };
        let words = |start| {
            let line = command_line(&spec, start, sockets).unwrap();
            line.args().iter().map(|arg| arg.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        for start in [Start::Boot, Start::Restore { memory: fd, state: fd }] {
            let words = words(start);
            let of = |text: &str| {
                let word = words.iter().find(|word| word.contains(text)).unwrap();
                serde_json::from_str::<Value>(word).unwrap()
            };
            let base = of("/i/other");
            assert_eq!((&base["read-only"], &base["file"]["read-only"]), (&json!(true), &json!(true)));
            assert_eq!(of("/v/data")["read-only"], Value::Null);
            assert_eq!(of("\"disk2\"")["scsi-id"], 2);
            assert!(words.last().unwrap().contains("disk2"), "{words:?}");
        }
        for start in [Start::BootToFreeze { memory: fd }, Start::RestoreToFreeze { memory: fd, state: fd }] {
            let frozen = words(start);
            let has = |text: &str| frozen.iter().any(|word| word.contains(text));
            assert!(!has("/i/other") && !has("disk1"), "{frozen:?}");
        }
        let added = add_extra_disks(&spec).unwrap();
        let names: Vec<_> = added.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["blockdev-add", "device_add", "blockdev-add", "device_add"]);
        assert_eq!(added[1].1["drive"], added[0].1["node-name"]);
    }

    #[test]
    fn a_restored_machine_maps_its_memory_privately() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let fd = null.as_fd();
        let sockets = Sockets { console: fd, monitor: fd, control: fd, network: None };
        let line = command_line(&spec(), Start::Restore { memory: fd, state: fd }, sockets).unwrap();
        let object =
            line.args().iter().find_map(|arg| arg.to_str().filter(|arg| arg.contains("memory-backend-file")));
        let object: serde_json::Value = serde_json::from_str(object.unwrap()).unwrap();
        assert_eq!(object["share"], false);
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
