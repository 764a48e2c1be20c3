//! `microagent sync`, in JSON.

use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use microagent::{ConflictReason, SyncReport, WorkspaceName};
use serde::Serialize;

#[cfg(test)]
use crate::documents::schema::Words;

/// `microagent sync`. Paths begin at the synced directory; a byte that is not UTF-8 is written as `\xNN`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct SyncDocument {
    #[cfg_attr(test, schemars(with = "String"))]
    workspace: WorkspaceName,
    /// Whether nothing was changed.
    dry_run: bool,
    copied: Vec<String>,
    copied_bytes: u64,
    removed: Vec<String>,
    /// Paths that were left as they are on both sides.
    conflicts: Vec<ConflictDocument>,
    /// Paths that only the target has changed since the last sync.
    kept: Vec<String>,
    /// Paths of the host that could not be read. They are the same as before on both sides.
    unreadable: Vec<UnreadableDocument>,
    unchanged: u64,
    /// Sockets, FIFOs and devices of the source.
    special: u64,
}

/// A path that was left as it is on both sides.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ConflictDocument {
    path: String,
    #[cfg_attr(test, schemars(with = "Words<microagent::ConflictReason>"))]
    reason: ConflictReason,
}

/// A path of the host that could not be read.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct UnreadableDocument {
    path: String,
    /// Why, in the words of the system.
    reason: String,
}

impl From<SyncReport> for SyncDocument {
    fn from(report: SyncReport) -> SyncDocument {
        let shown = |paths: &[std::path::PathBuf]| paths.iter().map(|path| text_of(path)).collect();
        let conflicts = report.conflicts.iter();
        SyncDocument {
            dry_run: report.dry_run,
            copied: shown(&report.copied),
            copied_bytes: report.copied_bytes,
            removed: shown(&report.removed),
            conflicts: conflicts
                .map(|conflict| ConflictDocument { path: text_of(&conflict.path), reason: conflict.reason })
                .collect(),
            kept: shown(&report.kept),
            unreadable: report
                .unreadable
                .iter()
                .map(|found| UnreadableDocument { path: text_of(&found.path), reason: found.reason.clone() })
                .collect(),
            unchanged: report.unchanged,
            special: report.special,
            workspace: report.workspace,
        }
    }
}

/// A path as text.
pub(crate) fn text_of(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            write!(text, "\\x{byte:02x}").expect("writing to a string does not fail");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn bytes_that_are_no_text_are_escaped() {
        let path = Path::new(OsStr::from_bytes(b"gr\xc3\xbcn/\xff\n"));
        assert_eq!(text_of(path), "grün/\\xff\n");
    }
}
