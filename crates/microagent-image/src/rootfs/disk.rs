//! The merged tree as an ext4 file system in a sparse file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use microagent_ext4::{Builder, Inode, Layout, Options};
use microagent_tar::shown;
use sha2::{Digest, Sha256};

use super::DiskStats;
use super::error::RootfsError;
use super::layer::Content;
use super::spool::{BLOCK, Blocks, Spool};
use super::stream::Shared;
use super::tree::{self, Node, NodeKind, Tree};

/// Part of the file system's UUID, so that a change of what we make of the same layers changes it.
const GENERATION: &[u8] = b"microagent base disk 1";
/// Time of what belongs to no layer: 2024-01-01. It must not be in the future, or e2fsck complains.
const EPOCH: u32 = 1_704_067_200;

/// Writes the disk to `out`, which must not exist; on failure it is removed again.
pub(super) fn write(
    tree: &Tree,
    digests: &[[u8; 32]],
    spools: &[Spool],
    out: &Path,
    shared: &Shared<'_>,
) -> Result<DiskStats, RootfsError> {
    let plan = Plan::new(tree, Options { free_blocks: 4096, ..Options::new(uuid(digests), EPOCH) })?;
    let layout = &plan.layout;
    let doing = || format!("write the disk `{}`", out.display());
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(out)
        .map_err(RootfsError::host(doing()))?;
    let written = file
        .set_len(layout.len())
        .map_err(RootfsError::host(doing()))
        .and_then(|()| write_metadata(layout, &file).map_err(RootfsError::host(doing())))
        .and_then(|()| plan.copy(spools, &file, shared, doing));
    if let Err(error) = written {
        // The first error is the one worth telling; the caller owns the place and clears it too.
        let _ = std::fs::remove_file(out);
        return Err(error);
    }
    Ok(DiskStats {
        content_bytes: plan.content_bytes(),
        disk_bytes: layout.len(),
        inodes: u64::from(layout.used_inodes()),
    })
}

fn write_metadata(layout: &Layout, file: &File) -> io::Result<()> {
    layout.write_metadata(&mut |offset, bytes| file.write_all_at(bytes, offset)).map_err(
        |error| match error {
            microagent_ext4::Error::Write(error) => error,
            other => io::Error::other(other),
        },
    )
}

/// A UUID (version 8, made by a rule of our own) that follows from the layers' contents.
fn uuid(digests: &[[u8; 32]]) -> [u8; 16] {
    let mut hasher = Sha256::new();
    hasher.update(GENERATION);
    for digest in digests {
        hasher.update(digest);
    }
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&hasher.finalize()[..16]);
    uuid[6] = (uuid[6] & 0x0F) | 0x80;
    uuid[8] = (uuid[8] & 0x3F) | 0x80;
    uuid
}

/// A name in the tree on its way to the disk.
#[derive(Clone, Copy)]
struct Place<'t> {
    /// Index of its directory among the places of directories; the root is its own.
    parent: usize,
    name: &'t [u8],
    node: u32,
}

/// A file whose content is to be copied.
struct Copy<'t> {
    inode: Inode,
    layer: usize,
    content: &'t Content,
}

struct Plan<'t> {
    layout: Layout,
    /// In the order of layers and, within each, of its spool; so they lie on the disk.
    files: Vec<Copy<'t>>,
}

impl<'t> Plan<'t> {
    fn new(tree: &'t Tree, options: Options) -> Result<Plan<'t>, RootfsError> {
        let mut declared = Declared {
            tree,
            builder: Builder::new(options),
            directories: vec![Place { parent: 0, name: b"", node: tree::ROOT }],
            inodes: vec![microagent_ext4::ROOT],
            by_node: vec![None; tree.len()],
        };
        let mut places = declared.declare_directories()?;
        // Contents in the order of the spools, everything else, in order of names, behind them.
        places.sort_by_key(|place| match &tree.node(place.node).kind {
            NodeKind::File { layer, content } => (*layer, content.block),
            _ => (usize::MAX, 0),
        });
        let mut files = Vec::new();
        for place in places {
            if let Some(inode) = declared.declare(place)?
                && let NodeKind::File { layer, content } = &tree.node(place.node).kind
            {
                files.push(Copy { inode, layer: *layer, content });
            }
        }
        let layout = declared
            .builder
            .seal()
            .map_err(|source| RootfsError::Unfit { name: "the image".into(), source })?;
        Ok(Plan { layout, files })
    }

    fn content_bytes(&self) -> u64 {
        let stored = |content: &Content| match &content.segments {
            None => content.size,
            Some(segments) => segments.iter().map(|&(_, count)| u64::from(count) * BLOCK).sum(),
        };
        self.files.iter().map(|file| stored(file.content)).sum()
    }

    /// Copies all contents, what is adjacent in both spool and disk at once.
    fn copy(
        &self,
        spools: &[Spool],
        disk: &File,
        shared: &Shared<'_>,
        doing: impl Fn() -> String,
    ) -> Result<(), RootfsError> {
        let flush = |pending: Option<Pending>| match pending {
            Some(Pending { layer, blocks, target }) => {
                shared.check_cancelled()?;
                spools[layer].copy(blocks, disk, target).map_err(RootfsError::host(doing()))
            }
            None => Ok(()),
        };
        let mut pending: Option<Pending> = None;
        for file in &self.files {
            let mut start = file.content.block;
            for (offset, length) in self.layout.extents(file.inode) {
                let next = Pending {
                    layer: file.layer,
                    blocks: Blocks { start, count: length / BLOCK },
                    target: offset / BLOCK,
                };
                start += next.blocks.count;
                match &mut pending {
                    Some(pending) if pending.continues_with(&next) => {
                        pending.blocks.count += next.blocks.count
                    }
                    _ => flush(pending.replace(next))?,
                }
            }
        }
        flush(pending)
    }
}

/// Most blocks copied at once, so that cancelling does not wait for gigabytes.
const MOST_BLOCKS: u64 = (64 << 20) / BLOCK;

struct Pending {
    layer: usize,
    blocks: Blocks,
    target: u64,
}

impl Pending {
    fn continues_with(&self, next: &Pending) -> bool {
        let Blocks { start, count } = self.blocks;
        self.layer == next.layer
            && start + count == next.blocks.start
            && self.target + count == next.target
            && count < MOST_BLOCKS
    }
}

struct Declared<'t> {
    tree: &'t Tree,
    builder: Builder,
    directories: Vec<Place<'t>>,
    /// Of `directories`.
    inodes: Vec<Inode>,
    /// Of nodes that are no directories and have been declared, for their further names.
    by_node: Vec<Option<Inode>>,
}

impl<'t> Declared<'t> {
    /// Declares all directories, upper ones first, and returns all other names.
    fn declare_directories(&mut self) -> Result<Vec<Place<'t>>, RootfsError> {
        let mut others = Vec::new();
        let mut parent = 0;
        while parent < self.directories.len() {
            let this = self.directories[parent];
            let node = self.tree.node(this.node);
            let NodeKind::Directory(children) = &node.kind else {
                unreachable!("only directories are in the list")
            };
            if parent == 0 {
                self.fits(this, |b| b.set_meta(microagent_ext4::ROOT, node.meta))?;
            }
            self.set_attributes(this, self.inodes[parent], node)?;
            for (name, child) in children {
                let place = Place { parent, name, node: child.node };
                let node = self.tree.node(child.node);
                if matches!(node.kind, NodeKind::Directory(_)) {
                    let directory = self.inodes[parent];
                    let inode = self.fits(place, |b| b.directory(directory, name, node.meta))?;
                    self.directories.push(place);
                    self.inodes.push(inode);
                } else {
                    others.push(place);
                }
            }
            parent += 1;
        }
        Ok(others)
    }

    /// Declares something that is not a directory; returns its inode unless it is a further name of one.
    fn declare(&mut self, place: Place<'t>) -> Result<Option<Inode>, RootfsError> {
        let parent = self.inodes[place.parent];
        let name = place.name;
        if let Some(inode) = self.by_node[place.node as usize] {
            self.fits(place, |b| b.hard_link(parent, name, inode))?;
            return Ok(None);
        }
        let node = self.tree.node(place.node);
        let inode = self.fits(place, |b| match &node.kind {
            NodeKind::File { content: Content { size, segments: None, .. }, .. } => {
                b.file(parent, name, node.meta, *size)
            }
            NodeKind::File { content: Content { size, segments: Some(segments), .. }, .. } => {
                b.sparse_file(parent, name, node.meta, *size, segments)
            }
            NodeKind::Symlink(target) => b.symlink(parent, name, target, node.meta),
            NodeKind::Special(special) => b.special(parent, name, node.meta, *special),
            NodeKind::Directory(_) => unreachable!("directories are declared before"),
        })?;
        self.by_node[place.node as usize] = Some(inode);
        self.set_attributes(place, inode, node)?;
        Ok(Some(inode))
    }

    fn set_attributes(&mut self, place: Place<'t>, inode: Inode, node: &Node) -> Result<(), RootfsError> {
        for (name, value) in node.attributes.iter().filter(|(name, _)| is_kept(name, &node.kind)) {
            self.fits(place, |b| b.set_xattr(inode, name, value))?;
        }
        self.fits(place, |b| b.check_xattrs(inode))
    }

    fn fits<T>(
        &mut self,
        place: Place<'t>,
        declare: impl FnOnce(&mut Builder) -> Result<T, microagent_ext4::Error>,
    ) -> Result<T, RootfsError> {
        declare(&mut self.builder).map_err(|source| RootfsError::Unfit { name: self.path(place), source })
    }

    fn path(&self, mut place: Place<'t>) -> String {
        let mut names = vec![place.name];
        while place.parent != 0 {
            place = self.directories[place.parent];
            names.push(place.name);
        }
        names.push(b"");
        names.reverse();
        shown(&names.join(&b'/'))
    }
}

/// Attributes that reach the disk. Left out is what belongs to the machine that built the image (as umoci
/// leaves it out), what Linux has no place for, and what it does not let such an inode have.
fn is_kept(name: &[u8], kind: &NodeKind) -> bool {
    let is_directory = matches!(kind, NodeKind::Directory(_));
    let has_content = is_directory || matches!(kind, NodeKind::File { .. });
    match name {
        b"security.selinux" => false,
        b"system.posix_acl_access" => !matches!(kind, NodeKind::Symlink(_)),
        b"system.posix_acl_default" => is_directory,
        _ if name.starts_with(b"trusted.overlay.") => false,
        _ if name.starts_with(b"user.") => has_content,
        _ => name.starts_with(b"trusted.") || name.starts_with(b"security."),
    }
}
