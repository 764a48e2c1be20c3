//! Descriptors that this process has inherited are closed, so that its child processes do not inherit them, and some get
//! numbers that no other descriptor can have.

#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// First descriptor that is not a standard stream.
const FIRST: libc::c_uint = 3;

/// How many numbers are kept apart.
const APART: u64 = 8;

/// Numbers that are kept apart are below this: the kernel's table of a process is as long as its highest number.
const APART_BELOW: u64 = 4096;

/// The first number that is kept apart.
fn first_apart() -> u64 {
    static FIRST: OnceLock<u64> = OnceLock::new();
    *FIRST.get_or_init(|| {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(APART_BELOW);
        limit.min(APART_BELOW).saturating_sub(APART)
    })
}

/// A copy of the descriptor with a number that no other descriptor gets after [`leave_apart`].
///
/// # Errors
/// Fails when all these numbers are taken.
pub(crate) fn keep_apart(fd: &OwnedFd) -> io::Result<OwnedFd> {
    let first = RawFd::try_from(first_apart()).map_err(io::Error::other)?;
    Ok(fcntl_dupfd_cloexec(fd, first)?)
}

/// Lowers the limit of open files below the numbers that are kept apart, for good. What is open there stays open, and a
/// filter can know it by its number: nothing else can take its place.
///
/// # Errors
/// Fails when the kernel refuses.
pub(crate) fn leave_apart() -> io::Result<()> {
    let most = Some(first_apart());
    Ok(setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?)
}

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
