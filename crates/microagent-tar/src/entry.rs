//! What a tar stream says of a file.

/// An extended attribute: name and value.
pub type Attribute = (Vec<u8>, Vec<u8>);

/// What a tar stream says of one file; `F` is what it says of its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<F> {
    /// Path in the stream.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind<F>,
    /// Owner, mode and time.
    pub meta: Meta,
    /// Extended attributes; where a name occurs twice, the later one counts.
    pub attributes: Vec<Attribute>,
}

/// Kind of a file, with what only this kind has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind<F> {
    /// A regular file.
    File(F),
    /// A further name of the file that came under this one before.
    HardLink(Vec<u8>),
    /// A link to this path.
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
    /// Permissions with the setuid, setgid and sticky bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change: seconds since 1970, and nanoseconds after that.
    pub mtime: (i64, u32),
}
