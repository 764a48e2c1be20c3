//! What this host can do, and how a test says that it needs more.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::statvfs;

use crate::wait_for;

/// How long the mirror may take to answer.
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);

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

/// How many ports a process has for itself.
const OWN_PORTS: u16 = 10;

/// The first of `OWN_PORTS` ports of this process: no other test is given them, and they lie below those that the system
/// gives to whoever asks for any. So one that is free stays free.
#[track_caller]
pub fn own_ports() -> u16 {
    const BLOCKS: u32 = 2000;
    let is_free =
        |port: u16| TcpListener::bind(("0.0.0.0", port)).and(UdpSocket::bind(("0.0.0.0", port))).is_ok();
    // Neighbours have started at the same time; who finds one of its ports taken looks far from them.
    let blocks = (0..BLOCKS).map(|step| std::process::id().wrapping_add(step * 997) % BLOCKS);
    let mut firsts = blocks.map(|block| 10_000 + block as u16 * OWN_PORTS);
    let first = firsts.find(|first| (*first..first + OWN_PORTS).all(is_free));
    first.expect("some of twenty thousand ports are free")
}

/// The package mirror that this host's own apt uses.
#[derive(Debug)]
pub struct Mirror {
    /// Its name.
    pub name: String,
    address: Ipv4Addr,
}

impl Mirror {
    /// The flags that a guest needs to reach it in the mode `public`: none, unless it stands in a network around this host.
    pub fn allowed_inside(&self) -> Vec<String> {
        // Shared addresses (RFC 6598) are inside, too.
        let [first, second, ..] = self.address.octets();
        let is_shared = first == 100 && second & 0xc0 == 64;
        match self.address.is_private() || is_shared {
            true => vec!["--egress-allow".to_owned(), self.address.to_string()],
            false => Vec::new(),
        }
    }
}

/// The package mirror of this host, if it can be reached over plain HTTP. Prints why if not.
pub fn package_mirror() -> Option<Mirror> {
    let Some(name) = mirror_name() else {
        skip("this host's own apt names no mirror over http");
        return None;
    };
    let reached = (name.as_str(), 80).to_socket_addrs().ok().and_then(|mut addresses| {
        addresses.find_map(|address| match address {
            SocketAddr::V4(v4) if TcpStream::connect_timeout(&address, CONNECT_DEADLINE).is_ok() => {
                Some(*v4.ip())
            }
            _ => None,
        })
    });
    if reached.is_none() {
        skip(&format!("this host cannot reach {name} itself"));
    }
    Some(Mirror { name, address: reached? })
}

fn mirror_name() -> Option<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(
        fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path()),
    );
    // What apt itself reads: other files in that directory are switched off.
    files.retain(|file| {
        file.extension().is_some_and(|extension| extension == "list" || extension == "sources")
    });
    files.iter().filter_map(|file| fs::read_to_string(file).ok()).find_map(|text| {
        let line = text.lines().find(|line| !line.starts_with('#') && line.contains("http://"))?;
        let (_, rest) = line.split_once("http://")?;
        Some(rest.split(['/', ' ']).next()?.to_owned())
    })
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
    /// Mounts one on a directory, whose owner it belongs to. Only root can.
    #[track_caller]
    pub fn mount(path: &Path, size_mib: u32) -> SmallDisk {
        let owner = fs::metadata(path).unwrap_or_else(|e| panic!("cannot look at `{}`: {e}", path.display()));
        let options = format!("size={size_mib}m,mode=0700,uid={},gid={}", owner.uid(), owner.gid());
        must(
            "mount",
            &["-t", "tmpfs", "-o", &options, "tmpfs", path.to_str().expect("test paths are UTF-8")],
        );
        SmallDisk { path: path.to_owned() }
    }

    /// Waits until this much is free: the kernel may take its time with what was removed.
    #[track_caller]
    pub fn wait_for_free_mib(&self, mib: u64) {
        wait_for("free space on the small disk", Duration::from_secs(60), || {
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

/// Whether the kernel enforces Landlock rules.
pub fn has_landlock() -> bool {
    let modules = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    modules.split(',').any(|module| module.trim() == "landlock")
}
