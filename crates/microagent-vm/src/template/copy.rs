//! Copies of files that are mostly holes.

use std::fs::File;
use std::io;

use rustix::fs::{SeekFrom, seek, sendfile};
use rustix::io::Errno;

/// Copies a file into an empty one. Holes stay holes; what the file system can share is shared.
pub(crate) fn copy_file(from: &File, to: &File) -> io::Result<()> {
    let size = from.metadata()?.len();
    to.set_len(size)?;
    let mut offset = 0;
    while let Some(data) = next(from, SeekFrom::Data(offset))? {
        let end = next(from, SeekFrom::Hole(data))?.unwrap_or(size);
        copy_range(from, to, data, end)?;
        offset = end;
    }
    Ok(())
}

fn next(file: &File, position: SeekFrom) -> io::Result<Option<u64>> {
    match seek(file, position) {
        Ok(offset) => Ok(Some(offset)),
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    seek(to, SeekFrom::Start(start))?;
    let mut offset = start;
    while offset < end {
        let count = usize::try_from(end - offset).unwrap_or(usize::MAX).min(1 << 30);
        if sendfile(to, from, Some(&mut offset), count)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}
