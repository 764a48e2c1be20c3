//! Labels of a workspace: names and values whose meaning only their user knows.

use std::collections::BTreeMap;

/// Labels by name.
pub type Labels = BTreeMap<String, String>;

/// Most labels of one workspace.
pub const LABELS_MAX: usize = 64;

/// Longest name of a label, in bytes.
pub const LABEL_NAME_MAX: usize = 128;

/// Longest value of a label, in bytes.
pub const LABEL_VALUE_MAX: usize = 1024;

/// Why a text is not a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LabelError {
    /// The name is empty, too long, or has other characters.
    #[error("the name has 1 to {LABEL_NAME_MAX} letters, digits and characters of `._-/`")]
    Name,
    /// The value is too long or has control characters.
    #[error("the value has at most {LABEL_VALUE_MAX} bytes and no control characters")]
    Value,
}

/// Splits `NAME=VALUE`; a name alone has an empty value.
///
/// # Errors
/// Fails if the name or the value is not valid.
pub fn parse_label(text: &str) -> Result<(String, String), LabelError> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    check_label(name, value)?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Accepts what can be a label.
///
/// # Errors
/// Says what is wrong with name or value.
pub fn check_label(name: &str, value: &str) -> Result<(), LabelError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    if name.is_empty() || name.len() > LABEL_NAME_MAX || !name.chars().all(is_plain) {
        return Err(LabelError::Name);
    }
    if value.len() > LABEL_VALUE_MAX || value.chars().any(char::is_control) {
        return Err(LabelError::Value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_a_name_with_or_without_a_value() {
        let pair = |name: &str, value: &str| Ok((name.to_owned(), value.to_owned()));
        assert_eq!(parse_label("team=web"), pair("team", "web"));
        assert_eq!(parse_label("org.example/ci"), pair("org.example/ci", ""));
        assert_eq!(parse_label("a=b=c d"), pair("a", "b=c d"));
        for bad in ["", "=x", "a b=x", "é=x", &format!("{}=x", "n".repeat(LABEL_NAME_MAX + 1))] {
            assert_eq!(parse_label(bad), Err(LabelError::Name), "{bad}");
        }
        for bad in ["a=x\n", &format!("a={}", "v".repeat(LABEL_VALUE_MAX + 1))] {
            assert_eq!(parse_label(bad), Err(LabelError::Value), "{bad}");
        }
    }
}
