//! Writing to a file through memory.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ptr::null_mut;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Writes one byte to the start of a file of at least one byte, through a shared mapping. It is read before, so that the
/// page is there: the kernel sees the first write to a missing page on every file system.
///
/// # Errors
/// Fails if the file cannot be mapped.
pub(crate) fn write_mapped(file: &File, byte: u8) -> io::Result<()> {
    const LEN: usize = 1;
    // SAFETY: the mapping is a new one, which nothing else refers to; it has the one byte that is written, and is not used
    // after it is unmapped.
    unsafe {
        let place = mmap(null_mut(), LEN, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, 0)?;
        let _ = place.cast::<u8>().read_volatile();
        place.cast::<u8>().write_volatile(byte);
        munmap(place, LEN)?;
    }
    Ok(())
}
