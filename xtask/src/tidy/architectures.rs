//! Code for one architecture of processors is in one place, and everything else has only what all architectures have.
//!
//! Nothing here can compile for another architecture than its own, so the names of system calls are looked up in the
//! source of the crate `libc`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::Finding;
use super::source::Source;
use crate::process::{capture, program};

/// Where code may depend on the architecture.
const PLACES: [&str; 2] =
    ["crates/microagent-vm/src/architecture.rs", "crates/microagent-cli/src/args/docker.rs"];

/// Modules of single architectures.
const MODULES: &str = "crates/microagent-vm/src/architecture/";

/// Files of `libc` with the system calls of 64-bit ARM, which has no older ones.
const CALLS: [&str; 2] =
    ["src/unix/linux_like/linux/gnu/b64/aarch64/mod.rs", "src/unix/linux_like/linux/gnu/b64/aarch64/lp64.rs"];

/// Conditions on the architecture, and system calls that not every architecture has, in other places.
pub(super) fn check(sources: &[Source]) -> Result<Vec<Finding>> {
    let calls = common_calls()?;
    let programs = sources.iter().filter(|source| source.path.starts_with("crates/"));
    Ok(programs.flat_map(|source| findings(source, &calls)).collect())
}

fn findings(source: &Source, calls: &BTreeSet<String>) -> Vec<Finding> {
    if source.path.starts_with(MODULES) {
        return Vec::new();
    }
    let code = source.code.iter().enumerate().filter(|(line, _)| !source.is_test[*line]);
    let mut found = Vec::new();
    for (line, text) in code {
        if text.contains("target_arch") && !PLACES.contains(&source.path.as_str()) {
            found.push(format!("line {}: a condition on the architecture", line + 1));
        }
        let used = text.split(|c: char| !c.is_alphanumeric() && c != '_');
        for call in used.filter(|word| word.starts_with("SYS_") && !calls.contains(*word)) {
            found.push(format!("line {}: `{call}`, which 64-bit ARM does not have", line + 1));
        }
    }
    found
        .into_iter()
        .map(|detail| Finding { rule: "architectures", place: source.path.clone(), amount: 1, detail })
        .collect()
}

/// Names of the system calls of 64-bit ARM.
fn common_calls() -> Result<BTreeSet<String>> {
    let metadata: serde_json::Value = serde_json::from_str(&capture(program("cargo").args([
        "metadata",
        "--format-version",
        "1",
        "--locked",
    ]))?)?;
    let packages = metadata["packages"].as_array().context("cargo lists no packages")?;
    let libc = packages.iter().find(|package| package["name"] == "libc").context("libc is not used")?;
    let manifest = libc["manifest_path"].as_str().context("libc has no manifest")?;
    let source = Path::new(manifest).parent().context("libc has no directory")?;
    let mut calls = BTreeSet::new();
    for file in CALLS {
        let path = source.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let constants = text.lines().filter_map(|line| line.trim().strip_prefix("pub const SYS_"));
        calls.extend(constants.filter_map(|rest| Some(format!("SYS_{}", rest.split_once(':')?.0))));
    }
    Ok(calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_for_one_architecture_is_found_outside_of_its_place() {
        let calls = BTreeSet::from(["SYS_openat".to_owned()]);
        let text = "#[cfg(target_arch = \"x86_64\")]\nconst CALLS: [c_long; 2] = [libc::SYS_openat, libc::SYS_open];\n";
        let found = |path: &str| findings(&Source::new(path.to_owned(), text), &calls).len();
        assert_eq!(found("crates/microagent-vm/src/jail.rs"), 2);
        assert_eq!(found("crates/microagent-vm/src/architecture.rs"), 1);
        assert_eq!(found("crates/microagent-vm/src/architecture/x86_64.rs"), 0);
    }

    #[test]
    fn libc_says_which_calls_every_architecture_has() {
        let calls = common_calls().unwrap();
        assert!(calls.len() > 250 && calls.contains("SYS_openat") && !calls.contains("SYS_open"));
    }
}
