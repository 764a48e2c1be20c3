//! What is broken today and may stay for now: numbers that only fall.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

use super::{Finding, data};

/// Where the numbers lie.
const FILE: &str = "ratchet.toml";

const HEAD: &str = "# What `cargo xtask tidy` allows for now. Numbers fall and never grow; `cargo xtask tidy --update` writes them.\n\n";

/// Allowed amounts: rule, place, amount.
#[derive(Debug, Default)]
pub(super) struct Ratchet(BTreeMap<String, BTreeMap<String, usize>>);

impl Ratchet {
    /// Reads the numbers.
    pub(super) fn read() -> Result<Ratchet> {
        let path = data(FILE);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Ratchet(toml::from_str(&text).with_context(|| format!("cannot parse {}", path.display()))?))
    }

    /// Writes today's numbers.
    pub(super) fn write(findings: &[Finding]) -> Result<()> {
        let mut rules: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
        for Finding { rule, place, amount, .. } in findings {
            rules.entry(rule).or_default().insert(place, *amount);
        }
        let path = data(FILE);
        let text = toml::to_string(&rules).context("the numbers have no form")?;
        fs::write(&path, format!("{HEAD}{text}")).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The findings that are new or worse than allowed, one line each.
    pub(super) fn broken_by(&self, findings: &[Finding]) -> Vec<String> {
        let allowed = |finding: &Finding| {
            self.0.get(finding.rule).and_then(|places| places.get(&finding.place)).copied().unwrap_or(0)
        };
        let broken = findings.iter().filter(|finding| finding.amount > allowed(finding));
        broken
            .map(|finding| {
                let Finding { rule, place, amount, detail } = finding;
                match allowed(finding) {
                    0 => format!("{rule}: {place}: {detail}"),
                    allowed => format!("{rule}: {place}: {detail} ({amount}, {allowed} allowed)"),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(place: &str, amount: usize) -> Finding {
        Finding { rule: "width", place: place.to_owned(), amount, detail: "wide".to_owned() }
    }

    #[test]
    fn numbers_may_fall_and_not_grow() {
        let ratchet = Ratchet(toml::from_str("[width]\n\"a.md\" = 3\n").unwrap());
        assert!(ratchet.broken_by(&[finding("a.md", 3)]).is_empty());
        assert!(ratchet.broken_by(&[finding("a.md", 1)]).is_empty());
        assert_eq!(ratchet.broken_by(&[finding("a.md", 4)]), ["width: a.md: wide (4, 3 allowed)"]);
        assert_eq!(ratchet.broken_by(&[finding("b.md", 1)]), ["width: b.md: wide"]);
    }
}
