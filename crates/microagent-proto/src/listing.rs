//! The messages about files below a directory: listings, and what is packed or removed by them.

use serde::{Deserialize, Serialize};

use crate::message::{Chunk, GuestError, REPLY_LIMIT};

/// Most bytes of paths and targets in one [`ListEvent::Items`]; one item more may follow.
pub const LISTED_BYTES: usize = 40 * 1024;

/// Bytes that an item of a listing takes besides its path and target, at most.
pub const LISTED_ITEM_BYTES: usize = 80;

/// Longest path in a listing, and longest target of a link, as the kernel has them.
pub const LISTED_PATH_LIMIT: usize = 4096;

// The last item that is added still fits.
const _: () = assert!(LISTED_BYTES + 2 * (LISTED_PATH_LIMIT + LISTED_ITEM_BYTES) + 1024 <= REPLY_LIMIT);

/// Asks for a listing. No link is followed, except on the way to a directory whose levels are listed: another one there is
/// an error, and a path with a link in it does not exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// Absolute path of the directory.
    pub dir: Chunk,
    /// What is listed.
    pub scope: ListScope,
}

/// What a [`List`] lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListScope {
    /// Everything below the directory.
    Everything {
        /// Paths of directories that are listed without what is in them.
        closed: Vec<Chunk>,
    },
    /// Everything at most so many levels below the directory. Here links on the way to the directory are followed.
    Levels {
        /// 1 for its own entries.
        depth: u32,
    },
    /// These paths, as far as they exist.
    Paths {
        /// Paths from the directory.
        paths: Vec<Chunk>,
        /// Whether the content of files is hashed.
        hash: bool,
    },
}

/// Progress of a [`List`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListEvent {
    /// The next items, at least one. Each directory comes before what is in it.
    Items(Vec<ListedItem>),
    /// The listing is complete; nothing follows.
    End,
    /// It cannot be completed; nothing follows.
    Failed(GuestError),
}

/// A file, directory or link of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedItem {
    /// Path from the directory, without leading slash and dots; at most 4096 bytes.
    pub path: Chunk,
    /// What it is.
    pub kind: ListedKind,
    /// Permissions with the setuid, setgid and sticky bits.
    pub mode: u16,
    /// Time of the last change of the content: seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
    /// SHA-256 of a file's content, if that was asked for.
    pub sha256: Option<[u8; 32]>,
}

/// Kind of a [`ListedItem`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListedKind {
    /// A regular file.
    File {
        /// Length in bytes.
        len: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Where it points, as it is written.
        target: Chunk,
    },
    /// A device, a FIFO or a socket.
    Special,
}

/// Asks for a tar stream of files below a directory, under their paths from there. No link is followed, as in [`List`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackListed {
    /// Absolute path of the directory.
    pub dir: Chunk,
    /// Paths from the directory. A directory is packed without what is in it; paths that do not exist are left out.
    pub paths: Vec<Chunk>,
}

/// Asks for files below a directory to be removed. No link is followed, as in [`List`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remove {
    /// Absolute path of the directory.
    pub dir: Chunk,
    /// What is removed, in this order.
    pub paths: Vec<RemovedPath>,
}

/// A path that a [`Remove`] is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedPath {
    /// Path from the directory.
    pub path: Chunk,
    /// Whether it is a directory, which is removed if it is empty. What is of another kind is kept.
    pub is_directory: bool,
}

/// What came of a [`Remove`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Paths that no longer exist.
    pub gone: u64,
    /// Paths that were kept: directories that are not empty, and what has changed its kind.
    pub kept: u64,
}
