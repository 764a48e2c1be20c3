//! One slot of an inode table.

use crate::builder::Meta;
use crate::csum;
use crate::le::{put_u16, put_u32};
use crate::spec::{BLOCK, EXTRA_ISIZE, FileType, INODE_SIZE, LINK_MAX};
use crate::xattr::IN_INODE;

pub(crate) type Raw = [u8; INODE_SIZE];

/// Earliest and latest second that 32 bits plus two more can say.
const FIRST_SECOND: i64 = -(1 << 31);
const LAST_SECOND: i64 = FIRST_SECOND + (1 << 34) - 1;

/// Everything that an inode says.
pub(crate) struct Slot<'a> {
    pub(crate) meta: Meta,
    pub(crate) file_type: FileType,
    pub(crate) size: u64,
    /// Blocks of data, tree and attributes.
    pub(crate) blocks: u64,
    pub(crate) links: u32,
    pub(crate) flags: u32,
    /// `i_block`.
    pub(crate) block: [u8; 60],
    /// Address of the attribute block, or 0.
    pub(crate) attribute_block: u64,
    pub(crate) tail: Option<&'a [u8; IN_INODE]>,
}

pub(crate) fn render(fs_seed: u32, ino: u32, slot: &Slot<'_>) -> Raw {
    let mut raw = [0; INODE_SIZE];
    let b = &mut raw[..];
    let Meta { mode, uid, gid, mtime } = slot.meta;
    let (seconds, extra) = timestamp(mtime);
    let links = if slot.file_type == FileType::Directory && slot.links > LINK_MAX { 1 } else { slot.links };
    let sectors = slot.blocks * (BLOCK / 512);
    put_u16(b, 0x00, slot.file_type.mode() | (mode & 0o7777));
    put_u16(b, 0x02, uid as u16);
    put_u32(b, 0x04, slot.size as u32);
    for offset in [0x08, 0x0C, 0x10, 0x90] {
        put_u32(b, offset, seconds); // access, change, modification, creation
    }
    put_u16(b, 0x18, gid as u16);
    put_u16(b, 0x1A, links as u16);
    put_u32(b, 0x1C, sectors as u32);
    put_u32(b, 0x20, slot.flags);
    b[0x28..0x64].copy_from_slice(&slot.block);
    put_u32(b, 0x68, slot.attribute_block as u32);
    put_u32(b, 0x6C, (slot.size >> 32) as u32);
    put_u16(b, 0x74, (sectors >> 32) as u16);
    put_u16(b, 0x78, (uid >> 16) as u16);
    put_u16(b, 0x7A, (gid >> 16) as u16);
    put_u16(b, 0x80, EXTRA_ISIZE as u16);
    for offset in [0x84, 0x88, 0x8C, 0x94] {
        put_u32(b, offset, extra); // in the same order, but for change before modification
    }
    if let Some(tail) = slot.tail {
        b[0x80 + EXTRA_ISIZE..].copy_from_slice(tail);
    }
    let checksum = csum::inode(fs_seed, ino, 0, b);
    put_u16(b, 0x7C, checksum as u16);
    put_u16(b, 0x82, (checksum >> 16) as u16);
    raw
}

/// A reserved inode that is not used: nothing but its checksum, and times for the list of bad blocks.
pub(crate) fn render_reserved(fs_seed: u32, ino: u32, epoch: u32) -> Raw {
    let mut raw = [0; INODE_SIZE];
    if ino == 1 {
        for offset in [0x08, 0x0C, 0x10] {
            put_u32(&mut raw, offset, epoch);
        }
    }
    let checksum = csum::inode(fs_seed, ino, 0, &raw);
    put_u16(&mut raw, 0x7C, checksum as u16);
    raw
}

/// The seconds field and its extra word: two more bits of seconds, then nanoseconds.
fn timestamp((seconds, nanoseconds): (i64, u32)) -> (u32, u32) {
    let (seconds, nanoseconds) = match seconds {
        ..FIRST_SECOND => (FIRST_SECOND, 0),
        FIRST_SECOND..=LAST_SECOND => (seconds, nanoseconds.min(999_999_999)),
        _ => (LAST_SECOND, 999_999_999),
    };
    // The low word is read as signed, so the epoch counts from its lowest value.
    let epoch = ((seconds - FIRST_SECOND) >> 32) as u32;
    (seconds as u32, (nanoseconds << 2) | epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_cover_all_that_ext4_can_say() {
        let decode =
            |(low, extra): (u32, u32)| (i64::from(low as i32) + (i64::from(extra & 3) << 32), extra >> 2);
        for time in
            [(0, 0), (-1, 999_999_999), (FIRST_SECOND, 0), (1 << 31, 5), (4_102_444_800, 1), (LAST_SECOND, 7)]
        {
            assert_eq!(decode(timestamp(time)), time);
        }
        assert_eq!(decode(timestamp((i64::MIN, 5))), (FIRST_SECOND, 0));
        assert_eq!(decode(timestamp((i64::MAX, 5))), (LAST_SECOND, 999_999_999));
    }
}
