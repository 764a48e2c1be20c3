//! What the kernel lets QEMU take of the host, also where no control group can be made.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::file_size::fail_oversized_writes;

/// Descriptors of QEMU that are not of what it inherits: its program and libraries, threads, timers and events; with
/// room. A machine in use has 24.
const DESCRIPTORS: u64 = 160;

/// Descriptors for each one that it inherits: a disk is opened more than once, and its device has events.
const DESCRIPTORS_EACH: u64 = 4;

/// Address space beside the memory that a machine may use, in bytes: programs, stacks of threads and what their
/// allocators reserve and do not use. A machine with 256 MiB of memory has 1.4 GB in all.
const ADDRESS_BYTES: u64 = 3 << 30;

/// Limits of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    descriptors: u64,
    file_bytes: u64,
    address_bytes: u64,
}

impl Limits {
    /// Limits of a process that inherits so many descriptors, writes no file of more bytes, and uses no more bytes of
    /// memory.
    pub(crate) fn new(inherited: usize, file_bytes: u64, memory_bytes: u64) -> Limits {
        Limits {
            descriptors: DESCRIPTORS + DESCRIPTORS_EACH * inherited as u64,
            file_bytes,
            address_bytes: memory_bytes.saturating_add(ADDRESS_BYTES),
        }
    }

    /// Most descriptors. Those in flight over its sockets count against the same limit: whoever may have many can use
    /// up what all processes of its user may pass on.
    pub(super) fn descriptors(&self) -> u64 {
        self.descriptors
    }

    /// Sets the sizes for this process and all that it executes. The descriptors are set with the program
    /// ([`Executable::arm`](super::program::Executable::arm)).
    ///
    /// # Errors
    /// Fails when the kernel refuses.
    pub(super) fn enforce(&self) -> io::Result<()> {
        fail_oversized_writes()?;
        for (resource, most) in [(Resource::Fsize, self.file_bytes), (Resource::As, self.address_bytes)] {
            // What the caller is limited to stays.
            let most = getrlimit(resource).maximum.map_or(most, |held| held.min(most));
            setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
        }
        Ok(())
    }
}
