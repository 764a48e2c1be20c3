//! Why layers could not become a base disk.

use std::io;

/// Why layers could not be unpacked to a base disk. The lowest layer has number 0.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootfsError {
    /// The content of a layer is damaged. Another attempt does not help; fetching it again can.
    #[error("layer {} is damaged", layer + 1)]
    Damaged {
        /// Which layer.
        layer: usize,
        /// What is broken.
        source: Damage,
    },
    /// A layer has a path outside the root directory, so the image is hostile.
    #[error("layer {} tries to reach outside the root directory with `{name}`", layer + 1)]
    Escape {
        /// Which layer.
        layer: usize,
        /// The name, with bytes that are not printable escaped.
        name: String,
    },
    /// The image exceeds one of [`Limits`](super::Limits).
    #[error("layer {} exceeds a limit: {limit}", layer + 1)]
    Limit {
        /// In which layer the limit was reached; all layers count together.
        layer: usize,
        /// The limit, in words.
        limit: String,
    },
    /// The merged tree has an entry that ext4 cannot store.
    #[error("`{name}` does not fit an ext4 disk")]
    Unfit {
        /// Its path, with bytes that are not printable escaped.
        name: String,
        /// What is too large.
        source: microagent_ext4::Error,
    },
    /// An operation of the host failed.
    #[error("cannot {doing}")]
    Host {
        /// What was attempted.
        doing: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl RootfsError {
    /// True when the machine's disk is full (or a quota is used up), so that freeing space helps.
    pub fn is_disk_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, RootfsError::Host { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }

    pub(super) fn host(doing: impl Into<String>) -> impl FnOnce(io::Error) -> RootfsError {
        let doing = doing.into();
        move |source| RootfsError::Host { doing, source }
    }
}

/// What is damaged in a layer or tar file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// The compressed stream is damaged or ends early.
    #[error("it cannot be decompressed")]
    Decompress(#[source] io::Error),
    /// The tar stream ends early.
    #[error("it ends in the middle of {}", within(name))]
    Truncated {
        /// The last name read, escaped; empty before the first.
        name: String,
    },
    /// The uncompressed layer has another digest than the image says.
    #[error("its uncompressed content has digest {found}, the image says {expected}")]
    DiffId {
        /// What the image says.
        expected: String,
        /// What the content has.
        found: String,
    },
    /// The tar stream is not valid.
    #[error("{what} {}", after(name))]
    Tar {
        /// Which rule.
        what: &'static str,
        /// The last name read, escaped; empty before the first.
        name: String,
    },
    /// An entry conflicts with an earlier one.
    #[error("`{name}`: {what}")]
    Entry {
        /// Its name, escaped.
        name: String,
        /// What is wrong.
        what: &'static str,
    },
}

fn within(name: &str) -> String {
    if name.is_empty() { "its first entry".into() } else { format!("`{name}` or the entry after it") }
}

fn after(name: &str) -> String {
    if name.is_empty() { "in its first entry".into() } else { format!("in or after `{name}`") }
}
