//! The filter of a process that starts another one in a jail, and starts it again: a keeper, or the guard of brokers.
//!
//! What it starts is forked and has this filter, too, so all that its own filter needs is on the list. What is on no list
//! is above all a signal to another process, a program, another process's memory, and a file for writing. It fails with
//! `EPERM`.
//!
//! # Source
//! `seccomp(2)`. The calls are those that `strace` shows of both processes while theirs are ended and started again.

use std::collections::BTreeMap;
use std::io;

use libc::{c_int, c_long};
use rustix::process::getpid;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

use super::sockets::{Kind, kinds};
use crate::architecture::{OLDER_STARTER_CALLS, SECCOMP};

/// Calls of the process itself, and of one that it has forked, until that has a filter of its own.
const CALLS: &[c_long] = &[
    libc::SYS_bind,
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_connect,
    libc::SYS_dup,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_futex,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_memfd_create,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_newfstatat,
    libc::SYS_pidfd_open,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_seccomp,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_setsockopt,
    libc::SYS_sigaltstack,
    libc::SYS_statx,
    libc::SYS_uname,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Sockets of a keeper: messages of the kernel about the host, and connections to other members of private networks.
pub(crate) const OF_A_KEEPER: [Kind; 2] =
    [(libc::AF_NETLINK, libc::SOCK_RAW, 0), (libc::AF_UNIX, libc::SOCK_SEQPACKET, 0)];

/// What opening a file may not be: for writing, or new.
const NOT_OPENED: c_int = libc::O_ACCMODE | libc::O_TRUNC | libc::O_CREAT;

/// Commands of `fcntl`. None names a process that gets signals.
const FCNTL_COMMANDS: [c_int; 5] =
    [libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL];

/// What may be set of the process.
const PRCTL_OPTIONS: [c_int; 5] = [
    libc::PR_SET_PDEATHSIG,
    libc::PR_SET_NO_NEW_PRIVS,
    libc::PR_SET_SECCOMP,
    libc::PR_SET_NAME,
    libc::PR_SET_VMA,
];

/// Requests of `ioctl`: how much can be read, and whether a call waits.
const IOCTL_REQUESTS: [c_int; 2] = [libc::FIONREAD as c_int, libc::FIONBIO as c_int];

/// What of `clone` is not a process or thread like this one.
const NAMESPACES: c_int = libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS;

/// Restricts the system calls of this process and of those that it forks. `started` are calls of these, `sockets` what
/// sockets all of them need.
///
/// # Errors
/// When the kernel refuses the filter.
pub(crate) fn restrict_starter(started: &[&[c_long]], sockets: &[&[Kind]]) -> io::Result<()> {
    let filter = filter(started, sockets).map_err(io::Error::other)?;
    apply_filter(&filter).map_err(io::Error::other)
}

fn filter(started: &[&[c_long]], sockets: &[&[Kind]]) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = CALLS
        .iter()
        .chain(OLDER_STARTER_CALLS)
        .chain(started.iter().copied().flatten())
        .map(|call| (*call, Vec::new()))
        .collect();
    rules.insert(libc::SYS_socket, kinds(&sockets.concat())?);
    // Ends that stay connected to each other.
    let pairs = [(libc::AF_UNIX, libc::SOCK_STREAM, 0), (libc::AF_UNIX, libc::SOCK_SEQPACKET, 0)];
    rules.insert(libc::SYS_socketpair, kinds(&pairs)?);
    rules.insert(libc::SYS_clone, masked(0, NAMESPACES, &[0])?);
    rules.insert(libc::SYS_openat, masked(2, NOT_OPENED, &[libc::O_RDONLY])?);
    // Memory that is written is not executed.
    let both = libc::PROT_WRITE | libc::PROT_EXEC;
    let one = [0, libc::PROT_WRITE, libc::PROT_EXEC];
    rules.insert(libc::SYS_mmap, masked(2, both, &one)?);
    rules.insert(libc::SYS_mprotect, masked(2, both, &one)?);
    rules.insert(libc::SYS_fcntl, masked(1, -1, &FCNTL_COMMANDS)?);
    rules.insert(libc::SYS_prctl, masked(0, -1, &PRCTL_OPTIONS)?);
    rules.insert(libc::SYS_ioctl, masked(1, -1, &IOCTL_REQUESTS)?);
    // Its own limits: a process that has used more time than its limit is killed.
    rules.insert(libc::SYS_prlimit64, masked(0, -1, &[0])?);
    // An abort of this process. One of a process that it has forked is not allowed by this, and ends all the same.
    rules.insert(libc::SYS_tgkill, masked(0, -1, &[getpid().as_raw_nonzero().get()])?);
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    SeccompFilter::new(rules, denied, SeccompAction::Allow, SECCOMP)?.try_into()
}

/// An argument, counted from 0, that has one of these values where the mask has ones.
fn masked(number: u8, mask: c_int, values: &[c_int]) -> Result<Vec<SeccompRule>, BackendError> {
    let bits = |value: c_int| u64::from(value.cast_unsigned());
    let rule = |value: &c_int| {
        let operator = SeccompCmpOp::MaskedEq(bits(mask));
        SeccompRule::new(vec![SeccompCondition::new(
            number,
            SeccompCmpArgLen::Dword,
            operator,
            bits(*value),
        )?])
    };
    values.iter().map(rule).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, OpenOptions};
    use std::os::fd::AsRawFd;
    use std::process::Command;

    use rustix::io::Errno;
    use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

    use super::*;
    use crate::jail::sockets::tries::{is_denied, socket};

    #[allow(unsafe_code)]
    fn call(number: c_long, arguments: [c_long; 3]) -> io::Result<()> {
        // SAFETY: each use of this is denied before the kernel looks at an argument, and none of them is an address.
        let result = unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2]) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    #[test]
    fn who_starts_a_jailed_process_signals_nobody_and_executes_nothing() {
        let mut other = Command::new("/bin/sleep").arg("600").spawn().unwrap();
        let pid = Pid::from_raw(other.id().cast_signed()).unwrap();
        let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_owned();
        let tried = std::thread::spawn(move || {
            let raw = c_long::from(pid.as_raw_nonzero().get());
            let own = c_long::from(getpid().as_raw_nonzero().get());
            restrict_starter(&[], &[&OF_A_KEEPER]).unwrap();
            // What it does all the time.
            drop(pidfd_open(pid, PidfdFlags::empty()).unwrap());
            assert_eq!(fs::read(&path).unwrap(), b"");
            let number = c_long::from(process.as_raw_fd());
            let signal = |result: Result<(), Errno>| result.map_err(io::Error::from);
            [
                ("kill", signal(kill_process(pid, Signal::KILL))),
                ("pidfd", signal(pidfd_send_signal(&process, Signal::KILL))),
                ("tkill", call(libc::SYS_tkill, [raw, 9, 0])),
                ("tgkill", call(libc::SYS_tgkill, [raw, raw, 9])),
                ("queued", call(libc::SYS_rt_sigqueueinfo, [raw, 9, 0])),
                ("queued for a thread", call(libc::SYS_rt_tgsigqueueinfo, [raw, raw, 9])),
                ("its own, queued", call(libc::SYS_rt_sigqueueinfo, [own, 9, 0])),
                ("owner of signals", call(libc::SYS_fcntl, [number, libc::F_SETOWN.into(), raw])),
                ("descriptor of another", call(libc::SYS_pidfd_getfd, [number, 0, 0])),
                ("memory of another", call(libc::SYS_process_vm_readv, [raw, 0, 0])),
                ("tracing", call(libc::SYS_ptrace, [libc::PTRACE_ATTACH.into(), raw, 0])),
                ("limits of another", call(libc::SYS_prlimit64, [raw, libc::RLIMIT_CPU.into(), 0])),
                ("namespace", call(libc::SYS_unshare, [libc::CLONE_NEWUSER.into(), 0, 0])),
                ("namespace of a child", call(libc::SYS_clone, [libc::CLONE_NEWUSER.into(), 0, 0])),
                ("program", call(libc::SYS_execve, [0, 0, 0])),
                ("program by descriptor", call(libc::SYS_execveat, [number, 0, 0])),
                ("file for writing", OpenOptions::new().write(true).open(&path).map(drop)),
                ("new file", File::create(path.with_extension("new")).map(drop)),
                ("rings", call(libc::SYS_io_uring_setup, [8, 0, 0])),
                ("keys", call(libc::SYS_keyctl, [0, 0, 0])),
                ("raw socket", socket((libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)).map(drop)),
                ("any socket", socket((libc::AF_UNIX, libc::SOCK_DGRAM, 0)).map(drop)),
            ]
        })
        .join()
        .unwrap();
        assert!(other.try_wait().unwrap().is_none(), "it was ended");
        other.kill().unwrap();
        other.wait().unwrap();
        for (what, result) in tried {
            assert!(is_denied(&result), "{what}: {result:?}");
        }
    }
}
