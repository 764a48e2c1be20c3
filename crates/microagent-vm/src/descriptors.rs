//! Closes descriptors that this process has inherited, so that its child processes do not inherit them.

#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use rustix::io::{Errno, FdFlags, fcntl_setfd};

/// First descriptor that is not a standard stream.
const FIRST: libc::c_uint = 3;

/// Marks all descriptors except the standard streams as close-on-exec.
///
/// A caller may have left descriptors open without this mark: a lock, a pipe, a private file. Call this before
/// descriptors are passed on by number.
///
/// # Errors
/// Fails when neither `close_range` (Linux 5.11) nor `/proc/self/fd` can be used.
pub(crate) fn close_on_exec() -> io::Result<()> {
    // SAFETY: the call takes three numbers and changes flags of descriptors; none is closed now.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { one_by_one() }
}

/// Closes all descriptors except the standard streams. Call this before this process has opened any.
pub(crate) fn close_inherited() {
    // SAFETY: nothing in this process has opened a descriptor yet, so that none is closed under its owner.
    let result = unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0) };
    if result != 0 {
        // Before Linux 5.9 they stay open here, and are closed in what this process starts.
        let _ = close_on_exec();
    }
}

/// Closes all descriptors except the standard streams and these. For a forked process.
///
/// # Errors
/// Fails when neither `close_range` (Linux 5.9) nor `/proc/self/fd` can be used.
pub(crate) fn close_all_but(mut kept: Vec<RawFd>) -> io::Result<()> {
    kept.sort_unstable();
    let mut first = FIRST;
    for fd in kept.into_iter().map(RawFd::cast_unsigned).filter(|fd| *fd >= FIRST) {
        // Two of them may be the same.
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, libc::c_uint::MAX)
}

fn close_range(first: libc::c_uint, last: libc::c_uint) -> io::Result<()> {
    // SAFETY: the call takes three numbers. Whoever owns these descriptors in this process does not use them any
    // more: it only waits and executes a program.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => numbers()?
            .into_iter()
            .filter(|fd| (first..=last).contains(&fd.cast_unsigned()))
            .try_for_each(close),
    }
}

fn close(fd: RawFd) -> io::Result<()> {
    // SAFETY: as in `close_range`.
    match unsafe { libc::close(fd) } {
        0 => Ok(()),
        // That of the listing.
        _ if io::Error::last_os_error().raw_os_error() == Some(libc::EBADF) => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns the numbers of all open descriptors, including that of the listing itself.
fn numbers() -> io::Result<Vec<RawFd>> {
    let names: Vec<_> = fs::read_dir("/proc/self/fd")?.collect::<Result<_, _>>()?;
    Ok(names.iter().filter_map(|name| name.file_name().to_str()?.parse().ok()).collect())
}

fn one_by_one() -> io::Result<()> {
    for number in numbers()?.into_iter().filter(|number| number.cast_unsigned() >= FIRST) {
        // SAFETY: the descriptor is borrowed for one call; one that was closed meanwhile (that of the listing) gives
        // EBADF.
        match fcntl_setfd(unsafe { BorrowedFd::borrow_raw(number) }, FdFlags::CLOEXEC) {
            Ok(()) | Err(Errno::BADF) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::io::fcntl_getfd;

    use super::*;

    #[test]
    fn both_ways_mark_what_a_caller_left_open() {
        for mark in [close_on_exec, one_by_one] {
            let left = File::open("/dev/null").unwrap();
            fcntl_setfd(&left, FdFlags::empty()).unwrap();
            mark().unwrap();
            assert_eq!(fcntl_getfd(&left).unwrap(), FdFlags::CLOEXEC);
            assert_eq!(fcntl_getfd(rustix::stdio::stdin()).unwrap(), FdFlags::empty());
        }
    }
}
