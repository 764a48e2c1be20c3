//! The system calls of QEMU that its supervisor answers, so that a restored machine gives memory back to the host.
//!
//! A guest reports memory that it has freed. QEMU then punches a hole into the file of this memory and drops its pages
//! with `madvise`. A machine that is restored has the memory of a template, mapped privately. The pages that it has
//! changed are its own and are dropped; the file is also the memory of other machines, and must keep its contents. So
//! QEMU has to be told that the hole is there, without one being made.
//!
//! A filter cannot distinguish the descriptor of the memory from that of a disk. It asks the supervisor: when QEMU maps
//! a large file privately and writably, which tells the number of the descriptor, and when QEMU punches a hole. If
//! the kernel grants no listener, as below another one, QEMU can punch no holes at all: the guest's disks keep their
//! blocks then.
//!
//! # Source
//! Linux `Documentation/userspace-api/seccomp_filter.rst`, `include/uapi/linux/seccomp.h`.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter, sock_fprog,
};
use rustix::thread::set_no_new_privs;

use crate::handover::hand_over;

/// The mode with which QEMU discards, of memory and of disks.
pub(crate) const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// The smallest mapping that the supervisor is asked about, in bytes: less than the memory of any guest, and more than
/// the writable data of any library.
pub(crate) const MAPPING_BYTES: u32 = 32 << 20;

/// Offsets in `struct seccomp_data`: the number of the call, and the lower halves of its arguments.
const NUMBER: u32 = 0;
const LENGTH: u32 = 24;
const LENGTH_UPPER: u32 = 28;
const MODE: u32 = 24;
const PROTECTION: u32 = 32;
const FLAGS: u32 = 40;

/// Puts the calling process below the filter, and sends its listener to the supervisor. Whoever executes QEMU has
/// another filter, which is about everything else, calls of other architectures among it.
///
/// # Errors
/// Fails if the kernel refuses the filter, or the listener cannot be sent.
pub(crate) fn enforce(supervisor: &UnixStream) -> io::Result<()> {
    set_no_new_privs(true)?;
    let asked = libc::SECCOMP_RET_USER_NOTIF;
    match install(&program(asked, asked), libc::SECCOMP_FILTER_FLAG_NEW_LISTENER) {
        Ok(listener) => {
            // SAFETY: with this flag the kernel gives a new descriptor.
            let listener = unsafe { OwnedFd::from_raw_fd(listener) };
            hand_over(supervisor, &[], &[listener.as_fd()])
        }
        Err(_) => refuse_holes(),
    }
}

/// Puts the calling process below a filter that refuses all holes.
///
/// # Errors
/// Fails if the kernel refuses the filter.
pub(crate) fn refuse_holes() -> io::Result<()> {
    set_no_new_privs(true)?;
    let refused = libc::SECCOMP_RET_ERRNO | libc::EOPNOTSUPP.unsigned_abs();
    install(&program(refused, libc::SECCOMP_RET_ALLOW), 0).map(drop)
}

fn install(program: &[sock_filter], flags: libc::c_ulong) -> io::Result<i32> {
    let len = program.len().try_into().map_err(io::Error::other)?;
    let program = sock_fprog { len, filter: program.as_ptr().cast_mut() };
    let program = std::ptr::from_ref(&program);
    // SAFETY: the kernel reads the program, which lives until the call is over.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, program) };
    match i32::try_from(done) {
        Ok(done @ 0..) => Ok(done),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The filter: `punched` is what becomes of a hole, `mapped` of a large mapping; everything else is allowed.
fn program(punched: u32, mapped: u32) -> [sock_filter; 16] {
    let load = |offset| instruction(BPF_LD | BPF_W | BPF_ABS, offset, 0, 0);
    let equal = |value, yes, no| instruction(BPF_JMP | BPF_JEQ | BPF_K, value, yes, no);
    let any_bit = |value, yes, no| instruction(BPF_JMP | BPF_JSET | BPF_K, value, yes, no);
    let result = |action| instruction(BPF_RET | BPF_K, action, 0, 0);
    // Jumps count from the next instruction. The results are 13 (allowed), 14 (punched) and 15 (mapped).
    [
        load(NUMBER),
        equal(call(libc::SYS_fallocate), 0, 2),
        load(MODE),
        equal(PUNCH_HOLE.unsigned_abs(), 10, 9),
        equal(call(libc::SYS_mmap), 0, 8),
        load(FLAGS),
        any_bit(libc::MAP_ANONYMOUS.unsigned_abs(), 6, 0),
        load(PROTECTION),
        any_bit(libc::PROT_WRITE.unsigned_abs(), 0, 4),
        load(LENGTH_UPPER),
        equal(0, 0, 4),
        load(LENGTH),
        instruction(BPF_JMP | BPF_JGE | BPF_K, MAPPING_BYTES, 2, 0),
        result(libc::SECCOMP_RET_ALLOW),
        result(punched),
        result(mapped),
    ]
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: u16::try_from(code).expect("a code has sixteen bits"), jt, jf, k }
}

fn call(number: libc::c_long) -> u32 {
    u32::try_from(number).expect("numbers of calls are small")
}
