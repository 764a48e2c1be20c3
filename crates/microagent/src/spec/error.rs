//! What is wrong with a spec file, where, and what to do: one line, the line of the file, a hint.
//!
//! Lines of `env` and `secrets` are not shown, and nothing that stands there is repeated: a value may have been written
//! where its name belongs.

use std::io;
use std::path::{Path, PathBuf};

use serde_saphyr::Error as YamlError;
use serde_saphyr::budget::BudgetBreach;

use super::hints;
use crate::Hint;

/// Longest part of a line that is shown, in characters.
const LINE_MAX: usize = 100;

/// Longest text that a message repeats or is, in characters.
const TEXT_MAX: usize = 500;

/// Blocks whose lines are not shown.
const PRIVATE: [&str; 2] = ["env", "secrets"];

/// Why a spec file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// The file could not be read.
    #[error("cannot read spec file `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Larger than anything that a person writes.
    #[error("spec file `{}` has more than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound.
        limit: u64,
    },
    /// It is not text.
    #[error("spec file `{}` is not UTF-8 from byte {offset} on", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// The first byte that is wrong.
        offset: usize,
    },
    /// Something in it is not understood.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Column, from 1.
        column: u64,
        /// What is wrong.
        message: String,
        /// What to do.
        hint: String,
        /// The line and a mark under the place, where they may be shown.
        snippet: Option<String>,
    },
    /// Its parts do not go together.
    #[error("{}{message}", of_file(path))]
    Meaning {
        /// The file; empty without one, where the parts are options.
        path: PathBuf,
        /// What is wrong.
        message: String,
        /// What to do.
        hint: Hint,
    },
}

/// Where something is wrong, before what it is.
fn of_file(path: &Path) -> String {
    if path.as_os_str().is_empty() { String::new() } else { format!("{}: ", path.display()) }
}

impl SpecError {
    /// What can be done about it.
    pub fn hint(&self) -> Hint {
        match self {
            SpecError::Read { .. } => Hint::ChooseSpecFile,
            SpecError::TooLarge { .. } => {
                Hint::advice("a spec file says what to run; put content into the image, a volume or a bundle")
            }
            SpecError::NotText { .. } => Hint::advice("save it as UTF-8"),
            SpecError::Wrong { hint, .. } => Hint::advice(hint),
            SpecError::Meaning { hint, .. } => hint.clone(),
        }
    }

    /// The line of the file that is wrong, with a mark under the place.
    pub fn snippet(&self) -> Option<&str> {
        match self {
            SpecError::Wrong { snippet, .. } => snippet.as_deref(),
            _ => None,
        }
    }

    /// What the reader of YAML says, in our words.
    pub(super) fn wrong(path: &Path, text: &str, error: &YamlError) -> SpecError {
        let error = error.without_snippet();
        let Some(location) = error.location().filter(|location| location.line() > 0) else {
            let (message, hint) = explain(error, None);
            return SpecError::Meaning { path: path.to_owned(), message, hint: Hint::Advice(hint) };
        };
        let (line, column) = (location.line(), location.column());
        let block = block_at(text, line);
        let private = block.is_none_or(|block| PRIVATE.contains(&block));
        let (message, hint) = explain(error, block.filter(|_| private));
        let snippet = if private { None } else { snippet(text, line, column) };
        SpecError::Wrong { path: path.to_owned(), line, column, message, hint, snippet }
    }
}

/// Message and hint. Within a `private` block nothing of the file is repeated.
fn explain(error: &YamlError, private: Option<&str>) -> (String, String) {
    let form = || "see the reference of spec files: docs/reference/spec-file.md".to_owned();
    let in_private = |what: &str| private.map(|block| (format!("{what} in `{block}`"), hints::shape(block)));
    match error {
        YamlError::SerdeUnknownField { field, expected, .. } => {
            let what =
                if hints::is_unsupported(field, expected) { "is not supported" } else { "is not known" };
            (format!("key `{}` {what}", shown(field)), hints::unknown_key(field, expected))
        }
        YamlError::SerdeUnknownVariant { variant, expected, .. } => {
            (format!("`{}` is not possible here", shown(variant)), hints::unknown_value(variant, expected))
        }
        YamlError::SerdeMissingField { field, .. } => {
            (format!("`{field}` is missing"), format!("add `{field}`"))
        }
        YamlError::DuplicateMappingKey { key, .. } => {
            in_private("a key is given twice").unwrap_or_else(|| {
                let key = key.as_deref().map(|key| format!("key `{}`", shown(key)));
                (
                    format!("{} is given twice", key.as_deref().unwrap_or("a key")),
                    "keep one of them".to_owned(),
                )
            })
        }
        YamlError::SerdeInvalidType { unexpected, expected, .. }
        | YamlError::SerdeInvalidValue { unexpected, expected, .. } => in_private("wrong type of value")
            .unwrap_or_else(|| {
                (format!("expected {expected}, found {}", shown(unexpected)), hints::wrong_type(expected))
            }),
        YamlError::InvalidScalar { ty, .. } => {
            (format!("expected {}", hints::type_name(ty)), "write one without quotes and units".to_owned())
        }
        YamlError::InvalidBooleanStrict { .. } => {
            ("expected true or false".to_owned(), "write true or false".to_owned())
        }
        YamlError::NullIntoString { .. } => {
            ("a value is missing".to_owned(), "give one, or remove the key; \"\" is an empty text".to_owned())
        }
        YamlError::Budget { breach: BudgetBreach::Documents { .. }, .. }
        | YamlError::MultipleDocuments { .. } => {
            ("there is more than one document".to_owned(), "one file describes one workspace".to_owned())
        }
        YamlError::Budget { .. }
        | YamlError::AliasReplayLimitExceeded { .. }
        | YamlError::AliasExpansionLimitExceeded { .. }
        | YamlError::AliasReplayStackDepthExceeded { .. } => (
            "it is too large, too deep or has too many aliases".to_owned(),
            "write what is meant without aliases".to_owned(),
        ),
        YamlError::AliasError { error, .. } => explain(error, private),
        // Errors of values that have a text of their own; none of them repeats a secret.
        YamlError::Message { msg, .. } => match private {
            Some(block) => (shown(msg), hints::shape(block)),
            None => (shown(msg), form()),
        },
        YamlError::Unexpected { expected, .. } => in_private("wrong type of value").unwrap_or_else(|| {
            (format!("expected {}", hints::type_name(expected)), hints::wrong_type(expected))
        }),
        YamlError::UnsupportedTag { tag, .. } => {
            (format!("tag `{}` is not known", shown(tag)), "leave it out".to_owned())
        }
        other => in_private("it is not YAML").unwrap_or_else(|| (shown(&plain(other)), form())),
    }
}

/// The library's text without its place, which ours has already.
fn plain(error: &YamlError) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    let line = line.strip_prefix("error: ").unwrap_or(line);
    let end = line.rfind(" at line ").unwrap_or(line.len());
    line[..end].to_owned()
}

/// A text of the file in one line of bounded length.
fn shown(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TEXT_MAX).collect();
    if text.chars().count() > TEXT_MAX { format!("{line}…") } else { line }
}

/// The outermost key whose block this line belongs to; `None` where that is not clear.
fn block_at(text: &str, line: u64) -> Option<&str> {
    let lines: Vec<&str> = text.lines().take(usize::try_from(line).ok()?).collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let key = |line| key_of(line).filter(|_| !line.trim_start().starts_with('#'));
    let base = lines.iter().filter(|line| key(line).is_some()).map(|line| indent(line)).min()?;
    let outermost = lines.iter().rev().find(|line| indent(line) == base && key(line).is_some())?;
    // A document in one line has all its blocks there.
    if lines.last()?.trim_start().starts_with(['{', '[']) || outermost.trim_start().starts_with('{') {
        return None;
    }
    key(outermost)
}

/// The key that a line begins with.
fn key_of(line: &str) -> Option<&str> {
    let (key, _) = line.trim_start().split_once(':')?;
    Some(key.trim_matches(|c: char| c.is_whitespace() || "\"'{,?".contains(c)))
}

/// The line with a mark under the place, cut to what fits.
fn snippet(text: &str, line: u64, column: u64) -> Option<String> {
    let shown = text.lines().nth(usize::try_from(line).ok()?.checked_sub(1)?)?;
    let before = usize::try_from(column).ok()?.saturating_sub(1);
    let start = before.saturating_sub(LINE_MAX / 2);
    let part: String =
        shown.chars().skip(start).take(LINE_MAX).map(|c| if c == '\t' { ' ' } else { c }).collect();
    let number = line.to_string();
    Some(format!(
        "{number} | {}\n{} | {}^",
        part.trim_end(),
        " ".repeat(number.len()),
        " ".repeat(before - start)
    ))
}
