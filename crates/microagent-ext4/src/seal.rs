//! Freezes a tree: the size of the image and the address of every block.
//!
//! Order on disk: what geometry fixes, the journal, then directories, long symlinks and attribute
//! blocks, then file data, each in order of declaration, then extent tree blocks.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::bitmap::{Bitmap, Run};
use crate::builder::{self, Builder, Inode, Kind};
use crate::dirhash::{self, HashSeed};
use crate::extent::{self, Extent};
use crate::geometry::{Demand, GROUPS_PER_FLEX, Geometry};
use crate::spec::{BLOCK, MAX_EXTENT};
use crate::{Error, csum, directory, xattr};

/// Longest symlink target that lies in the inode.
pub(crate) const FAST_SYMLINK: usize = 59;

/// Addresses of a group's own metadata.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct GroupTables {
    pub(crate) block_bitmap: u64,
    pub(crate) inode_bitmap: u64,
    pub(crate) inode_table: u64,
}

/// A tree whose blocks all have their addresses.
#[derive(Debug)]
pub struct Layout {
    pub(crate) builder: Builder,
    pub(crate) hash_seed: HashSeed,
    pub(crate) fs_seed: u32,
    pub(crate) geometry: Geometry,
    pub(crate) bitmap: Bitmap,
    pub(crate) tables: Vec<GroupTables>,
    pub(crate) journal: u64,
    /// All extents; each node's are consecutive, see `node_extents`.
    extents: Vec<Extent>,
    node_extents: Vec<Range<u32>>,
    /// Extent tree blocks of the few nodes that need any.
    trees: BTreeMap<u32, Vec<u32>>,
    pub(crate) attributes: BTreeMap<u32, PlacedAttributes>,
}

/// A node's attributes, and the block of those that the inode does not hold (0 if it holds all).
#[derive(Debug)]
pub(crate) struct PlacedAttributes {
    pub(crate) plan: xattr::Plan,
    pub(crate) block: u64,
}

impl Layout {
    /// Length of the image in bytes: whole block groups of 128 MiB unless [`Options::blocks`](crate::Options::blocks)
    /// says otherwise, most of it never written.
    #[allow(clippy::len_without_is_empty, reason = "an image is never empty")]
    pub fn len(&self) -> u64 {
        self.geometry.blocks() * BLOCK
    }

    /// Number of inodes that the tree uses, those of the file system itself included.
    pub fn used_inodes(&self) -> u32 {
        builder::ino(self.builder.nodes.len() as u32 - 1).max(crate::spec::FIRST_INO - 1)
    }

    /// Where a file's data belongs: byte offsets in the image and lengths, whole blocks, in logical
    /// order. What lies behind the end of the file in its last block must be zero.
    pub fn extents(&self, file: Inode) -> impl Iterator<Item = (u64, u64)> {
        let extents = match self.builder.nodes.get(file.0 as usize) {
            Some(node) if matches!(node.kind, Kind::File { .. }) => self.node_extents(file.0),
            _ => &[],
        };
        extents.iter().map(|e| (u64::from(e.start) * BLOCK, u64::from(e.length) * BLOCK))
    }

    pub(crate) fn node_extents(&self, node: u32) -> &[Extent] {
        let range = &self.node_extents[node as usize];
        &self.extents[range.start as usize..range.end as usize]
    }

    pub(crate) fn tree(&self, node: u32) -> &[u32] {
        self.trees.get(&node).map_or(&[], Vec::as_slice)
    }
}

pub(crate) fn seal(builder: Builder) -> Result<Layout, Error> {
    let options = &builder.options;
    if !(1024..=MAX_EXTENT).contains(&options.journal_blocks) {
        return Err(Error::Journal { blocks: options.journal_blocks });
    }
    let hash_seed = dirhash::seed_from_uuid(&options.uuid);
    let plans = builder.xattr_plans()?;
    let content = content(&builder, &hash_seed)?;
    let attribute_blocks = plans.values().filter(|plan| plan.needs_block()).count() as u64;
    let demand = Demand {
        blocks: content.blocks + attribute_blocks + u64::from(options.journal_blocks) + options.free_blocks,
        inodes: builder::ino(builder.nodes.len() as u32 - 1),
        inodes_per_group: options.inodes_per_group,
    };
    let geometry = match options.blocks {
        Some(blocks) => Geometry::exact(blocks, demand)?,
        None => Geometry::fit(demand)?,
    };

    let mut bitmap = Bitmap::new(geometry.whole_blocks());
    // What lies behind the end can never be had.
    bitmap.mark(Run { start: geometry.blocks(), length: u64::from(geometry.missing) });
    let tables = place_fixed(&geometry, &mut bitmap).ok_or(Error::TooLarge)?;
    let journal = bitmap.take_contiguous(0, u64::from(options.journal_blocks)).ok_or(Error::TooLarge)?;
    let mut layout = Layout {
        fs_seed: csum::fs_seed(&options.uuid),
        node_extents: vec![0..0; builder.nodes.len()],
        builder,
        hash_seed,
        geometry,
        bitmap,
        tables,
        journal,
        extents: Vec::new(),
        trees: BTreeMap::new(),
        attributes: BTreeMap::new(),
    };
    layout.place_metadata(&content.metadata, plans)?;
    layout.place_data()?;
    layout.place_trees()?;
    Ok(layout)
}

struct Content {
    /// Blocks of each node that is no file: directory content or a long symlink's target.
    metadata: Vec<u32>,
    /// Blocks of everything, extent trees included as far as the tree alone causes them.
    blocks: u64,
}

fn content(b: &Builder, seed: &HashSeed) -> Result<Content, Error> {
    let mut metadata = vec![0; b.nodes.len()];
    let mut blocks = 0;
    for (node, count) in b.nodes.iter().zip(&mut metadata) {
        match &node.kind {
            Kind::Directory(children) => *count = directory::block_count(b, children, seed)?,
            Kind::Symlink(target) => *count = u32::from(target.len() > FAST_SYMLINK),
            Kind::Special(_) => {}
            Kind::File { .. } => {
                let mut extents = 0;
                for (_, length) in segments(&node.kind) {
                    blocks += u64::from(length);
                    extents += length.div_ceil(MAX_EXTENT) as usize;
                }
                let (leaves, indexes) = extent::tree_blocks(extents);
                blocks += (leaves + indexes) as u64;
            }
        }
        blocks += u64::from(*count);
    }
    Ok(Content { metadata, blocks })
}

/// The mapped parts of a file in blocks.
fn segments(kind: &Kind) -> impl Iterator<Item = (u32, u32)> {
    let (whole, parts): (_, &[_]) = match kind {
        Kind::File { size, segments: None } => {
            (Some((0, size.div_ceil(BLOCK) as u32)).filter(|s| s.1 > 0), &[])
        }
        Kind::File { segments: Some(segments), .. } => (None, segments),
        _ => (None, &[]),
    };
    whole.into_iter().chain(parts.iter().copied())
}

/// Superblock copies first, then each flex group's bitmaps and tables from its first group on.
fn place_fixed(geometry: &Geometry, bitmap: &mut Bitmap) -> Option<Vec<GroupTables>> {
    for group in geometry.superblock_groups() {
        bitmap.mark(Run { start: Geometry::group_start(group), length: 1 + geometry.descriptor_blocks() });
    }
    let mut tables = vec![GroupTables::default(); geometry.groups as usize];
    for (flex, members) in tables.chunks_mut(GROUPS_PER_FLEX as usize).enumerate() {
        let start = Geometry::group_start(flex as u32 * GROUPS_PER_FLEX);
        for group in &mut *members {
            group.block_bitmap = bitmap.take_contiguous(start, 1)?;
        }
        for group in &mut *members {
            group.inode_bitmap = bitmap.take_contiguous(start, 1)?;
        }
        for group in members {
            group.inode_table = bitmap.take_contiguous(start, geometry.table_blocks())?;
        }
    }
    Some(tables)
}

impl Layout {
    /// Takes blocks for one mapped part of `node` and appends its extents.
    fn map(&mut self, (mut logical, mut count): (u32, u32)) -> Result<(), Error> {
        while count > 0 {
            let run = self.bitmap.take(u64::from(count.min(MAX_EXTENT))).ok_or(Error::TooLarge)?;
            let length = run.length as u32;
            self.extents.push(Extent { logical, start: run.start as u32, length });
            logical += length;
            count -= length;
        }
        Ok(())
    }

    fn map_node(&mut self, node: u32, parts: &[(u32, u32)]) -> Result<(), Error> {
        let first = u32::try_from(self.extents.len()).map_err(|_| Error::TooLarge)?;
        for &part in parts {
            self.map(part)?;
        }
        let end = u32::try_from(self.extents.len()).map_err(|_| Error::TooLarge)?;
        self.node_extents[node as usize] = first..end;
        Ok(())
    }

    fn place_metadata(&mut self, counts: &[u32], plans: BTreeMap<u32, xattr::Plan>) -> Result<(), Error> {
        for (node, &count) in (0..).zip(counts) {
            if count > 0 {
                self.map_node(node, &[(0, count)])?;
            }
        }
        for (node, plan) in plans {
            let needed = plan.needs_block();
            let block = if needed { self.bitmap.take(1).ok_or(Error::TooLarge)?.start } else { 0 };
            self.attributes.insert(node, PlacedAttributes { plan, block });
        }
        Ok(())
    }

    fn place_data(&mut self) -> Result<(), Error> {
        for node in 0..self.builder.nodes.len() {
            let parts: Vec<_> = segments(&self.builder.nodes[node].kind).collect();
            if !parts.is_empty() {
                self.map_node(node as u32, &parts)?;
            }
        }
        Ok(())
    }

    fn place_trees(&mut self) -> Result<(), Error> {
        for node in 0..self.builder.nodes.len() as u32 {
            let extents = self.node_extents(node).len();
            if extents > extent::MAX_EXTENTS {
                let size = match self.builder.nodes[node as usize].kind {
                    Kind::File { size, .. } => size,
                    _ => return Err(Error::DirectoryTooLarge),
                };
                return Err(Error::FileTooLarge { size });
            }
            let (leaves, indexes) = extent::tree_blocks(extents);
            if leaves > 0 {
                let mut addresses = Vec::with_capacity(leaves + indexes);
                for _ in 0..leaves + indexes {
                    addresses.push(self.bitmap.take(1).ok_or(Error::TooLarge)?.start as u32);
                }
                self.trees.insert(node, addresses);
            }
        }
        Ok(())
    }
}
