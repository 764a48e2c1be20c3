//! What a file system that was written here says of itself, for whoever wants to know whether all of it is there.

use crate::csum;
use crate::spec::{BLOCK_SIZE, SB_MAGIC};

/// Where in the file the superblock begins.
pub const SUPERBLOCK_OFFSET: u64 = 1024;

/// Length of the superblock.
pub const SUPERBLOCK_LEN: usize = 1024;

/// Size in bytes that the file system has by its superblock; `None` for bytes that [`crate::Layout`] does not write, or
/// that were damaged.
///
/// # Source
/// The kernel's `Documentation/filesystems/ext4/super.rst`: blocks at 0x4, block size at 0x18, magic at 0x38, checksum at
/// 0x3FC.
pub fn size_by_superblock(superblock: &[u8; SUPERBLOCK_LEN]) -> Option<u64> {
    let le32 = |at: usize| u32::from_le_bytes(superblock[at..at + 4].try_into().expect("four bytes"));
    let is_ours = superblock[0x38..0x3A] == SB_MAGIC.to_le_bytes()
        && 1024_u64.checked_shl(le32(0x18)) == Some(BLOCK_SIZE as u64)
        && csum::superblock(superblock) == le32(0x3FC);
    is_ours.then(|| u64::from(le32(4)) * BLOCK_SIZE as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superblock_tells_the_size_and_a_damaged_one_nothing() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/vectors/sb_primary.bin");
        let bytes = std::fs::read(path).unwrap();
        let mut superblock: [u8; SUPERBLOCK_LEN] = bytes[..SUPERBLOCK_LEN].try_into().unwrap();
        let blocks = u32::from_le_bytes(superblock[4..8].try_into().unwrap());
        assert_eq!(size_by_superblock(&superblock), Some(u64::from(blocks) * 4096));
        superblock[0x100] ^= 1;
        assert_eq!(size_by_superblock(&superblock), None);
        assert_eq!(size_by_superblock(&[0; SUPERBLOCK_LEN]), None);
    }
}
