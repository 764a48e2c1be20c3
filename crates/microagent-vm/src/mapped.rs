//! Memory that is shared: with a file, and with forked processes.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// A number that this process shares with those that it forks from here on.
#[derive(Debug)]
pub(crate) struct SharedNumber(NonNull<AtomicU64>);

impl SharedNumber {
    /// A number that is 0.
    ///
    /// # Errors
    /// Fails if there is no memory.
    pub(crate) fn new() -> io::Result<SharedNumber> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the mapping is a new one, which nothing else refers to. It is zero, aligned to a page, and stays until
        // the process ends.
        let place = unsafe { mmap_anonymous(null_mut(), size_of::<AtomicU64>(), access, MapFlags::SHARED)? };
        NonNull::new(place.cast()).map(SharedNumber).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    fn number(&self) -> &AtomicU64 {
        // SAFETY: the mapping has one number and is never unmapped; all processes use it by atomic operations only.
        unsafe { self.0.as_ref() }
    }

    pub(crate) fn get(&self) -> u64 {
        self.number().load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, number: u64) {
        self.number().store(number, Ordering::Relaxed);
    }
}

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
