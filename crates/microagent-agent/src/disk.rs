//! The root disk: found on the SCSI controller, mounted, grown, made the root of everything.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use microagent_proto::{GuestErrorKind, Root};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MountFlags, mount, mount_move};

use crate::surroundings;
use crate::sys;

const HOSTS: &str = "/sys/class/scsi_host";
const DISKS: &str = "/sys/class/scsi_disk";

/// Where the root is put together before it becomes the root.
const NEW_ROOT: &str = "/newroot";

/// No kernel thread that fills the grown disk's inode tables with zeros (which a disk of which only the
/// changes are kept would have to keep), and none that reads all block bitmaps after each mount. For the
/// same reason reading a file does not write its access time. What is deleted is given back to the host.
pub(crate) const MOUNT_OPTIONS: &CStr = c"noinit_itable,no_prefetch_block_bitmaps,discard";

/// The target that is looked at before the host has said which one it is.
pub(crate) const EARLY_TARGET: u8 = 0;

/// What nearly every command needs of its image: shells, loaders, C libraries, users. Links are followed.
const READ_AHEAD: [&str; 10] = [
    "/bin/sh",
    "/bin/bash",
    "/usr/bin/env",
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/lib64/libc.so.6",
    "/lib/ld-musl-x86_64.so.1",
    "/etc/ld.so.cache",
    "/etc/passwd",
    "/etc/group",
];

/// Most bytes that are read ahead of one file.
const READ_AHEAD_LIMIT: u64 = 4 << 20;

/// No root disk is smaller than this, in bytes.
const PLACEHOLDER_LIMIT: u64 = 1 << 20;

/// How long a disk may take from the scan to its block device.
const DISK_DEADLINE: Duration = Duration::from_secs(10);

/// Pause between two looks for the block device.
const LOOK_PAUSE: Duration = Duration::from_micros(200);

/// Where ext4's superblock lies, and the parts of it that tell the file system's size.
const SUPERBLOCK_OFFSET: u64 = 1024;
const SUPERBLOCK_LEN: usize = 1024;
const EXT4_MAGIC: u16 = 0xEF53;
const INCOMPAT_64BIT: u32 = 0x80;

/// Why the root disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("no SCSI controller in {HOSTS}")]
    NoController(#[source] io::Error),
    #[error("cannot scan SCSI target {target}")]
    Scan { target: u8, source: io::Error },
    #[error("no disk answered at SCSI target {target}")]
    NoDisk { target: u8 },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} holds no ext4 file system", path.display())]
    NotExt4 { path: PathBuf },
    #[error("cannot mount {} as the root", path.display())]
    Mount { path: PathBuf, source: io::Error },
    #[error("cannot grow the file system from {from} to {to} blocks")]
    Grow { from: u64, to: u64, source: io::Error },
    #[error("cannot prepare {path} in the root file system")]
    Prepare { path: &'static str, source: io::Error },
    #[error("cannot switch to the root file system")]
    Switch(#[source] io::Error),
}

impl DiskError {
    /// Whether the device is to blame or what is on it.
    pub(crate) fn kind(&self) -> GuestErrorKind {
        match self {
            DiskError::NoController(_) | DiskError::Scan { .. } | DiskError::NoDisk { .. } => {
                GuestErrorKind::Disk
            }
            DiskError::Read { .. }
            | DiskError::NotExt4 { .. }
            | DiskError::Mount { .. }
            | DiskError::Grow { .. }
            | DiskError::Prepare { .. }
            | DiskError::Switch(_) => GuestErrorKind::Mount,
        }
    }
}

/// Finds, mounts and grows the root disk.
pub(crate) fn mount_root(root: &Root) -> Result<(), DiskError> {
    let disk = find(root.scsi_target)?;
    mount(&disk.path, NEW_ROOT, "ext4", MountFlags::NOATIME, MOUNT_OPTIONS)
        .map_err(|e| DiskError::Mount { path: disk.path.clone(), source: e.into() })?;
    if root.grow { grow(&disk, Path::new(NEW_ROOT)) } else { Ok(()) }
}

/// Moves the kernel file systems under the mounted root, and it to `/`.
///
/// A real switch and not only a `chroot`, so that `pivot_root` and mount namespaces work for workloads.
pub(crate) fn switch_root() -> Result<(), DiskError> {
    let modules = surroundings::kernel_modules();
    for path in ["/proc", "/sys", "/dev"] {
        let target = Path::new(NEW_ROOT).join(&path[1..]);
        real_directory(&target).map_err(|source| DiskError::Prepare { path, source })?;
        mount_move(path, &target).map_err(|e| DiskError::Prepare { path, source: e.into() })?;
    }
    let switch = || -> io::Result<()> {
        rustix::process::chdir(NEW_ROOT)?;
        mount_move(".", "/")?;
        rustix::process::chroot(".")?;
        Ok(rustix::process::chdir("/")?)
    };
    switch().map_err(DiskError::Switch)?;
    surroundings::prepare_root(modules.as_ref());
    Ok(())
}

/// Brings what nearly every command needs from the mounted root into memory, so that the machines that are made
/// from this one find it there. What is missing or odd is passed over.
pub(crate) fn read_ahead() {
    for path in READ_AHEAD {
        // Opening a device or a pipe could wait for ever.
        if fs::metadata(path).is_ok_and(|found| found.is_file())
            && let Ok(file) = File::open(path)
        {
            let _ = io::copy(&mut file.take(READ_AHEAD_LIMIT), &mut io::sink());
        }
    }
}

/// Makes sure that a path is a directory: images without it get it, and a link in its place would lead
/// out of the new root.
pub(crate) fn real_directory(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => fs::remove_file(path).and_then(|()| fs::create_dir(path)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => fs::create_dir(path),
        Err(e) => Err(e),
    }
}

/// Has the kernel find the disk that the machine was started with, if any, while there is still other work:
/// probing it is a large part of what a configuration takes. In a machine that will be frozen, this is a
/// placeholder for the disks of the machines that are made from it.
pub(crate) fn scan_early() {
    // Without a controller or a disk there is nothing to do now, and an error to tell later.
    if let Ok(controller) = first_name(Path::new(HOSTS)) {
        let _ = scan(&controller, EARLY_TARGET);
    }
}

/// The kernel is told not to look by itself: walking all possible targets takes very long under emulation.
fn scan(controller: &str, target: u8) -> io::Result<()> {
    write_attribute(Path::new(&format!("{HOSTS}/{controller}/scan")), &format!("0 {target} 0"))
}

/// Writes a file of sysfs: one write, nothing created, nothing cut.
fn write_attribute(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// Where the block device of a SCSI target is; it is looked for if the kernel does not know it yet.
pub(crate) fn device_path(target: u8) -> Result<PathBuf, DiskError> {
    find(target).map(|disk| disk.path)
}

/// The block device of a SCSI target, opened.
pub(crate) fn find(target: u8) -> Result<Disk, DiskError> {
    let controller = first_name(Path::new(HOSTS)).map_err(DiskError::NoController)?;
    let number = controller.trim_start_matches("host");
    let device = PathBuf::from(format!("{DISKS}/{number}:0:{target}:0/device"));
    let block = device.join("block");
    if !block.exists() {
        scan(&controller, target).map_err(|source| DiskError::Scan { target, source })?;
    }
    let start = Instant::now();
    loop {
        // The disk's driver starts on its own time after the scan, and its name comes before itself.
        if let Ok(name) = first_name(&block) {
            let path = PathBuf::from(format!("/dev/{name}"));
            match File::open(&path) {
                Ok(file) => return Disk { name, path, file, len: 0 }.measured(&device),
                Err(source) if start.elapsed() > DISK_DEADLINE => {
                    return Err(DiskError::Read { path, source });
                }
                Err(_) => {}
            }
        }
        if start.elapsed() > DISK_DEADLINE {
            return Err(DiskError::NoDisk { target });
        }
        std::thread::sleep(LOOK_PAUSE);
    }
}

/// A disk that can be used.
#[derive(Debug)]
pub(crate) struct Disk {
    name: String,
    pub(crate) path: PathBuf,
    file: File,
    /// Length in bytes.
    len: u64,
}

impl Disk {
    /// Learns the disk's length. The machine may have been frozen with a placeholder: then the kernel looks
    /// at the disk again.
    fn measured(mut self, device: &Path) -> Result<Disk, DiskError> {
        self.len = self.read_len()?;
        if self.len < PLACEHOLDER_LIMIT {
            let rescan = device.join("rescan");
            write_attribute(&rescan, "1").map_err(|source| DiskError::Read { path: rescan, source })?;
            self.len = self.read_len()?;
        }
        Ok(self)
    }

    fn read_len(&self) -> Result<u64, DiskError> {
        let path = PathBuf::from(format!("/sys/class/block/{}/size", self.name));
        let sectors = fs::read_to_string(&path)
            .and_then(|text| text.trim_end().parse::<u64>().map_err(|_| io::ErrorKind::InvalidData.into()));
        // Sectors of sysfs have 512 bytes, whatever the disk's own have.
        sectors.map(|sectors| sectors.saturating_mul(512)).map_err(|source| DiskError::Read { path, source })
    }
}

fn first_name(dir: &Path) -> io::Result<String> {
    let entry = fs::read_dir(dir)?.next().ok_or(io::ErrorKind::NotFound)??;
    entry.file_name().into_string().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Grows the mounted file system to the size of its disk. Nothing happens when it has that size.
pub(crate) fn grow(disk: &Disk, mounted_at: &Path) -> Result<(), DiskError> {
    let size = file_system(disk)?;
    let wanted = disk.len / size.block_len;
    if wanted <= size.blocks {
        return Ok(());
    }
    let failed = |source| DiskError::Grow { from: size.blocks, to: wanted, source };
    let mounted = openat(CWD, mounted_at, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| failed(e.into()))?;
    sys::ext4_resize(rustix::fd::AsFd::as_fd(&mounted), wanted).map_err(failed)
}

/// What the superblock says of the file system's size: also that there is a superblock.
pub(crate) fn file_system(disk: &Disk) -> Result<FileSystemSize, DiskError> {
    let mut superblock = [0; SUPERBLOCK_LEN];
    match disk.file.read_exact_at(&mut superblock, SUPERBLOCK_OFFSET) {
        // A disk that ends before it has none.
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
            return Err(DiskError::Read { path: disk.path.clone(), source: error });
        }
        _ => {}
    }
    FileSystemSize::parse(&superblock).ok_or_else(|| DiskError::NotExt4 { path: disk.path.clone() })
}

/// Size of an ext4 file system.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FileSystemSize {
    blocks: u64,
    block_len: u64,
}

impl FileSystemSize {
    /// Reads it from the superblock (`Documentation/filesystems/ext4/super.rst`).
    fn parse(superblock: &[u8; SUPERBLOCK_LEN]) -> Option<FileSystemSize> {
        let u32_at = |at: usize| superblock[at..at + 4].try_into().map(u32::from_le_bytes).ok();
        let magic = u16::from_le_bytes([superblock[0x38], superblock[0x39]]);
        let log_block_len = u32_at(0x18)?;
        if magic != EXT4_MAGIC || log_block_len > 6 {
            return None;
        }
        let high = if u32_at(0x60)? & INCOMPAT_64BIT != 0 { u32_at(0x150)? } else { 0 };
        let blocks = u64::from(high) << 32 | u64::from(u32_at(4)?);
        Some(FileSystemSize { blocks, block_len: 1024 << log_block_len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_that_mke2fs_writes_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(48 << 20).unwrap();
        for (features, block_len) in [("64bit", 4096), ("^64bit", 1024)] {
            let made = std::process::Command::new("mke2fs")
                .args(["-q", "-F", "-t", "ext4", "-O", features, "-b", &block_len.to_string()])
                .arg(file.path())
                .status()
                .unwrap();
            assert!(made.success());
            let mut superblock = [0; SUPERBLOCK_LEN];
            file.as_file().read_exact_at(&mut superblock, SUPERBLOCK_OFFSET).unwrap();
            let size = FileSystemSize::parse(&superblock).unwrap();
            assert_eq!(size, FileSystemSize { blocks: (48 << 20) / block_len, block_len });
        }
    }

    #[test]
    fn something_else_is_not_taken_for_a_file_system() {
        assert_eq!(FileSystemSize::parse(&[0; SUPERBLOCK_LEN]), None);
        assert_eq!(FileSystemSize::parse(&[0xff; SUPERBLOCK_LEN]), None);
    }

    #[test]
    fn a_link_in_place_of_a_directory_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proc");
        std::os::unix::fs::symlink("/", &path).unwrap();
        real_directory(&path).unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().is_dir());
        real_directory(&path).unwrap();
    }
}
