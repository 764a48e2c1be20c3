//! The files of a machine, which the supervisor opens and QEMU inherits.
//!
//! QEMU uses disks through the descriptor that is opened here. It opens kernel, initramfs and the memory of a
//! template again through their descriptors, with its own rights; if its user may not open them, it gets a copy.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use microagent_store::StateDir;
use rustix::fs::{MemfdFlags, OFlags, SealFlags, fcntl_add_seals, memfd_create};

use crate::jail::{Account, FileAccess, Reopened};
use crate::machine::{BootFiles, Files};
use crate::mapped::write_mapped;
use crate::overlay::{check_base, check_layer, check_overlay, largest_bytes};
use crate::spec::{Claim, DiskSpec, LayerFile, MachineSpec};
use crate::template::copy_file;

/// A file that QEMU opens again.
#[derive(Debug)]
pub(crate) enum Handed {
    /// The file itself.
    File(File, FileAccess),
    /// A copy in memory, which is removed with the machine.
    Copy(File),
}

impl Handed {
    /// Prepares a file that QEMU opens read-only, as this user if QEMU runs as another user.
    ///
    /// # Errors
    /// Fails if the file cannot be inspected or copied.
    fn for_reading(file: File, account: Option<&Account>) -> io::Result<Handed> {
        let found = file.metadata()?;
        match account {
            Some(account) if !account.can_open(&found, FileAccess::Read) => copy(&file).map(Handed::Copy),
            _ => Ok(Handed::File(file, FileAccess::Read)),
        }
    }

    /// Prepares the memory of a template. If QEMU opens it for writing, the file must be on a file system that records
    /// changes, or else later machines could not detect a change of the template.
    ///
    /// # Errors
    /// Fails if the file cannot be inspected or copied.
    pub(crate) fn memory(file: &File, access: FileAccess, account: Option<&Account>) -> io::Result<Handed> {
        let found = file.metadata()?;
        let closed = account.is_some_and(|account| !account.can_open(&found, access));
        let unnoticed = access == FileAccess::ReadWrite && !records_changes(file)?;
        if closed || unnoticed {
            return copy(file).map(Handed::Copy);
        }
        Ok(Handed::File(open_again(file, access)?, access))
    }

    /// The descriptor that QEMU inherits.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Handed::File(file, _) | Handed::Copy(file) => file.as_fd(),
        }
    }

    /// What QEMU must be allowed to open; a copy in memory needs no permission.
    pub(crate) fn reopened(&self) -> Option<Reopened<'_>> {
        match self {
            Handed::File(file, access) => Some(Reopened { file: file.as_fd(), access: *access }),
            Handed::Copy(_) => None,
        }
    }
}

/// Whether a file system changes a file's times when a shared mapping of the file is written to. It is tried with a new
/// file beside the given one: tmpfs does not, and an overlay whose upper layer is a tmpfs does not say what it is.
fn records_changes(file: &File) -> io::Result<bool> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let parent = path.parent().ok_or(io::ErrorKind::NotFound)?;
    let scratch = tempfile::tempfile_in(parent)?;
    scratch.set_len(1)?;
    let before = UNIX_EPOCH + Duration::from_secs(1);
    scratch.set_modified(before)?;
    write_mapped(&scratch, 1)?;
    Ok(scratch.metadata()?.modified()? != before)
}

fn copy(file: &File) -> io::Result<File> {
    let copy = File::from(memfd_create("copy", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    copy_file(file, &copy)?;
    // Without a control group, nothing else would limit how far a QEMU that was taken over lets it grow.
    fcntl_add_seals(&copy, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(copy)
}

/// The same file with a descriptor of its own.
pub(crate) fn open_again(file: &File, access: FileAccess) -> io::Result<File> {
    let write = access == FileAccess::ReadWrite;
    OpenOptions::new().read(true).write(write).open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// All files of a machine except the memory of a template.
#[derive(Debug)]
pub(crate) struct MachineFiles {
    kernel: Handed,
    initramfs: Handed,
    root: Option<(File, File)>,
    layers: Vec<File>,
    extra: Vec<File>,
}

/// Makes kernel and initramfs readable for a machine's own user if they are in the state directory; other files are
/// copied. This is done before anything is derived from the files' change times.
pub(crate) fn admit_guest_files(machine: &MachineSpec, state: &StateDir) {
    let Ok(account) = Account::choose(&machine.qemu, machine.kvm) else { return };
    for path in [&machine.kernel, &machine.initramfs] {
        let Ok(file) = File::open(path) else { continue };
        let is_closed = file.metadata().is_ok_and(|found| !account.can_open(&found, FileAccess::Read));
        if is_closed && path.starts_with(state.guest()) {
            // Where it cannot be done, there will be a copy.
            let _ = account.admit(&file, FileAccess::Read);
        }
    }
}

impl MachineFiles {
    /// Opens the files. `claimed` are the locked image files of the user, in their order.
    ///
    /// # Errors
    /// Fails if one cannot be opened or is not a regular file, or if the overlay has features that microagent never
    /// uses.
    pub(crate) fn open(
        machine: &MachineSpec,
        claimed: &[File],
        account: Option<&Account>,
    ) -> io::Result<MachineFiles> {
        let kernel = Handed::for_reading(File::open(&machine.kernel)?, account)?;
        let initramfs = Handed::for_reading(File::open(&machine.initramfs)?, account)?;
        let root = machine.disk.as_ref().map(open_root).transpose()?;
        let layers = machine.disk.iter().flat_map(|disk| &disk.layers).map(open_layer);
        let layers = layers.collect::<io::Result<_>>()?;
        let mut claimed = claimed.iter();
        let extra = machine.extra_disks.iter().map(|disk| {
            let access = if disk.read_only { FileAccess::Read } else { FileAccess::ReadWrite };
            match (&disk.claim, claimed.as_slice()) {
                // Whatever has become of its name, the file that was looked at is used.
                (Claim::File, [_, ..]) => open_again(claimed.next().expect("there is one"), access),
                _ => open_disk(&disk.path, access),
            }
        });
        let extra = extra.collect::<io::Result<_>>()?;
        Ok(MachineFiles { kernel, initramfs, root, layers, extra })
    }

    /// The layers of the root disk.
    pub(crate) fn layers(&self) -> Vec<BorrowedFd<'_>> {
        self.layers.iter().map(AsFd::as_fd).collect()
    }

    /// The further disks.
    pub(crate) fn extra(&self) -> Vec<BorrowedFd<'_>> {
        self.extra.iter().map(AsFd::as_fd).collect()
    }

    /// The files of a machine that boots, or never does, for the command line. `layers` and `extra` are the results of
    /// [`MachineFiles::layers`] and [`MachineFiles::extra`].
    pub(crate) fn names<'a>(
        &'a self,
        boots: bool,
        layers: &'a [BorrowedFd<'a>],
        extra: &'a [BorrowedFd<'a>],
    ) -> Files<'a> {
        let boot = BootFiles { kernel: self.kernel.fd(), initramfs: self.initramfs.fd() };
        let root = self.root.as_ref().map(|(overlay, base)| (overlay.as_fd(), base.as_fd()));
        Files { boot: boots.then_some(boot), root, layers, extra }
    }

    /// Size of the largest file among the disks, in bytes, when their guest has filled them.
    pub(crate) fn largest_bytes(&self) -> io::Result<u64> {
        let root = self.root.iter().map(|(overlay, _)| largest_bytes(overlay));
        let extra = self.extra.iter().map(|disk| disk.metadata().map(|found| found.len()));
        root.chain(extra).try_fold(0, |most, size| Ok(most.max(size?)))
    }

    /// The files that QEMU opens again, of a machine that boots.
    pub(crate) fn reopened(&self) -> Vec<Reopened<'_>> {
        [&self.kernel, &self.initramfs].into_iter().filter_map(Handed::reopened).collect()
    }
}

/// Opens overlay and base disk.
fn open_root(disk: &DiskSpec) -> io::Result<(File, File)> {
    let overlay = open_disk(&disk.overlay, FileAccess::ReadWrite)?;
    check_overlay(&overlay, disk.size_bytes).map_err(|e| named(&disk.overlay, &e))?;
    let base = open_disk(&disk.base, FileAccess::Read)?;
    check_base(&base).map_err(|e| named(&disk.base, &e))?;
    Ok((overlay, base))
}

fn open_layer(layer: &LayerFile) -> io::Result<File> {
    let file = open_disk(&layer.path, FileAccess::Read)?;
    check_layer(&file, layer.layer.bytes).map_err(|e| named(&layer.path, &e))?;
    Ok(file)
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::other(format!("`{}`: {error}", path.display()))
}

/// Opens an image without following links, and without blocking on a FIFO.
fn open_disk(path: &Path, access: FileAccess) -> io::Result<File> {
    let failed = |e: io::Error| io::Error::new(e.kind(), format!("the disk `{}`: {e}", path.display()));
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let write = access == FileAccess::ReadWrite;
    let file = OpenOptions::new().read(true).write(write).custom_flags(flags.bits().cast_signed()).open(path);
    let file = file.map_err(failed)?;
    if file.metadata().map_err(failed)?.is_file() {
        Ok(file)
    } else {
        Err(failed(io::Error::other("it is not a regular file")))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn memory_that_can_be_changed_unseen_is_copied() {
        let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
            return eprintln!("SKIPPED: there is no /dev/shm");
        };
        let path = dir.path().join("ram");
        std::fs::write(&path, "guest").unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();

        let written = Handed::memory(&file, FileAccess::ReadWrite, None).unwrap();
        assert!(written.reopened().is_none());
        let Handed::Copy(copy) = written else { panic!("not copied") };
        copy.write_at(b"other", 0).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"guest");
        assert!(copy.write_at(b"x", 5).is_err(), "it grows");
        assert!(copy.set_len(6).is_err() && copy.set_len(4).is_err(), "its length changes");

        let read = Handed::memory(&file, FileAccess::Read, None).unwrap();
        let Handed::File(mut again, FileAccess::Read) = read else { panic!("copied") };
        let mut text = String::new();
        again.read_to_string(&mut text).unwrap();
        assert_eq!(text, "guest");
        assert!(again.write_all(b"x").is_err(), "the descriptor itself is only for reading");
    }

    #[test]
    fn a_file_system_on_a_disk_records_changes() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let file = File::create(dir.path().join("ram")).unwrap();
        assert!(records_changes(&file).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left of the trial");
    }

    #[test]
    fn a_disk_is_a_regular_file_under_its_own_name() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        std::fs::write(&disk, "x").unwrap();
        assert!(open_disk(&disk, FileAccess::ReadWrite).is_ok());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&disk, &link).unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .unwrap();
        for path in [link.as_path(), &fifo, dir.path(), &dir.path().join("none")] {
            let error = open_disk(path, FileAccess::Read).unwrap_err();
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        }
    }
}
