//! Writes an ext4 file system image in one pass, deterministic and without root.
//!
//! Declare a tree with [`Builder`], freeze it with [`Builder::seal`], let the [`Layout`] write every
//! metadata block, and put each file's bytes where [`Layout::extents`] says. Nothing is read back,
//! nothing is written twice, and blocks that hold only zeros are never written, so a sparse file stays
//! sparse. The same calls give the same bytes: no clock and no randomness is consulted.
//!
//! Names, symlink targets and attribute names are bytes, as they are for Linux. The file system is as
//! small as its content allows, in whole block groups, and is meant to be grown online by the kernel
//! that mounts it.
//!
//! This crate never reads an ext4 file system, and never touches a file: it hands bytes and offsets to
//! its caller.
//!
//! ```
//! use microagent_ext4::{Builder, Meta, Options, ROOT};
//!
//! # fn main() -> Result<(), microagent_ext4::Error> {
//! let mut b = Builder::new(Options::new([0x42; 16], 1_704_067_200));
//! let meta = Meta { mode: 0o644, uid: 0, gid: 0, mtime: (1_704_067_200, 0) };
//! let etc = b.directory(ROOT, b"etc", Meta { mode: 0o755, ..meta })?;
//! let hostname = b.file(etc, b"hostname", meta, 5)?;
//!
//! let layout = b.seal()?;
//! let mut image = vec![0; layout.len() as usize];
//! layout.write_metadata(&mut |offset, bytes| {
//!     image[offset as usize..][..bytes.len()].copy_from_slice(bytes);
//!     Ok(())
//! })?;
//! let (offset, _) = layout.extents(hostname).next().expect("five bytes need a block");
//! image[offset as usize..][..5].copy_from_slice(b"husky");
//! # Ok(()) }
//! ```
//!
//! # Source
//!
//! A fork of the crate `mkext4` 0.0.3 (Cortex Applications, Apache-2.0); README.md lists what was
//! changed. On-disk format: the kernel's `Documentation/filesystems/ext4/`.

#![forbid(unsafe_code)]

mod bitmap;
mod builder;
mod csum;
mod directory;
mod dirhash;
mod emit;
mod error;
mod extent;
mod geometry;
mod header;
mod inode;
mod le;
mod seal;
mod spec;
mod superblock;
mod xattr;

pub use builder::{Builder, Inode, Meta, Options, ROOT, Special, Timestamp};
pub use error::Error;
pub use header::{SUPERBLOCK_LEN, SUPERBLOCK_OFFSET, size_by_superblock};
pub use seal::Layout;
pub use spec::{BLOCK_SIZE, LINK_MAX, MAX_FILE_SIZE, NAME_MAX, SYMLINK_MAX};
