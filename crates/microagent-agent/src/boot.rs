//! What is the same in every guest, done before the host is met: kernel file systems, device links, limits.
//!
//! All of it is mounted in the initramfs and later moved under the workspace's root in three steps, so a
//! restored guest finds it ready.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MountFlags, mount};

use crate::console;
use crate::disk;
use crate::init::{Init, InitError};
use crate::surroundings;

/// How long the control port may take to appear; it comes within milliseconds of the drivers' start.
pub(crate) const PORT_DEADLINE: Duration = Duration::from_secs(20);

/// Scratch space of the agent: memory, reachable under every root, never on the image's disk.
pub(crate) const SCRATCH: &str = "/dev/.microagent";

const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Parent of the commands' control groups.
///
/// No controller is enabled for any group here; whoever makes groups in the guest (a container engine, a
/// service manager) enables those that it wants, as it does on every machine. Each one makes every command
/// dearer.
const EXEC_CGROUPS: &str = "/sys/fs/cgroup/microagent";

/// Their name in the root group.
pub(crate) const COMMANDS: &str = "microagent";

/// What later steps need from the boot.
#[derive(Debug)]
pub(crate) struct Booted {
    /// Parent of the commands' control groups; held open, so that a guest that unmounts it changes nothing.
    pub(crate) exec_cgroups: OwnedFd,
    /// Process 1 of the guest.
    pub(crate) init: Init,
}

/// Why the machine could not be prepared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error("cannot mount {kind} on {target}")]
    Mount { kind: &'static str, target: &'static str, source: io::Error },
    #[error("cannot make {path}")]
    Make { path: &'static str, source: io::Error },
    #[error("cannot open {path}")]
    Open { path: &'static str, source: io::Error },
    #[error("the guest has no process 1")]
    Init(#[from] InitError),
}

/// A kernel file system: kind, place, flags, options.
type MountOf = (&'static str, &'static str, MountFlags, &'static CStr);

/// In the order in which they are mounted; the disk is looked for through the first.
fn mounts() -> [MountOf; 7] {
    let plain = MountFlags::NOSUID | MountFlags::NODEV;
    let data = plain | MountFlags::NOEXEC;
    let terminals = MountFlags::NOSUID | MountFlags::NOEXEC;
    [
        ("sysfs", "/sys", data, c""),
        ("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=0755"),
        ("proc", "/proc", data, c""),
        ("devpts", "/dev/pts", terminals, c"mode=0620,gid=5,ptmxmode=0666"),
        ("tmpfs", "/dev/shm", plain, c"mode=1777"),
        ("mqueue", "/dev/mqueue", data, c""),
        ("cgroup2", CGROUP_ROOT, data, c""),
    ]
}

/// Mounts and links everything. Nothing here depends on the workspace.
pub(crate) fn prepare() -> Result<Booted, BootError> {
    let [first, rest @ ..] = mounts();
    mount_one(first)?;
    let exec_cgroups = std::thread::scope(|scope| {
        // The disk's driver and all the rest do not wait for each other.
        scope.spawn(disk::scan_early);
        for one in rest {
            mount_one(one)?;
        }
        make_devices()?;
        fs::create_dir(EXEC_CGROUPS).map_err(|source| BootError::Make { path: EXEC_CGROUPS, source })?;
        let exec_cgroups = openat(CWD, EXEC_CGROUPS, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| BootError::Open { path: EXEC_CGROUPS, source: e.into() })?;
        surroundings::set_limits();
        if let Err(error) = crate::net::loopback_up() {
            console::say_error("cannot start the loopback interface", &error);
        }
        Ok::<_, BootError>(exec_cgroups)
    })?;
    Ok(Booted { exec_cgroups, init: Init::start()? })
}

fn mount_one((kind, target, flags, options): MountOf) -> Result<(), BootError> {
    if matches!(kind, "devpts" | "tmpfs" | "mqueue") {
        fs::create_dir(target).map_err(|source| BootError::Make { path: target, source })?;
    }
    let failed = |e: rustix::io::Errno| BootError::Mount { kind, target, source: e.into() };
    mount(kind, target, kind, flags, options).map_err(failed)
}

/// Links and permissions that programs expect in `/dev`, and the agent's own corner there.
fn make_devices() -> Result<(), BootError> {
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        symlink(target, link).map_err(|source| BootError::Make { path: link, source })?;
    }
    // As udev would: these devices do their own checks.
    for device in ["/dev/fuse", "/dev/net/tun"] {
        if let Err(error) = fs::set_permissions(device, fs::Permissions::from_mode(0o666)) {
            console::say_error(device, &error);
        }
    }
    fs::DirBuilder::new()
        .mode(0o711)
        .create(SCRATCH)
        .map_err(|source| BootError::Make { path: SCRATCH, source })
}
