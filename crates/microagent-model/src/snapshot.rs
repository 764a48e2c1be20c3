//! Tags of snapshots, and the ids of the layers that root disks consist of.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::{NameError, WorkspaceName};

/// Longest tag, in bytes.
const TAG_MAX: usize = 63;

/// Digits of a layer's id.
const LAYER_DIGITS: usize = 32;

/// A checked tag of a snapshot: starts with a letter or digit, then letters, digits, `.`, `_` and `-`, at most 63 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotTag(String);

/// Why a text is not a snapshot's tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{tag}` is not a tag of a snapshot: it must start with a letter or digit, continue with letters, digits, `.`, `_` \
     or `-`, and have at most {TAG_MAX} characters"
)]
pub struct SnapshotTagError {
    tag: String,
}

impl FromStr for SnapshotTag {
    type Err = SnapshotTagError;

    fn from_str(tag: &str) -> Result<Self, SnapshotTagError> {
        let starts_well = tag.starts_with(|c: char| c.is_ascii_alphanumeric());
        let goes_on_well = tag.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        if starts_well && goes_on_well && tag.len() <= TAG_MAX {
            Ok(SnapshotTag(tag.to_owned()))
        } else {
            Err(SnapshotTagError { tag: tag.chars().take(80).collect() })
        }
    }
}

crate::text::as_file_name!(SnapshotTag);

/// A snapshot by the name of its workspace and its tag: `web:before`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotName {
    /// The workspace.
    pub workspace: WorkspaceName,
    /// The tag.
    pub tag: SnapshotTag,
}

/// Why a text is not the name of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotNameError {
    /// There is no colon in it.
    #[error("`{text}` is not of the form WORKSPACE:TAG")]
    Form {
        /// The text.
        text: String,
    },
    /// What is before the colon is not the name of a workspace.
    #[error(transparent)]
    Workspace(#[from] NameError),
    /// What is after the colon is not a tag.
    #[error(transparent)]
    Tag(#[from] SnapshotTagError),
}

impl FromStr for SnapshotName {
    type Err = SnapshotNameError;

    fn from_str(text: &str) -> Result<Self, SnapshotNameError> {
        let form = || SnapshotNameError::Form { text: text.chars().take(80).collect() };
        let (workspace, tag) = text.split_once(':').ok_or_else(form)?;
        Ok(SnapshotName { workspace: workspace.parse()?, tag: tag.parse()? })
    }
}

impl TryFrom<String> for SnapshotName {
    type Error = SnapshotNameError;

    fn try_from(text: String) -> Result<Self, SnapshotNameError> {
        text.parse()
    }
}

impl From<SnapshotName> for String {
    fn from(name: SnapshotName) -> String {
        name.to_string()
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.workspace, self.tag)
    }
}

/// The id of a layer: 32 lower-case hexadecimal digits, chosen at random.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerId(String);

/// Why a text is not a layer's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a layer's id has {LAYER_DIGITS} lower-case hexadecimal digits")]
pub struct LayerIdError;

impl LayerId {
    /// The id with these bytes.
    pub fn of(bytes: [u8; LAYER_DIGITS / 2]) -> LayerId {
        LayerId(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl FromStr for LayerId {
    type Err = LayerIdError;

    fn from_str(id: &str) -> Result<Self, LayerIdError> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if id.len() == LAYER_DIGITS && id.bytes().all(is_digit) {
            Ok(LayerId(id.to_owned()))
        } else {
            Err(LayerIdError)
        }
    }
}

crate::text::as_file_name!(LayerId);

/// A layer: an immutable part of a root disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Its id, which names its file.
    pub id: LayerId,
    /// Length of its file; another length means that the file is damaged. 0 while a running machine may write to it: the
    /// layer is not sealed.
    pub bytes: u64,
}

impl Layer {
    /// Whether no machine writes to it any more, so that its length is known.
    pub fn is_sealed(&self) -> bool {
        self.bytes != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_file_names() {
        for good in ["a", "snap-20261129-090000", "v1.2_b", &"x".repeat(63)] {
            assert!(good.parse::<SnapshotTag>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-a", "a/b", "a b", "a:b", "é", &"x".repeat(64)] {
            assert!(bad.parse::<SnapshotTag>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_snapshot_is_named_by_workspace_and_tag() {
        let name: SnapshotName = "web.1:v1.2".parse().unwrap();
        assert_eq!((name.workspace.as_str(), name.tag.as_str()), ("web.1", "v1.2"));
        assert_eq!(name.to_string(), "web.1:v1.2");
        for bad in ["", "web", ":a", "web:", "web:a:b", "a/b:c"] {
            assert!(bad.parse::<SnapshotName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_of_layers_are_digits() {
        let id = LayerId::of([0xa0; 16]);
        assert_eq!(id.as_str(), "a0".repeat(16));
        assert_eq!(id.as_str().parse(), Ok(id.clone()));
        for bad in ["", "A0", &"g".repeat(32), &"a".repeat(31), "../../../../../../../etc/passwd0"] {
            assert!(bad.parse::<LayerId>().is_err(), "{bad}");
        }
    }
}
