//! Files between a directory and a tar stream: [`pack()`] makes the stream, [`unpack()`] takes it apart.
//!
//! The same code runs in the guest and on the host; what differs is in [`Rules`]. On either side one of the
//! two, tree or stream, is somebody else's, so nothing is followed out of the directory that it is about,
//! whatever names and links say and whoever changes the tree meanwhile. Never runs a program.

#![forbid(unsafe_code)]

mod holes;
pub mod pack;
mod place;
pub mod unpack;

pub use pack::{PackError, Pieces, Walker, pack};
pub use place::PlaceError;
pub use unpack::{Rules, SymlinkRule, UnpackError, Unpacked, unpack};
