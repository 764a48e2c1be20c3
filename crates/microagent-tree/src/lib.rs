//! Copies files between a directory and a tar stream: [`pack()`] creates the stream, [`unpack()`] extracts it.
//!
//! The same code runs in the guest and on the host; [`Rules`] has the differences. On each side either the tree or
//! the stream is not trusted. So nothing outside of the given directory is read or written, regardless of names and
//! links, and also if another process changes the tree at the same time. This crate starts no processes.

#![forbid(unsafe_code)]

mod holes;
pub mod pack;
mod place;
pub mod unpack;

pub use pack::{PackError, Pieces, SymlinkMode, Walker, pack, pack_directory};
pub use place::PlaceError;
pub use unpack::{Rules, SymlinkRule, UnpackError, Unpacked, unpack};
