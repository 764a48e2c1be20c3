//! Asks KVM whether it can create a virtual machine.
//!
//! # Source
//! `Documentation/virt/kvm/api.rst` of Linux, sections 4.1 and 4.2.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `KVM_GET_API_VERSION`.
const GET_API_VERSION: libc::c_ulong = 0xAE00;
/// `KVM_CREATE_VM`. Its argument is the type of machine; 0 is the default.
const CREATE_VM: libc::c_ulong = 0xAE01;
/// The only version since Linux 2.6.22.
const API_VERSION: libc::c_int = 12;

/// Why KVM cannot be used although its device can be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KvmError {
    #[error("it does not report a version of KVM's interface: {0}")]
    NoVersion(io::Error),
    #[error("it has version {0} of KVM's interface, and QEMU needs {API_VERSION}")]
    OtherVersion(libc::c_int),
    #[error("it creates no virtual machine: {0}")]
    NoMachine(io::Error),
}

/// Creates a virtual machine without processors and memory, and removes it.
///
/// # Errors
/// Fails if the file is not KVM's device, or KVM refuses.
pub(crate) fn check(device: &File) -> Result<(), KvmError> {
    let version = request(device, GET_API_VERSION).map_err(KvmError::NoVersion)?;
    if version != API_VERSION {
        return Err(KvmError::OtherVersion(version));
    }
    let machine = request(device, CREATE_VM).map_err(KvmError::NoMachine)?;
    // SAFETY: the kernel has just returned the descriptor, and nothing else has it.
    drop(unsafe { OwnedFd::from_raw_fd(machine) });
    Ok(())
}

fn request(device: &File, number: libc::c_ulong) -> io::Result<libc::c_int> {
    // SAFETY: both requests take a number as their argument and write to no memory of this process.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), number, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_device_is_not_kvm() {
        let device = File::options().read(true).write(true).open("/dev/null").unwrap();
        assert!(matches!(check(&device), Err(KvmError::NoVersion(_))));
    }
}
