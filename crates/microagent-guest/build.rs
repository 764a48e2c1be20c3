//! Builds the guest agent, packs it into an initramfs, and notes the sums of what the library will carry.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

#[path = "src/cpio.rs"]
mod cpio;
#[path = "guest_program.rs"]
mod guest_program;

/// The agent and what of this workspace it is made of.
const AGENT_PARTS: [&str; 4] =
    ["crates/microagent-agent", "crates/microagent-proto", "crates/microagent-tar", "crates/microagent-tree"];

/// A ready agent to carry instead of building one: for packagers and for tests with a faulty agent.
const AGENT_VARIABLE: &str = "MICROAGENT_AGENT";

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let root = here.ancestors().nth(2).expect("the crate lies in crates/ of the workspace");

    println!("cargo::rerun-if-env-changed={AGENT_VARIABLE}");
    let agent_path = match env::var_os(AGENT_VARIABLE) {
        Some(ready) => {
            println!("cargo::rerun-if-changed={}", Path::new(&ready).display());
            PathBuf::from(ready)
        }
        None => guest_program::build(root, &out, "microagent-agent", &AGENT_PARTS),
    };
    let kernel = root.join("kernel");
    let packed = read(&guest_program::watched(kernel.join("vmlinux.zst")));
    let manifest = guest_program::watched(kernel.join("manifest.toml"));
    let manifest = String::from_utf8(read(&manifest)).expect("the kernel's manifest is text");
    let modules = cpio::Modules {
        release: value(&manifest, "", "release"),
        files: modules(&guest_program::watched(kernel.join("modules"))),
    };
    let initramfs = cpio::initramfs(&read(&agent_path), &modules);
    fs::write(out.join("initramfs.cpio"), &initramfs).expect("OUT_DIR is writable");
    let vmlinux = zstd::decode_all(&packed[..]).expect("kernel/vmlinux.zst is a zstd file");
    let sum = hex(&Sha256::digest(&vmlinux));
    let noted = value(&manifest, "vmlinux", "sha256");
    assert_eq!(sum, noted, "kernel/vmlinux.zst is not the kernel of kernel/manifest.toml");

    let constants = format!(
        "const KERNEL_RELEASE: &str = {:?};\nconst KERNEL_SOURCE: &str = {:?};\n\
         const KERNEL_SHA256: &str = {sum:?};\nconst KERNEL_LEN: u64 = {};\n\
         const INITRAMFS_SHA256: &str = {:?};\n\
         static KERNEL_PACKED: &[u8] = include_bytes!({:?});\n\
         static INITRAMFS: &[u8] = include_bytes!({:?});\n",
        value(&manifest, "", "release"),
        format!("{} {}", value(&manifest, "source", "source_package"), value(&manifest, "source", "version")),
        vmlinux.len(),
        hex(&Sha256::digest(&initramfs)),
        kernel.join("vmlinux.zst"),
        out.join("initramfs.cpio"),
    );
    fs::write(out.join("carried.rs"), constants).expect("OUT_DIR is writable");
}

/// The files of a directory, by name.
fn modules(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let entries =
        fs::read_dir(directory).unwrap_or_else(|e| panic!("cannot list {}: {e}", directory.display()));
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("a directory that is open can be read"))
        .map(|entry| (entry.file_name().into_string().expect("names are plain"), read(&entry.path())))
        .collect();
    files.sort();
    files
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()))
}

/// One string of the kernel's manifest, which is a flat file written by `kernel/build.sh`.
fn value(manifest: &str, section: &str, key: &str) -> String {
    let mut current = "";
    for line in manifest.lines() {
        if let Some(name) = line.strip_prefix('[') {
            current = name.trim_end_matches(']');
        } else if let Some((name, value)) = line.split_once(" = ")
            && current == section
            && name == key
        {
            return value.trim_matches('"').to_owned();
        }
    }
    panic!("kernel/manifest.toml has no `{key}` in section `[{section}]`")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
