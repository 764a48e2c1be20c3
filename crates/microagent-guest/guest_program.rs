//! Building programs for the guest: another kind than their host (static, small, always optimised), so they are
//! built by a cargo of their own in a target directory of their own. A part of build scripts.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What they run on: the guest kernel is for this machine.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds a package of the workspace for the guest, for a build script whose `OUT_DIR` this is, which is run again when
/// one of the `parts` (directories of packages) changes. Gives the program's path.
pub(crate) fn build(root: &Path, out: &Path, package: &str, parts: &[&str]) -> PathBuf {
    for part in ["Cargo.toml", "Cargo.lock"] {
        watched(root.join(part));
    }
    for part in parts {
        watched(root.join(part).join("src"));
        watched(root.join(part).join("Cargo.toml"));
    }
    // Beside the outer build's own folders and not in OUT_DIR, of which there is one for each combination of
    // features and flags: the program is the same for all of them.
    let profile_dir = out.ancestors().nth(3).expect("OUT_DIR is PROFILE/build/PACKAGE/out");
    let target_dir = profile_dir.join("guest-agent");
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"));
    cargo.current_dir(root).args(["build", "--quiet", "--locked", "--profile", "agent"]);
    cargo.args(["--package", package, "--target", TARGET, "--target-dir"]).arg(&target_dir);
    // What was meant for the outer build (its flags, lints, coverage, sanitizers) is not meant for it.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_of_the_outer_build) {
            cargo.env_remove(&name);
        }
    }
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
    let status = cargo.status().expect("cargo can be run");
    assert!(status.success(), "building {package} failed ({status}); its messages stand above");
    target_dir.join(TARGET).join("agent").join(package)
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

/// A path that the build script is run again for.
pub(crate) fn watched(path: PathBuf) -> PathBuf {
    println!("cargo::rerun-if-changed={}", path.display());
    path
}
