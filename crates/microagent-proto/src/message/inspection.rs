//! What the host learns of files, disks and processes of a guest.

use serde::{Deserialize, Serialize};

use super::{Chunk, REPLY_LIMIT};

/// Asks what stands at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// Absolute path in the guest.
    pub path: Chunk,
    /// Whether a symbolic link as the last part of the path is followed.
    pub follow: bool,
}

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathInfo {
    /// What it is.
    pub kind: PathKind,
    /// Permissions with the setuid, setgid and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes.
    pub len: u64,
}

/// Kind of what stands at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathKind {
    /// A regular file.
    File,
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

/// How full a file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsUsage {
    /// Size in bytes.
    pub total: u64,
    /// Bytes in use.
    pub used: u64,
    /// Bytes that ordinary users can still write.
    pub available: u64,
}

/// Most processes in one answer to [`Request::Processes`](super::Request::Processes).
pub const PROCESSES_IN_REPLY: usize = 32;

/// Most processes that are told in all. A kernel has 32 768 by default.
pub const PROCESSES_MAX: usize = 32_768;

/// Most bytes of a process's command line that are told.
pub const PROCESS_COMMAND_LIMIT: usize = 1024;

/// Most bytes of the name of its user.
pub const PROCESS_USER_LIMIT: usize = 64;

const _: () = assert!(PROCESSES_IN_REPLY * (PROCESS_COMMAND_LIMIT + PROCESS_USER_LIMIT + 128) <= REPLY_LIMIT);

/// A process of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its number, as the guest's programs see it.
    pub pid: u32,
    /// That of its parent; 0 if it has none among them.
    pub parent: u32,
    /// Effective user.
    pub uid: u32,
    /// Name of that user in the guest's `/etc/passwd`; empty if there is none.
    pub user: String,
    /// Time on processors, in microseconds.
    pub cpu_us: u64,
    /// Time since its start, in microseconds.
    pub age_us: u64,
    /// Resident memory in bytes.
    pub memory_bytes: u64,
    /// Words of its command line, with a zero byte after each; the kernel's name for it in brackets, if it has none.
    pub command: Chunk,
}
