//! Which inodes of a disk are not as on the disk that it began as a copy of: found by comparing the inode tables of
//! both, byte by byte, without asking the kernel for each file.
//!
//! An inode that is the same in every byte stands for the same owner, mode, times, size, attributes and blocks;
//! a directory's, for the same names. That holds because the kernel changes an inode in the buffers that are read
//! here before it does anything else. Whatever is not exactly as expected gives no answer, and everything is looked at
//! through the kernel then.
//!
//! # Source
//! Linux `Documentation/filesystems/ext4`: super block, block group descriptors, inode table.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Where the superblock lies, and its length.
const SUPERBLOCK_OFFSET: u64 = 1024;
const SUPERBLOCK_LEN: usize = 1024;
const MAGIC: u16 = 0xef53;
/// `INCOMPAT_META_BG`, `INCOMPAT_64BIT`.
const META_BG: u32 = 0x10;
const WIDE: u32 = 0x80;
/// `RO_COMPAT_GDT_CSUM`, `RO_COMPAT_METADATA_CSUM`: with either, group descriptors count unused inodes.
const COUNTS_UNUSED: u32 = 0x10 | 0x400;
/// Length of a group descriptor without [`WIDE`].
const NARROW_DESCRIPTOR_LEN: u64 = 32;
/// Most bytes of an inode table that are read at once.
const STEP: usize = 1 << 20;
/// What is compared at once before single inodes are.
const PIECE: usize = 16 << 10;
/// Most inodes that are compared; a base disk has some millions at most.
const INODES_MAX: u32 = 1 << 28;

/// Inodes that differ. Those that only the copy has differ.
#[derive(Debug)]
pub(super) struct ChangedInodes {
    /// One bit for each inode of the original, in order.
    bits: Vec<u64>,
}

impl ChangedInodes {
    /// Compares a disk with its original; `None` when their file systems are not laid out alike.
    pub(super) fn find(copy: &File, original: &File) -> io::Result<Option<ChangedInodes>> {
        let (here, base) = (Layout::read(copy)?, Layout::read(original)?);
        let (Some(here), Some(base)) = (here, base) else { return Ok(None) };
        let alike =
            |layout: &Layout| (layout.block_len, layout.inode_len, layout.inodes_per_group, layout.wide);
        if alike(&here) != alike(&base) || here.groups < base.groups || base.inodes > INODES_MAX {
            return Ok(None);
        }
        let words = usize::try_from(base.inodes.div_ceil(64)).expect("the number of inodes is bounded");
        let mut changed = ChangedInodes { bits: vec![u64::MAX; words] };
        for group in 0..base.groups {
            let tables = (here.table(copy, group)?, base.table(original, group)?);
            let (Some((_, here_table)), Some((used, base_table))) = tables else { return Ok(None) };
            changed.compare(&base, group, (copy, here_table), (used, original, base_table))?;
        }
        Ok(Some(changed))
    }

    fn compare(
        &mut self,
        layout: &Layout,
        group: u32,
        copy: (&File, u64),
        original: (u32, &File, u64),
    ) -> io::Result<()> {
        let inode_len = usize::from(layout.inode_len);
        let per_step = u32::try_from(STEP / inode_len).expect("a step has a handful of inodes");
        let (mut here, mut base) = (vec![0; STEP], vec![0; STEP]);
        let mut index = 0;
        while index < original.0 {
            let count = per_step.min(original.0 - index);
            let len = usize::try_from(count).expect("a small number") * inode_len;
            let offset = u64::from(index) * u64::from(layout.inode_len);
            copy.0.read_exact_at(&mut here[..len], copy.1 + offset)?;
            original.1.read_exact_at(&mut base[..len], original.2 + offset)?;
            let pieces = here[..len].chunks(PIECE).zip(base[..len].chunks(PIECE));
            let first = group * layout.inodes_per_group + index;
            for (first, (here, base)) in (first..).step_by(PIECE / inode_len).zip(pieces) {
                // Nearly all pieces are the same, and one long comparison costs less than many short ones.
                let whole = here == base;
                let pairs = here.chunks_exact(inode_len).zip(base.chunks_exact(inode_len));
                for (number, _) in (first..).zip(pairs).filter(|(_, (here, base))| whole || here == base) {
                    self.clear(number);
                }
            }
            index += count;
        }
        Ok(())
    }

    fn clear(&mut self, index: u32) {
        if let Some(word) = self.bits.get_mut(index as usize / 64) {
            *word &= !(1 << (index % 64));
        }
    }

    /// Whether an inode differs, or is not in the original.
    pub(super) fn contains(&self, inode: u64) -> bool {
        let Some(index) = inode.checked_sub(1) else { return true };
        let word = usize::try_from(index / 64).ok().and_then(|word| self.bits.get(word));
        word.is_none_or(|word| word >> (index % 64) & 1 == 1)
    }
}

/// Where the inode tables of a file system are.
#[derive(Debug)]
struct Layout {
    block_len: u64,
    inode_len: u16,
    inodes_per_group: u32,
    inodes: u32,
    groups: u32,
    /// Length of a group descriptor, and whether it has upper halves.
    descriptor_len: u64,
    wide: bool,
    /// Whether descriptors count the inodes that were never used.
    counts_unused: bool,
    /// Block where the group descriptors begin.
    descriptors: u64,
    /// Descriptor blocks from here on lie elsewhere.
    first_meta_group: Option<u64>,
}

impl Layout {
    fn read(disk: &File) -> io::Result<Option<Layout>> {
        let mut superblock = [0; SUPERBLOCK_LEN];
        disk.read_exact_at(&mut superblock, SUPERBLOCK_OFFSET)?;
        Ok(Layout::parse(&superblock))
    }

    fn parse(superblock: &[u8; SUPERBLOCK_LEN]) -> Option<Layout> {
        let u16_at = |at: usize| u16::from_le_bytes([superblock[at], superblock[at + 1]]);
        let u32_at = |at: usize| superblock[at..at + 4].try_into().map(u32::from_le_bytes).ok();
        let log_block_len = u32_at(0x18)?;
        let (inodes, inodes_per_group, inode_len) = (u32_at(0x00)?, u32_at(0x28)?, u16_at(0x58));
        let (incompatible, compatible_to_read) = (u32_at(0x60)?, u32_at(0x64)?);
        let wide = incompatible & WIDE != 0;
        let descriptor_len = if wide { u64::from(u16_at(0xfe)) } else { NARROW_DESCRIPTOR_LEN };
        let usable = u16_at(0x38) == MAGIC
            && log_block_len <= 6
            && inodes_per_group > 0
            && inodes.is_multiple_of(inodes_per_group)
            && (128..=4096).contains(&inode_len)
            && (32..=1024).contains(&descriptor_len);
        let first_meta_group = (incompatible & META_BG != 0).then_some(u64::from(u32_at(0x104)?));
        usable.then(|| Layout {
            block_len: 1024 << log_block_len,
            inode_len,
            inodes_per_group,
            inodes,
            groups: inodes / inodes_per_group,
            descriptor_len,
            wide,
            counts_unused: compatible_to_read & COUNTS_UNUSED != 0,
            descriptors: u64::from(superblock[0x14]) + 1,
            first_meta_group,
        })
    }

    /// How many inodes at the front of a group's table may be in use, and its offset; `None` when its descriptor is
    /// not in the one table there is.
    fn table(&self, disk: &File, group: u32) -> io::Result<Option<(u32, u64)>> {
        let at = u64::from(group) * self.descriptor_len;
        if self.first_meta_group.is_some_and(|first| at / self.block_len >= first) {
            return Ok(None);
        }
        let mut descriptor = [0; 64];
        let len = if self.wide { 64 } else { 32 };
        disk.read_exact_at(&mut descriptor[..len], self.descriptors * self.block_len + at)?;
        let u32_at = |at: usize| {
            let bytes = [descriptor[at], descriptor[at + 1], descriptor[at + 2], descriptor[at + 3]];
            u64::from(u32::from_le_bytes(bytes))
        };
        let block = u32_at(0x08) | if self.wide { u32_at(0x28) << 32 } else { 0 };
        let unused = match (self.counts_unused, self.wide) {
            (false, _) => 0,
            (true, false) => u32_at(0x1c) & 0xffff,
            (true, true) => (u32_at(0x1c) & 0xffff) | (u32_at(0x32) & 0xffff) << 16,
        };
        let used = self.inodes_per_group.saturating_sub(u32::try_from(unused).unwrap_or(0));
        Ok(block.checked_mul(self.block_len).map(|offset| (used, offset)))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;
    use std::process::Command;

    use super::*;

    /// A disk with some files, and a copy on which debugfs has done something.
    fn disks(options: &[&str], request: &str) -> (tempfile::TempDir, File, File) {
        let dir = tempfile::tempdir().unwrap();
        let (tree, base, copy) = (dir.path().join("tree"), dir.path().join("base"), dir.path().join("copy"));
        std::fs::create_dir(&tree).unwrap();
        for number in 0..300 {
            std::fs::write(tree.join(format!("file{number}")), format!("{number}")).unwrap();
        }
        File::create(&base).unwrap().set_len(64 << 20).unwrap();
        let run = |program: &str, words: &[&str], file: &Path| {
            let output = Command::new(program).args(words).arg(file).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        let made = ["-q", "-F", "-t", "ext4", "-d", tree.to_str().unwrap()];
        run("mke2fs", &[&made[..], options].concat(), &base);
        std::fs::copy(&base, &copy).unwrap();
        run("debugfs", &["-w", "-R", request], &copy);
        let open = |path: &Path| File::open(path).unwrap();
        let (copy, base) = (open(&copy), open(&base));
        (dir, copy, base)
    }

    fn inode(disk: &Path, path: &str) -> u64 {
        let output =
            Command::new("debugfs").args(["-R", &format!("stat {path}")]).arg(disk).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn finds_the_one_that_was_changed_and_those_that_are_new() {
        for options in [&["-b", "4096", "-O", "^64bit"][..], &["-b", "1024", "-O", "64bit", "-g", "8192"]] {
            let (dir, copy, base) = disks(options, "set_inode_field /file250 mtime 20200101");
            let changed = ChangedInodes::find(&copy, &base).unwrap().unwrap();
            let base_path = dir.path().join("base");
            let wanted = inode(&base_path, "/file250");
            for number in 0..300 {
                let inode = inode(&base_path, &format!("/file{number}"));
                assert_eq!(changed.contains(inode), inode == wanted, "{number}");
            }
            assert!(changed.contains(0) && changed.contains(u64::MAX));
            let same = ChangedInodes::find(&base, &base).unwrap().unwrap();
            assert!((1..400).filter(|inode| same.contains(*inode)).count() < 100, "{same:?}");
            assert!(base.metadata().unwrap().size() > 0);
        }
    }

    #[test]
    fn disks_of_another_kind_give_no_answer() {
        let (_dir, copy, _) = disks(&["-b", "4096"], "stat /file1");
        let (_other, _, base) = disks(&["-b", "1024"], "stat /file1");
        assert!(ChangedInodes::find(&copy, &base).unwrap().is_none());
        let nothing = tempfile::tempfile().unwrap();
        nothing.set_len(1 << 20).unwrap();
        assert!(ChangedInodes::find(&copy, &nothing).unwrap().is_none());
    }
}
