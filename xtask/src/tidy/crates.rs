//! Which crate may use which, and dependencies that nothing uses.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::{Finding, data};
use crate::process::{capture, cargo, root};

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    rename: Option<String>,
    /// None for an ordinary one, else `dev` or `build`.
    kind: Option<String>,
    path: Option<String>,
}

/// `layers.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    /// From the bottom: the crates of each layer, which may use those of lower layers.
    layers: Vec<Vec<String>>,
    /// Crates that may use nothing but these.
    only: BTreeMap<String, Vec<String>>,
    /// Dependencies that are there for their features or their build script, by crate.
    unnamed: BTreeMap<String, Vec<String>>,
}

/// Reads `cargo metadata` and finds what breaks the rules.
pub(super) fn check() -> Result<Vec<Finding>> {
    let text = capture(cargo().args(["metadata", "--format-version", "1", "--locked", "--no-deps"]))?;
    let metadata: Metadata = serde_json::from_str(&text).context("cargo metadata printed something else")?;
    let path = data("layers.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let rules: Rules = toml::from_str(&text).with_context(|| format!("cannot parse {}", path.display()))?;
    let mut findings: Vec<Finding> =
        metadata.packages.iter().flat_map(|package| rules.broken_by(package)).collect();
    for package in &metadata.packages {
        let code = code_of(package)?;
        findings.extend(unused(package, &code, rules.unnamed.get(&package.name)));
    }
    Ok(findings)
}

impl Rules {
    fn layer(&self, name: &str) -> Option<usize> {
        self.layers.iter().position(|layer| layer.iter().any(|member| member == name))
    }

    fn broken_by(&self, package: &Package) -> Vec<Finding> {
        let finding = |detail: String| Finding {
            rule: "layers",
            place: package.name.clone(),
            amount: usize::MAX,
            detail,
        };
        let Some(own) = self.layer(&package.name) else {
            // Crates that are no part of the product use what they like.
            return match package.manifest_path.contains("/crates/") {
                true => vec![finding("is in no layer of xtask/tidy/layers.toml".to_owned())],
                false => Vec::new(),
            };
        };
        let used = package.dependencies.iter().filter(|dependency| dependency.kind.as_deref() != Some("dev"));
        let mut findings = Vec::new();
        for dependency in used {
            let name = &dependency.name;
            if dependency.path.is_some() && self.layer(name).is_none_or(|layer| layer >= own) {
                findings.push(finding(format!("uses {name}, which is in no lower layer")));
            }
            if self.only.get(&package.name).is_some_and(|only| !only.contains(name)) {
                findings.push(finding(format!("uses {name}, which it may not")));
            }
        }
        findings
    }
}

/// All code of a package, tests and examples included.
fn code_of(package: &Package) -> Result<String> {
    let dir = Path::new(&package.manifest_path).parent().context("a manifest lies in a directory")?;
    let inner = dir.strip_prefix(root()).unwrap_or(dir).to_string_lossy().into_owned();
    let mut code = String::new();
    for (path, text) in super::tracked(&format!("{inner}/*.rs"))? {
        // A package inside of another one has its own dependencies.
        let nested = path[inner.len()..].split('/').skip(1).scan(dir.to_owned(), |at, part| {
            at.push(part);
            Some(at.join("Cargo.toml").is_file())
        });
        if !nested.into_iter().any(|nested| nested) {
            code.push_str(&text);
        }
    }
    Ok(code)
}

fn unused(package: &Package, code: &str, unnamed: Option<&Vec<String>>) -> Vec<Finding> {
    let is_named = |dependency: &Dependency| {
        let name = dependency.rename.as_ref().unwrap_or(&dependency.name).replace('-', "_");
        has_word(code, &name) || unnamed.is_some_and(|names| names.contains(&dependency.name))
    };
    package
        .dependencies
        .iter()
        .filter(|dependency| !is_named(dependency))
        .map(|dependency| Finding {
            rule: "unused",
            place: format!("{} -> {}", package.name, dependency.name),
            amount: 1,
            detail: "no line uses this dependency".to_owned(),
        })
        .collect()
}

fn has_word(code: &str, word: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(is_word) && !code[at + word.len()..].starts_with(is_word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dependency(name: &str, ours: bool, kind: Option<&str>) -> Dependency {
        Dependency {
            name: name.to_owned(),
            rename: None,
            kind: kind.map(str::to_owned),
            path: ours.then(|| "x".to_owned()),
        }
    }

    fn package(name: &str, dependencies: Vec<Dependency>) -> Package {
        Package { name: name.to_owned(), manifest_path: format!("/crates/{name}/Cargo.toml"), dependencies }
    }

    #[test]
    fn arrows_lead_down() {
        let rules: Rules = toml::from_str(
            "layers = [[\"microagent-model\"], [\"microagent-net\", \"microagent-vm\"]]\n\
             [only]\n\"microagent-model\" = [\"serde\"]\n[unnamed]\n",
        )
        .unwrap();
        let broken = |name: &str, dependencies| rules.broken_by(&package(name, dependencies)).len();
        assert_eq!(broken("microagent-vm", vec![dependency("microagent-model", true, None)]), 0);
        assert_eq!(broken("microagent-vm", vec![dependency("microagent-net", true, None)]), 1);
        assert_eq!(broken("microagent-model", vec![dependency("microagent-vm", true, None)]), 2);
        assert_eq!(broken("microagent-model", vec![dependency("tokio", false, None)]), 1);
        assert_eq!(broken("microagent-model", vec![dependency("tokio", false, Some("dev"))]), 0);
        assert_eq!(broken("microagent-new", Vec::new()), 1);
    }

    #[test]
    fn a_dependency_is_used_when_its_name_is_a_word_of_the_code() {
        let package =
            package("a", vec![dependency("tokio-util", false, None), dependency("bytes", false, None)]);
        let found = unused(&package, "use tokio_util::x; let serde_bytes = bytes2;", None);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].place, "a -> bytes");
        assert!(unused(&package, "tokio_util", Some(&vec!["bytes".to_owned()])).is_empty());
    }
}
