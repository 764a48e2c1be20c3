//! The jail of a network stack, which allows Internet sockets, open descriptors, and nothing else.
//!
//! Two walls, each of which holds without the other. The seccomp filter knows the system calls of the stack's loop;
//! any other ends the process. No call that it allows opens a file, starts a process or program, binds a port or
//! reaches another process, and sockets are of IPv4 and IPv6 only. Landlock, as far as the running kernel has it,
//! denies all files, binding TCP ports, and signals and abstract sockets to the outside.
//!
//! # Source
//! `seccomp(2)`; Linux `Documentation/userspace-api/landlock.rst`.

use std::collections::BTreeMap;
use std::io;

use landlock::{Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, Scope};
use rustix::process::getpid;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};

use crate::architecture::{OLDER_STACK_CALLS, SECCOMP};
use crate::jail::NEWEST;

/// Calls of the loop, of the allocator, and of a process that ends, whatever their arguments.
const CALLS: [libc::c_long; 30] = [
    libc::SYS_accept4,
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_connect,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_read,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_write,
];

/// Options that the loop sets on connections, each with its level. None attaches a program or binds to a device.
const SOCKET_OPTIONS: [(libc::c_int, libc::c_int); 3] = [
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_LINGER),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
];

/// Why there is no jail.
#[derive(Debug, thiserror::Error)]
pub(super) enum JailError {
    #[error("the filter of system calls cannot be made")]
    Filter(#[source] seccompiler::BackendError),
    #[error("the filter of system calls cannot be set")]
    Apply(#[source] seccompiler::Error),
    #[error("the rules of Landlock cannot be set")]
    Landlock(#[source] landlock::RulesetError),
}

impl From<JailError> for io::Error {
    fn from(error: JailError) -> io::Error {
        io::Error::other(error)
    }
}

/// Puts this process into its jail. Open descriptors stay open.
pub(super) fn enter() -> Result<(), JailError> {
    restrict_objects().map_err(JailError::Landlock)?;
    apply_filter(&filter().map_err(JailError::Filter)?).map_err(JailError::Apply)
}

fn restrict_objects() -> Result<(), landlock::RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .restrict_self()
        .map(drop)
}

fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        CALLS.iter().chain(OLDER_STACK_CALLS).map(|call| (*call, Vec::new())).collect();
    // The end of an abort. Landlock has no rule for signals before Linux 6.12.
    rules.insert(libc::SYS_tgkill, vec![is_argument(0, getpid().as_raw_nonzero().get())?]);
    let families = [libc::AF_INET, libc::AF_INET6];
    let families: Result<_, _> = families.into_iter().map(|family| is_argument(0, family)).collect();
    rules.insert(libc::SYS_socket, families?);
    // A connection to a broker: one end is sent over an inherited socket. A pair is connected to nothing else.
    rules.insert(libc::SYS_socketpair, vec![is_argument(0, libc::AF_UNIX)?]);
    // Memory without a file, and never to be executed.
    let plain = [libc::PROT_NONE, libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE];
    let plain: Result<Vec<_>, _> = plain.into_iter().map(|access| is_argument(2, access)).collect();
    let plain = plain?;
    rules.insert(libc::SYS_mmap, plain.clone());
    rules.insert(libc::SYS_mprotect, plain);
    let duplicate = [libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL];
    let duplicate: Result<_, _> = duplicate.into_iter().map(|command| is_argument(1, command)).collect();
    rules.insert(libc::SYS_fcntl, duplicate?);
    let options = SOCKET_OPTIONS.map(|(level, option)| is_option(level, option));
    rules.insert(libc::SYS_setsockopt, options.into_iter().collect::<Result<_, _>>()?);
    let options = [libc::SO_ERROR, libc::SO_DOMAIN, libc::SO_TYPE];
    let options = options.map(|option| is_option(libc::SOL_SOCKET, option));
    rules.insert(libc::SYS_getsockopt, options.into_iter().collect::<Result<_, _>>()?);
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, SECCOMP)?.try_into()
}

/// A rule for a call about an option of a socket.
fn is_option(level: libc::c_int, option: libc::c_int) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![equals(1, level)?, equals(2, option)?])
}

/// A rule that is met when an argument, counted from 0, has this value.
fn is_argument(number: u8, value: libc::c_int) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![equals(number, value)?])
}

fn equals(number: u8, value: libc::c_int) -> Result<SeccompCondition, seccompiler::BackendError> {
    // None of the values is negative.
    SeccompCondition::new(number, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value as u64)
}
