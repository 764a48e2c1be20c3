//! Block groups: how many a tree needs, how many inodes each holds, where superblock copies lie.
//! Pure arithmetic; placing is the business of `seal`.

use crate::Error;
use crate::spec::{BLOCK_SIZE, BLOCKS_PER_GROUP, INODES_PER_BLOCK};

/// Group metadata of this many groups lies together (`s_log_groups_per_flex` is its logarithm).
pub(crate) const GROUPS_PER_FLEX: u32 = 1 << LOG_GROUPS_PER_FLEX;
pub(crate) const LOG_GROUPS_PER_FLEX: u8 = 4;
/// One bitmap block has a bit for each.
const MAX_INODES_PER_GROUP: u64 = 8 * BLOCK_SIZE as u64;
/// Inodes kept free, so that a guest can work before the file system is grown.
const FREE_INODES: u64 = 1024;
/// Bytes of a group descriptor (without the feature `64bit`).
pub(crate) const DESCRIPTOR_SIZE: usize = 32;
/// Block numbers have 32 bits, and the all-ones one is not used.
const MAX_GROUPS: u32 = u32::MAX / BLOCKS_PER_GROUP;
/// A file's data may be interrupted by group metadata, which can cost an extent tree block: at most
/// bitmaps, table and superblock copy of each group on both sides.
const INTERRUPTIONS_PER_GROUP: u64 = 8;

/// Blocks for content that make a last group worth having, as for mke2fs.
const LAST_GROUP_FREE: u64 = 50;

/// What a tree needs, before anything has an address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Demand {
    /// Blocks of content, journal and wanted free space.
    pub(crate) blocks: u64,
    /// Highest inode number.
    pub(crate) inodes: u32,
    /// Inodes per group at least.
    pub(crate) inodes_per_group: u32,
}

impl Demand {
    /// Inodes of each group, if there are so many groups; `None` when a group cannot have as many.
    fn inodes_in_each_of(&self, groups: u32) -> Option<u32> {
        let wanted = u64::from(self.inodes) + FREE_INODES;
        let per_group = wanted
            .div_ceil(u64::from(groups))
            .max(u64::from(self.inodes_per_group))
            .next_multiple_of(u64::from(INODES_PER_BLOCK));
        let fits = per_group <= MAX_INODES_PER_GROUP && per_group * u64::from(groups) <= u64::from(u32::MAX);
        fits.then_some(per_group as u32)
    }
}

/// The block groups of an image; all are whole, but perhaps the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) groups: u32,
    pub(crate) inodes_per_group: u32,
    /// Blocks that the last group lacks.
    pub(crate) missing: u32,
}

impl Geometry {
    /// The smallest geometry that holds `demand`.
    pub(crate) fn fit(demand: Demand) -> Result<Geometry, Error> {
        let first = (demand.blocks / u64::from(BLOCKS_PER_GROUP)).max(1);
        for groups in u32::try_from(first).map_err(|_| Error::TooLarge)?..=MAX_GROUPS {
            let Some(inodes_per_group) = demand.inodes_in_each_of(groups) else { continue };
            let geometry = Geometry { groups, inodes_per_group, missing: 0 };
            let spare = INTERRUPTIONS_PER_GROUP * u64::from(groups);
            if geometry.fixed_blocks() + spare + demand.blocks <= geometry.blocks() {
                return Ok(geometry);
            }
        }
        Err(Error::TooLarge)
    }

    /// The geometry of exactly `blocks`, but for a last group that cannot hold its own tables.
    pub(crate) fn exact(blocks: u64, demand: Demand) -> Result<Geometry, Error> {
        let groups = u32::try_from(blocks.div_ceil(u64::from(BLOCKS_PER_GROUP)))
            .ok()
            .filter(|groups| (1..=MAX_GROUPS).contains(groups))
            .ok_or(Error::TooLarge)?;
        let inodes_per_group = demand.inodes_in_each_of(groups).ok_or(Error::TooLarge)?;
        let whole = u64::from(groups) * u64::from(BLOCKS_PER_GROUP);
        let mut geometry = Geometry { groups, inodes_per_group, missing: (whole - blocks) as u32 };
        let own = 1 + geometry.descriptor_blocks() + 2 + geometry.table_blocks() + LAST_GROUP_FREE;
        if groups > 1 && u64::from(BLOCKS_PER_GROUP - geometry.missing) < own {
            geometry = Geometry { groups: groups - 1, missing: 0, ..geometry };
        }
        let spare = INTERRUPTIONS_PER_GROUP * u64::from(geometry.groups);
        if geometry.fixed_blocks() + spare + demand.blocks > geometry.blocks() {
            return Err(Error::TooLarge);
        }
        Ok(geometry)
    }

    /// Total blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.whole_blocks() - u64::from(self.missing)
    }

    /// Blocks that there would be if the last group were whole: as many as bitmaps have bits for.
    pub(crate) fn whole_blocks(&self) -> u64 {
        u64::from(self.groups) * u64::from(BLOCKS_PER_GROUP)
    }

    pub(crate) fn inodes(&self) -> u32 {
        self.groups * self.inodes_per_group
    }

    /// Blocks of one group's inode table.
    pub(crate) fn table_blocks(&self) -> u64 {
        u64::from(self.inodes_per_group / INODES_PER_BLOCK)
    }

    /// Blocks of the group descriptor table, in each of its copies.
    pub(crate) fn descriptor_blocks(&self) -> u64 {
        (u64::from(self.groups) * DESCRIPTOR_SIZE as u64).div_ceil(BLOCK_SIZE as u64)
    }

    pub(crate) fn group_start(group: u32) -> u64 {
        u64::from(group) * u64::from(BLOCKS_PER_GROUP)
    }

    /// Groups that begin with a copy of superblock and descriptors (`sparse_super`): 0, 1 and the
    /// powers of 3, 5 and 7.
    pub(crate) fn superblock_groups(&self) -> Vec<u32> {
        // Listed rather than filtered out of all groups: `fit` asks for each size that it tries.
        let powers = |base: u32| std::iter::successors(Some(base), move |power| power.checked_mul(base));
        let mut groups: Vec<u32> = [3, 5, 7]
            .into_iter()
            .flat_map(|base| powers(base).take_while(|group| *group < self.groups))
            .chain((0..2).take_while(|group| *group < self.groups))
            .collect();
        groups.sort_unstable();
        groups
    }

    /// Blocks that hold neither content nor journal, whatever the tree.
    pub(crate) fn fixed_blocks(&self) -> u64 {
        let copies = self.superblock_groups().len() as u64;
        copies * (1 + self.descriptor_blocks()) + u64::from(self.groups) * (2 + self.table_blocks())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(blocks: u64, inodes: u32) -> Geometry {
        Geometry::fit(Demand { blocks, inodes, inodes_per_group: 8192 }).expect("fits")
    }

    #[test]
    fn small_trees_take_one_group() {
        assert_eq!(fit(5000, 400), Geometry { groups: 1, inodes_per_group: 8192, missing: 0 });
        assert_eq!(fit(32_000, 400).groups, 1);
        assert_eq!(fit(32_500, 400).groups, 2);
    }

    #[test]
    fn many_inodes_raise_the_ratio_before_the_size() {
        let g = fit(5000, 20_000);
        assert_eq!((g.groups, g.inodes_per_group), (1, 21_024));
        let g = fit(5000, 100_000);
        assert_eq!(g.groups, 4);
        assert!(g.inodes() >= 101_024);
    }

    #[test]
    fn superblock_copies_follow_sparse_super() {
        let g = Geometry { groups: 512, inodes_per_group: 8192, missing: 0 };
        assert_eq!(g.superblock_groups(), [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125, 243, 343]);
        let one = Geometry { groups: 1, ..g };
        assert_eq!(
            (one.superblock_groups(), Geometry { groups: 10, ..g }.superblock_groups().len()),
            (vec![0], 6)
        );
    }

    #[test]
    fn an_exact_size_may_end_within_a_group() {
        let exact =
            |blocks| Geometry::exact(blocks, Demand { blocks: 1100, inodes: 1, inodes_per_group: 8192 });
        assert_eq!(exact(4096).unwrap().blocks(), 4096);
        assert_eq!(exact(262_144).unwrap(), Geometry { groups: 8, inodes_per_group: 8192, missing: 0 });
        let g = exact(3 * 32_768 + 5000).unwrap();
        assert_eq!((g.groups, g.blocks()), (4, 3 * 32_768 + 5000));
        // Too little for the tables of a group.
        assert_eq!(exact(3 * 32_768 + 256).unwrap().blocks(), 3 * 32_768);
        assert!(matches!(exact(1024), Err(Error::TooLarge)));
        assert!(matches!(exact(0), Err(Error::TooLarge)));
        assert!(matches!(exact(1 << 32), Err(Error::TooLarge)));
    }

    #[test]
    fn what_ext4_cannot_count_is_refused() {
        let demand = Demand { blocks: 1 << 32, inodes: 1, inodes_per_group: 8192 };
        assert!(matches!(Geometry::fit(demand), Err(Error::TooLarge)));
    }
}
