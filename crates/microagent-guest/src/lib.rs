//! What boots: the guest kernel and the agent, carried inside the binary.
//!
//! QEMU wants files, so both are unpacked into the state directory, once per build of microagent:
//!
//! ```text
//! guest/IDENTITY/vmlinux           the kernel, decompressed
//! guest/IDENTITY/initramfs.cpio    the agent as /init
//! ```
//!
//! The directory appears whole or not at all, and its name tells what is in it, so starting a guest only
//! looks at two sizes. Nothing here runs anything, and nothing is ever fetched.

#[cfg(test)]
mod cpio;
mod unpack;

use std::io;
use std::path::PathBuf;

include!(concat!(env!("OUT_DIR"), "/carried.rs"));

/// The guest that this build carries.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddedGuest {
    _carried: (),
}

/// Files to boot a guest from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFiles {
    /// An uncompressed kernel.
    pub kernel: PathBuf,
    /// The initramfs with the agent.
    pub initramfs: PathBuf,
    /// 16 hex digits that stand for the content of both; equal files, equal identity.
    pub identity: String,
}

/// The kernel that this build carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelInfo {
    /// As `uname -r` shows it.
    pub release: &'static str,
    /// The source package that it was built from, with its version.
    pub source: &'static str,
    /// SHA-256 of the uncompressed kernel, in hex.
    pub sha256: &'static str,
    /// Length of the uncompressed kernel in bytes.
    pub len: u64,
}

/// Why the guest's files cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// The files could not be written.
    #[error("cannot unpack the guest kernel to `{}`", path.display())]
    Unpack {
        /// Where they were to lie.
        path: PathBuf,
        /// What the system said; `StorageFull` when the disk is full.
        source: io::Error,
    },
    /// A file could not be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file given as a kernel is something else.
    #[error("`{}` is not a kernel: expected an uncompressed vmlinux (ELF) or a bzImage", path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
    },
    /// A file or the binary itself is damaged.
    #[error("{what} is damaged: its SHA-256 is {found}, not {expected}")]
    Damaged {
        /// What was looked at.
        what: String,
        /// The sum that it should have.
        expected: &'static str,
        /// The sum that it has.
        found: String,
    },
}

/// What [`EmbeddedGuest::verify`] looked at and found right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The kernel.
    pub kernel: KernelInfo,
    /// SHA-256 of the initramfs, in hex.
    pub initramfs_sha256: &'static str,
    /// The unpacked files, if they had been unpacked.
    pub unpacked: Option<GuestFiles>,
}

impl EmbeddedGuest {
    /// The guest that this build carries.
    pub fn embedded() -> EmbeddedGuest {
        EmbeddedGuest { _carried: () }
    }

    /// The kernel that this build carries.
    pub fn kernel_info(&self) -> KernelInfo {
        KernelInfo { release: KERNEL_RELEASE, source: KERNEL_SOURCE, sha256: KERNEL_SHA256, len: KERNEL_LEN }
    }
}
