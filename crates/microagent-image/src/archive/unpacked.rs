//! Archives that are compressed as a whole, such as `docker save app | gzip`, made readable at any place.
//!
//! A compressed stream has no places to jump to, so it is written out once, into a temporary file without a
//! name: nothing of it is left, however this ends.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::ArchiveError;
use crate::blocking::Meter;
use crate::compression::{self, MAGIC_LEN};
use crate::error::ImageError;
use crate::rootfs::{Compression, Limits};

/// Bytes that are unpacked between two checks for cancellation.
const STEP: usize = 256 * 1024;

/// The archive as a plain tar: the file itself, or what it unpacks to.
pub(super) fn plain(file: File, path: &Path, scratch: &Path, meter: &Meter) -> Result<File, ImageError> {
    let unreadable = |source| ImageError::archive(path, ArchiveError::Open { source });
    let mut magic = [0; MAGIC_LEN as usize];
    let read = file.read_at(&mut magic, 0).map_err(unreadable)?;
    if let Some(format) = compression::unsupported_name(&magic[..read]) {
        return Err(ImageError::archive(path, ArchiveError::Compressed { format }));
    }
    let compressed = BufReader::with_capacity(STEP, file);
    match Compression::sniff(&magic[..read]) {
        Compression::None => Ok(compressed.into_inner()),
        Compression::Gzip => unpack(MultiGzDecoder::new(compressed), path, scratch, meter),
        Compression::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(compressed).map_err(unreadable)?;
            unpack(decoder, path, scratch, meter)
        }
    }
}

fn unpack(mut reader: impl Read, path: &Path, scratch: &Path, meter: &Meter) -> Result<File, ImageError> {
    let limit = Limits::default().max_unpacked_bytes;
    let inside = scratch.join("archive");
    let failed = |source| ImageError::file("unpack into", &inside, source);
    let mut out = tempfile::tempfile_in(scratch).map_err(failed)?;
    let (mut buffer, mut written) = (vec![0; STEP], 0);
    loop {
        meter.check()?;
        let read = match reader.read(&mut buffer) {
            Ok(0) => return Ok(out),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(ImageError::archive(path, ArchiveError::Decompress { source })),
        };
        written += read as u64;
        if written > limit {
            return Err(ImageError::TooLarge { what: "the unpacked archive".to_owned(), limit });
        }
        out.write_all(&buffer[..read]).map_err(failed)?;
    }
}
