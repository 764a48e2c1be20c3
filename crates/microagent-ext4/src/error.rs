//! Why a tree could not become an ext4 file system.

use std::fmt;
use std::io;

/// Why a tree could not become an ext4 file system.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A name that no directory can hold: empty, `.`, `..`, longer than 255 bytes, with `/` or NUL.
    Name {
        /// The name as given.
        name: Vec<u8>,
    },
    /// The same name twice in one directory.
    DuplicateName {
        /// The name.
        name: Vec<u8>,
    },
    /// A parent that is not a directory, a hard link to a directory, or a handle of another builder.
    Handle,
    /// More than [`LINK_MAX`](crate::LINK_MAX) names for one file.
    TooManyLinks,
    /// A symlink target that is empty, longer than 4095 bytes, or holds NUL.
    SymlinkTarget {
        /// Its length in bytes.
        length: usize,
    },
    /// Device numbers beyond 12 bits (major) or 20 bits (minor).
    Device {
        /// Major number as given.
        major: u32,
        /// Minor number as given.
        minor: u32,
    },
    /// An extended attribute whose name or value ext4 cannot hold.
    Attribute {
        /// Its full name.
        name: Vec<u8>,
    },
    /// The extended attributes of one file exceed the inode's tail plus one block.
    AttributeSpace {
        /// Bytes needed in the block.
        bytes: usize,
    },
    /// A file larger than [`MAX_FILE_SIZE`](crate::MAX_FILE_SIZE), or with more fragments than its extent tree holds.
    FileTooLarge {
        /// Its logical size in bytes.
        size: u64,
    },
    /// A directory with more entries than a two-level index holds.
    DirectoryTooLarge,
    /// A journal length outside 1024 to 32768 blocks.
    Journal {
        /// The length as given.
        blocks: u32,
    },
    /// The whole would need more blocks, inodes or name bytes than 32 bits count.
    TooLarge,
    /// The caller's sink failed.
    Write(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Name { name } => write!(f, "`{}` cannot be a file name", name.escape_ascii()),
            Error::DuplicateName { name } => {
                write!(f, "name `{}` occurs twice in one directory", name.escape_ascii())
            }
            Error::Handle => f.write_str("the inode given is not of the kind needed here"),
            Error::TooManyLinks => write!(f, "more than {} names for one file", crate::LINK_MAX),
            Error::SymlinkTarget { length } => {
                write!(
                    f,
                    "symlink target of {length} bytes; 1 to {} without NUL are possible",
                    crate::SYMLINK_MAX
                )
            }
            Error::Device { major, minor } => write!(f, "device number {major}:{minor} exceeds 4095:1048575"),
            Error::Attribute { name } => {
                write!(f, "ext4 cannot hold the extended attribute `{}`", name.escape_ascii())
            }
            Error::AttributeSpace { bytes } => {
                write!(
                    f,
                    "extended attributes need {bytes} bytes, one block of {} is all there is",
                    crate::BLOCK_SIZE
                )
            }
            Error::FileTooLarge { size } => {
                write!(f, "ext4 cannot hold a file of {size} bytes in this shape")
            }
            Error::DirectoryTooLarge => f.write_str("too many entries in one directory"),
            Error::Journal { blocks } => {
                write!(f, "a journal of {blocks} blocks; 1024 to 32768 are possible")
            }
            Error::TooLarge => f.write_str("more blocks, inodes or name bytes than ext4 counts"),
            Error::Write(_) => f.write_str("cannot write the image"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Write(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Error::Write(error)
    }
}
