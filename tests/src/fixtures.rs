//! The images that `cargo xtask fixtures` made.

use std::path::{Path, PathBuf};

/// Tag of every fixture in its OCI layout.
pub const TAG: &str = "latest";

/// A file or directory below `target/fixtures`.
#[track_caller]
pub fn path(name: &str) -> PathBuf {
    let workspace =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    let path = workspace.join(target).join("fixtures").join(name);
    assert!(path.exists(), "`{}` is missing: make it first (cargo xtask fixtures)", path.display());
    path
}

/// The OCI layout directory of a fixture: `busybox`, `debian`, `layers`, `caps`, `services` or `systemd`.
#[track_caller]
pub fn layout(name: &str) -> PathBuf {
    path(name)
}

/// Programs of busybox that tests call by name.
const APPLETS: [&str; 47] = [
    "sh", "cat", "chmod", "cp", "cut", "date", "dd", "df", "echo", "env", "false", "free", "grep", "head",
    "hostname", "id", "ifconfig", "ip", "kill", "killall", "ln", "ls", "mkdir", "mount", "mv", "nc", "nproc",
    "nslookup", "od", "poweroff", "printf", "ps", "pwd", "reboot", "rm", "seq", "sleep", "stat", "sync",
    "tail", "touch", "tr", "true", "uname", "wc", "wget", "yes",
];

/// A root file system tar of Debian's busybox, with more files (path, content) in it.
#[track_caller]
pub fn rootfs_tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: tar::EntryType, mode: u32, link: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        if kind == tar::EntryType::Symlink {
            header.set_link_name(link).expect("link names are short");
        }
        tar.append_data(&mut header, path, content).expect("writing to memory does not fail");
    };
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    for dir in ["bin/", "etc/", "root/", "srv/", "tmp/"] {
        add(dir, tar::EntryType::Directory, if dir == "tmp/" { 0o1777 } else { 0o755 }, "", b"");
    }
    add("bin/busybox", tar::EntryType::Regular, 0o755, "", &busybox);
    for applet in APPLETS {
        add(&format!("bin/{applet}"), tar::EntryType::Symlink, 0o777, "busybox", b"");
    }
    add(
        "etc/passwd",
        tar::EntryType::Regular,
        0o644,
        "",
        b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n",
    );
    add("etc/group", tar::EntryType::Regular, 0o644, "", b"root:x:0:\nuser:x:1000:\n");
    for (path, content) in files {
        let mode = if path.starts_with("bin/") { 0o755 } else { 0o644 };
        add(path, tar::EntryType::Regular, mode, "", content.as_bytes());
    }
    tar.into_inner().expect("writing to memory does not fail")
}
