//! QEMU's switches, one struct each, spelled as QEMU spells them.
//!
//! # Source
//! `qemu-system-x86_64(1)` of QEMU 7.2. Structured values use QEMU's JSON form if there is one, so that a comma or an
//! equals sign in a path is not parsed as another option.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, BorrowedFd};

use serde_json::{Value, json};

/// A descriptor set with one descriptor, through which QEMU opens a file that its parent has opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdSet(pub u32);

impl FdSet {
    /// The name that replaces a path on QEMU's command line.
    pub fn filename(self) -> String {
        format!("/dev/fdset/{}", self.0)
    }
}

/// A growing QEMU command line.
#[derive(Debug, Default, Clone)]
pub struct CommandLine {
    args: Vec<OsString>,
}

impl CommandLine {
    /// Creates an empty command line.
    pub fn new() -> CommandLine {
        CommandLine::default()
    }

    /// Adds a switch without value, such as `-nodefaults`.
    pub fn flag(&mut self, name: &str) -> &mut Self {
        self.args.push(name.into());
        self
    }

    /// Adds a switch with its value.
    pub fn switch(&mut self, name: &str, value: impl AsRef<OsStr>) -> &mut Self {
        self.args.push(name.into());
        self.args.push(value.as_ref().to_owned());
        self
    }

    /// Adds `-machine`.
    pub fn machine(&mut self, machine: &Microvm) -> &mut Self {
        self.switch("-machine", machine.value())
    }

    /// Adds `-accel`, with the size of the translation buffer for TCG.
    pub fn accel(&mut self, accel: Accel, translation_buffer_mib: u32) -> &mut Self {
        match accel {
            Accel::Kvm => self.switch("-accel", "kvm"),
            Accel::Tcg => self.switch("-accel", format!("tcg,tb-size={translation_buffer_mib}")),
        }
    }

    /// Adds `-object` in JSON form.
    pub fn object(&mut self, object: &Value) -> &mut Self {
        self.switch("-object", object.to_string())
    }

    /// Adds `-device` in JSON form.
    pub fn device(&mut self, device: &Value) -> &mut Self {
        self.switch("-device", device.to_string())
    }

    /// Adds `-blockdev` in JSON form.
    pub fn blockdev(&mut self, blockdev: &Value) -> &mut Self {
        self.switch("-blockdev", blockdev.to_string())
    }

    /// Adds a `-chardev socket` over a connected socket that QEMU inherits.
    pub fn chardev_fd(&mut self, id: &str, fd: BorrowedFd<'_>) -> &mut Self {
        self.switch("-chardev", format!("socket,id={id},fd={}", fd.as_raw_fd()))
    }

    /// Adds a `-netdev stream` over a connected socket that QEMU inherits.
    pub fn netdev_stream_fd(&mut self, id: &str, fd: BorrowedFd<'_>) -> &mut Self {
        let fd = fd.as_raw_fd();
        self.switch("-netdev", format!("stream,id={id},server=off,addr.type=fd,addr.str={fd}"))
    }

    /// Adds `-add-fd` for a descriptor that QEMU inherits.
    pub fn add_fd(&mut self, set: FdSet, fd: BorrowedFd<'_>) -> &mut Self {
        self.switch("-add-fd", format!("fd={},set={}", fd.as_raw_fd(), set.0))
    }

    /// Returns the arguments after the program's name.
    pub fn args(&self) -> &[OsString] {
        &self.args
    }
}

/// `-machine microvm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Microvm {
    /// Id of the memory backend object.
    pub memory_backend: String,
    /// The accelerator, which decides where interrupt controllers are emulated.
    pub accel: Accel,
}

/// `-accel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Accel {
    /// Hardware virtualisation.
    Kvm,
    /// Emulation: QEMU's translator.
    Tcg,
}

impl Accel {
    /// Returns QEMU's name of the accelerator.
    pub fn as_str(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        }
    }
}

impl Microvm {
    fn value(&self) -> String {
        // No ACPI: the guest kernel knows none, and it costs boot time. The PIT stays, because without ACPI the TSC
        // is calibrated against it. The RTC stays, because a guest's first clock comes from it. A core dump of QEMU
        // does not have the guest's memory in it.
        let mut value = "microvm,acpi=off,rtc=on,isa-serial=on,dump-guest-core=off".to_owned();
        if self.accel == Accel::Kvm {
            // The interrupt controllers of the host's kernel: half of a boot's exits to QEMU would be for those of QEMU.
            // QEMU's own old controller would get each interrupt, too, and stop the processor for it. A guest under KVM
            // has its clock from KVM, and uses no PIT.
            value.push_str(",kernel-irqchip=on,pic=off,pit=off");
        }
        value.push_str(",memory-backend=");
        value.push_str(&self.memory_backend);
        value
    }
}

/// A raw file as a block node, opened read-only.
pub fn raw_file_read_only(file: FdSet) -> Value {
    json!({
        "driver": "raw",
        "read-only": true,
        "file": { "driver": "file", "filename": file.filename(), "read-only": true },
    })
}

/// [`raw_file_read_only`] of a file that many machines share and that is never written to: without QEMU's locks, which one
/// of these machines could keep from the others.
pub fn raw_file_shared(file: FdSet) -> Value {
    let mut node = raw_file_read_only(file);
    node["file"]["locking"] = json!("off");
    node
}

/// A raw disk image that the guest may write to, as a block node.
pub fn raw_file_writable(file: FdSet) -> Value {
    json!({
        "driver": "raw",
        "discard": "unmap",
        "file": { "driver": "file", "filename": file.filename(), "discard": "unmap" },
    })
}

/// A qcow2 overlay as a block node. `backing` is given here instead of being read from the file's header, because a
/// guest that has taken over an earlier QEMU could have changed the header.
pub fn qcow2_overlay(node_name: &str, file: FdSet, backing: Value, durability: Durability) -> Value {
    let no_flush = durability == Durability::Scratch;
    json!({
        "driver": "qcow2",
        "node-name": node_name,
        "discard": "unmap",
        "cache": { "direct": false, "no-flush": no_flush },
        "file": {
            "driver": "file",
            "filename": file.filename(),
            "discard": "unmap",
            "cache": { "direct": false, "no-flush": no_flush },
        },
        "backing": backing,
    })
}

/// A qcow2 layer under an overlay as a block node. It is shared and never written to. The machine whose overlay it was may
/// hold QEMU's lock of writers on it until it ends, though it writes to another overlay.
pub fn qcow2_layer(file: FdSet, backing: Value) -> Value {
    json!({
        "driver": "qcow2",
        "read-only": true,
        "l2-cache-size": LAYER_CACHE_BYTES,
        "file": { "driver": "file", "filename": file.filename(), "read-only": true, "locking": "off" },
        "backing": backing,
    })
}

/// Most memory for the tables of one layer: those of 8 GiB of data.
const LAYER_CACHE_BYTES: u64 = 1 << 20;

/// Effect of a flush of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Data is written to the host's disk.
    Kept,
    /// Ignored: the disk is deleted with the machine.
    Scratch,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_nodes_name_descriptor_sets_and_a_backing_file_is_read_only() {
        let node = qcow2_overlay("root", FdSet(0), raw_file_read_only(FdSet(1)), Durability::Kept);
        let mut line = CommandLine::new();
        line.blockdev(&node);
        let back: Value = serde_json::from_str(line.args()[1].to_str().unwrap()).unwrap();
        assert_eq!(back["file"]["filename"], "/dev/fdset/0");
        assert_eq!(back["backing"]["file"]["filename"], "/dev/fdset/1");
        assert_eq!(back["backing"]["read-only"], true);
        assert_eq!(back["backing"]["file"]["read-only"], true);
    }

    #[test]
    fn a_scratch_disk_ignores_flushes_and_a_kept_one_does_not() {
        let overlay = |durability| qcow2_overlay("root", FdSet(0), raw_file_read_only(FdSet(1)), durability);
        assert_eq!(overlay(Durability::Scratch)["cache"]["no-flush"], true);
        assert_eq!(overlay(Durability::Kept)["file"]["cache"]["no-flush"], false);
    }

    #[test]
    fn machine_names_its_memory_backend() {
        let machine = Microvm { memory_backend: "mem".into(), accel: Accel::Tcg };
        assert!(machine.value().starts_with("microvm,acpi=off,"));
        assert!(machine.value().ends_with(",memory-backend=mem"));
    }

    #[test]
    fn only_under_kvm_a_machine_has_other_interrupt_controllers() {
        let value = |accel| Microvm { memory_backend: "mem".into(), accel }.value();
        assert!(value(Accel::Kvm).contains(",kernel-irqchip=on,pic=off,pit=off,"));
        assert!(!value(Accel::Tcg).contains("irqchip") && !value(Accel::Tcg).contains("pit="));
    }
}
