//! One layer, unpacked: its entries in memory, its file contents in a spool.

use std::path::Path;
use std::thread::Scope;

use microagent_ext4::{Meta, Special};
use microagent_tar::read::{Extent, Member, ReadError, Reader, Source};
use microagent_tar::{Attribute, Kind, shown};

use super::LayerFile;
use super::error::{Damage, RootfsError};
use super::spool::{BLOCK, Spool, SpoolWriter};
use super::stream::{Shared, Stream};
use super::tree::Tree;

/// An unpacked layer.
pub(super) struct Unpacked {
    /// In the order of the archive.
    pub(super) entries: Vec<Entry>,
    pub(super) spool: Spool,
    /// sha256 of the uncompressed archive.
    pub(super) digest: [u8; 32],
}

/// One entry of a layer; its name is as the archive has it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) meta: Meta,
    pub(super) attributes: Vec<Attribute>,
    pub(super) kind: EntryKind,
}

#[derive(Debug)]
pub(super) enum EntryKind {
    File(Content),
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    Directory,
    Special(Special),
}

/// Content of a file: consecutive blocks of its layer's spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) size: u64,
    /// First block in the spool.
    pub(super) block: u64,
    /// First block and number of blocks of each part that is not a hole; `None` when there are no holes.
    pub(super) segments: Option<Box<[(u32, u32)]>>,
}

/// Unpacks one layer.
pub(super) fn unpack<'scope, 'a: 'scope>(
    scope: &'scope Scope<'scope, '_>,
    layer: usize,
    file: &'scope LayerFile,
    scratch: &Path,
    shared: &'scope Shared<'a>,
) -> Result<Unpacked, RootfsError> {
    let stream = Stream::open(scope, layer, file, shared)?;
    let (entries, spool, stream) = read(stream, layer, scratch, shared)?;
    let digest = verified(stream.digest(), layer, file)?;
    Ok(Unpacked { entries, spool, digest })
}

fn verified(digest: [u8; 32], layer: usize, file: &LayerFile) -> Result<[u8; 32], RootfsError> {
    let found = format!("sha256:{}", hex(&digest));
    match &file.diff_id {
        Some(expected) if *expected != found => {
            let source = Damage::DiffId { expected: expected.clone(), found };
            Err(RootfsError::Damaged { layer, source })
        }
        _ => Ok(digest),
    }
}

/// Reads one layer and merges it into nothing; gives the bytes of its files.
pub(super) fn check<'scope, 'a: 'scope>(
    scope: &'scope Scope<'scope, '_>,
    file: &'scope LayerFile,
    shared: &'scope Shared<'a>,
) -> Result<u64, RootfsError> {
    let stream = Stream::open(scope, 0, file, shared)?;
    let mut archive = Reader::new(stream, shared.limits.max_path_bytes);
    let (mut tree, mut bytes) = (Tree::new(), 0);
    while let Some(member) = archive.next_member().map_err(in_layer(0))? {
        shared.count_entry(0, memory(&member))?;
        let entry = self::entry(member, |extent| {
            if extent.size > microagent_ext4::MAX_FILE_SIZE {
                return Err(RootfsError::Limit {
                    layer: 0,
                    limit: format!("a file of {} bytes", extent.size),
                });
            }
            bytes += extent.size;
            Ok(Content { size: extent.size, block: 0, segments: None })
        })?;
        tree.apply(0, entry)?;
    }
    verified(archive.finish()?.digest(), 0, file)?;
    Ok(bytes)
}

/// A member as an entry; the caller takes care of a file's data.
fn entry(
    member: Member,
    mut content: impl FnMut(Extent) -> Result<Content, RootfsError>,
) -> Result<Entry, RootfsError> {
    let kind = match member.kind {
        Kind::File(extent) => EntryKind::File(content(extent)?),
        Kind::HardLink(target) => EntryKind::HardLink(target),
        Kind::Symlink(target) => EntryKind::Symlink(target),
        Kind::Directory => EntryKind::Directory,
        Kind::CharacterDevice { major, minor } => EntryKind::Special(Special::Character { major, minor }),
        Kind::BlockDevice { major, minor } => EntryKind::Special(Special::Block { major, minor }),
        Kind::Fifo => EntryKind::Special(Special::Fifo),
    };
    let microagent_tar::Meta { mode, uid, gid, mtime } = member.meta;
    let meta = Meta { mode, uid, gid, mtime };
    Ok(Entry { name: member.name, meta, attributes: member.attributes, kind })
}

/// Reads all entries of an uncompressed layer; returns its source, read to the end.
pub(super) fn read<S: Source<Error = RootfsError>>(
    source: S,
    layer: usize,
    scratch: &Path,
    shared: &Shared<'_>,
) -> Result<(Vec<Entry>, Spool, S), RootfsError> {
    let mut archive = Reader::new(source, shared.limits.max_path_bytes);
    let mut spool = SpoolWriter::create(scratch)?;
    let max_bytes = shared.limits.max_unpacked_bytes;
    let mut entries = Vec::new();
    while let Some(member) = archive.next_member().map_err(in_layer(layer))? {
        shared.count_entry(layer, memory(&member))?;
        entries.push(entry(member, |extent| store(&mut archive, &mut spool, extent, layer, max_bytes))?);
    }
    let source = archive.finish()?;
    Ok((entries, spool.finish()?, source))
}

/// Says in which layer the archive is broken.
fn in_layer(layer: usize) -> impl Fn(ReadError<RootfsError>) -> RootfsError {
    move |error| match error {
        ReadError::Source(error) => error,
        ReadError::Malformed { what, after } => {
            RootfsError::Damaged { layer, source: Damage::Tar { what, name: shown(&after) } }
        }
        ReadError::Truncated { after } => {
            RootfsError::Damaged { layer, source: Damage::Truncated { name: shown(&after) } }
        }
        ReadError::Limit { limit } => RootfsError::Limit { layer, limit },
    }
}

/// What an entry takes in memory beside its fixed size, roughly.
fn memory(member: &Member) -> u64 {
    let kind = match &member.kind {
        Kind::File(Extent { parts: Some(parts), .. }) => parts.len() * 16,
        Kind::HardLink(target) | Kind::Symlink(target) => target.len(),
        _ => 0,
    };
    let attributes: usize = member.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
    (member.name.len() + attributes + kind) as u64
}

/// Moves a file's data into the spool.
fn store<S: Source<Error = RootfsError>>(
    archive: &mut Reader<S>,
    spool: &mut SpoolWriter,
    extent: Extent,
    layer: usize,
    max_bytes: u64,
) -> Result<Content, RootfsError> {
    let Extent { size, parts } = extent;
    let stored = parts.as_ref().map_or(size, |parts| parts.iter().map(|(_, length)| length).sum());
    // What it says of itself is enough to refuse it, before anything is read and stored.
    if stored > max_bytes {
        let limit = format!("it unpacks to more than {max_bytes} bytes");
        return Err(RootfsError::Limit { layer, limit });
    }
    if size > microagent_ext4::MAX_FILE_SIZE {
        return Err(RootfsError::Limit { layer, limit: format!("a file of {size} bytes") });
    }
    let block = spool.align()?;
    let Some(parts) = parts else {
        archive.data(size, |bytes| spool.write(bytes)).map_err(in_layer(layer))?;
        spool.align()?;
        return Ok(Content { size, block, segments: None });
    };
    let mut segments: Vec<(u32, u32)> = Vec::new();
    // Where in the file the spool's end is, as long as the current segment continues.
    let mut at = 0;
    for (offset, length) in parts {
        let (first, end) = (offset / BLOCK, (offset + length).div_ceil(BLOCK));
        match segments.last_mut() {
            Some(last) if first <= u64::from(last.0 + last.1) => last.1 = (end - u64::from(last.0)) as u32,
            _ => {
                spool.align()?;
                at = first * BLOCK;
                segments.push((first as u32, (end - first) as u32));
            }
        }
        spool.write_zeros(offset - at)?;
        archive.data(length, |bytes| spool.write(bytes)).map_err(in_layer(layer))?;
        at = offset + length;
    }
    spool.align()?;
    Ok(Content { size, block, segments: Some(segments.into()) })
}

pub(super) fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
