//! Builds the guest agent, packs it into an initramfs, and notes the sums of what the library will carry.
//!
//! The agent is another kind of program than its host (static, small, always optimised), so it is built by
//! a cargo of its own in a target directory of its own.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

#[path = "src/cpio.rs"]
mod cpio;

/// What the agent runs on: the guest kernel is for this machine.
const TARGET: &str = "x86_64-unknown-linux-gnu";

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
        None => build_agent(root, &out),
    };
    let initramfs = cpio::initramfs(&read(&agent_path));
    fs::write(out.join("initramfs.cpio"), &initramfs).expect("OUT_DIR is writable");

    let kernel = root.join("kernel");
    let packed = read(&watched(kernel.join("vmlinux.zst")));
    let manifest = watched(kernel.join("manifest.toml"));
    let manifest = String::from_utf8(read(&manifest)).expect("the kernel's manifest is text");
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

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()))
}

fn watched(path: PathBuf) -> PathBuf {
    println!("cargo::rerun-if-changed={}", path.display());
    path
}

fn build_agent(root: &Path, out: &Path) -> PathBuf {
    for part in ["Cargo.toml", "Cargo.lock"] {
        watched(root.join(part));
    }
    // The agent and what of this workspace it is made of.
    for name in ["microagent-agent", "microagent-proto", "microagent-tar", "microagent-tree"] {
        for part in ["src", "Cargo.toml"] {
            watched(root.join("crates").join(name).join(part));
        }
    }
    // Beside the outer build's own folders and not in OUT_DIR, of which there is one for each combination of
    // features and flags: the agent is the same for all of them.
    let profile_dir = out.ancestors().nth(3).expect("OUT_DIR is PROFILE/build/PACKAGE/out");
    let target_dir = profile_dir.join("guest-agent");
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"));
    cargo.current_dir(root).args(["build", "--quiet", "--locked", "--profile", "agent"]);
    cargo.args(["--package", "microagent-agent", "--target", TARGET, "--target-dir"]).arg(&target_dir);
    // What was meant for the outer build (its flags, lints, coverage, sanitizers) is not meant for the agent.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_of_the_outer_build) {
            cargo.env_remove(&name);
        }
    }
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
    let status = cargo.status().expect("cargo can be run");
    assert!(status.success(), "building the guest agent failed ({status}); its messages stand above");
    target_dir.join(TARGET).join("agent/microagent-agent")
}

fn is_of_the_outer_build(name: &str) -> bool {
    const EXACT: [&str; 7] = [
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_INCREMENTAL",
        "CARGO_TARGET_DIR",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTFLAGS",
        "LLVM_PROFILE_FILE",
    ];
    const PREFIXES: [&str; 7] = [
        "CARGO_BUILD_",
        "CARGO_CFG_",
        "CARGO_FEATURE_",
        "CARGO_MANIFEST_",
        "CARGO_PKG_",
        "CARGO_PROFILE_",
        "CARGO_TARGET_",
    ];
    EXACT.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// One string of the kernel's manifest, which is a flat file written by a script of ours.
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
