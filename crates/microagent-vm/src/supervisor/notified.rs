//! Answers the system calls that QEMU's filter asks about: see [`crate::jail`] for why.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use libc::{seccomp_notif, seccomp_notif_resp};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::jail::PUNCH_HOLE;

/// The listener of a machine's QEMU, and how long the guest's memory is.
#[derive(Debug)]
pub(super) struct Notified {
    pub(super) listener: OwnedFd,
    pub(super) memory_bytes: u64,
}

/// What QEMU gets for its call.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// The call is made.
    Continue,
    /// QEMU is told that the call has succeeded.
    Pretend,
}

/// What is known of QEMU's memory.
#[derive(Debug)]
struct Memory {
    bytes: u64,
    /// QEMU's descriptor of the template.
    descriptor: Option<u64>,
}

impl Memory {
    /// Decides about one call. The first file as large as the memory that QEMU maps privately is the memory.
    fn answer(&mut self, number: i64, arguments: [u64; 6]) -> Answer {
        let [first, second, .., descriptor, _] = arguments;
        match number {
            libc::SYS_mmap if self.descriptor.is_none() && second >= self.bytes => {
                self.descriptor = Some(descriptor);
                Answer::Continue
            }
            libc::SYS_fallocate
                if second == u64::from(PUNCH_HOLE.unsigned_abs()) && self.descriptor == Some(first) =>
            {
                Answer::Pretend
            }
            _ => Answer::Continue,
        }
    }
}

/// Answers until QEMU is gone.
///
/// # Errors
/// Fails if the listener cannot be read; QEMU's calls fail then.
pub(super) async fn answer(notified: Notified) -> io::Result<()> {
    let mut memory = Memory { bytes: notified.memory_bytes, descriptor: None };
    // SAFETY: the value owns the descriptor, which stays open as long as it is registered.
    let listener = unsafe { AsyncFd::register_with_interest(notified.listener, Interest::READABLE)? };
    loop {
        let mut ready = listener.readable().await?;
        match readiness(listener.get_ref())? {
            libc::POLLIN => answer_one(listener.get_ref(), &mut memory)?,
            0 => ready.clear_ready(),
            // All processes below the filter have ended.
            _ => return Ok(()),
        }
    }
}

/// What there is at the listener now: a call, nothing, or its end. The kernel gives calls by a request that waits.
fn readiness(listener: &OwnedFd) -> io::Result<i16> {
    let mut asked = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: one structure, which is there until the call is over, and no mask.
    let found = unsafe { libc::ppoll(&raw mut asked, 1, &raw const at_once, std::ptr::null()) };
    match found {
        0.. if asked.revents & libc::POLLIN != 0 => Ok(libc::POLLIN),
        0.. => Ok(asked.revents),
        _ => Err(io::Error::last_os_error()),
    }
}

fn answer_one(listener: &OwnedFd, memory: &mut Memory) -> io::Result<()> {
    // SAFETY: the structure is plain numbers, and the kernel wants them to be zero.
    let mut call: seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one such structure.
    let received =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) };
    if received < 0 {
        return unless_gone();
    }
    let flags = match memory.answer(call.data.nr.into(), call.data.args) {
        Answer::Continue => u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).unwrap_or_default(),
        Answer::Pretend => 0,
    };
    let mut answer = seccomp_notif_resp { id: call.id, val: 0, error: 0, flags };
    // SAFETY: the kernel reads one such structure.
    let sent = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
    if sent < 0 { unless_gone() } else { Ok(()) }
}

/// A thread may end, or its call be interrupted, before it is answered.
fn unless_gone() -> io::Result<()> {
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::EINTR | libc::EINPROGRESS) => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

    use super::*;
    use crate::handover::take_over;
    use crate::jail::{ask_supervisor, refuse_holes};

    const MIB: u64 = 1 << 20;

    fn file() -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 1 << 20], 0).unwrap();
        file.set_len(64 * MIB).unwrap();
        file
    }

    fn punch(file: &File) -> Result<(), Errno> {
        fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, MIB)
    }

    fn starts_with(file: &File, byte: u8) -> bool {
        let mut found = [0];
        file.read_exact_at(&mut found, 0).unwrap();
        found == [byte]
    }

    /// Maps the whole file as QEMU does.
    fn map(file: &File) {
        let (access, length) = (ProtFlags::READ | ProtFlags::WRITE, 64 << 20);
        // SAFETY: a new mapping that nobody uses.
        unsafe {
            let mapped = mmap(std::ptr::null_mut(), length, access, MapFlags::PRIVATE, file, 0).unwrap();
            munmap(mapped, length).unwrap();
        }
    }

    /// The kernel, the filter and the answers together, with a thread as QEMU.
    #[tokio::test]
    async fn a_hole_is_made_in_a_disk_and_not_in_the_memory() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let qemu = thread::spawn(move || {
            ask_supervisor(&theirs).unwrap();
            drop(theirs);
            let (memory, disk) = (file(), file());
            map(&memory);
            (punch(&memory), punch(&disk), starts_with(&memory, 7), starts_with(&disk, 0))
        });
        let listener = take_over(&ours, 0).unwrap().1.pop().unwrap();
        answer(Notified { listener, memory_bytes: 64 * MIB }).await.unwrap();
        assert_eq!(qemu.join().unwrap(), (Ok(()), Ok(()), true, true));
    }

    #[test]
    fn without_a_listener_no_hole_is_made() {
        let tried = thread::spawn(|| {
            refuse_holes().unwrap();
            let disk = file();
            map(&disk);
            (punch(&disk), disk.metadata().unwrap().blocks() >= 2048)
        });
        assert_eq!(tried.join().unwrap(), (Err(Errno::OPNOTSUPP), true));
    }

    const BYTES: u64 = 512 << 20;
    const HOLE: u64 = 3;

    fn memory() -> Memory {
        Memory { bytes: BYTES, descriptor: None }
    }

    #[test]
    fn only_a_hole_in_the_memory_is_not_made() {
        let mut memory = memory();
        // Before the memory is known, nothing is.
        assert_eq!(memory.answer(libc::SYS_fallocate, [12, HOLE, 0, 4096, 0, 0]), Answer::Continue);
        assert_eq!(memory.answer(libc::SYS_mmap, [0, BYTES, 3, 2, 12, 0]), Answer::Continue);
        assert_eq!(memory.answer(libc::SYS_fallocate, [12, HOLE, 0, 4096, 0, 0]), Answer::Pretend);
        // A disk.
        assert_eq!(memory.answer(libc::SYS_fallocate, [13, HOLE, 0, 4096, 0, 0]), Answer::Continue);
        assert_eq!(memory.answer(libc::SYS_fallocate, [12, 0, 0, 4096, 0, 0]), Answer::Continue);
    }

    #[test]
    fn the_memory_is_the_first_mapping_of_its_size() {
        let mut memory = memory();
        memory.answer(libc::SYS_mmap, [0, BYTES - 1, 3, 2, 11, 0]);
        memory.answer(libc::SYS_mmap, [0, BYTES, 3, 2, 12, 0]);
        memory.answer(libc::SYS_mmap, [0, BYTES, 3, 2, 13, 0]);
        assert_eq!(memory.descriptor, Some(12));
    }
}
