//! Public types that cannot get a field or a variant later without breaking their users (decision 34).

use super::Finding;
use super::source::Source;

/// The library's own crate: its structs with public fields are options and results, which grow.
const LIBRARY: &str = "crates/microagent/src/";

/// Crates whose options a user of the library sets.
const OPTIONS: [&str; 3] = ["crates/microagent-image/", "crates/microagent-model/", "crates/microagent-vm/"];

/// Crates whose errors no user of the library sees: programs, and two crates whose errors are converted variant by
/// variant.
const INTERNAL: [&str; 4] = [
    "crates/microagent-agent/",
    "crates/microagent-cli/",
    "crates/microagent-tar/",
    "crates/microagent-tree/",
];

/// The attribute that lets a type grow.
const ATTRIBUTE: &str = "#[non_exhaustive]";

/// A public type and what is written above it.
struct Declaration<'a> {
    /// Line of its name, from 0.
    line: usize,
    name: &'a str,
    is_enum: bool,
    attributes: String,
}

/// Structs with public fields of the library, options of the crates below it, and error enums of all library crates, without the attribute.
pub(super) fn check(source: &Source) -> Option<Finding> {
    let is_library_crate =
        source.path.starts_with("crates/") && !INTERNAL.iter().any(|path| source.path.starts_with(path));
    if !is_library_crate {
        return None;
    }
    let found: Vec<String> = declarations(source)
        .filter(|declaration| !declaration.attributes.contains(ATTRIBUTE))
        .filter(|declaration| match declaration.is_enum {
            true => is_error(declaration),
            false => {
                let is_seen = source.path.starts_with(LIBRARY)
                    || (declaration.name.ends_with("Options")
                        && OPTIONS.iter().any(|path| source.path.starts_with(path)));
                is_seen && has_public_field(source, declaration.line)
            }
        })
        .map(|declaration| format!("`{}` in line {}", declaration.name, declaration.line + 1))
        .collect();
    let detail = format!("without {ATTRIBUTE}: {}", found.join(", "));
    (!found.is_empty()).then(|| Finding {
        rule: "growth",
        place: source.path.clone(),
        amount: found.len(),
        detail,
    })
}

/// Public structs and enums outside of tests.
fn declarations(source: &Source) -> impl Iterator<Item = Declaration<'_>> {
    source.code.iter().enumerate().filter(|(line, _)| !source.is_test[*line]).filter_map(|(line, text)| {
        let (is_enum, rest) = match text.strip_prefix("pub struct ") {
            Some(rest) => (false, rest),
            None => (true, text.strip_prefix("pub enum ")?),
        };
        let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
        Some(Declaration { line, name, is_enum, attributes: attributes_above(&source.code[..line]) })
    })
}

/// The attributes directly above a declaration, from the last line to the first. Comments are blank lines that start
/// with the slash that is kept of them.
fn attributes_above(lines: &[String]) -> String {
    let own = lines
        .iter()
        .rev()
        .take_while(|line| !line.is_empty() && (line.starts_with(['#', '/', ' ']) || line.starts_with(")]")));
    own.map(String::as_str).collect()
}

fn is_error(declaration: &Declaration<'_>) -> bool {
    declaration.name.ends_with("Error") && declaration.attributes.contains("Error)")
}

fn has_public_field(source: &Source, line: usize) -> bool {
    source.code[line..]
        .iter()
        .skip(1)
        .take_while(|text| !text.starts_with('}'))
        .any(|text| text.strip_prefix("    pub ").is_some_and(|field| field.contains(':')))
        && source.code[line].ends_with('{')
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: &str = r#"
/// Options.
#[derive(Debug)]
pub struct Options {
    /// A field.
    pub size: u64,
}

#[derive(Debug)]
#[non_exhaustive]
pub struct Report {
    pub size: u64,
}

pub struct Handle {
    size: u64,
}

pub struct Number(u64);

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    A,
}

/// Why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    A,
}

pub enum Mode {
    A,
}
"#;

    fn found(path: &str) -> Option<String> {
        check(&Source::new(path.to_owned(), CODE)).map(|finding| finding.detail)
    }

    #[test]
    fn types_that_cannot_grow_are_found() {
        let both = "without #[non_exhaustive]: `Options` in line 4, `LoadError` in line 22";
        assert_eq!(found("crates/microagent/src/a.rs").as_deref(), Some(both));
        let only_the_error = "without #[non_exhaustive]: `LoadError` in line 22";
        assert_eq!(found("crates/microagent-store/src/a.rs").as_deref(), Some(only_the_error));
        let options_too = "without #[non_exhaustive]: `Options` in line 4, `LoadError` in line 22";
        assert_eq!(found("crates/microagent-image/src/a.rs").as_deref(), Some(options_too));
        assert_eq!(found("crates/microagent-cli/src/a.rs"), None);
    }
}
