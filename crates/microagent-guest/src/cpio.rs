//! The initramfs: a cpio archive in the kernel's "newc" format, with the agent as `/init` and the index of the kernel's
//! modules.
//!
//! # Source
//! `Documentation/driver-api/early-userspace/buffer-format.rst` of the kernel.

/// Kinds of file, as in `st_mode`.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Directories that the agent mounts on.
const DIRECTORIES: [&str; 4] = ["dev", "proc", "sys", "newroot"];

/// The index of a kernel's modules.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    /// The kernel's release.
    pub(crate) release: String,
    /// Files by their names.
    pub(crate) files: Vec<(String, Vec<u8>)>,
}

/// Builds the archive around the agent. The same agent and modules give the same bytes.
pub(crate) fn initramfs(agent: &[u8], modules: &Modules) -> Vec<u8> {
    let mut archive = Vec::with_capacity(agent.len() + 4096);
    for (number, name) in (1..).zip(DIRECTORIES) {
        entry(&mut archive, number, name, DIRECTORY | 0o755, None, &[]);
    }
    // Opened by the kernel as the standard streams of its first process, before that can mount anything.
    entry(&mut archive, 10, "dev/console", CHARACTER_DEVICE | 0o600, Some((5, 1)), &[]);
    entry(&mut archive, 11, "init", REGULAR | 0o755, None, agent);
    if !modules.files.is_empty() {
        add_modules(&mut archive, modules);
    }
    entry(&mut archive, 0, "TRAILER!!!", 0, None, &[]);
    archive
}

fn add_modules(archive: &mut Vec<u8>, modules: &Modules) {
    let directory = format!("lib/modules/{}", modules.release);
    for (number, name) in (12..).zip(["lib", "lib/modules", &directory]) {
        entry(archive, number, name, DIRECTORY | 0o755, None, &[]);
    }
    for (number, (name, data)) in (15..).zip(&modules.files) {
        entry(archive, number, &format!("{directory}/{name}"), REGULAR | 0o644, None, data);
    }
}

fn entry(archive: &mut Vec<u8>, inode: u32, name: &str, mode: u32, device: Option<(u32, u32)>, data: &[u8]) {
    let (major, minor) = device.unwrap_or((0, 0));
    let data_len = u32::try_from(data.len()).expect("the agent is far smaller than 4 GiB");
    let name_len = u32::try_from(name.len() + 1).expect("names are constants");
    // inode mode uid gid links mtime size, device of the file system, device number, name length, checksum
    let fields = [inode, mode, 0, 0, 1, 0, data_len, 0, 0, major, minor, name_len, 0]
        .map(|field| format!("{field:08x}"));
    archive.extend_from_slice(b"070701");
    archive.extend_from_slice(fields.concat().as_bytes());
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(data);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    fn modules() -> Modules {
        let files = vec![("modules.builtin".to_owned(), b"kernel/fs/a.ko\n".to_vec())];
        Modules { release: "1.2".to_owned(), files }
    }

    /// GNU cpio reads what the kernel will read.
    #[test]
    fn another_reader_lists_and_unpacks_it() {
        let archive = initramfs(b"seventeen bytes..", &modules());
        let cpio = |arguments: &[&str]| {
            let mut child = Command::new("cpio")
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("cpio is installed");
            child.stdin.take().unwrap().write_all(&archive).unwrap();
            let done = child.wait_with_output().unwrap();
            assert!(done.status.success());
            done.stdout
        };
        let listed = String::from_utf8(cpio(&["-tv", "--numeric-uid-gid"])).unwrap();
        let columns: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
        let names: Vec<_> = columns.iter().map(|line| (line[0], *line.last().unwrap())).collect();
        assert_eq!(
            names,
            [
                ("drwxr-xr-x", "dev"),
                ("drwxr-xr-x", "proc"),
                ("drwxr-xr-x", "sys"),
                ("drwxr-xr-x", "newroot"),
                ("crw-------", "dev/console"),
                ("-rwxr-xr-x", "init"),
                ("drwxr-xr-x", "lib"),
                ("drwxr-xr-x", "lib/modules"),
                ("drwxr-xr-x", "lib/modules/1.2"),
                ("-rw-r--r--", "lib/modules/1.2/modules.builtin"),
            ]
        );
        assert_eq!((columns[4][4], columns[4][5]), ("5,", "1"));
        assert_eq!(cpio(&["-i", "--to-stdout", "init"]), b"seventeen bytes..");
    }

    #[test]
    fn the_same_agent_gives_the_same_bytes() {
        assert_eq!(initramfs(b"agent", &modules()), initramfs(b"agent", &modules()));
        assert_eq!(initramfs(b"agent", &modules()).len() % 4, 0);
    }
}
