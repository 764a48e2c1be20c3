//! Converts a [`MachineSpec`] to QEMU's command line. Pure.
//!
//! The machine is QEMU's `microvm`: no PCI, no ACPI, eight virtio-mmio slots. It has a serial console, one
//! virtio-serial port (the control channel), a random number device, a balloon, one SCSI controller for all disks
//! and, with network `user`, one network device. Every channel is a socket that QEMU inherits, so no
//! other process can connect. Every file is a descriptor that QEMU inherits; QEMU opens no file by its path.

use std::os::fd::{AsRawFd, BorrowedFd};

use microagent_proto::PORT_NAME;
use microagent_qemu::argv::{
    Accel, CommandLine, Durability, FdSet, Microvm, qcow2_layer, qcow2_overlay, raw_file_read_only,
    raw_file_shared, raw_file_writable,
};
use microagent_qemu::features::Features;
use microagent_store::VMM_NAME;
use serde_json::{Value, json};

use crate::architecture::{EMULATED_CPU, HARDWARE_CPU, KERNEL_COMMAND_LINE};
use crate::spec::{DiskLimits, MachineSpec};

/// Version of the set of devices below and of the processor; a template can be restored only with the layout of its
/// freeze.
pub const DEVICE_LAYOUT: u32 = 9;

/// Size of the buffer for translated code, in MiB. QEMU's default is up to 1 GiB in addition to the guest's memory,
/// and a guest that keeps generating code fills it.
pub const TRANSLATION_BUFFER_MIB: u32 = 128;

/// Most memory of QEMU on the host in addition to the guest's memory and the translation buffer, in MiB: program,
/// libraries, stacks, queues and caches of disks.
pub const VMM_OVERHEAD_MIB: u32 = 128;

/// Most memory of a machine on the host, in MiB.
pub fn host_memory_limit_mib(memory_mib: u32, accel: Accel) -> u32 {
    let translated = if accel == Accel::Tcg { TRANSLATION_BUFFER_MIB } else { 0 };
    memory_mib.saturating_add(translated).saturating_add(VMM_OVERHEAD_MIB)
}

/// A word of the kernel's command line: only warnings and errors go to the console, whose each line costs a start time.
const QUIET: &str = "quiet ";

/// A word of the kernel's command line for systemd: no login on the console, which nobody could use. Without udev, as in
/// most images, systemd would wait 90 seconds for the console's device.
const NO_GETTY: &str = "systemd.getty_auto=0";

/// Size of a placeholder for a disk. The agent treats each disk below 1 MiB as a placeholder and scans again.
const PLACEHOLDER_BYTES: u64 = 512 * 1024;

/// Largest packet of the network device, in bytes. `-netdev stream` has no segmentation offload; large packets reduce
/// the cost per byte. The host's kernel sends the payload in packets of its own size.
pub(crate) const LINK_MTU: u16 = 65_520;

/// QEMU's name for the host's end of the network.
pub(crate) const NETDEV: &str = "net0";

/// Descriptor set of the overlay of the root disk.
const OVERLAY_SET: FdSet = FdSet(0);

/// Descriptor set of the base disk.
const BASE_SET: FdSet = FdSet(1);

/// Descriptor set of the frozen state that is restored.
pub(crate) const STATE_SET: FdSet = FdSet(2);

/// Descriptor set of the state that a freeze writes.
pub(crate) const FREEZE_SET: FdSet = FdSet(3);

/// Descriptor set of the first further disk; the others follow.
const EXTRA_SETS: u32 = 16;

/// Descriptor set of the lowest layer of the root disk; the others follow.
const LAYER_SETS: u32 = EXTRA_SETS + EXTRA_DISKS_MAX as u32;

/// Name of the device of the root disk.
const ROOT_DEVICE: &str = "root-disk";

/// Name of the block node of the root disk.
pub(crate) const ROOT_NODE: &str = "root";

/// Name of the overlay's block node in a machine that got its disk after it was frozen.
pub(crate) const INSERTED_NODE: &str = "disk";

/// Name of the guest's memory in QEMU, and in a captured state.
const MEMORY: &str = "mem";

/// Descriptor set of the first overlay that a running machine is given; the others follow.
const CAPTURE_SETS: u32 = LAYER_SETS + 1024;

/// Most overlays that a running machine is given: each costs open files, and a lookup per read.
pub(crate) const CAPTURES_MAX: u32 = 32;

/// SCSI target of the root disk.
pub const ROOT_SCSI_TARGET: u8 = 0;

/// SCSI target of the first further disk.
pub const EXTRA_SCSI_TARGET: u8 = 1;

/// Most further disks: `virtio-scsi` has targets up to 255, of which the last is that of the base disk.
pub const EXTRA_DISKS_MAX: usize = 254;

/// SCSI target of the base disk, while a running guest compares its root disk with it.
pub const BASE_SCSI_TARGET: u8 = 255;
const _: () = assert!(EXTRA_SCSI_TARGET as usize + EXTRA_DISKS_MAX <= BASE_SCSI_TARGET as usize);

/// The ends of the supervisor's sockets that QEMU inherits.
#[derive(Debug, Clone, Copy)]
pub struct Sockets<'a> {
    /// Serial console.
    pub console: BorrowedFd<'a>,
    /// Monitor.
    pub monitor: BorrowedFd<'a>,
    /// Control channel.
    pub control: BorrowedFd<'a>,
    /// The network stack, with network `user`.
    pub network: Option<BorrowedFd<'a>>,
}

/// The machine's open files, which QEMU inherits.
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    /// What the machine boots; `None` for one that is restored and never boots.
    pub boot: Option<BootFiles<'a>>,
    /// Overlay and base disk of the root disk; `None` for a machine without one.
    pub root: Option<(BorrowedFd<'a>, BorrowedFd<'a>)>,
    /// Layers between them, the lowest one first.
    pub layers: &'a [BorrowedFd<'a>],
    /// The further disks, in their order.
    pub extra: &'a [BorrowedFd<'a>],
}

/// The files that a machine boots, which QEMU opens again.
#[derive(Debug, Clone, Copy)]
pub struct BootFiles<'a> {
    /// Guest kernel.
    pub kernel: BorrowedFd<'a>,
    /// Initramfs.
    pub initramfs: BorrowedFd<'a>,
}

impl<'a> Files<'a> {
    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = BorrowedFd<'a>> {
        let boot = self.boot.into_iter().flat_map(|boot| [boot.kernel, boot.initramfs]);
        let root = self.root.into_iter().flat_map(|(overlay, base)| [overlay, base]);
        boot.chain(root).chain(self.layers.iter().chain(self.extra).copied())
    }
}

/// How the machine starts.
#[derive(Debug, Clone, Copy)]
pub enum Start<'a> {
    /// The kernel is booted.
    Boot,
    /// The kernel is booted with the guest's memory in this file, so that the guest can be frozen.
    BootToFreeze {
        /// The memory, mapped shared, so that it can be copied.
        memory: BorrowedFd<'a>,
    },
    /// A frozen guest is restored.
    Restore {
        /// Its memory, mapped privately.
        memory: BorrowedFd<'a>,
        /// The state of its devices.
        state: BorrowedFd<'a>,
    },
    /// A guest is restored whose memory is in the state.
    RestoreWhole {
        /// Memory and devices.
        state: BorrowedFd<'a>,
    },
    /// A frozen guest is restored, to be frozen again.
    RestoreToFreeze {
        /// A copy of the memory, mapped shared, so that it can be copied again.
        memory: BorrowedFd<'a>,
        /// The state of its devices.
        state: BorrowedFd<'a>,
    },
}

impl<'a> Start<'a> {
    /// The memory that QEMU opens.
    pub(crate) fn memory(&self) -> Option<BorrowedFd<'a>> {
        match self {
            Start::Boot | Start::RestoreWhole { .. } => None,
            Start::BootToFreeze { memory }
            | Start::Restore { memory, .. }
            | Start::RestoreToFreeze { memory, .. } => Some(*memory),
        }
    }

    /// The state that the machine is restored from.
    pub(crate) fn state(&self) -> Option<BorrowedFd<'a>> {
        match self {
            Start::Boot | Start::BootToFreeze { .. } => None,
            Start::Restore { state, .. }
            | Start::RestoreWhole { state }
            | Start::RestoreToFreeze { state, .. } => Some(*state),
        }
    }

    /// Whether the guest comes from a template, with its kernel.
    pub(crate) fn is_from_template(&self) -> bool {
        matches!(self, Start::Restore { .. } | Start::RestoreToFreeze { .. })
    }
}

/// Returns QEMU's command line. All starts of one shape have the same devices in the same order, because a frozen
/// state can be restored only with these.
pub fn command_line(
    spec: &MachineSpec,
    start: Start<'_>,
    sockets: Sockets<'_>,
    files: Files<'_>,
    features: Features,
) -> CommandLine {
    let mut line = CommandLine::new();
    let accel = if spec.kvm { Accel::Kvm } else { Accel::Tcg };
    add_memory(&mut line, spec, start, features);
    line.machine(&Microvm { memory_backend: MEMORY.to_owned(), accel })
        .accel(accel, TRANSLATION_BUFFER_MIB)
        .switch("-cpu", if spec.kvm { HARDWARE_CPU } else { EMULATED_CPU })
        .switch("-m", spec.memory_mib.to_string())
        .switch("-smp", spec.cpu_count.to_string())
        .switch("-name", VMM_NAME)
        .flag("-nodefaults")
        .flag("-no-user-config")
        .flag("-nographic")
        // A guest that ends its machine, in whatever way, stops it: the supervisor decides what follows.
        .flag("-no-reboot")
        .flag("-no-shutdown")
        .switch("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
        .chardev_fd("console", sockets.console)
        .switch("-serial", "chardev:console")
        .chardev_fd("monitor", sockets.monitor)
        .switch("-mon", "chardev=monitor,mode=control")
        .chardev_fd("control", sockets.control)
        .device(&json!({ "driver": "virtio-serial-device", "id": "serial0", "max_ports": 2 }))
        .device(&json!({ "driver": "virtserialport", "bus": "serial0.0", "chardev": "control", "name": PORT_NAME }))
        .device(&json!({ "driver": "virtio-rng-device" }))
        .device(&json!({ "driver": "virtio-scsi-device", "id": "scsi0" }))
        .device(&balloon(start, features));
    if let Some(boot) = files.boot {
        line.switch("-kernel", own_descriptor(boot.kernel))
            .switch("-initrd", own_descriptor(boot.initramfs))
            .switch("-append", kernel_command_line(spec));
    }
    add_files(&mut line, files);
    add_disk(&mut line, spec, start);
    if let Some(network) = sockets.network {
        line.netdev_stream_fd(NETDEV, network)
            .device(&json!({ "driver": "virtio-net-device", "netdev": NETDEV, "host_mtu": LINK_MTU }));
    }
    // A frozen state has every device that was there: these come afterwards, and at each start anew.
    if matches!(start, Start::Boot | Start::Restore { .. } | Start::RestoreWhole { .. }) {
        for (node, device) in extra_disks(spec) {
            line.blockdev(&node).device(&device);
        }
    }
    line
}

fn kernel_command_line(spec: &MachineSpec) -> String {
    let messages = if spec.verbose_boot { "" } else { QUIET };
    format!("{KERNEL_COMMAND_LINE} {messages}{NO_GETTY}")
}

/// Adds the descriptors of block nodes, which are opened now or later through the monitor.
fn add_files(line: &mut CommandLine, files: Files<'_>) {
    if let Some((overlay, base)) = files.root {
        line.add_fd(OVERLAY_SET, overlay).add_fd(BASE_SET, base);
    }
    let layers = (LAYER_SETS..).map(FdSet).zip(files.layers);
    for (set, file) in (EXTRA_SETS..).map(FdSet).zip(files.extra).chain(layers) {
        line.add_fd(set, *file);
    }
}

/// Returns the path of a descriptor for the process that has it.
fn own_descriptor(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// The balloon, by which the guest reports memory that it has freed, and QEMU gives this memory back to the host. QEMU
/// cannot do that with memory that it has opened for reading only, so the guest of a template is not told of it then.
fn balloon(start: Start<'_>, features: Features) -> Value {
    let is_own = matches!(start, Start::Boot | Start::RestoreWhole { .. });
    let reports = is_own || !features.read_only_memory;
    json!({ "driver": "virtio-balloon-device", "free-page-reporting": reports })
}

/// Adds the guest's memory, for a guest that is restored or will be frozen in a file. It has the same name in all
/// machines, because a state names it.
fn add_memory(line: &mut CommandLine, spec: &MachineSpec, start: Start<'_>, features: Features) {
    if let Some(state) = start.state() {
        // The monitor says first whether memory is part of the state, then where the state is.
        line.switch("-incoming", "defer");
        if features.file_migration {
            line.add_fd(STATE_SET, state);
        }
    }
    let mut backend =
        json!({ "id": MEMORY, "size": u64::from(spec.memory_mib) * 1024 * 1024, "dump": false });
    let share = matches!(start, Start::BootToFreeze { .. } | Start::RestoreToFreeze { .. });
    match start.memory() {
        None => backend["qom-type"] = json!("memory-backend-ram"),
        Some(memory) => {
            backend["qom-type"] = json!("memory-backend-file");
            backend["mem-path"] = json!(own_descriptor(memory));
            backend["share"] = json!(share);
            if features.read_only_memory && !share {
                // The guest writes to its memory all the same: `rom` is about that, `readonly` about the file.
                backend["readonly"] = json!(true);
                backend["rom"] = json!("off");
            }
        }
    }
    line.object(&backend);
}

/// Whether the machine has a placeholder instead of its disk. The kernel reads a disk at boot, so the disk's data
/// would be in the template.
fn add_disk(line: &mut CommandLine, spec: &MachineSpec, start: Start<'_>) {
    let node = match start {
        Start::BootToFreeze { .. } => {
            let nothing = json!({ "driver": "null-co", "size": PLACEHOLDER_BYTES, "read-zeroes": true });
            root_node(&nothing)
        }
        Start::Boot | Start::Restore { .. } | Start::RestoreWhole { .. } | Start::RestoreToFreeze { .. } => {
            disk_node(spec, ROOT_NODE).unwrap_or_else(
                || json!({ "driver": "null-co", "node-name": "root", "size": PLACEHOLDER_BYTES }),
            )
        }
    };
    line.blockdev(&node);
    // A full host disk stops the machine (and the supervisor hears of it), any other error is the guest's.
    line.device(&json!({
        "driver": "scsi-hd", "drive": "root", "id": ROOT_DEVICE, "bus": "scsi0.0",
        "scsi-id": ROOT_SCSI_TARGET, "lun": 0, "werror": "enospc", "rerror": "report",
    }));
}

/// The block node of the guest's placeholder: it forwards to the node below it, which can be replaced.
fn root_node(under: &Value) -> Value {
    json!({ "driver": "raw", "node-name": "root", "discard": "unmap", "file": under })
}

/// Returns the monitor's commands that replace the placeholder by the machine's disk; none for a machine without a
/// disk.
pub(crate) fn insert_disk(spec: &MachineSpec) -> Vec<(&'static str, Value)> {
    let Some(disk) = disk_node(spec, INSERTED_NODE) else { return Vec::new() };
    let reopened = json!({ "options": [root_node(&json!(INSERTED_NODE))] });
    vec![("blockdev-add", disk), ("blockdev-reopen", reopened)]
}

/// Returns the monitor's commands that add the further disks to a machine that was frozen without them.
pub(crate) fn add_extra_disks(spec: &MachineSpec) -> Vec<(&'static str, Value)> {
    let throttle = |device: &Value| throttle(spec, device["id"].as_str()?);
    extra_disks(spec)
        .flat_map(|(node, device)| {
            let throttle = throttle(&device);
            [("blockdev-add", node), ("device_add", device)].into_iter().chain(throttle)
        })
        .collect()
}

/// Returns the monitor's commands that limit the rates of the disks with which a machine starts.
pub(crate) fn throttle_disks(spec: &MachineSpec, start: Start<'_>) -> Vec<(&'static str, Value)> {
    let extra = match start {
        Start::Boot | Start::Restore { .. } | Start::RestoreWhole { .. } => spec.extra_disks.len(),
        Start::BootToFreeze { .. } | Start::RestoreToFreeze { .. } => 0,
    };
    let extra = (EXTRA_SCSI_TARGET..=u8::MAX).take(extra).map(extra_device);
    std::iter::once(ROOT_DEVICE.to_owned()).chain(extra).filter_map(|id| throttle(spec, &id)).collect()
}

/// All disks are in one group, whose members share the limits.
fn throttle(spec: &MachineSpec, device: &str) -> Option<(&'static str, Value)> {
    let DiskLimits { bps, iops } = spec.disk_limits;
    if (bps, iops) == (None, None) {
        return None;
    }
    // Zero is no limit.
    let (bps, iops) = (bps.unwrap_or_default(), iops.unwrap_or_default());
    let limits = json!({
        "id": device, "group": "disks",
        "bps": bps, "bps_rd": 0, "bps_wr": 0, "iops": iops, "iops_rd": 0, "iops_wr": 0,
    });
    Some(("block_set_io_throttle", limits))
}

/// Returns the monitor's commands that show a running guest its base disk; `number` makes the names new.
pub(crate) fn show_base_disk(spec: &MachineSpec, number: u32) -> Vec<(&'static str, Value)> {
    let (node_name, device) = base_disk_names(number);
    let mut node = raw_file_shared(BASE_SET);
    node["node-name"] = json!(node_name);
    let disk = json!({
        "driver": "scsi-hd", "drive": node_name, "id": device, "bus": "scsi0.0",
        "scsi-id": BASE_SCSI_TARGET, "lun": 0, "rerror": "report",
    });
    [("blockdev-add", node), ("device_add", disk)].into_iter().chain(throttle(spec, &device)).collect()
}

/// Returns the monitor's commands that remove the base disk again and close it.
pub(crate) fn hide_base_disk(number: u32) -> [(&'static str, Value); 2] {
    let (node_name, device) = base_disk_names(number);
    [("device_del", json!({ "id": device })), ("blockdev-del", json!({ "node-name": node_name }))]
}

/// Returns the name of the overlay with this number that a running machine is given.
pub(crate) fn capture_node(number: u32) -> String {
    format!("overlay{number}")
}

/// Returns the descriptor set of such an overlay.
pub(crate) fn capture_set(number: u32) -> FdSet {
    FdSet(CAPTURE_SETS + number)
}

/// Returns such an overlay as a block node that lies on nothing yet.
pub(crate) fn capture_overlay(spec: &MachineSpec, number: u32) -> Value {
    let keep = spec.disk.as_ref().is_some_and(|disk| disk.keep);
    let durability = if keep { Durability::Kept } else { Durability::Scratch };
    qcow2_overlay(&capture_node(number), capture_set(number), Value::Null, durability)
}

fn base_disk_names(number: u32) -> (String, String) {
    (format!("base{number}"), format!("base-disk{number}"))
}

/// Returns the name of the device of a further disk.
fn extra_device(target: u8) -> String {
    format!("disk{target}")
}

/// Returns block node and device of each further disk.
fn extra_disks(spec: &MachineSpec) -> impl Iterator<Item = (Value, Value)> {
    let targets = (EXTRA_SETS..).map(FdSet).zip(EXTRA_SCSI_TARGET..=u8::MAX);
    targets.zip(&spec.extra_disks).map(|((set, target), disk)| {
        let mut node = if disk.read_only { raw_file_read_only(set) } else { raw_file_writable(set) };
        let name = format!("extra{target}");
        node["node-name"] = json!(name);
        let device = json!({
            "driver": "scsi-hd", "drive": name, "id": extra_device(target), "bus": "scsi0.0",
            "scsi-id": target, "lun": 0, "werror": "enospc", "rerror": "report",
        });
        (node, device)
    })
}

/// Returns the machine's disk as a block node, if it has one.
fn disk_node(spec: &MachineSpec, node_name: &str) -> Option<Value> {
    let disk = spec.disk.as_ref()?;
    let durability = if disk.keep { Durability::Kept } else { Durability::Scratch };
    let layers = (LAYER_SETS..).map(FdSet).take(disk.layers.len());
    let backing = layers.fold(raw_file_shared(BASE_SET), |under, layer| qcow2_layer(layer, under));
    Some(qcow2_overlay(node_name, OVERLAY_SET, backing, durability))
}

#[cfg(test)]
mod tests;
