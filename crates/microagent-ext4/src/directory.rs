//! Directory content: one list of entries when they fit a block, a hash index (htree) above full leaves
//! otherwise.
//!
//! Logical blocks of an indexed directory: 0 is the root, then the leaves, then index nodes if there are
//! any. Entries are sorted by hash; a leaf that starts with the hash the one before ended with has its
//! collision bit set.

use crate::Error;
use crate::builder::{self, Builder, Child, Kind};
use crate::csum;
use crate::dirhash::{HashSeed, half_md4};
use crate::le::{put_u16, put_u32};
use crate::spec::{BLOCK_SIZE, DIRENT_TAIL, FileType};

type Block = [u8; BLOCK_SIZE];

/// Room for entries in a block that ends with a checksum.
const USABLE: usize = BLOCK_SIZE - DIRENT_TAIL;
/// Bytes of the records of `.` and `..`.
const DOTS: usize = 24;
/// Where count and limit, then the index entries, begin.
const ROOT_INDEX: usize = 0x20;
const NODE_INDEX: usize = 0x08;
/// Entries of an index, one place left for the checksum.
const ROOT_LIMIT: usize = (BLOCK_SIZE - ROOT_INDEX) / 8 - 1;
const NODE_LIMIT: usize = (BLOCK_SIZE - NODE_INDEX) / 8 - 1;

#[derive(Debug, Clone, Copy)]
struct Entry<'a> {
    name: &'a [u8],
    ino: u32,
    file_type: FileType,
}

impl Entry<'_> {
    /// Bytes of its record: header of 8 and name, rounded up to 4.
    fn length(&self) -> usize {
        (8 + self.name.len()).next_multiple_of(4)
    }
}

/// An index entry: names from `hash` on are in or below logical block `block`.
type Bound = (u32, u32);

/// The blocks that a directory needs; checks that its names differ.
pub(crate) fn block_count(b: &Builder, children: &[Child], seed: &HashSeed) -> Result<u32, Error> {
    let mut names: Vec<&[u8]> = children.iter().map(|child| b.name(child)).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::DuplicateName { name: pair[0].to_vec() });
    }
    let entries = entries(b, children);
    if !needs_index(&entries) {
        return Ok(1);
    }
    let leaves = leaves(&sorted(&entries, seed)).len();
    let nodes = if leaves <= ROOT_LIMIT { 0 } else { leaves.div_ceil(NODE_LIMIT) };
    if nodes > ROOT_LIMIT {
        return Err(Error::DirectoryTooLarge);
    }
    Ok((1 + leaves + nodes) as u32)
}

/// True when a directory of these many blocks is indexed.
pub(crate) fn is_indexed(blocks: u32) -> bool {
    blocks > 1
}

/// Calls `block` with each block of the directory `node`, in logical order.
pub(crate) fn render(
    b: &Builder,
    node: u32,
    seed: &HashSeed,
    fs_seed: u32,
    mut block: impl FnMut(u32, &[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let this = &b.nodes[node as usize];
    let Kind::Directory(children) = &this.kind else { unreachable!("only directories are rendered here") };
    let dots = [
        Entry { name: b".", ino: builder::ino(node), file_type: FileType::Directory },
        Entry { name: b"..", ino: builder::ino(this.parent), file_type: FileType::Directory },
    ];
    let inode_seed = csum::inode_seed(fs_seed, dots[0].ino, 0);
    let entries = entries(b, children);
    if !needs_index(&entries) {
        return block(0, &list(dots.iter().chain(&entries), inode_seed));
    }

    let sorted = sorted(&entries, seed);
    let leaves = leaves(&sorted);
    let bounds: Vec<Bound> =
        leaves.iter().zip(1..).map(|(leaf, logical)| (bound(&sorted, leaf.start), logical)).collect();
    let (levels, top) = if bounds.len() <= ROOT_LIMIT {
        (0, bounds.clone())
    } else {
        let first_node = 1 + leaves.len() as u32;
        (
            1,
            bounds
                .chunks(NODE_LIMIT)
                .zip(first_node..)
                .map(|(chunk, logical)| (chunk[0].0, logical))
                .collect(),
        )
    };
    block(0, &index_root(&dots, levels, &top, inode_seed))?;
    for (leaf, logical) in leaves.into_iter().zip(1..) {
        block(logical, &list(sorted[leaf].iter().map(|s| s.entry), inode_seed))?;
    }
    if levels > 0 {
        for (chunk, &(_, logical)) in bounds.chunks(NODE_LIMIT).zip(&top) {
            block(logical, &index_node(chunk, inode_seed))?;
        }
    }
    Ok(())
}

fn entries<'a>(b: &'a Builder, children: &[Child]) -> Vec<Entry<'a>> {
    let entry = |child: &Child| Entry {
        name: b.name(child),
        ino: builder::ino(child.node),
        file_type: b.nodes[child.node as usize].file_type(),
    };
    children.iter().map(entry).collect()
}

/// True when the entries with both dots do not fit one block.
fn needs_index(entries: &[Entry<'_>]) -> bool {
    DOTS + entries.iter().map(Entry::length).sum::<usize>() > USABLE
}

struct Hashed<'a> {
    hash: u32,
    entry: &'a Entry<'a>,
}

fn sorted<'a>(entries: &'a [Entry<'a>], seed: &HashSeed) -> Vec<Hashed<'a>> {
    let mut order: Vec<(u32, u32, usize)> = entries
        .iter()
        .enumerate()
        .map(|(i, entry)| {
            let (hash, minor) = half_md4(seed, entry.name);
            (hash, minor, i)
        })
        .collect();
    order.sort_unstable();
    order.into_iter().map(|(hash, _, i)| Hashed { hash, entry: &entries[i] }).collect()
}

/// Cuts the sorted entries into leaves as full as they can be.
fn leaves(sorted: &[Hashed<'_>]) -> Vec<std::ops::Range<usize>> {
    let mut leaves = Vec::new();
    let (mut start, mut used) = (0, 0);
    for (i, hashed) in sorted.iter().enumerate() {
        let length = hashed.entry.length();
        if used + length > USABLE {
            leaves.push(start..i);
            (start, used) = (i, 0);
        }
        used += length;
    }
    leaves.push(start..sorted.len());
    leaves
}

/// Lower bound of a leaf that begins with entry `start`, with the collision bit where one hash straddles leaves.
fn bound(sorted: &[Hashed<'_>], start: usize) -> u32 {
    let hash = sorted[start].hash;
    let straddles = start > 0 && sorted[start - 1].hash == hash;
    hash | u32::from(straddles)
}

fn put_record(buffer: &mut Block, offset: usize, entry: &Entry<'_>, length: usize) {
    put_u32(buffer, offset, entry.ino);
    put_u16(buffer, offset + 4, length as u16);
    buffer[offset + 6] = entry.name.len() as u8;
    buffer[offset + 7] = entry.file_type as u8;
    buffer[offset + 8..][..entry.name.len()].copy_from_slice(entry.name);
}

/// A block of records, the last one stretched to the checksum.
fn list<'a>(entries: impl Iterator<Item = &'a Entry<'a>>, inode_seed: u32) -> Block {
    let mut buffer = [0; BLOCK_SIZE];
    let mut entries = entries.peekable();
    let mut offset = 0;
    while let Some(entry) = entries.next() {
        let length = if entries.peek().is_some() { entry.length() } else { USABLE - offset };
        put_record(&mut buffer, offset, entry, length);
        offset += length;
    }
    put_u16(&mut buffer, USABLE + 4, DIRENT_TAIL as u16);
    buffer[USABLE + 7] = 0xDE;
    let checksum = csum::dirent_block(inode_seed, &buffer);
    put_u32(&mut buffer, BLOCK_SIZE - 4, checksum);
    buffer
}

fn index_root(dots: &[Entry<'_>; 2], levels: u8, top: &[Bound], inode_seed: u32) -> Block {
    let mut buffer = [0; BLOCK_SIZE];
    put_record(&mut buffer, 0, &dots[0], 12);
    put_record(&mut buffer, 12, &dots[1], BLOCK_SIZE - 12);
    buffer[0x1C] = 1; // half_md4
    buffer[0x1D] = 8; // length of this information
    buffer[0x1E] = levels;
    put_index(&mut buffer, ROOT_INDEX, ROOT_LIMIT, top, inode_seed);
    buffer
}

fn index_node(bounds: &[Bound], inode_seed: u32) -> Block {
    let mut buffer = [0; BLOCK_SIZE];
    put_u16(&mut buffer, 4, BLOCK_SIZE as u16); // an empty record over the whole block
    put_index(&mut buffer, NODE_INDEX, NODE_LIMIT, bounds, inode_seed);
    buffer
}

/// Writes limit, count and entries. The first entry's hash is implied (the level's lower bound): its
/// place holds limit and count.
fn put_index(buffer: &mut Block, offset: usize, limit: usize, bounds: &[Bound], inode_seed: u32) {
    for (i, &(hash, logical)) in bounds.iter().enumerate() {
        put_u32(buffer, offset + 8 * i, hash);
        put_u32(buffer, offset + 8 * i + 4, logical);
    }
    put_u16(buffer, offset, limit as u16);
    put_u16(buffer, offset + 2, bounds.len() as u16);
    let checksum = csum::dx_block(inode_seed, &buffer[..], offset, bounds.len() as u16, limit as u16);
    put_u32(buffer, offset + limit * 8 + 4, checksum);
}
