//! `cargo xtask tidy`: rules about the whole repository that neither the compiler nor clippy knows.
//!
//! Which crate may depend on which, unused dependencies, sizes of functions and files, public types that cannot grow or
//! share a name, commands that import each other, code for one architecture, width of Markdown, and the words of the
//! glossary. The rules' data are in `xtask/tidy/`. Violations that are not mended yet are counted in `ratchet.toml`: the
//! numbers may fall and never grow.

mod architectures;
mod commands;
mod crates;
mod growth;
mod names;
mod ratchet;
mod sizes;
mod source;
mod words;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::process::{capture, program, root};
use ratchet::Ratchet;
use source::Source;

/// Widest line of a Markdown file, in characters.
const MARKDOWN_WIDTH: usize = 120;

/// How the text of each how-to begins, below its title.
const PURPOSE: &str = "At the end of this page";

/// Arguments of `cargo xtask tidy`.
#[derive(Debug, Default, Args)]
pub(crate) struct TidyArguments {
    /// Write today's numbers into xtask/tidy/ratchet.toml
    #[arg(long)]
    update: bool,
}

/// A rule that is broken in one place.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// The rule: a table of the ratchet.
    rule: &'static str,
    /// Where: a file, or a function of a file.
    place: String,
    /// How badly: lines, or how often.
    amount: usize,
    /// What to read.
    detail: String,
}

/// Fails when a rule is broken more than the ratchet allows.
pub(crate) fn check(arguments: &TidyArguments) -> Result<()> {
    let mut findings = crates::check()?;
    let sources = sources()?;
    for source in &sources {
        findings.extend(sizes::check(source));
        findings.extend(growth::check(source));
        findings.extend(commands::check(source));
    }
    findings.extend(names::check(&sources));
    findings.extend(architectures::check(&sources)?);
    let documents = documents()?;
    for (path, text) in &documents {
        findings.extend(width(path, text));
        findings.extend(purpose(path, text));
    }
    findings.extend(words::check(&sources, &documents)?);
    if arguments.update {
        return Ratchet::write(&findings);
    }
    let broken = Ratchet::read()?.broken_by(&findings);
    if !broken.is_empty() {
        bail!("{} rule(s) broken:\n  {}", broken.len(), broken.join("\n  "));
    }
    eprintln!(
        "    {} source files and {} documents, {} old findings left",
        sources.len(),
        documents.len(),
        findings.len()
    );
    Ok(())
}

fn width(path: &str, text: &str) -> Option<Finding> {
    let wide: Vec<usize> = text
        .lines()
        .enumerate()
        .filter(|(_, line)| line.chars().count() > MARKDOWN_WIDTH)
        .map(|(index, _)| index + 1)
        .collect();
    let detail = format!("wider than {MARKDOWN_WIDTH} columns: lines {wide:?}");
    (!wide.is_empty()).then(|| Finding { rule: "width", place: path.to_owned(), amount: wide.len(), detail })
}

/// A how-to starts with what the reader has at its end.
fn purpose(path: &str, text: &str) -> Option<Finding> {
    let begins = text.lines().nth(2).is_some_and(|line| line.starts_with(PURPOSE));
    (path.starts_with("docs/how-to/") && !begins).then(|| Finding {
        rule: "purpose",
        place: path.to_owned(),
        amount: 1,
        detail: format!("its text does not begin with `{PURPOSE}`"),
    })
}

fn sources() -> Result<Vec<Source>> {
    tracked("*.rs")?.into_iter().map(|(path, text)| Ok(Source::new(path, &text))).collect()
}

fn documents() -> Result<Vec<(String, String)>> {
    tracked("*.md")
}

/// Path and text of the files of the repository that match a pattern.
fn tracked(pattern: &str) -> Result<Vec<(String, String)>> {
    let list =
        capture(program("git").args(["ls-files", "--cached", "--others", "--exclude-standard", pattern]))?;
    // A file that was deleted and not yet committed is still listed.
    let there = list.lines().filter(|path| root().join(path).is_file());
    there
        .map(|path| {
            let text =
                fs::read_to_string(root().join(path)).with_context(|| format!("cannot read {path}"))?;
            Ok((path.to_owned(), text))
        })
        .collect()
}

/// A file of this check's data.
fn data(name: &str) -> PathBuf {
    root().join("xtask/tidy").join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_lines_are_counted_in_characters() {
        let text = format!("{}\n{}\n", "ä".repeat(MARKDOWN_WIDTH), "a".repeat(MARKDOWN_WIDTH + 1));
        let found = width("a.md", &text).unwrap();
        assert_eq!((found.amount, found.detail.ends_with("lines [2]")), (1, true));
        assert_eq!(width("a.md", "short\n"), None);
    }

    #[test]
    fn a_how_to_begins_with_what_the_reader_will_have() {
        let begins = "# Title\n\nAt the end of this page you have it.\n";
        assert_eq!(purpose("docs/how-to/a.md", begins), None);
        assert_eq!(purpose("docs/how-to/a.md", "# Title\n\nFirst.\n").unwrap().rule, "purpose");
        assert_eq!(purpose("docs/faq.md", "# Title\n\nFirst.\n"), None);
    }
}
