//! The tree as it is declared, before anything has an address.
//!
//! One record of fixed size per inode, all names in one arena, children as one vector per directory in
//! the order of declaration. That order is part of the input: it decides inode numbers and where file
//! data lies.

use std::collections::BTreeMap;

use crate::Error;
use crate::seal::{self, Layout};
use crate::spec::{BLOCK, FIRST_INO, FileType, LINK_MAX, MAX_FILE_SIZE, NAME_MAX, ROOT_INO, SYMLINK_MAX};
use crate::xattr::{self, Attribute};

/// Seconds since 1970 and nanoseconds (below 10^9). Outside 1901-12-13 … 2446-05-10 the nearest end is stored.
pub type Timestamp = (i64, u32);

/// Owner, permissions and time of an inode. All four times of the inode are set to `mtime`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits with setuid, setgid and sticky; the type comes from the declaring call.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Timestamp,
}

/// What the image is made with beside its tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// UUID of the file system, from which the seed of directory hashes derives too.
    pub uuid: [u8; 16],
    /// Seconds since 1970, for the superblock and the inodes that belong to the file system itself.
    pub epoch: u32,
    /// Journal length in blocks; it cannot be changed online later. 1024 (ext4's least) to 32768 (one extent).
    pub journal_blocks: u32,
    /// Blocks that must be free at least.
    pub free_blocks: u64,
    /// Blocks of the whole file system; as few as the rest asks for when absent. A last group that would be too
    /// small for its own tables is left out.
    pub blocks: Option<u64>,
    /// Inodes per block group at least, rounded up to 16. A grown file system keeps the count of each group.
    pub inodes_per_group: u32,
}

impl Options {
    /// Defaults: a journal of 16 MiB, 8 MiB free, one inode per 16 KiB (as mke2fs).
    pub fn new(uuid: [u8; 16], epoch: u32) -> Options {
        Options { uuid, epoch, journal_blocks: 4096, free_blocks: 2048, blocks: None, inodes_per_group: 8192 }
    }
}

/// A declared inode, to be named in later calls on the same builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Inode(pub(crate) u32);

/// The root directory: 0755, owned by root, of [`Options::epoch`], unless [`Builder::set_meta`] says otherwise.
pub const ROOT: Inode = Inode(0);

/// What [`Builder::special`] makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Character device.
    Character {
        /// Major number, up to 4095.
        major: u32,
        /// Minor number, up to 1048575.
        minor: u32,
    },
    /// Block device.
    Block {
        /// Major number, up to 4095.
        major: u32,
        /// Minor number, up to 1048575.
        minor: u32,
    },
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Child {
    name_offset: u32,
    name_length: u8,
    pub(crate) node: u32,
}

/// Blocks of a file that are mapped: first logical block and count, ascending and disjoint.
pub(crate) type Segment = (u32, u32);

#[derive(Debug)]
pub(crate) enum Kind {
    Directory(Vec<Child>),
    /// `segments` is `None` for a file without holes.
    File {
        size: u64,
        segments: Option<Box<[Segment]>>,
    },
    Symlink(Box<[u8]>),
    Special(Special),
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) meta: Meta,
    /// Names pointing here; for a directory `.` and each child's `..` are counted too.
    pub(crate) links: u32,
    /// Node of the directory that holds it (a file's first).
    pub(crate) parent: u32,
}

impl Node {
    pub(crate) fn file_type(&self) -> FileType {
        match self.kind {
            Kind::Directory(_) => FileType::Directory,
            Kind::File { .. } => FileType::Regular,
            Kind::Symlink(_) => FileType::Symlink,
            Kind::Special(Special::Character { .. }) => FileType::Character,
            Kind::Special(Special::Block { .. }) => FileType::Block,
            Kind::Special(Special::Fifo) => FileType::Fifo,
            Kind::Special(Special::Socket) => FileType::Socket,
        }
    }
}

/// Inode number of a node: the root has its own, all others follow in order of declaration.
pub(crate) fn ino(node: u32) -> u32 {
    if node == 0 { ROOT_INO } else { FIRST_INO - 1 + node }
}

/// A tree being declared.
#[derive(Debug)]
pub struct Builder {
    pub(crate) options: Options,
    pub(crate) nodes: Vec<Node>,
    names: Vec<u8>,
    pub(crate) attributes: BTreeMap<u32, Vec<Attribute>>,
}

impl Builder {
    /// Starts with an empty root directory.
    pub fn new(options: Options) -> Builder {
        let meta = Meta { mode: 0o755, uid: 0, gid: 0, mtime: (i64::from(options.epoch), 0) };
        let root = Node { kind: Kind::Directory(Vec::new()), meta, links: 2, parent: 0 };
        Builder { options, nodes: vec![root], names: Vec::new(), attributes: BTreeMap::new() }
    }

    /// Declares a directory.
    ///
    /// # Errors
    ///
    /// As every declaring call: a bad name, or a parent that is not a directory. Nothing is declared then.
    /// That a name occurs twice is only found by [`seal`](Self::seal).
    pub fn directory(&mut self, parent: Inode, name: &[u8], meta: Meta) -> Result<Inode, Error> {
        let inode = self.declare(parent, name, meta, Kind::Directory(Vec::new()), 2)?;
        self.nodes[parent.0 as usize].links += 1;
        Ok(inode)
    }

    /// Declares a regular file of `size` bytes without holes.
    ///
    /// # Errors
    ///
    /// As [`directory`](Self::directory), and when `size` exceeds [`MAX_FILE_SIZE`].
    pub fn file(&mut self, parent: Inode, name: &[u8], meta: Meta, size: u64) -> Result<Inode, Error> {
        if size > MAX_FILE_SIZE {
            return Err(Error::FileTooLarge { size });
        }
        self.declare(parent, name, meta, Kind::File { size, segments: None }, 1)
    }

    /// Declares a regular file of `size` bytes of which only `segments` have blocks: first block and
    /// number of blocks of each, ascending, not empty, not overlapping, within the size.
    ///
    /// # Errors
    ///
    /// As [`file`](Self::file), and when `segments` are not as said.
    pub fn sparse_file(
        &mut self,
        parent: Inode,
        name: &[u8],
        meta: Meta,
        size: u64,
        segments: &[(u32, u32)],
    ) -> Result<Inode, Error> {
        let mut end = 0;
        for &(first, count) in segments {
            if u64::from(first) < end || count == 0 {
                return Err(Error::FileTooLarge { size });
            }
            end = u64::from(first) + u64::from(count);
        }
        if size > MAX_FILE_SIZE || end > size.div_ceil(BLOCK) {
            return Err(Error::FileTooLarge { size });
        }
        self.declare(parent, name, meta, Kind::File { size, segments: Some(segments.into()) }, 1)
    }

    /// Declares a symlink. Its permissions are stored as given; Linux ignores them.
    ///
    /// # Errors
    ///
    /// As [`directory`](Self::directory), and when the target is empty, longer than [`SYMLINK_MAX`] or holds NUL.
    pub fn symlink(&mut self, parent: Inode, name: &[u8], target: &[u8], meta: Meta) -> Result<Inode, Error> {
        if target.is_empty() || target.len() > SYMLINK_MAX || target.contains(&0) {
            return Err(Error::SymlinkTarget { length: target.len() });
        }
        self.declare(parent, name, meta, Kind::Symlink(target.into()), 1)
    }

    /// Declares a device, a named pipe or a socket.
    ///
    /// # Errors
    ///
    /// As [`directory`](Self::directory), and when a device number is too large.
    pub fn special(
        &mut self,
        parent: Inode,
        name: &[u8],
        meta: Meta,
        special: Special,
    ) -> Result<Inode, Error> {
        if let Special::Character { major, minor } | Special::Block { major, minor } = special
            && (major > 0xFFF || minor > 0xF_FFFF)
        {
            return Err(Error::Device { major, minor });
        }
        self.declare(parent, name, meta, Kind::Special(special), 1)
    }

    /// Gives an inode that is not a directory one more name.
    ///
    /// # Errors
    ///
    /// As [`directory`](Self::directory), and when `target` is a directory or has [`LINK_MAX`] names already.
    pub fn hard_link(&mut self, parent: Inode, name: &[u8], target: Inode) -> Result<(), Error> {
        match self.nodes.get(target.0 as usize) {
            None | Some(Node { kind: Kind::Directory(_), .. }) => return Err(Error::Handle),
            Some(node) if node.links >= LINK_MAX => return Err(Error::TooManyLinks),
            Some(_) => {}
        }
        self.add_name(parent, name, target.0)?;
        self.nodes[target.0 as usize].links += 1;
        Ok(())
    }

    /// Replaces what an inode was declared with; the last call wins.
    ///
    /// # Errors
    ///
    /// When the inode is of another builder.
    pub fn set_meta(&mut self, inode: Inode, meta: Meta) -> Result<(), Error> {
        self.nodes.get_mut(inode.0 as usize).ok_or(Error::Handle)?.meta = meta;
        Ok(())
    }

    /// Sets an extended attribute as `setxattr` takes it; the same name again replaces the value. The
    /// order of calls does not matter. Values of `system.posix_acl_*` are converted to ext4's form.
    ///
    /// # Errors
    ///
    /// When ext4 has no place for the name, an ACL is malformed, or the inode is of another builder.
    /// Whether all attributes fit together is only known to [`seal`](Self::seal).
    pub fn set_xattr(&mut self, inode: Inode, name: &[u8], value: &[u8]) -> Result<(), Error> {
        if inode.0 as usize >= self.nodes.len() {
            return Err(Error::Handle);
        }
        let new = Attribute::new(name, value).ok_or_else(|| Error::Attribute { name: name.to_vec() })?;
        let list = self.attributes.entry(inode.0).or_default();
        list.retain(|old| !old.same_name(&new));
        list.push(new);
        Ok(())
    }

    /// Checks that the attributes that an inode has so far fit together.
    ///
    /// # Errors
    ///
    /// When they need more than the inode's tail and one block.
    pub fn check_xattrs(&self, inode: Inode) -> Result<(), Error> {
        self.attributes.get(&inode.0).map_or(Ok(()), |list| xattr::plan(list).map(drop))
    }

    /// Freezes the tree: every block address is decided here.
    ///
    /// # Errors
    ///
    /// When a name occurs twice in a directory, attributes do not fit, or the whole is too large for ext4.
    pub fn seal(self) -> Result<Layout, Error> {
        seal::seal(self)
    }

    pub(crate) fn name(&self, child: &Child) -> &[u8] {
        &self.names[child.name_offset as usize..][..usize::from(child.name_length)]
    }

    fn declare(
        &mut self,
        parent: Inode,
        name: &[u8],
        meta: Meta,
        kind: Kind,
        links: u32,
    ) -> Result<Inode, Error> {
        // Inode numbers are node numbers plus a small constant and must fit 32 bits too.
        let node = u32::try_from(self.nodes.len()).ok().filter(|n| n.checked_add(FIRST_INO).is_some());
        let node = node.ok_or(Error::TooLarge)?;
        self.add_name(parent, name, node)?;
        self.nodes.push(Node { kind, meta, links, parent: parent.0 });
        Ok(Inode(node))
    }

    fn add_name(&mut self, parent: Inode, name: &[u8], node: u32) -> Result<(), Error> {
        let bad = name.len() > NAME_MAX || matches!(name, b"" | b"." | b"..");
        if bad || name.iter().any(|&b| b == b'/' || b == 0) {
            return Err(Error::Name { name: name.to_vec() });
        }
        let name_offset = u32::try_from(self.names.len()).map_err(|_| Error::TooLarge)?;
        let Some(Node { kind: Kind::Directory(children), .. }) = self.nodes.get_mut(parent.0 as usize) else {
            return Err(Error::Handle);
        };
        children.push(Child { name_offset, name_length: name.len() as u8, node });
        self.names.extend_from_slice(name);
        Ok(())
    }

    pub(crate) fn xattr_plans(&self) -> Result<BTreeMap<u32, xattr::Plan>, Error> {
        self.attributes.iter().map(|(&node, list)| Ok((node, xattr::plan(list)?))).collect()
    }
}
