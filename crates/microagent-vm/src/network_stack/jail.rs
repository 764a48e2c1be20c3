//! The jail of a network stack, which allows Internet sockets, open descriptors, and nothing else.
//!
//! Two walls, each of which holds without the other. The seccomp filter knows the system calls of the stack's loop;
//! any other ends the process. No call that it allows opens a file, starts a process or program, binds a port or
//! reaches another process. Sockets are of TCP, UDP and ping, and pairs are connected for good. Landlock, as far as the running kernel has it,
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
use crate::jail::sockets::{Kind, kinds};
use crate::jail::starter::{OF_A_KEEPER, restrict_starter};

/// Calls of the loop, of the allocator, and of a process that ends, whatever their arguments.
const CALLS: [libc::c_long; 29] = [
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
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_write,
];

/// Sockets of the Internet: TCP, UDP and ping. No other protocol, of which Landlock and the policy know nothing.
const SOCKETS: [Kind; 6] = [
    (libc::AF_INET, libc::SOCK_STREAM, 0),
    (libc::AF_INET, libc::SOCK_DGRAM, 0),
    (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
    (libc::AF_INET6, libc::SOCK_STREAM, 0),
    (libc::AF_INET6, libc::SOCK_DGRAM, 0),
    (libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6),
];

/// Connections to brokers and members: one end is sent over an inherited socket. Sockets of these types stay connected to
/// each other; one of datagrams could send to the path of any socket of the host.
const PAIRS: [Kind; 2] = [(libc::AF_UNIX, libc::SOCK_STREAM, 0), (libc::AF_UNIX, libc::SOCK_SEQPACKET, 0)];

/// Whether a stack passes descriptors on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passing {
    /// Ends of connections, to brokers or members of private networks.
    Ends,
    /// None. What it had under way would count against all processes of its user.
    Nothing,
}

/// Options that the loop sets on connections, each with its level. None attaches a program or binds to a device.
const SOCKET_OPTIONS: [(libc::c_int, libc::c_int); 3] = [
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_LINGER),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
];

/// Restricts the system calls of a keeper, which starts stacks.
///
/// # Errors
/// When the kernel refuses the filter.
pub(super) fn restrict_keeper() -> io::Result<()> {
    restrict_starter(&[&CALLS, OLDER_STACK_CALLS], &[&OF_A_KEEPER, &SOCKETS])
}

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
pub(super) fn enter(passing: Passing) -> Result<(), JailError> {
    restrict_objects().map_err(JailError::Landlock)?;
    apply_filter(&filter(passing, SeccompAction::KillProcess).map_err(JailError::Filter)?)
        .map_err(JailError::Apply)
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

fn filter(passing: Passing, denied: SeccompAction) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        CALLS.iter().chain(OLDER_STACK_CALLS).map(|call| (*call, Vec::new())).collect();
    // The end of an abort. Landlock has no rule for signals before Linux 6.12.
    rules.insert(libc::SYS_tgkill, vec![is_argument(0, getpid().as_raw_nonzero().get())?]);
    rules.insert(libc::SYS_socket, kinds(&SOCKETS)?);
    // What the messages of this call have with them cannot be seen by a filter.
    if passing == Passing::Ends {
        rules.insert(libc::SYS_socketpair, kinds(&PAIRS)?);
        rules.insert(libc::SYS_sendmsg, Vec::new());
    }
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
    SeccompFilter::new(rules, denied, SeccompAction::Allow, SECCOMP)?.try_into()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jail::sockets::tries::{NO_SOCKETS, is_denied, pair, send, socket};

    /// Tries in a thread behind the filter, which denies here instead of ending the process.
    fn behind<T: Send + 'static>(passing: Passing, tries: impl FnOnce() -> T + Send + 'static) -> T {
        let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
        let filter = filter(passing, denied).unwrap();
        std::thread::spawn(move || {
            apply_filter(&filter).unwrap();
            tries()
        })
        .join()
        .unwrap()
    }

    #[test]
    fn a_stack_has_no_socket_that_reaches_a_path_or_another_protocol() {
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        for passing in [Passing::Ends, Passing::Nothing] {
            let refused =
                behind(passing, || NO_SOCKETS.iter().filter(|kind| is_denied(&socket(**kind))).count());
            assert_eq!(refused, NO_SOCKETS.len());
            let datagrams = behind(passing, move || {
                [0, flags].map(|flags| is_denied(&pair((libc::AF_UNIX, libc::SOCK_DGRAM | flags, 0))))
            });
            assert_eq!(datagrams, [true; 2]);
            let used = behind(passing, move || {
                SOCKETS.map(|(family, kind, protocol)| is_denied(&socket((family, kind | flags, protocol))))
            });
            assert_eq!(used, [false; SOCKETS.len()]);
        }
    }

    #[test]
    fn only_a_stack_with_brokers_or_members_passes_descriptors_on() {
        let tried = |passing| {
            behind(passing, || {
                (
                    is_denied(&pair(PAIRS[0])),
                    is_denied(&pair(PAIRS[1])),
                    is_denied(&send(libc::SYS_sendmsg, -1, 0)),
                )
            })
        };
        assert_eq!(tried(Passing::Ends), (false, false, false));
        assert_eq!(tried(Passing::Nothing), (true, true, true));
        assert!(behind(Passing::Ends, || is_denied(&send(libc::SYS_sendmmsg, -1, 0))));
    }
}
