//! What QEMU may touch, should a guest break out into it: the files of its own machine and nothing else.
//!
//! Landlock rules, as many as the running kernel knows: below the rules there is still QEMU's own seccomp
//! filter (`-sandbox`). The guest's disk, kernel and initramfs are opened under these rules.
//!
//! # Source
//! Linux `Documentation/userspace-api/landlock.rst`.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};

use crate::spec::{Claim, MachineSpec};

/// Newest rules that we ask for; an older kernel enforces those that it has.
const NEWEST: ABI = ABI::V6;

/// Where QEMU's own files lie: program, libraries, firmware, and what the C library reads at start.
const SYSTEM_READ: [&str; 9] = [
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/proc",
    "/sys/devices/system",
    "/sys/kernel/mm",
];

/// Devices that QEMU opens.
const DEVICES: [&str; 4] = ["/dev/null", "/dev/urandom", "/dev/random", "/dev/kvm"];

/// Rules for one machine; `memory` is the file of its template, if it goes on from one, and `files` are images of the user's
/// as they were opened and looked at: should another file have such a name by now, QEMU may not open it.
///
/// # Errors
/// Fails when the kernel knows Landlock and refuses these rules.
pub(crate) fn rules(
    machine: &MachineSpec,
    memory: Option<BorrowedFd<'_>>,
    files: &[File],
) -> Result<RulesetCreated, RulesetError> {
    let read = AccessFs::from_read(NEWEST);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    for path in SYSTEM_READ.iter().map(PathBuf::from).chain(program_dirs(&machine.qemu)) {
        ruleset = allow(ruleset, &path, read)?;
    }
    let base = machine.disk.as_ref().map(|disk| &disk.base);
    for path in [&machine.kernel, &machine.initramfs].into_iter().chain(base) {
        ruleset = allow(ruleset, path, AccessFs::ReadFile.into())?;
    }
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    for path in DEVICES {
        ruleset = allow(ruleset, Path::new(path), device)?;
    }
    let writable = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
    if let Some(disk) = &machine.disk {
        ruleset = allow(ruleset, &disk.overlay, writable)?;
    }
    let mut files = files.iter();
    for disk in &machine.extra_disks {
        let access = if disk.read_only { AccessFs::ReadFile.into() } else { writable };
        ruleset = match disk.claim {
            Claim::File => match files.next() {
                Some(file) => ruleset.add_rule(PathBeneath::new(file, access))?,
                None => ruleset,
            },
            Claim::None | Claim::Volume(_) => allow(ruleset, &disk.path, access)?,
        };
    }
    match memory {
        // QEMU opens its memory anew through this descriptor, and always for writing.
        Some(memory) => ruleset.add_rule(PathBeneath::new(memory, AccessFs::ReadFile | AccessFs::WriteFile)),
        None => Ok(ruleset),
    }
}

/// A QEMU of one's own brings its firmware and libraries beside it (`PREFIX/bin/qemu`, `PREFIX/share`).
fn program_dirs(qemu: &Path) -> Option<PathBuf> {
    let prefix = qemu.parent()?.parent()?;
    (prefix != Path::new("/") && prefix.parent().is_some()).then(|| prefix.to_owned())
}

/// A path that is not there needs no rule.
fn allow(
    ruleset: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    match PathFd::new(path) {
        Ok(fd) => {
            let access = if path.is_dir() { access } else { access & AccessFs::from_file(NEWEST) };
            ruleset.add_rule(PathBeneath::new(fd, access))
        }
        Err(_) => Ok(ruleset),
    }
}
