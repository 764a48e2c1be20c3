//! `cargo xtask docs`: whether every link in our documents leads somewhere.
//!
//! Looks at links to files of the repository and to headings in them. Addresses on the network are not asked:
//! a check that needs somebody else's server fails for reasons that are not ours.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::process::{capture, program, root};

/// Fails when a link of a document is dead.
pub(crate) fn check() -> Result<()> {
    let list =
        capture(program("git").args(["ls-files", "--cached", "--others", "--exclude-standard", "*.md"]))?;
    // A file that was deleted and not yet committed is still listed.
    let documents: Vec<PathBuf> =
        list.lines().map(|line| root().join(line)).filter(|path| path.is_file()).collect();
    let mut problems = Vec::new();
    let mut links = 0;
    for document in &documents {
        let text =
            fs::read_to_string(document).with_context(|| format!("cannot read {}", document.display()))?;
        for link in links_of(&text) {
            links += 1;
            if let Some(problem) = problem(document, &link) {
                let shown = document.strip_prefix(root()).unwrap_or(document);
                problems.push(format!("{}: `{link}` {problem}", shown.display()));
            }
        }
    }
    if !problems.is_empty() {
        bail!("{} dead link(s):\n  {}", problems.len(), problems.join("\n  "));
    }
    eprintln!("    {links} links in {} documents", documents.len());
    Ok(())
}

fn problem(document: &Path, link: &str) -> Option<String> {
    if ["http://", "https://", "mailto:"].iter().any(|scheme| link.starts_with(scheme)) {
        return None;
    }
    let (path, heading) = link.split_once('#').unwrap_or((link, ""));
    let target = match path {
        "" => document.to_owned(),
        _ => document.parent().expect("a document lies in a directory").join(path),
    };
    if !target.exists() {
        return Some("leads to nothing".to_owned());
    }
    if heading.is_empty() {
        return None;
    }
    let Ok(text) = fs::read_to_string(&target) else {
        return Some("leads to a heading of something that is no text".into());
    };
    (!headings_of(&text).contains(heading)).then(|| format!("leads to no heading of {}", target.display()))
}

/// Targets of `[text](target)` outside of code.
pub(crate) fn links_of(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    for line in prose(text) {
        // Code in backticks is no link.
        let line: String = line.split('`').step_by(2).collect();
        let mut rest = line.as_str();
        while let Some((_, after)) = rest.split_once("](") {
            let Some((target, after)) = after.split_once(')') else { break };
            links.push(target.split_whitespace().next().unwrap_or("").to_owned());
            rest = after;
        }
    }
    links
}

/// Names of headings as forges make them: lower case, words joined by hyphens.
fn headings_of(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
}

fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Lines that are not in fenced code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# A `title`, here\nsee [one](a.md#x) and [two](b.md \"t\") not `[c](d)`\n```\n[no](e)\n# no\n```\n[f](#a-title-here)\n";

    #[test]
    fn links_in_code_are_no_links() {
        assert_eq!(links_of(TEXT), ["a.md#x", "b.md", "#a-title-here"]);
    }

    #[test]
    fn headings_are_named_as_forges_name_them() {
        assert_eq!(headings_of(TEXT), BTreeSet::from(["a-title-here".to_owned()]));
    }

    #[test]
    fn a_dead_link_is_found() {
        let readme = root().join("README.md");
        assert!(problem(&readme, "nowhere.md").is_some());
        assert!(problem(&readme, "README.md#no-such-heading").is_some());
        assert!(problem(&readme, "README.md").is_none());
        assert!(problem(&readme, "https://example.org/nowhere").is_none());
    }
}
