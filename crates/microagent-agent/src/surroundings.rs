//! What programs expect in addition to the image: settings of the kernel, `/etc/mtab`, a shared root, a `/run` without the
//! traces of processes that are gone.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree,
};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::console;
use crate::sys;

/// Open files: the soft limit keeps programs quick that close every possible descriptor one by one, the
/// hard one lets those that know what they need raise it.
const OPEN_FILES: Rlimit = Rlimit { current: Some(65_536), maximum: Some(1_048_576) };

/// Where programs note that they run; the second is the first on most systems.
const RUN_DIRECTORIES: [&str; 2] = ["/run", "/var/run"];

/// How deep below [`RUN_DIRECTORIES`] the traces are.
const RUN_DEPTH: usize = 3;

/// Limits of the agent, inherited by what it runs, and kernel settings that users of Docker and of distributions are used to.
pub(crate) fn set_limits() {
    let limits = [
        (Resource::Nofile, OPEN_FILES),
        (Resource::Core, Rlimit { current: Some(0), maximum: None }),
        // `kernel.threads-max` and control groups bound processes, as in containers.
        (Resource::Nproc, Rlimit { current: None, maximum: None }),
    ];
    for (resource, limit) in limits {
        if let Err(error) = setrlimit(resource, limit) {
            console::say_error("cannot set a resource limit", &error);
        }
    }
    for (path, value) in [
        // When memory runs out, anything goes before the agent.
        ("/proc/self/oom_score_adj", "-1000"),
        // Ordinary users may ping and listen on low ports.
        ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
        ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
        // A tree of JavaScript modules has more directories than a small machine is given watches for.
        ("/proc/sys/fs/inotify/max_user_watches", "524288"),
        ("/proc/sys/fs/inotify/max_user_instances", "1024"),
        // Search engines and databases map many files; distributions have this value.
        ("/proc/sys/vm/max_map_count", "1048576"),
    ] {
        if let Err(error) = fs::write(path, value) {
            console::say_error(path, &error);
        }
    }
}

/// The index of the kernel's modules, of which all are built in: part of the agent's own file system, to be mounted in the
/// guest's. Without it, which only a kernel of the user's lacks, `modprobe` fails.
pub(crate) fn kernel_modules() -> Option<OwnedFd> {
    let path = modules_path()?;
    let tree =
        open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC).ok()?;
    sys::make_read_only(tree.as_fd())
        .inspect_err(|error| console::say_error("cannot make the kernel's modules read-only", error))
        .ok()?;
    Some(tree)
}

fn modules_path() -> Option<String> {
    let uname = rustix::system::uname();
    Some(format!("/lib/modules/{}", uname.release().to_str().ok()?))
}

/// Mounts the index where an image has libraries at all.
fn mount_modules(tree: &OwnedFd) -> io::Result<()> {
    let Some(path) = modules_path() else { return Ok(()) };
    if !fs::metadata("/lib").is_ok_and(|found| found.is_dir()) {
        return Ok(());
    }
    fs::create_dir_all(&path)?;
    Ok(move_mount(tree, "", CWD, path.as_str(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// What is the same for every root that has just become the root.
pub(crate) fn prepare_root(modules: Option<&OwnedFd>) {
    if let Some(Err(error)) = modules.map(mount_modules) {
        console::say_error("cannot show the kernel's modules", &error);
    }
    // As service managers make it: container engines ask for it.
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    if let Err(error) = mount_change(c"/", shared) {
        console::say_error("cannot share mounts", &error);
    }
    if fs::symlink_metadata("/etc/mtab").is_err()
        && let Err(error) =
            fs::create_dir_all("/etc").and_then(|()| symlink("/proc/self/mounts", "/etc/mtab"))
    {
        console::say_error("cannot make /etc/mtab", &error);
    }
}

/// Removes sockets, pipes, PID and lock files of processes that ended with an earlier machine: a program that finds one takes
/// its writer for alive.
pub(crate) fn clear_run() {
    for directory in RUN_DIRECTORIES {
        if fs::symlink_metadata(directory).is_ok_and(|found| found.is_dir()) {
            clear(Path::new(directory), RUN_DEPTH);
        }
    }
}

fn clear(directory: &Path, depth: usize) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth > 1 {
            clear(&entry.path(), depth - 1);
        } else if (kind.is_socket() || kind.is_fifo() || (kind.is_file() && is_trace(&entry.file_name())))
            && let Err(error) = fs::remove_file(entry.path())
            && error.kind() != io::ErrorKind::NotFound
        {
            console::say_error(&format!("cannot remove {}", entry.path().display()), &error);
        }
    }
}

fn is_trace(name: &std::ffi::OsStr) -> bool {
    let name = name.as_encoded_bytes();
    [&b".pid"[..], b".lock", b"-lock"].iter().any(|end| name.ends_with(end))
        || matches!(name, b"pid" | b"lock")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn traces_of_processes_go_and_everything_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("postgresql/deep/deeper")).unwrap();
        for name in [
            "docker.pid",
            "a.lock",
            "settings",
            "postgresql/.s.PGSQL.5432.lock",
            "postgresql/deep/deeper/x.pid",
        ] {
            fs::write(at(name), "1").unwrap();
        }
        drop(UnixListener::bind(at("postgresql/.s.PGSQL.5432")).unwrap());
        symlink("settings", at("link.pid")).unwrap();
        clear(dir.path(), RUN_DEPTH);
        let there = |name: &str| fs::symlink_metadata(at(name)).is_ok();
        for gone in ["docker.pid", "a.lock", "postgresql/.s.PGSQL.5432.lock", "postgresql/.s.PGSQL.5432"] {
            assert!(!there(gone), "{gone}");
        }
        for left in ["settings", "link.pid", "postgresql/deep/deeper/x.pid"] {
            assert!(there(left), "{left}");
        }
    }
}
