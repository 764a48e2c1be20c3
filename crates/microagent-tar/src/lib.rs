//! Tar streams: [`read`] takes one apart, [`mod@write`] makes one.
//!
//! Every attribute survives: owners beyond 21 bits, times with nanoseconds, names of any bytes and length,
//! extended attributes with any bytes in them. The streams are other people's: every length is checked
//! before memory is allocated, and memory is bounded by one entry's headers. Never touches a file.

#![forbid(unsafe_code)]

mod entry;
mod header;
mod pax;
pub mod read;
mod shown;
pub mod write;

pub use entry::{Attribute, Entry, Kind, Meta};
pub use shown::shown;

/// Bytes of a header, and of the units that everything is padded to.
pub const BLOCK: usize = 512;
