//! Extent trees: the map from a file's logical blocks to blocks of the image. Up to four extents lie in
//! the inode, more in leaf blocks, very many under one level of index blocks.

use crate::csum;
use crate::le::{put_u16, put_u32};
use crate::spec::{BLOCK_SIZE, EXTENT_MAGIC};

/// `length` blocks from logical block `logical` lie at block `start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) logical: u32,
    pub(crate) start: u32,
    pub(crate) length: u32,
}

/// Bytes of a node's header, and of each of its entries.
const ENTRY: usize = 12;
/// Entries in the inode.
pub(crate) const IN_INODE: usize = 4;
/// Entries in a block; the rest of it holds the checksum.
pub(crate) const PER_BLOCK: usize = (BLOCK_SIZE - ENTRY - 4) / ENTRY;
/// More extents need a third level, which we do not write.
pub(crate) const MAX_EXTENTS: usize = IN_INODE * PER_BLOCK * PER_BLOCK;

/// Tree blocks beside the inode for this many extents: leaves and index blocks.
pub(crate) fn tree_blocks(extents: usize) -> (usize, usize) {
    if extents <= IN_INODE {
        return (0, 0);
    }
    let leaves = extents.div_ceil(PER_BLOCK);
    (leaves, if leaves <= IN_INODE { 0 } else { leaves.div_ceil(PER_BLOCK) })
}

/// Writes the tree of `extents` into the inode's `i_block` and calls `block` with each tree block.
/// `addresses` are those of the tree blocks, leaves first, as many as [`tree_blocks`] says.
pub(crate) fn render(
    extents: &[Extent],
    addresses: &[u32],
    inode_seed: u32,
    root: &mut [u8; 60],
    mut block: impl FnMut(u32, &[u8]) -> Result<(), crate::Error>,
) -> Result<(), crate::Error> {
    let (leaves, indexes) = tree_blocks(extents.len());
    debug_assert_eq!(addresses.len(), leaves + indexes);
    if leaves == 0 {
        node(root, 0, IN_INODE, extents.iter().map(leaf_entry));
        return Ok(());
    }
    let mut level: Vec<(u32, u32)> = Vec::with_capacity(leaves);
    for (chunk, &address) in extents.chunks(PER_BLOCK).zip(addresses) {
        let mut buffer = [0; BLOCK_SIZE];
        node(&mut buffer, 0, PER_BLOCK, chunk.iter().map(leaf_entry));
        block(address, with_checksum(&mut buffer, inode_seed))?;
        level.push((chunk[0].logical, address));
    }
    let mut depth = 1;
    if indexes > 0 {
        let mut upper = Vec::with_capacity(indexes);
        for (chunk, &address) in level.chunks(PER_BLOCK).zip(&addresses[leaves..]) {
            let mut buffer = [0; BLOCK_SIZE];
            node(&mut buffer, 1, PER_BLOCK, chunk.iter().map(index_entry));
            block(address, with_checksum(&mut buffer, inode_seed))?;
            upper.push((chunk[0].0, address));
        }
        (level, depth) = (upper, 2);
    }
    node(root, depth, IN_INODE, level.iter().map(index_entry));
    Ok(())
}

fn node(buffer: &mut [u8], depth: u16, capacity: usize, entries: impl ExactSizeIterator<Item = [u8; ENTRY]>) {
    put_u16(buffer, 0, EXTENT_MAGIC);
    put_u16(buffer, 2, entries.len() as u16);
    put_u16(buffer, 4, capacity as u16);
    put_u16(buffer, 6, depth);
    for (slot, entry) in buffer[ENTRY..].chunks_exact_mut(ENTRY).zip(entries) {
        slot.copy_from_slice(&entry);
    }
}

fn leaf_entry(extent: &Extent) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    put_u32(&mut entry, 0, extent.logical);
    put_u16(&mut entry, 4, extent.length as u16);
    put_u32(&mut entry, 8, extent.start);
    entry
}

fn index_entry(&(logical, address): &(u32, u32)) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    put_u32(&mut entry, 0, logical);
    put_u32(&mut entry, 4, address);
    entry
}

fn with_checksum(buffer: &mut [u8; BLOCK_SIZE], inode_seed: u32) -> &[u8] {
    let checksum = csum::extent_block(inode_seed, buffer);
    put_u32(buffer, BLOCK_SIZE - 4, checksum);
    buffer
}
