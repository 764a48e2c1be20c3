//! A file of a tar stream: name, kind, owner, mode, time, attributes.

/// An extended attribute: name and value.
pub type Attribute = (Vec<u8>, Vec<u8>);

/// One file of a tar stream. `F` describes the content of a regular file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<F> {
    /// Path in the stream.
    pub name: Vec<u8>,
    /// Kind of the file.
    pub kind: Kind<F>,
    /// Owner, mode and time.
    pub meta: Meta,
    /// Extended attributes; if a name occurs twice, the later value counts.
    pub attributes: Vec<Attribute>,
}

/// Kind of a file, with the data of that kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind<F> {
    /// A regular file.
    File(F),
    /// A hard link to an earlier entry with this name.
    HardLink(Vec<u8>),
    /// A symbolic link with this target.
    Symlink(Vec<u8>),
    /// A directory.
    Directory,
    /// A character device.
    CharacterDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A FIFO.
    Fifo,
}

/// Owner, mode and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// Permissions, including the setuid, setgid and sticky bits.
    pub mode: u16,
    /// User id of the owner.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Time of the last modification: seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
}
