//! What a frozen state depends on.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use microagent_proto::GENERATION;
use microagent_store::{Access, open_file};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::architecture::KERNEL_COMMAND_LINE;
use crate::machine::DEVICE_LAYOUT;
use crate::spec::MachineSpec;

/// Format of the files; part of the key.
const TEMPLATE_FORMAT: u32 = 2;

/// Bytes of `/proc/cpuinfo` that are read: the first processor's entry.
const CPUINFO_LIMIT: usize = 4096;

/// Everything that a frozen state depends on.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Shape {
    format: u32,
    generation: u16,
    version: String,
    boot_id: String,
    qemu: FileIdentity,
    kernel: FileIdentity,
    initramfs: FileIdentity,
    kernel_command_line: String,
    device_layout: u32,
    host_cpu: String,
    /// Whether KVM runs it.
    pub kvm: bool,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub cpu_count: u32,
    /// Whether it has a network device.
    pub network: bool,
    /// The image that is mounted, if any.
    pub image: Option<MountedImage>,
}

/// The disk of an image, as a template has it.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct MountedImage {
    /// Its base disk.
    pub base: PathBuf,
    identity: FileIdentity,
    /// Size of the overlay in bytes, as the guest sees it.
    pub(super) size: u64,
}

impl Shape {
    /// Returns the shape of a machine without a network device on this host.
    ///
    /// # Errors
    /// Fails if the metadata of a file of the machine cannot be read.
    pub fn of(machine: &MachineSpec) -> io::Result<Shape> {
        Ok(Shape {
            format: TEMPLATE_FORMAT,
            generation: GENERATION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
            qemu: FileIdentity::of(&fs::metadata(&machine.qemu)?),
            kernel: FileIdentity::of(&fs::metadata(&machine.kernel)?),
            initramfs: FileIdentity::of(&fs::metadata(&machine.initramfs)?),
            kernel_command_line: KERNEL_COMMAND_LINE.to_owned(),
            device_layout: DEVICE_LAYOUT,
            host_cpu: host_cpu()?,
            kvm: machine.kvm,
            memory_mib: machine.memory_mib,
            cpu_count: machine.cpu_count,
            network: false,
            image: None,
        })
    }

    /// The shape of this machine with its fresh disk mounted; `None` if it has no such disk.
    ///
    /// # Errors
    /// Fails when the disk cannot be looked at.
    pub(crate) fn with_image(&self, machine: &MachineSpec) -> io::Result<Option<Shape>> {
        let Some(disk) = machine.disk.as_ref().filter(|disk| disk.fresh) else { return Ok(None) };
        let image = MountedImage {
            base: disk.base.clone(),
            identity: FileIdentity::of(&fs::metadata(&disk.base)?),
            size: overlay_size(&disk.overlay)?,
        };
        Ok(Some(Shape { image: Some(image), ..self.clone() }))
    }

    /// Whether nothing can start from it any more: the host was booted anew, or the image is gone.
    pub(super) fn is_stale(&self, boot_id: &str) -> bool {
        let image_is_there = |image: &MountedImage| {
            fs::metadata(&image.base).is_ok_and(|found| FileIdentity::of(&found) == image.identity)
        };
        self.boot_id != boot_id || !self.image.as_ref().is_none_or(image_is_there)
    }

    /// Name of the template's directory.
    pub fn key(&self) -> String {
        let text = serde_json::to_string(self).expect("a shape is strings and numbers");
        let digest = Sha256::digest(text.as_bytes());
        digest[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What a captured machine can be restored in. It outlives boots of the host and moves with files, so programs are told
/// apart by what a package has of them.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct MachineShape {
    generation: u16,
    qemu: ProgramVersion,
    kernel_bytes: u64,
    initramfs_bytes: u64,
    device_layout: u32,
    host_cpu: String,
    kvm: bool,
    memory_mib: u32,
    cpu_count: u32,
    network: bool,
}

/// A program of the host: its length, and when it was built.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
struct ProgramVersion {
    bytes: u64,
    modified_s: i64,
}

impl MachineShape {
    /// Returns the shape of a machine on this host.
    ///
    /// # Errors
    /// Fails if the metadata of a file of the machine cannot be read.
    pub fn of(machine: &MachineSpec, network: bool) -> io::Result<MachineShape> {
        let qemu = fs::metadata(&machine.qemu)?;
        Ok(MachineShape {
            generation: GENERATION,
            qemu: ProgramVersion { bytes: qemu.len(), modified_s: qemu.mtime() },
            kernel_bytes: fs::metadata(&machine.kernel)?.len(),
            initramfs_bytes: fs::metadata(&machine.initramfs)?.len(),
            device_layout: DEVICE_LAYOUT,
            host_cpu: host_cpu()?,
            kvm: machine.kvm,
            memory_mib: machine.memory_mib,
            cpu_count: machine.cpu_count,
            network,
        })
    }

    /// What of this host or machine is another than at the capture of this shape; `None` if it fits.
    pub fn difference(&self, now: &MachineShape) -> Option<&'static str> {
        let differs = [
            (self.qemu != now.qemu, "QEMU"),
            (
                self.generation != now.generation || self.device_layout != now.device_layout,
                "release of microagent",
            ),
            (
                self.kernel_bytes != now.kernel_bytes || self.initramfs_bytes != now.initramfs_bytes,
                "guest kernel",
            ),
            (self.host_cpu != now.host_cpu, "processor"),
            (self.kvm != now.kvm, "accelerator"),
            (self.memory_mib != now.memory_mib || self.cpu_count != now.cpu_count, "size of the machine"),
            (self.network != now.network, "network of the machine"),
        ];
        differs.into_iter().find_map(|(differs, what)| differs.then_some(what))
    }
}

/// A file that is still the same and unchanged. The change time is the kernel's: no program can set it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileIdentity {
    device: u64,
    inode: u64,
    pub(super) size: u64,
    changed_s: i64,
    changed_ns: i64,
}

impl FileIdentity {
    pub(crate) fn of(metadata: &fs::Metadata) -> FileIdentity {
        FileIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            changed_s: metadata.ctime(),
            changed_ns: metadata.ctime_nsec(),
        }
    }
}

/// Model and features of the first processor, without its present clock rate.
fn host_cpu() -> io::Result<String> {
    use io::Read;
    let mut bytes = Vec::with_capacity(CPUINFO_LIMIT);
    File::open("/proc/cpuinfo")?.take(CPUINFO_LIMIT as u64).read_to_end(&mut bytes)?;
    Ok(stable_lines(&String::from_utf8_lossy(&bytes)))
}

fn stable_lines(cpuinfo: &str) -> String {
    let kept = ["vendor_id", "cpu family", "model", "stepping", "microcode", "flags"];
    let first = cpuinfo.split("\n\n").next().unwrap_or_default();
    let lines = first.lines().filter(|line| kept.iter().any(|name| line.starts_with(name)));
    lines.collect::<Vec<_>>().join("\n")
}
/// Size in bytes that a qcow2 file shows to a guest. No guest has used the file.
fn overlay_size(path: &Path) -> io::Result<u64> {
    // docs/interop/qcow2.txt of QEMU: bytes 24 to 31, big endian.
    let mut size = [0; 8];
    open_file(path, Access::Read)?.read_exact_at(&mut size, 24)?;
    Ok(u64::from_be_bytes(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_rate_of_the_cpu_does_not_matter() {
        let slow = "processor: 0\nmodel name\t: X\ncpu MHz\t: 800\nflags\t: a b\n\nprocessor: 1\n";
        assert_eq!(stable_lines(slow), stable_lines(&slow.replace("800", "3000")));
        assert_ne!(stable_lines(slow), stable_lines(&slow.replace("a b", "a b c")));
    }
}
