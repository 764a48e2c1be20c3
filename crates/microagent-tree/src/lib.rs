//! Copies files between a directory and a tar stream: [`pack()`] creates the stream, [`unpack()`] extracts it.
//! [`list()`] lists a directory, and [`Tree`] gives access to the files of a listing.
//!
//! The same code runs in the guest and on the host; [`Rules`] has the differences. On each side either the tree or
//! the stream is not trusted. So nothing outside of the given directory is read or written, regardless of names and
//! links, and also if another process changes the tree at the same time. This crate starts no processes.

#![forbid(unsafe_code)]

mod holes;
mod list;
pub mod pack;
mod place;
mod tree;
pub mod unpack;

pub use list::{Item, ItemKind, Visitor, list};
pub use pack::{PackError, Pieces, SymlinkMode, Walker, pack, pack_directory};
pub use place::PlaceError;
pub use tree::{Removal, Tree, TreeError};
pub use unpack::{Rules, SymlinkRule, UnpackError, Unpacked, unpack};
