//! What this host can do, and how a test says that it needs more.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::statvfs;

use crate::wait_for;

/// Says why a test did not run. The caller returns right after.
#[expect(clippy::print_stderr, reason = "a skipped test says why")]
pub fn skip(reason: &str) {
    eprintln!("SKIPPED: {reason}");
}

/// Whether a program of this name can be started.
pub fn has_program(name: &str) -> bool {
    Command::new(name)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

/// Runs a program of the host to its end and gives what it printed; fails the test when it fails.
#[track_caller]
pub fn must(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("cannot start {program}: {e}"));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}\n{stdout}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}

/// Checks an ext4 image as strictly as `e2fsck` can.
#[track_caller]
pub fn e2fsck(image: &Path) {
    let image = image.to_str().expect("test paths are UTF-8");
    must("e2fsck", &["-fn", image]);
}

/// An IPv4 address of this host that is not loopback. Nothing is sent for it.
pub fn outward_address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Documentation address: it is routed, and never reached.
    socket.connect("192.0.2.1:9").ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) if !address.is_loopback() && !address.is_unspecified() => Some(address),
        _ => None,
    }
}

/// Where a program lies, as a shell would find it.
#[track_caller]
pub fn find_program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed"))
}

/// A small file system of its own in memory; gone when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one on a directory. Only root can.
    #[track_caller]
    pub fn mount(path: &Path, size_mib: u32) -> SmallDisk {
        let options = format!("size={size_mib}m,mode=0777");
        must(
            "mount",
            &["-t", "tmpfs", "-o", &options, "tmpfs", path.to_str().expect("test paths are UTF-8")],
        );
        SmallDisk { path: path.to_owned() }
    }

    /// Waits until this much is free: the kernel may take its time with what was removed.
    #[track_caller]
    pub fn wait_for_free_mib(&self, mib: u64) {
        wait_for("free space on the small disk", Duration::from_secs(10), || {
            let free = statvfs(&self.path).map(|disk| (disk.f_bavail * disk.f_frsize) >> 20);
            if free.is_ok_and(|free| free >= mib) { Ok(()) } else { Err(free) }
        });
    }

    /// Makes it read-only, or writable again.
    #[track_caller]
    pub fn set_read_only(&self, read_only: bool) {
        let options = if read_only { "remount,ro" } else { "remount,rw" };
        must("mount", &["-o", options, self.path.to_str().expect("test paths are UTF-8")]);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a failed test may have left somebody there.
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}
