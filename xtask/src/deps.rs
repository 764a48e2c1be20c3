//! `cargo xtask deps`: which crates we take, under which licence, from where.
//!
//! Works without network: everything is read from `cargo metadata`. Advisories need a database that is in no
//! package registry; they are looked up by `cargo deny` where that is installed and its database can be had.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::process::{capture, cargo, has_cargo_command, run};

/// Licences that code which is linked into our programs may have. `deny.toml` names the same.
const LICENCES: [&str; 12] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// The one place that crates come from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Crates that must not be linked twice: large, or with state that two copies would split.
const ONCE: [&str; 12] = [
    "clap",
    "flate2",
    "hyper",
    "reqwest",
    "ring",
    "rustix",
    "rustls",
    "serde",
    "serde_json",
    "tokio",
    "tracing",
    "zstd-sys",
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    license_file: Option<String>,
    source: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    req: String,
    source: Option<String>,
}

/// Fails when a crate breaks a rule; reports duplicates.
pub(crate) fn check() -> Result<()> {
    let text = capture(cargo().args(["metadata", "--format-version", "1", "--locked"]))?;
    let metadata: Metadata = serde_json::from_str(&text).context("cargo metadata printed something else")?;
    let problems = problems(&metadata);
    if !problems.is_empty() {
        bail!("dependencies break {} rule(s):\n  {}", problems.len(), problems.join("\n  "));
    }
    eprintln!(
        "    {} crates from crates.io, licences allowed",
        metadata.packages.len() - metadata.workspace_members.len()
    );
    let twice = duplicates(&metadata);
    if !twice.is_empty() {
        eprintln!("    in more than one incompatible version: {}", twice.join(", "));
    }
    advisories()
}

fn problems(metadata: &Metadata) -> Vec<String> {
    let mut problems = Vec::new();
    for package in &metadata.packages {
        let ours = metadata.workspace_members.contains(&package.id);
        let who = format!("{} {}", package.name, package.version);
        match (&package.source, ours) {
            (None, true) => problems.extend(wildcards(package)),
            (Some(source), false) if source == REGISTRY => {}
            (source, _) => {
                problems.push(format!("{who} comes from {}", source.as_deref().unwrap_or("a directory")))
            }
        }
        match (&package.license, &package.license_file) {
            (Some(licence), _) if is_allowed(licence) => {}
            (Some(licence), _) => problems.push(format!("{who} has licence {licence}")),
            (None, Some(file)) => problems.push(format!("{who} names no licence, only the file {file}")),
            (None, None) => problems.push(format!("{who} has no licence")),
        }
    }
    for name in ONCE {
        let versions: BTreeSet<_> =
            metadata.packages.iter().filter(|p| p.name == name).map(|p| series(&p.version)).collect();
        if versions.len() > 1 {
            problems
                .push(format!("{name} is there in {} incompatible versions: {versions:?}", versions.len()));
        }
    }
    problems
}

fn wildcards(package: &Package) -> impl Iterator<Item = String> {
    let open = package
        .dependencies
        .iter()
        .filter(|dependency| dependency.source.is_some() && dependency.req.contains('*'));
    open.map(|dependency| format!("{} takes any version of {}", package.name, dependency.name))
}

fn duplicates(metadata: &Metadata) -> Vec<String> {
    let mut versions: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for package in &metadata.packages {
        versions.entry(&package.name).or_default().insert(series(&package.version));
    }
    let twice = versions.into_iter().filter(|(_, versions)| versions.len() > 1);
    twice
        .map(|(name, versions)| format!("{name} ({})", versions.into_iter().collect::<Vec<_>>().join(", ")))
        .collect()
}

/// What versions must share to be compatible: `1`, `0.4`, `0.0.3`.
fn series(version: &str) -> String {
    let numbers: Vec<&str> = version.split(['.', '-', '+']).take(3).collect();
    let significant = numbers.iter().position(|number| *number != "0").unwrap_or(2);
    numbers[..=significant.min(numbers.len() - 1)].join(".")
}

/// Whether an SPDX expression leaves a choice that is allowed: `OR` takes one side, `AND` both.
fn is_allowed(expression: &str) -> bool {
    // `MIT/Apache-2.0` is the old spelling of `MIT OR Apache-2.0`.
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = &words[..];
    either(&mut rest) && rest.is_empty()
}

fn either(words: &mut &[&str]) -> bool {
    let mut allowed = both(words);
    while let ["OR", rest @ ..] = *words {
        *words = rest;
        allowed |= both(words);
    }
    allowed
}

fn both(words: &mut &[&str]) -> bool {
    let mut allowed = one(words);
    while let ["AND", rest @ ..] = *words {
        *words = rest;
        allowed &= one(words);
    }
    allowed
}

fn one(words: &mut &[&str]) -> bool {
    match *words {
        ["(", rest @ ..] => {
            *words = rest;
            let allowed = either(words);
            let [")", rest @ ..] = *words else { return false };
            *words = rest;
            allowed
        }
        [licence, "WITH", exception, rest @ ..] => {
            *words = rest;
            LICENCES.contains(&format!("{licence} WITH {exception}").as_str())
        }
        [licence, rest @ ..] => {
            *words = rest;
            LICENCES.contains(licence)
        }
        [] => false,
    }
}

/// Known vulnerabilities, where they can be looked up.
fn advisories() -> Result<()> {
    if !has_cargo_command("deny") {
        eprintln!("    advisories: skipped, cargo-deny is not installed (cargo install --locked cargo-deny)");
        return Ok(());
    }
    if run(cargo().args(["deny", "--workspace", "fetch", "db"])).is_err() {
        eprintln!("    advisories: skipped, the RustSec database cannot be fetched from here");
        return Ok(());
    }
    run(cargo().args(["deny", "--workspace", "check"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_read_as_spdx_means_them() {
        for allowed in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "(MIT OR GPL-2.0) AND Zlib",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
            "MIT AND BSD-3-Clause",
        ] {
            assert!(is_allowed(allowed), "{allowed}");
        }
        for refused in
            ["MPL-2.0", "MIT AND GPL-2.0", "", "(MIT", "MIT Zlib", "GPL-2.0 WITH LLVM-exception", "MIT )"]
        {
            assert!(!is_allowed(refused), "{refused}");
        }
    }

    #[test]
    fn series_follow_the_rules_of_semver() {
        assert_eq!(series("1.2.3"), "1");
        assert_eq!(series("0.4.46"), "0.4");
        assert_eq!(series("0.0.3"), "0.0.3");
        assert_eq!(series("2.0.0-rc.1"), "2");
    }

    fn package(name: &str, source: Option<&str>, licence: Option<&str>, req: &str) -> Package {
        Package {
            id: name.into(),
            name: name.into(),
            version: "1.0.0".into(),
            license: licence.map(Into::into),
            license_file: None,
            source: source.map(Into::into),
            dependencies: vec![Dependency {
                name: "x".into(),
                req: req.into(),
                source: Some(REGISTRY.into()),
            }],
        }
    }

    #[test]
    fn each_broken_rule_is_named() {
        let metadata = Metadata {
            packages: vec![
                package("ours", None, Some("Apache-2.0"), "*"),
                package("fine", Some(REGISTRY), Some("MIT"), "^1"),
                package("git", Some("git+https://example.org/x"), Some("MIT"), "^1"),
                package("viral", Some(REGISTRY), Some("GPL-3.0"), "^1"),
                package("silent", Some(REGISTRY), None, "^1"),
                package("tokio", Some(REGISTRY), Some("MIT"), "^1"),
                Package { version: "2.0.0".into(), ..package("tokio", Some(REGISTRY), Some("MIT"), "^1") },
            ],
            workspace_members: ["ours".to_owned()].into(),
        };
        let found = problems(&metadata);
        assert_eq!(found.len(), 5, "{found:#?}");
        for word in
            ["ours takes any", "git 1.0.0 comes", "viral 1.0.0 has", "silent 1.0.0 has no", "tokio is there"]
        {
            assert!(found.iter().any(|problem| problem.starts_with(word)), "{word}: {found:#?}");
        }
    }
}
