//! Tar streams: [`read`] parses them, [`mod@write`] creates them.
//!
//! All attributes are kept: owners beyond 21 bits, times with nanoseconds, names of any bytes and length, extended
//! attributes with any bytes. Streams are not trusted: every length is checked before memory is allocated, and at
//! most the headers of one entry are held in memory. This crate opens no files.

#![forbid(unsafe_code)]

mod entry;
mod header;
mod pax;
pub mod read;
mod shown;
pub mod write;

pub use entry::{Attribute, Entry, Kind, Meta};
pub use shown::shown;

/// Size of a header and of the units to which content is padded, in bytes.
pub const BLOCK: usize = 512;
