//! A control group for each machine: limits of QEMU's memory and threads, and a fair share of the CPUs.
//!
//! No setup is needed: with cgroup v2 the group is created if the user has permission (systemd delegates it to
//! users), with v1 if root runs microagent. Otherwise the machine has no group, and its memory is limited only by
//! QEMU's own requests. The supervisor moves QEMU into the group while it starts, before the guest runs: a move waits for a
//! grace period of the host's kernel, which would come before QEMU's start otherwise. The supervisor removes the group with the
//! machine, or else its caller ([`remove`]), or else the next supervisor.
//!
//! # Source
//! Linux `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/`.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Mount point of control groups.
const MOUNT: &str = "/sys/fs/cgroup";

/// Name of a machine's group, before the process id of the supervisor.
const PREFIX: &str = "microagent-machine-";

/// Threads of QEMU in addition to those of the CPUs: 64 for disks, the rest for its event loops.
const THREADS_BESIDE_CPUS: u32 = 96;

/// Weight of a machine: the kernel's default.
const V2_WEIGHT: &str = "100";
const V1_SHARES: &str = "1024";

/// Limits of one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Most memory in MiB.
    pub(crate) memory_mib: u32,
    /// Virtual CPUs.
    pub(crate) cpu_count: u32,
}

/// The groups of one machine: one on v2, one for each controller on v1. Dropping it removes them if they are empty.
#[derive(Debug, Default)]
pub(crate) struct MachineGroup {
    dirs: Vec<PathBuf>,
}

impl MachineGroup {
    /// Creates the groups that can be created, and removes those of machines that have ended.
    pub(crate) fn make(bounds: Bounds, supervisor: u32) -> MachineGroup {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        MachineGroup::make_below(Path::new(MOUNT), &own, bounds, supervisor)
    }

    fn make_below(mount: &Path, own: &str, bounds: Bounds, supervisor: u32) -> MachineGroup {
        let name = name(supervisor);
        for parent in v2_parents(mount, own) {
            sweep(&parent);
            let dir = parent.join(&name);
            if make(&dir, &v2_files(bounds)) {
                return MachineGroup { dirs: vec![dir] };
            }
        }
        let v1 = v1_parents(mount, own).filter_map(|(controller, parent)| {
            sweep(&parent);
            let dir = parent.join(&name);
            make(&dir, &v1_files(controller, bounds)).then_some(dir)
        });
        MachineGroup { dirs: v1.collect() }
    }

    /// The directories in which the groups are.
    pub(crate) fn parents(&self) -> impl Iterator<Item = &Path> {
        self.dirs.iter().filter_map(|dir| dir.parent())
    }

    /// Moves a process into the groups. They limit what it takes and are no wall: one that was removed meanwhile does not
    /// count.
    pub(crate) fn take_in(&self, pid: i32) {
        for dir in &self.dirs {
            let procs = OpenOptions::new().write(true).open(dir.join("cgroup.procs"));
            let _ = procs.and_then(|mut procs| procs.write_all(pid.to_string().as_bytes()));
        }
    }
}

/// Removes the groups of a machine that has ended, by the process id of its supervisor. A supervisor has no capabilities
/// then: where a directory of the kernel is closed even to root (mode 0555), only its caller can remove a group.
pub(crate) fn remove(supervisor: u32) {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mount = Path::new(MOUNT);
    for parent in v2_parents(mount, &own).chain(v1_parents(mount, &own).map(|(_, parent)| parent)) {
        // Usually the supervisor has removed it.
        let _ = fs::remove_dir(parent.join(name(supervisor)));
    }
}

fn name(supervisor: u32) -> String {
    format!("{PREFIX}{supervisor}")
}

/// The directories where a group of v2 can be created. A group that has processes has no groups with controllers: the
/// machine's is created beside it.
fn v2_parents(mount: &Path, own: &str) -> impl Iterator<Item = PathBuf> {
    let dir = own.lines().find_map(|line| line.strip_prefix("0::")).map(|path| below(mount, path));
    let parents = dir.into_iter().flat_map(|dir| [dir.parent().map(Path::to_owned), Some(dir)]).flatten();
    parents.filter(move |parent| parent.starts_with(mount))
}

/// The directories where the groups of v1 are created, with their controllers.
fn v1_parents(mount: &Path, own: &str) -> impl Iterator<Item = (&'static str, PathBuf)> {
    V1_CONTROLLERS.into_iter().filter_map(move |controller| {
        let path = own.lines().find_map(|line| v1_path(line, controller))?;
        Some((controller, below(&mount.join(controller), path)))
    })
}

impl Drop for MachineGroup {
    fn drop(&mut self) {
        for dir in &self.dirs {
            // One that is not empty yet is removed by a later machine.
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Controllers of v1 that are used.
const V1_CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// The path of a controller in a line of `/proc/PID/cgroup`: `NUMBER:CONTROLLERS:PATH`.
fn v1_path<'a>(line: &'a str, controller: &str) -> Option<&'a str> {
    let mut fields = line.splitn(3, ':');
    let controllers = fields.nth(1)?;
    controllers.split(',').any(|name| name == controller).then(|| fields.next()).flatten()
}

fn below(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

fn v2_files(bounds: Bounds) -> Vec<(&'static str, String)> {
    vec![("memory.max", bytes(bounds)), ("pids.max", threads(bounds)), ("cpu.weight", V2_WEIGHT.to_owned())]
}

fn v1_files(controller: &str, bounds: Bounds) -> Vec<(&'static str, String)> {
    match controller {
        "memory" => vec![("memory.limit_in_bytes", bytes(bounds))],
        "pids" => vec![("pids.max", threads(bounds))],
        _ => vec![("cpu.shares", V1_SHARES.to_owned())],
    }
}

fn bytes(bounds: Bounds) -> String {
    (u64::from(bounds.memory_mib) << 20).to_string()
}

fn threads(bounds: Bounds) -> String {
    bounds.cpu_count.saturating_add(THREADS_BESIDE_CPUS).to_string()
}

/// Creates one group; removes it again if its first limit cannot be set.
fn make(dir: &Path, files: &[(&str, String)]) -> bool {
    if fs::create_dir(dir).is_err() {
        return false;
    }
    let set = |(name, value): &(&str, String)| {
        let file = OpenOptions::new().write(true).open(dir.join(name));
        file.and_then(|mut file| file.write_all(value.as_bytes())).is_ok()
    };
    let results: Vec<bool> = files.iter().map(set).collect();
    if results.first() == Some(&true) {
        return true;
    }
    let _ = fs::remove_dir(dir);
    false
}

/// Removes groups of machines without processes.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { memory_mib: 512, cpu_count: 2 };

    #[test]
    fn paths_of_controllers_are_found() {
        assert_eq!(v1_path("4:cpu,cpuacct:/user/a:b", "cpu"), Some("/user/a:b"));
        assert_eq!(v1_path("4:cpu,cpuacct:/user", "pids"), None);
        assert_eq!(v1_path("0::/user.slice", "memory"), None);
        assert_eq!(below(Path::new("/sys/fs/cgroup"), "/"), Path::new("/sys/fs/cgroup/"));
    }

    #[test]
    fn what_cannot_be_bounded_is_not_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let own = "0::/user.slice/session.scope\n3:memory:/user.slice\n";
        fs::create_dir_all(dir.path().join("user.slice/session.scope")).unwrap();
        fs::create_dir_all(dir.path().join("memory/user.slice")).unwrap();
        let group = MachineGroup::make_below(dir.path(), own, BOUNDS, 7);
        // A directory of an ordinary file system has no file `memory.max`.
        assert_eq!(group.dirs, Vec::<PathBuf>::new());
        for parent in ["user.slice", "memory/user.slice"] {
            let left = fs::read_dir(dir.path().join(parent)).unwrap().flatten();
            let left: Vec<_> =
                left.map(|entry| entry.file_name()).filter(|name| name != "session.scope").collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }

    #[test]
    fn bounds_are_memory_and_threads() {
        assert_eq!(v2_files(BOUNDS)[0], ("memory.max", "536870912".to_owned()));
        assert_eq!(v1_files("pids", BOUNDS), [("pids.max", "98".to_owned())]);
    }
}
