//! Converts a [`MachineSpec`] to QEMU's command line. Pure.
//!
//! The machine is QEMU's `microvm`: no PCI, no ACPI, eight virtio-mmio slots. It has a serial console, one
//! virtio-serial port (the control channel), a random number device, one SCSI controller for all disks
//! and, with network `user`, one network device. Every channel is a socket that QEMU inherits, so no
//! other process can connect. Every file is a descriptor that QEMU inherits; QEMU opens no file by its path.

use std::os::fd::{AsRawFd, BorrowedFd};

use microagent_proto::PORT_NAME;
use microagent_qemu::argv::{
    Accel, CommandLine, Durability, FdSet, Microvm, qcow2_layer, qcow2_overlay, raw_file_read_only,
    raw_file_writable,
};
use microagent_qemu::features::Features;
use microagent_store::VMM_NAME;
use serde_json::{Value, json};

use crate::architecture::{EMULATED_CPU, HARDWARE_CPU, KERNEL_COMMAND_LINE};
use crate::spec::{DiskLimits, MachineSpec};

/// Version of the set of devices below and of the processor; a template can be restored only with the layout of its
/// freeze.
pub const DEVICE_LAYOUT: u32 = 7;

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
    /// Guest kernel, which QEMU opens again.
    pub kernel: BorrowedFd<'a>,
    /// Initramfs, which QEMU opens again.
    pub initramfs: BorrowedFd<'a>,
    /// Overlay and base disk of the root disk; `None` for a machine without one.
    pub root: Option<(BorrowedFd<'a>, BorrowedFd<'a>)>,
    /// Layers between them, the lowest one first.
    pub layers: &'a [BorrowedFd<'a>],
    /// The further disks, in their order.
    pub extra: &'a [BorrowedFd<'a>],
}

impl<'a> Files<'a> {
    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = BorrowedFd<'a>> {
        let root = self.root.into_iter().flat_map(|(overlay, base)| [overlay, base]);
        [self.kernel, self.initramfs]
            .into_iter()
            .chain(root)
            .chain(self.layers.iter().chain(self.extra).copied())
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
    line.machine(&Microvm { memory_backend: MEMORY.to_owned() })
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
        .switch("-kernel", own_descriptor(files.kernel))
        .switch("-initrd", own_descriptor(files.initramfs))
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
    let mut node = raw_file_read_only(BASE_SET);
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
    let backing = layers.fold(raw_file_read_only(BASE_SET), |under, layer| qcow2_layer(layer, under));
    Some(qcow2_overlay(node_name, OVERLAY_SET, backing, durability))
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
                layers: Vec::new(),
                base: "/i/base.ext4".into(),
                keep: true,
                fresh: false,
            }),
            extra_disks: Vec::new(),
            disk_limits: DiskLimits::default(),
        }
    }

    /// Returns the command line of a machine whose sockets and files are all the same descriptor.
    fn words_of(spec: &MachineSpec, start: Start<'_>, fd: BorrowedFd<'_>, with_network: bool) -> Vec<String> {
        let sockets = Sockets { console: fd, monitor: fd, control: fd, network: with_network.then_some(fd) };
        let extra = vec![fd; spec.extra_disks.len()];
        let root = spec.disk.as_ref().map(|_| (fd, fd));
        let layers = vec![fd; spec.disk.as_ref().map_or(0, |disk| disk.layers.len())];
        let files = Files { kernel: fd, initramfs: fd, root, layers: &layers, extra: &extra };
        let line = command_line(spec, start, sockets, files, Features::default());
        line.args().iter().map(|arg| arg.to_str().unwrap().to_owned()).collect()
    }

    fn words(spec: &MachineSpec, with_network: bool) -> Vec<String> {
        let null = std::fs::File::open("/dev/null").unwrap();
        words_of(spec, Start::Boot, null.as_fd(), with_network)
    }

    /// Returns the JSON argument that contains this text.
    fn json_of(words: &[String], text: &str) -> Value {
        let word = words.iter().find(|word| word.contains(text)).unwrap();
        serde_json::from_str(word).unwrap()
    }

    #[test]
    fn no_file_has_a_path() {
        for network in [false, true] {
            let words = words(&spec(), network);
            let is_path = |word: &&String| ["/w/", "/i/", "/g/"].iter().any(|dir| word.contains(dir));
            assert_eq!(words.iter().find(is_path), None, "{words:?}");
            assert_eq!(words.iter().filter(|word| *word == "-add-fd").count(), 2);
        }
    }

    #[test]
    fn a_guest_sees_no_virtualisation_and_no_counters_of_the_host() {
        let words = words(&MachineSpec { kvm: true, ..spec() }, false);
        let cpu = words.iter().position(|word| word == "-cpu").unwrap();
        assert_eq!(words[cpu + 1], "host,svm=off,vmx=off,pmu=off");
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
        let devices = |spec: &MachineSpec, start| {
            let words = words_of(spec, start, fd, true);
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
        let words = words_of(&spec(), Start::BootToFreeze { memory: null.as_fd() }, null.as_fd(), false);
        let opened = |word: &&String| word.contains("\"/dev/fdset/");
        assert_eq!(words.iter().find(opened), None, "{words:?}");
        let inserted = insert_disk(&spec());
        assert_eq!(inserted[0].1["file"]["filename"], "/dev/fdset/0");
        assert_eq!(inserted[0].1["backing"]["file"]["filename"], "/dev/fdset/1");
        assert_eq!(inserted[1].1["options"][0]["file"], inserted[0].1["node-name"]);
        assert!(insert_disk(&MachineSpec { disk: None, ..spec() }).is_empty());
    }

    #[test]
    fn further_disks_come_last_and_never_into_a_template() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let fd = null.as_fd();
        let disk = |path: &str, read_only| ExtraDisk { path: path.into(), read_only, claim: Claim::None };
        let spec =
            MachineSpec { extra_disks: vec![disk("/i/other", true), disk("/v/data", false)], ..spec() };
        let words = |start| words_of(&spec, start, fd, false);
        for start in [Start::Boot, Start::Restore { memory: fd, state: fd }] {
            let words = words(start);
            let (base, data) = (json_of(&words, "/dev/fdset/16"), json_of(&words, "/dev/fdset/17"));
            assert_eq!((&base["read-only"], &base["file"]["read-only"]), (&json!(true), &json!(true)));
            assert_eq!(data["read-only"], Value::Null);
            assert_eq!(json_of(&words, "\"disk2\"")["scsi-id"], 2);
            assert!(words.last().unwrap().contains("disk2"), "{words:?}");
        }
        for start in [Start::BootToFreeze { memory: fd }, Start::RestoreToFreeze { memory: fd, state: fd }] {
            let frozen = words(start);
            let has = |text: &str| frozen.iter().any(|word| word.contains(text));
            assert!(!has("/dev/fdset/16") && !has("disk1"), "{frozen:?}");
        }
        let added = add_extra_disks(&spec);
        let names: Vec<_> = added.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["blockdev-add", "device_add", "blockdev-add", "device_add"]);
        assert_eq!(added[1].1["drive"], added[0].1["node-name"]);
    }

    #[test]
    fn a_restored_machine_maps_its_memory_privately() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let fd = null.as_fd();
        let words = words_of(&spec(), Start::Restore { memory: fd, state: fd }, fd, false);
        let object = json_of(&words, "memory-backend-file");
        assert_eq!(object["share"], false);
    }

    #[test]
    fn the_memory_of_a_template_is_opened_for_reading_where_qemu_can() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let fd = null.as_fd();
        let sockets = Sockets { console: fd, monitor: fd, control: fd, network: None };
        let files = Files { kernel: fd, initramfs: fd, root: Some((fd, fd)), layers: &[], extra: &[] };
        let features = Features { read_only_memory: true, file_migration: true };
        let words = |start| {
            let line = command_line(&spec(), start, sockets, files, features);
            line.args().iter().map(|arg| arg.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let restored = words(Start::Restore { memory: fd, state: fd });
        let memory = json_of(&restored, "memory-backend-file");
        assert_eq!((&memory["readonly"], &memory["rom"]), (&json!(true), &json!("off")));
        assert!(restored.iter().any(|word| word.ends_with(",set=2")), "{restored:?}");
        // What is to be frozen again is written to.
        for start in [Start::BootToFreeze { memory: fd }, Start::RestoreToFreeze { memory: fd, state: fd }] {
            assert_eq!(json_of(&words(start), "memory-backend-file")["readonly"], Value::Null);
        }
    }

    #[test]
    fn the_base_disk_is_never_writable() {
        let words = words(&spec(), false);
        let blockdev = json_of(&words, "qcow2");
        assert_eq!(blockdev["backing"]["file"]["read-only"], true);
    }
}
