//! Superblock, group descriptors and the journal's own superblock.

use crate::builder::Options;
use crate::csum;
use crate::dirhash::HashSeed;
use crate::geometry::{DESCRIPTOR_SIZE, Geometry, LOG_GROUPS_PER_FLEX};
use crate::le::{put_be_u32, put_u16, put_u32, put_u64};
use crate::spec::{
    BLOCK, BLOCK_SIZE, BLOCKS_PER_GROUP, EXTRA_ISIZE, FEATURE_COMPAT, FEATURE_INCOMPAT, FEATURE_RO_COMPAT,
    FIRST_INO, GROUP_INODE_UNINIT, GROUP_INODE_ZEROED, INODE_SIZE, JBD2_MAGIC, JOURNAL_INO, SB_MAGIC,
};

/// Where a superblock lies in the first block of the image.
pub(crate) const OFFSET: usize = 1024;
const LENGTH: usize = 1024;

/// What the superblock counts.
pub(crate) struct Counts {
    pub(crate) free_blocks: u64,
    pub(crate) used_blocks: u64,
    pub(crate) used_inodes: u32,
}

/// The superblock with the number of its group.
pub(crate) fn render(
    options: &Options,
    geometry: &Geometry,
    counts: &Counts,
    hash_seed: &HashSeed,
    journal_map: &[u8; 60],
    group: u32,
) -> [u8; LENGTH] {
    let mut raw = [0; LENGTH];
    let b = &mut raw[..];
    put_u32(b, 0x00, geometry.inodes());
    put_u32(b, 0x04, geometry.blocks() as u32);
    put_u32(b, 0x0C, counts.free_blocks as u32);
    put_u32(b, 0x10, geometry.inodes() - counts.used_inodes);
    put_u32(b, 0x18, 2); // log2 of the block size in KiB
    put_u32(b, 0x1C, 2); // and of the cluster size
    put_u32(b, 0x20, BLOCKS_PER_GROUP);
    put_u32(b, 0x24, BLOCKS_PER_GROUP);
    put_u32(b, 0x28, geometry.inodes_per_group);
    put_u32(b, 0x30, options.epoch); // last write
    put_u16(b, 0x36, 0xFFFF); // no check after so many mounts
    put_u16(b, 0x38, SB_MAGIC);
    put_u16(b, 0x3A, 1); // cleanly unmounted
    put_u16(b, 0x3C, 1); // on errors: continue
    put_u32(b, 0x40, options.epoch); // last check
    put_u32(b, 0x4C, 1); // revision with dynamic inode sizes
    put_u32(b, 0x54, FIRST_INO);
    put_u16(b, 0x58, INODE_SIZE as u16);
    put_u16(b, 0x5A, group as u16);
    put_u32(b, 0x5C, FEATURE_COMPAT);
    put_u32(b, 0x60, FEATURE_INCOMPAT);
    put_u32(b, 0x64, FEATURE_RO_COMPAT);
    b[0x68..0x78].copy_from_slice(&options.uuid);
    put_u32(b, 0xE0, JOURNAL_INO);
    for (i, word) in hash_seed.iter().enumerate() {
        put_u32(b, 0xEC + 4 * i, *word);
    }
    b[0xFC] = 1; // half_md4
    b[0xFD] = 1; // the journal's map is backed up below
    put_u32(b, 0x100, 0x0C); // default mount options: user_xattr, acl
    put_u32(b, 0x108, options.epoch); // made at
    b[0x10C..0x148].copy_from_slice(journal_map);
    put_u32(b, 0x14C, options.journal_blocks * BLOCK_SIZE as u32);
    put_u16(b, 0x15C, EXTRA_ISIZE as u16);
    put_u16(b, 0x15E, EXTRA_ISIZE as u16);
    put_u32(b, 0x160, 1); // names hash as signed characters
    b[0x174] = LOG_GROUPS_PER_FLEX;
    b[0x175] = 1; // crc32c
    put_u64(b, 0x178, counts.used_blocks * (BLOCK / 1024)); // KiB ever written
    put_u32(b, 0x248, (geometry.fixed_blocks() + u64::from(options.journal_blocks)) as u32);
    let checksum = csum::superblock(b);
    put_u32(b, 0x3FC, checksum);
    raw
}

/// One block group as its descriptor tells it.
pub(crate) struct Group<'a> {
    pub(crate) block_bitmap: u64,
    pub(crate) inode_bitmap: u64,
    pub(crate) inode_table: u64,
    pub(crate) free_blocks: u32,
    pub(crate) used_inodes: u32,
    pub(crate) directories: u32,
    pub(crate) block_bitmap_bytes: &'a [u8],
    pub(crate) inode_bitmap_bytes: &'a [u8],
}

pub(crate) fn render_descriptor(
    group: &Group<'_>,
    number: u32,
    per_group: u32,
    fs_seed: u32,
) -> [u8; DESCRIPTOR_SIZE] {
    let mut raw = [0; DESCRIPTOR_SIZE];
    let b = &mut raw[..];
    let free_inodes = (per_group - group.used_inodes) as u16;
    let uninit = if group.used_inodes == 0 { GROUP_INODE_UNINIT } else { 0 };
    put_u32(b, 0x00, group.block_bitmap as u32);
    put_u32(b, 0x04, group.inode_bitmap as u32);
    put_u32(b, 0x08, group.inode_table as u32);
    put_u16(b, 0x0C, group.free_blocks as u16);
    put_u16(b, 0x0E, free_inodes);
    put_u16(b, 0x10, group.directories as u16);
    put_u16(b, 0x12, GROUP_INODE_ZEROED | uninit);
    put_u16(b, 0x18, csum::block_bitmap(fs_seed, group.block_bitmap_bytes));
    if uninit == 0 {
        put_u16(b, 0x1A, csum::inode_bitmap(fs_seed, group.inode_bitmap_bytes, per_group));
    }
    put_u16(b, 0x1C, free_inodes); // never used ones at the table's end
    let checksum = csum::group_desc(fs_seed, number, b);
    put_u16(b, 0x1E, checksum);
    raw
}

/// An empty journal's first block. The kernel adds the checksum feature at the first mount.
pub(crate) fn render_journal(options: &Options) -> [u8; LENGTH] {
    let mut raw = [0; LENGTH];
    let b = &mut raw[..];
    put_be_u32(b, 0x00, JBD2_MAGIC);
    put_be_u32(b, 0x04, 4); // superblock, version 2
    put_be_u32(b, 0x0C, BLOCK_SIZE as u32);
    put_be_u32(b, 0x10, options.journal_blocks);
    put_be_u32(b, 0x14, 1); // first block of the log
    put_be_u32(b, 0x18, 1); // first sequence number
    b[0x30..0x40].copy_from_slice(&options.uuid);
    put_be_u32(b, 0x40, 1); // users
    raw
}
