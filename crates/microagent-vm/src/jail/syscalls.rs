//! The system calls that QEMU may make.
//!
//! The list was made from what QEMU 7.2, 10.0 and 11.1 call in cold starts, freezes, warm starts, pause, halt,
//! quarantine, with volumes and a network, and from what their C libraries and an abort need. There is no socket of
//! any family, no process, no other process's memory or signals, no io_uring, no keyring and no memory file. What is
//! not listed fails with `EPERM`, so that QEMU says in its log what it could not do. Calls of another architecture's
//! convention kill the process; those of the x32 convention have other numbers and are not listed.
//!
//! # Source
//! Linux `Documentation/userspace-api/seccomp_filter.rst`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;

use libc::{c_long, c_ulong};
use rustix::process::getpid;
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::architecture::{OLDER_QEMU_CALLS, OPEN, SECCOMP};

/// What executes guest code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backend {
    /// QEMU's translator, which needs no device.
    Tcg,
    /// `/dev/kvm`, which is used by ioctls.
    Kvm,
}

/// Calls that are allowed whatever their arguments are.
const ALLOWED: &[c_long] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munlock,
    libc::SYS_munmap,
    libc::SYS_get_mempolicy,
    // Files: read and written through descriptors, opened below Landlock's rules, never made, removed or renamed.
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_sync_file_range,
    libc::SYS_write,
    libc::SYS_writev,
    // Events and timers.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_restart_syscall,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_gettime,
    libc::SYS_timer_settime,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    // Sockets that were inherited.
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    // Signals: how they are taken, not how they are sent.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    // Threads, and what a process may know of itself.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sysinfo,
    libc::SYS_times,
    libc::SYS_uname,
];

/// How QEMU may open a file: for reading, or for both. It makes no file and empties none when it opens it, whatever
/// Landlock knows: its rules cover truncation from Linux 6.2 on only. The access mode 3, which needs no right to the
/// file at all, empties it like the others.
const OPENED: [i32; 2] = [libc::O_RDONLY, libc::O_RDWR];
const OPENED_MASK: i32 = libc::O_ACCMODE | libc::O_TRUNC | libc::O_CREAT | TMPFILE_BIT;

/// The bit of `O_TMPFILE` that `O_DIRECTORY` does not have.
const TMPFILE_BIT: i32 = libc::O_TMPFILE & !libc::O_DIRECTORY;

/// Commands of `fcntl`: copies of descriptors, flags and locks; no signals to others, no leases, no seals.
const FCNTL_COMMANDS: &[i32] = &[
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_GETFL,
    libc::F_GETLK,
    libc::F_OFD_GETLK,
    libc::F_OFD_SETLK,
    libc::F_OFD_SETLKW,
    libc::F_SETFD,
    libc::F_SETFL,
    libc::F_SETLK,
    libc::F_SETLKW,
];

/// Options of `prctl`: names of threads and of memory, how memory errors and timers are handled, and the filters that
/// QEMU adds to this one.
const PRCTL_OPTIONS: &[i32] = &[
    libc::PR_CAPBSET_READ,
    libc::PR_GET_NAME,
    libc::PR_MCE_KILL,
    libc::PR_SET_NAME,
    libc::PR_SET_NO_NEW_PRIVS,
    libc::PR_SET_SECCOMP,
    libc::PR_SET_TIMERSLACK,
    libc::PR_SET_VMA,
];

/// Options of sockets that QEMU sets, all of `SOL_SOCKET`. None attaches a program.
const SOCKET_OPTIONS: &[i32] =
    &[libc::SO_KEEPALIVE, libc::SO_PASSCRED, libc::SO_RCVBUF, libc::SO_SNDBUF, libc::SO_ZEROCOPY];

/// Operations of `seccomp`: adding a filter, and asking what filters can do. libseccomp asks whether the call is
/// there by a strict mode with wrong flags.
const SECCOMP_OPERATIONS: &[u32] = &[
    libc::SECCOMP_GET_ACTION_AVAIL,
    libc::SECCOMP_GET_NOTIF_SIZES,
    libc::SECCOMP_SET_MODE_FILTER,
    libc::SECCOMP_SET_MODE_STRICT,
];

/// What makes `clone` make a thread of this process.
const THREAD: i32 =
    libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;

/// What `clone` may not make.
const NAMESPACES: i32 = libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS;

/// Type of the ioctls of KVM (`KVMIO` of `linux/kvm.h`), where the number has its type.
const KVM_IOCTLS: u64 = 0xAE00;
const IOCTL_TYPE: u64 = 0xFF00;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Puts the calling process and all that it executes below the filter. It may execute descriptor `program` after this.
///
/// # Errors
/// Fails when the kernel refuses the filter.
pub(super) fn enforce(backend: Backend, program: RawFd) -> io::Result<()> {
    let pid = getpid().as_raw_nonzero().get();
    for filter in [allowing(backend, program, pid), without_clone3()] {
        let filter = filter.map_err(io::Error::other)?;
        seccompiler::apply_filter(&filter).map_err(|error| match error {
            Error::Prctl(error) | Error::Seccomp(error) => error,
            error => io::Error::other(error),
        })?;
    }
    Ok(())
}

/// The filter that allows what QEMU needs.
fn allowing(backend: Backend, program: RawFd, pid: i32) -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = rules(backend, program, pid)?;
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    SeccompFilter::new(rules, denied, SeccompAction::Allow, SECCOMP)?.try_into()
}

/// A filter cannot read the flags of `clone3`, which are in memory. The C library uses `clone` where it is missing.
/// Of two filters that refuse, the one that was added later gives the error.
fn without_clone3() -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = Rules::from([(libc::SYS_clone3, Vec::new())]);
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, missing, SECCOMP)?.try_into()
}

fn rules(backend: Backend, program: RawFd, pid: i32) -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = ALLOWED.iter().chain(OLDER_QEMU_CALLS).map(|call| (*call, Vec::new())).collect();
    // Not that of clone3, which the other filter answers.
    rules.insert(libc::SYS_clone3, Vec::new());
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![flags(0, THREAD | NAMESPACES, THREAD)?])?]);
    let at_empty_path = equals(4, bits(libc::AT_EMPTY_PATH))?;
    rules.insert(libc::SYS_execveat, vec![SeccompRule::new(vec![equals(0, bits(program))?, at_empty_path])?]);
    rules.insert(libc::SYS_openat, opened(2)?);
    if let Some(open) = OPEN {
        rules.insert(open, opened(1)?);
    }
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![equals(0, bits(pid))?])?]);
    // Limits are read, of this process: no new ones are given.
    rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![equals(0, 0)?, null(2)?])?]);
    rules.insert(libc::SYS_fcntl, one_of(1, FCNTL_COMMANDS.iter().map(|command| bits(*command)))?);
    rules.insert(libc::SYS_prctl, one_of(0, PRCTL_OPTIONS.iter().map(|option| bits(*option)))?);
    rules.insert(
        libc::SYS_seccomp,
        one_of(0, SECCOMP_OPERATIONS.iter().map(|operation| u64::from(*operation)))?,
    );
    let socket_options = SOCKET_OPTIONS
        .iter()
        .map(|option| SeccompRule::new(vec![equals(1, bits(libc::SOL_SOCKET))?, equals(2, bits(*option))?]));
    rules.insert(libc::SYS_setsockopt, socket_options.collect::<Result<_, _>>()?);
    if backend == Backend::Kvm {
        let kvm = condition(1, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(IOCTL_TYPE), KVM_IOCTLS)?;
        rules.insert(libc::SYS_ioctl, vec![SeccompRule::new(vec![kvm])?]);
    }
    Ok(rules)
}

/// The flags of an `open` call, which are argument `number`.
fn opened(number: u8) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    OPENED.into_iter().map(|mode| SeccompRule::new(vec![masked(number, OPENED_MASK, mode)?])).collect()
}

type ConditionResult = Result<SeccompCondition, seccompiler::BackendError>;

fn condition(argument: u8, len: SeccompCmpArgLen, operator: SeccompCmpOp, value: u64) -> ConditionResult {
    SeccompCondition::new(argument, len, operator, value)
}

/// The lower half of an argument, which is all that an `int` has.
fn equals(argument: u8, value: u64) -> ConditionResult {
    condition(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

fn null(argument: u8) -> ConditionResult {
    condition(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)
}

fn flags(argument: u8, mask: i32, value: i32) -> ConditionResult {
    condition(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(bits(mask)), bits(value))
}

/// As [`flags`], of an `int`.
fn masked(argument: u8, mask: i32, value: i32) -> ConditionResult {
    condition(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(bits(mask)), bits(value))
}

fn one_of(
    argument: u8,
    values: impl Iterator<Item = u64>,
) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    values.map(|value| SeccompRule::new(vec![equals(argument, value)?])).collect()
}

/// The bits of an `int` as an argument of a system call has them.
fn bits(value: i32) -> u64 {
    c_ulong::from(value.cast_unsigned())
}
