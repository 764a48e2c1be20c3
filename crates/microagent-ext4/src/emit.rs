//! Writes every block that is not file data: each once, none of them empty.

use std::io;

use crate::builder::{self, Kind, Meta, Special};
use crate::extent::{self, Extent};
use crate::geometry::{DESCRIPTOR_SIZE, Geometry};
use crate::inode::{self, Raw, Slot};
use crate::le::put_u32;
use crate::seal::{FAST_SYMLINK, Layout};
use crate::spec::{
    BLOCK, BLOCK_SIZE, BLOCKS_PER_GROUP, FIRST_INO, FLAG_EXTENTS, FLAG_INDEX, FileType, INODE_SIZE,
    JOURNAL_INO, ROOT_INO,
};
use crate::superblock::{self, Counts, Group};
use crate::{Error, csum, directory};

/// Takes an offset in the image and the bytes that belong there.
pub(crate) type Sink<'a> = &'a mut dyn FnMut(u64, &[u8]) -> io::Result<()>;

impl Layout {
    /// Hands every block that is not file data to `write`, with its offset in the image. All other
    /// bytes of the image, up to [`len`](Self::len), are zero unless [`extents`](Self::extents) says that
    /// they are a file's.
    ///
    /// # Errors
    ///
    /// What `write` returned; the image is then incomplete.
    pub fn write_metadata(&self, write: Sink<'_>) -> Result<(), Error> {
        for node in 0..self.builder.nodes.len() as u32 {
            self.write_content(node, write)?;
        }
        self.write_attributes(write)?;
        write(self.journal * BLOCK, &superblock::render_journal(&self.builder.options))?;
        let descriptors = self.write_groups(write)?;
        self.write_superblocks(&descriptors, write)
    }

    /// Directory blocks, long symlink targets, extent tree blocks.
    fn write_content(&self, node: u32, write: Sink<'_>) -> Result<(), Error> {
        let extents = self.node_extents(node);
        match &self.builder.nodes[node as usize].kind {
            Kind::Directory(_) => {
                directory::render(&self.builder, node, &self.hash_seed, self.fs_seed, |logical, bytes| {
                    Ok(write(address(extents, logical) * BLOCK, bytes)?)
                })?;
            }
            Kind::Symlink(target) if target.len() > FAST_SYMLINK => {
                write(address(extents, 0) * BLOCK, target)?;
            }
            _ => {}
        }
        let tree = self.tree(node);
        if !tree.is_empty() {
            let seed = csum::inode_seed(self.fs_seed, builder::ino(node), 0);
            extent::render(extents, tree, seed, &mut [0; 60], |block, bytes| {
                Ok(write(u64::from(block) * BLOCK, bytes)?)
            })?;
        }
        Ok(())
    }

    fn write_attributes(&self, write: Sink<'_>) -> Result<(), Error> {
        for placed in self.attributes.values().filter(|placed| placed.block != 0) {
            write(placed.block * BLOCK, &placed.plan.render_block(self.fs_seed, placed.block))?;
        }
        Ok(())
    }

    /// Bitmaps and inode tables; returns the descriptor table.
    fn write_groups(&self, write: Sink<'_>) -> Result<Vec<u8>, Error> {
        let per_group = self.geometry.inodes_per_group;
        let mut descriptors = vec![0; self.geometry.descriptor_blocks() as usize * BLOCK_SIZE];
        for (number, tables) in (0..).zip(&self.tables) {
            let words = self.bitmap.words(Geometry::group_start(number), u64::from(BLOCKS_PER_GROUP));
            let block_bitmap: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            write(tables.block_bitmap * BLOCK, &block_bitmap)?;

            let first = number * per_group + 1;
            let used = (self.used_inodes() + 1).saturating_sub(first).min(per_group);
            let mut inode_bitmap = Vec::new();
            let mut directories = 0;
            if used > 0 {
                inode_bitmap = inode_bitmap_bytes(used, per_group);
                write(tables.inode_bitmap * BLOCK, &inode_bitmap)?;
                directories = self.write_table(tables.inode_table, first, used, write)?;
            }
            let group = Group {
                block_bitmap: tables.block_bitmap,
                inode_bitmap: tables.inode_bitmap,
                inode_table: tables.inode_table,
                free_blocks: words.iter().map(|word| word.count_zeros()).sum(),
                used_inodes: used,
                directories,
                block_bitmap_bytes: &block_bitmap,
                inode_bitmap_bytes: &inode_bitmap,
            };
            descriptors[number as usize * DESCRIPTOR_SIZE..][..DESCRIPTOR_SIZE]
                .copy_from_slice(&superblock::render_descriptor(&group, number, per_group, self.fs_seed));
        }
        Ok(descriptors)
    }

    /// The used part of one inode table; returns how many directories it holds.
    fn write_table(&self, table: u64, first: u32, used: u32, write: Sink<'_>) -> Result<u32, Error> {
        let mut bytes = Vec::with_capacity(used as usize * INODE_SIZE);
        let mut directories = 0;
        for ino in first..first + used {
            bytes.extend_from_slice(&self.inode(ino)?);
            let is_directory = ino == ROOT_INO
                || (ino >= FIRST_INO
                    && matches!(self.builder.nodes[(ino - FIRST_INO + 1) as usize].kind, Kind::Directory(_)));
            directories += u32::from(is_directory);
        }
        write(table * BLOCK, &bytes)?;
        Ok(directories)
    }

    fn write_superblocks(&self, descriptors: &[u8], write: Sink<'_>) -> Result<(), Error> {
        let used_blocks = self.bitmap.used() - u64::from(self.geometry.missing);
        let counts = Counts {
            free_blocks: self.geometry.blocks() - used_blocks,
            used_blocks,
            used_inodes: self.used_inodes(),
        };
        let journal_map = self.journal_map()?;
        for group in self.geometry.superblock_groups() {
            let raw = superblock::render(
                &self.builder.options,
                &self.geometry,
                &counts,
                &self.hash_seed,
                &journal_map,
                group,
            );
            let start = Geometry::group_start(group) * BLOCK;
            let offset = if group == 0 { superblock::OFFSET as u64 } else { 0 };
            write(start + offset, &raw)?;
            write(start + BLOCK, descriptors)?;
        }
        Ok(())
    }

    fn journal_map(&self) -> Result<[u8; 60], Error> {
        let mut map = [0; 60];
        let length = self.builder.options.journal_blocks;
        let journal = [Extent { logical: 0, start: self.journal as u32, length }];
        extent::render(&journal, &[], 0, &mut map, |_, _| Ok(()))?;
        Ok(map)
    }

    fn inode(&self, ino: u32) -> Result<Raw, Error> {
        let epoch = self.builder.options.epoch;
        let node = match ino {
            ROOT_INO => 0,
            JOURNAL_INO => {
                let blocks = u64::from(self.builder.options.journal_blocks);
                let slot = Slot {
                    meta: Meta { mode: 0o600, uid: 0, gid: 0, mtime: (i64::from(epoch), 0) },
                    file_type: FileType::Regular,
                    size: blocks * BLOCK,
                    blocks,
                    links: 1,
                    flags: FLAG_EXTENTS,
                    block: self.journal_map()?,
                    attribute_block: 0,
                    tail: None,
                };
                return Ok(inode::render(self.fs_seed, ino, &slot));
            }
            ..FIRST_INO => return Ok(inode::render_reserved(self.fs_seed, ino, epoch)),
            _ => ino - FIRST_INO + 1,
        };
        Ok(inode::render(self.fs_seed, ino, &self.slot(node)?))
    }

    fn slot(&self, node: u32) -> Result<Slot<'_>, Error> {
        let this = &self.builder.nodes[node as usize];
        let extents = self.node_extents(node);
        let placed = self.attributes.get(&node);
        let attribute_block = placed.map_or(0, |placed| placed.block);
        let data: u64 = extents.iter().map(|e| u64::from(e.length)).sum();
        let mut slot = Slot {
            meta: this.meta,
            file_type: this.file_type(),
            size: 0,
            blocks: data + self.tree(node).len() as u64 + u64::from(attribute_block != 0),
            links: this.links,
            flags: 0,
            block: [0; 60],
            attribute_block,
            tail: placed.and_then(|placed| placed.plan.in_inode.as_deref()),
        };
        match &this.kind {
            Kind::Directory(_) => {
                slot.size = data * BLOCK;
                slot.flags = if directory::is_indexed(data as u32) { FLAG_INDEX } else { 0 };
            }
            Kind::File { size, .. } => slot.size = *size,
            Kind::Symlink(target) => {
                slot.size = target.len() as u64;
                if target.len() <= FAST_SYMLINK {
                    slot.block[..target.len()].copy_from_slice(target);
                    return Ok(slot);
                }
            }
            Kind::Special(special) => {
                put_device(&mut slot.block, *special);
                return Ok(slot);
            }
        }
        slot.flags |= FLAG_EXTENTS;
        let seed = csum::inode_seed(self.fs_seed, builder::ino(node), 0);
        extent::render(extents, self.tree(node), seed, &mut slot.block, |_, _| Ok(()))?;
        Ok(slot)
    }
}

/// Block of the image that holds logical block `logical`.
fn address(extents: &[Extent], logical: u32) -> u64 {
    let at = extents.partition_point(|e| e.logical <= logical) - 1;
    u64::from(extents[at].start + (logical - extents[at].logical))
}

/// Bits of used inodes, which come first, and of those beyond the end of the table.
fn inode_bitmap_bytes(used: u32, per_group: u32) -> Vec<u8> {
    let mut bytes = vec![0u8; BLOCK_SIZE];
    for bit in (0..used as usize).chain(per_group as usize..8 * BLOCK_SIZE) {
        bytes[bit / 8] |= 1 << (bit % 8);
    }
    bytes
}

/// Small device numbers have 8 bits each in the first word, others 12 and 20 in the second.
fn put_device(block: &mut [u8; 60], special: Special) {
    let (Special::Character { major, minor } | Special::Block { major, minor }) = special else { return };
    if major < 256 && minor < 256 {
        put_u32(block, 0, (major << 8) | minor);
    } else {
        put_u32(block, 4, (minor & 0xFF) | (major << 8) | ((minor & !0xFF) << 12));
    }
}
