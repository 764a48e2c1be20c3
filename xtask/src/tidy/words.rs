//! The words of the glossary: names and phrases that are not used, and words of the command in libraries.

use std::fs;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::source::Source;
use super::{Finding, data};

/// The page that lists the words, and so has them.
const GLOSSARY: &str = "docs/glossary.md";

/// The command: the one crate whose texts may name flags and verbs.
const COMMAND: &str = "crates/microagent-cli/";

/// `words.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    /// Types, traits and aliases that no code declares.
    types: Vec<String>,
    /// Functions that no code declares.
    functions: Vec<String>,
    /// Names that no file and no module has.
    modules: Vec<String>,
    /// Phrases that no person should have to read, in lower case.
    phrases: Vec<String>,
    /// Verbs of the command, which libraries do not name.
    verbs: Vec<String>,
}

/// Finds the words in code and documents.
pub(super) fn check(sources: &[Source], documents: &[(String, String)]) -> Result<Vec<Finding>> {
    let path = data("words.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let rules: Rules = toml::from_str(&text).with_context(|| format!("cannot parse {}", path.display()))?;
    let mut findings = Vec::new();
    for source in sources.iter().filter(|source| !source.path.starts_with("xtask/")) {
        findings.extend(rules.names(source));
        findings.extend(rules.prose_of(source));
        findings.extend(rules.words_of_the_command(source));
    }
    for (path, text) in documents.iter().filter(|(path, _)| path != GLOSSARY) {
        findings.extend(rules.prose(path, text.lines().enumerate().map(|(index, line)| (index + 1, line))));
    }
    Ok(findings)
}

impl Rules {
    /// Names of types, functions and files.
    fn names(&self, source: &Source) -> Option<Finding> {
        let mut found = Vec::new();
        let stem = source.path.rsplit('/').next().and_then(|name| name.strip_suffix(".rs"));
        if stem.is_some_and(|stem| self.modules.iter().any(|name| name == stem)) {
            found.push("the file's name".to_owned());
        }
        for (index, line) in source.code.iter().enumerate() {
            let mut words =
                line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
            while let Some(word) = words.next() {
                let banned = match word {
                    "struct" | "enum" | "trait" | "type" => &self.types,
                    "fn" => &self.functions,
                    "mod" => &self.modules,
                    _ => continue,
                };
                match words.next() {
                    Some(name) if banned.iter().any(|word| word == name) => {
                        found.push(format!("`{name}` in line {}", index + 1));
                    }
                    _ => {}
                }
            }
        }
        finding("names", &source.path, found)
    }

    /// Phrases in comments and texts.
    fn prose_of(&self, source: &Source) -> Option<Finding> {
        let texts = source.comments.iter().chain(&source.texts).map(|(line, text)| (*line, text.as_str()));
        self.prose(&source.path, texts)
    }

    fn prose<'a>(&self, path: &str, lines: impl Iterator<Item = (usize, &'a str)>) -> Option<Finding> {
        let mut found = Vec::new();
        for (line, text) in lines {
            let text = text.to_lowercase();
            for phrase in self.phrases.iter().filter(|phrase| has_phrase(&text, phrase)) {
                found.push(format!("`{phrase}` in line {line}"));
            }
        }
        finding("phrases", path, found)
    }

    /// Flags and verbs of the command in a library's texts.
    fn words_of_the_command(&self, source: &Source) -> Option<Finding> {
        if !source.path.starts_with("crates/") || source.path.starts_with(COMMAND) {
            return None;
        }
        let mut found = Vec::new();
        let product = source.texts.iter().filter(|(line, _)| !source.is_test_line(*line));
        for (line, text) in product {
            let verb = self.verbs.iter().find(|verb| has_phrase(text, &format!("microagent {verb}")));
            if let Some(verb) = verb {
                found.push(format!("`microagent {verb}` in line {line}"));
            } else if let Some(flag) = flag_in_prose(text) {
                found.push(format!("`{flag}` in line {line}"));
            }
        }
        finding("command words", &source.path, found)
    }
}

fn finding(rule: &'static str, place: &str, found: Vec<String>) -> Option<Finding> {
    let (amount, detail) = (found.len(), found.join(", "));
    (amount > 0).then(|| Finding { rule, place: place.to_owned(), amount, detail })
}

fn has_phrase(text: &str, phrase: &str) -> bool {
    text.match_indices(phrase).any(|(at, _)| {
        // "There is none" is plain enough.
        !text[..at].ends_with(char::is_alphanumeric)
            && !text[..at].ends_with("there ")
            && !text[at + phrase.len()..].starts_with(char::is_alphanumeric)
    })
}

/// A long flag among other words; a text that is nothing but a flag is an argument for another program.
fn flag_in_prose(text: &str) -> Option<&str> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let flag = words.iter().find_map(|word| {
        let word = word.trim_matches(|c: char| !c.is_alphanumeric() && c != '-');
        let name = word.strip_prefix("--")?;
        name.starts_with(|c: char| c.is_ascii_lowercase()).then_some(word)
    })?;
    (words.len() > 1).then_some(flag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        toml::from_str(
            "types = [\"Wish\"]\nfunctions = [\"settle\"]\nmodules = [\"making\"]\n\
             phrases = [\"is none\"]\nverbs = [\"halt\"]\n",
        )
        .unwrap()
    }

    fn source(path: &str, text: &str) -> Source {
        Source::new(path.to_owned(), text)
    }

    #[test]
    fn names_are_found_where_they_are_declared() {
        let found = |path, text| rules().names(&source(path, text)).map_or(0, |finding| finding.amount);
        assert_eq!(found("crates/a/src/making.rs", "pub(crate) enum Wish { A }\nfn settle() {}\n"), 3);
        assert_eq!(found("crates/a/src/a.rs", "// enum Wish\nfn settle_all() { Wish::new() }\n"), 0);
    }

    #[test]
    fn phrases_are_found_in_what_people_read() {
        let text = "// This Is none.\nfn a() { b(\"is none\"); is_none() }\n";
        assert_eq!(rules().prose_of(&source("a.rs", text)).unwrap().amount, 2);
        assert!(rules().prose("a.md", [(1, "this is nonetheless fine")].into_iter()).is_none());
    }

    #[test]
    fn words_of_the_command_are_found_in_libraries() {
        let text = "fn a() { [\"--fd\", \"see microagent halt\", \"leave `--json` out\"] }\n";
        let found =
            |path| rules().words_of_the_command(&source(path, text)).map_or(0, |finding| finding.amount);
        assert_eq!(found("crates/a/src/a.rs"), 2);
        assert_eq!(found("crates/microagent-cli/src/a.rs"), 0);
    }
}
