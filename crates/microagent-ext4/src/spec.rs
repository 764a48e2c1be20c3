//! Magic numbers, feature bits and fixed sizes of ext4, as far as we write them.

/// The only block size that this crate writes.
pub const BLOCK_SIZE: usize = 4096;
/// [`BLOCK_SIZE`] where offsets are counted.
pub(crate) const BLOCK: u64 = BLOCK_SIZE as u64;
/// Longest file name in bytes.
pub const NAME_MAX: usize = 255;
/// Longest symlink target in bytes; with its NUL it fills a block.
pub const SYMLINK_MAX: usize = BLOCK_SIZE - 1;
/// Most names for one file; a directory with more subdirectories counts as 1 (`dir_nlink`).
pub const LINK_MAX: u32 = 65_000;
/// Largest file in bytes: logical block numbers have 32 bits and the last is not used.
pub const MAX_FILE_SIZE: u64 = (u32::MAX as u64) * BLOCK;

pub(crate) const INODE_SIZE: usize = 256;
pub(crate) const INODES_PER_BLOCK: u32 = (BLOCK_SIZE / INODE_SIZE) as u32;
/// `i_extra_isize`: everything up to and with `i_projid`.
pub(crate) const EXTRA_ISIZE: usize = 32;
pub(crate) const BLOCKS_PER_GROUP: u32 = 8 * BLOCK_SIZE as u32;
pub(crate) const SB_MAGIC: u16 = 0xEF53;
pub(crate) const EXTENT_MAGIC: u16 = 0xF30A;
pub(crate) const XATTR_MAGIC: u32 = 0xEA02_0000;
pub(crate) const JBD2_MAGIC: u32 = 0xC03B_3998;
pub(crate) const ROOT_INO: u32 = 2;
pub(crate) const JOURNAL_INO: u32 = 8;
/// `s_first_ino`: the first number that is not reserved.
pub(crate) const FIRST_INO: u32 = 11;
/// Most blocks in one (initialised) extent.
pub(crate) const MAX_EXTENT: u32 = 32768;
/// Checksum tail of a directory block.
pub(crate) const DIRENT_TAIL: usize = 12;

/// has_journal, ext_attr, dir_index.
pub(crate) const FEATURE_COMPAT: u32 = 0x4 | 0x8 | 0x20;
/// filetype, extents, flex_bg.
pub(crate) const FEATURE_INCOMPAT: u32 = 0x2 | 0x40 | 0x200;
/// sparse_super, large_file, huge_file, dir_nlink, extra_isize, metadata_csum.
pub(crate) const FEATURE_RO_COMPAT: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400;

/// `i_flags`: hash-indexed directory.
pub(crate) const FLAG_INDEX: u32 = 0x1000;
/// `i_flags`: the inode maps its blocks with extents.
pub(crate) const FLAG_EXTENTS: u32 = 0x8_0000;

/// `bg_flags`: no inode of the group is used, its bitmap counts as empty.
pub(crate) const GROUP_INODE_UNINIT: u16 = 0x1;
/// `bg_flags`: the inode table is zeroed.
pub(crate) const GROUP_INODE_ZEROED: u16 = 0x4;

/// The `file_type` byte of a directory entry, and the type bits of a mode that go with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum FileType {
    Regular = 1,
    Directory = 2,
    Character = 3,
    Block = 4,
    Fifo = 5,
    Socket = 6,
    Symlink = 7,
}

impl FileType {
    pub(crate) fn mode(self) -> u16 {
        match self {
            FileType::Regular => 0o100_000,
            FileType::Directory => 0o040_000,
            FileType::Character => 0o020_000,
            FileType::Block => 0o060_000,
            FileType::Fifo => 0o010_000,
            FileType::Socket => 0o140_000,
            FileType::Symlink => 0o120_000,
        }
    }
}
