//! The jail of brokers, which allows what TLS connections and name lookups need.
//!
//! Two walls, each of which holds without the other. Landlock allows reading the files by which the C library looks names
//! up, and TCP connections to the upstreams' ports and to name servers; it denies all other files, listening, and
//! signals and abstract sockets to the outside. The filter of system calls denies programs, processes, listening, files
//! for writing, other processes' memory, and sockets but those of TCP and of UDP, which name lookups use. What it denies fails with `EPERM`,
//! because modules for name lookup try much that they do not need.
//!
//! # Source
//! `seccomp(2)`; Linux `Documentation/userspace-api/landlock.rst`; `nsswitch.conf(5)`, `resolv.conf(5)`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    Access, AccessFs, AccessNet, CompatLevel, Compatible, NetPort, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, Scope,
};
use rustix::process::getpid;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

use crate::architecture::{OLDER_BROKER_CALLS, SECCOMP};
use crate::jail::sockets::{Kind, kinds};
use crate::jail::starter::restrict_starter;
use crate::jail::{NEWEST, allow};

/// What the C library reads when it looks a name up: its settings, and the modules that these name.
const LOOKUP_PATHS: [&str; 15] = [
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/nsswitch.conf",
    "/etc/resolv.conf",
    "/etc/services",
    "/lib",
    "/lib64",
    "/run/NetworkManager",
    "/run/resolvconf",
    "/run/systemd/resolve",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
];

/// Port of name servers, which are asked by TCP when an answer is long.
const DNS_PORT: u16 = 53;

/// Calls of TLS connections, of threads that look names up, of the allocator, and of a process that ends.
const CALLS: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_connect,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpeername,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_newfstatat,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_statx,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_write,
    libc::SYS_writev,
];

/// What makes `clone` make a thread of this process.
const THREAD: i32 =
    libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;

/// What opening a file may not be: for writing, or new.
const NOT_OPENED: i32 = libc::O_ACCMODE | libc::O_TRUNC | libc::O_CREAT;

/// Sockets of TCP, and of UDP for name lookups. Landlock has a rule for the ports of TCP only: not for those of Multipath
/// TCP, which is TCP on the wire.
const SOCKETS: [Kind; 8] = [
    (libc::AF_INET, libc::SOCK_STREAM, 0),
    (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP),
    (libc::AF_INET, libc::SOCK_DGRAM, 0),
    (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDP),
    (libc::AF_INET6, libc::SOCK_STREAM, 0),
    (libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP),
    (libc::AF_INET6, libc::SOCK_DGRAM, 0),
    (libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP),
];

/// Options of sockets, each with its level. None attaches a program or binds to a device.
const SOCKET_OPTIONS: [(libc::c_int, libc::c_int); 7] = [
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_LINGER),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_IP, libc::IP_RECVERR),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
    (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
];

/// Commands of `fcntl`: copies of descriptors, and flags.
const FCNTL_COMMANDS: [libc::c_int; 5] =
    [libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL];

/// Restricts what this process and its children can open, connect to and signal.
///
/// # Errors
/// When the kernel supports Landlock and refuses the rules.
pub(super) fn restrict_objects(ports: impl Iterator<Item = u16>) -> io::Result<()> {
    restrict(ports).map_err(io::Error::other)
}

fn restrict(ports: impl Iterator<Item = u16>) -> Result<(), RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    for path in LOOKUP_PATHS.iter().map(PathBuf::from).chain(directory_of_resolv_conf()) {
        rules = allow(rules, &path, read)?;
    }
    for port in ports.chain([DNS_PORT]) {
        rules = rules.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
    }
    rules.restrict_self().map(drop)
}

/// The directory below `/run` that `/etc/resolv.conf` leads to: programs replace the file there.
fn directory_of_resolv_conf() -> Option<PathBuf> {
    let file = Path::new("/etc/resolv.conf").canonicalize().ok()?;
    let directory = file.parent()?;
    (directory.starts_with("/run") && directory != Path::new("/run")).then(|| directory.to_owned())
}

/// Restricts the system calls of the guard and of what it starts.
///
/// # Errors
/// When the kernel refuses the filter.
pub(super) fn restrict_guard() -> io::Result<()> {
    restrict_starter(&[CALLS, OLDER_BROKER_CALLS], &[&SOCKETS])
}

/// Restricts the system calls of this process.
///
/// # Errors
/// When the kernel refuses the filter.
pub(super) fn restrict_calls() -> io::Result<()> {
    // The one that allows little comes last: it does not allow another one.
    for filter in [without_clone3(), allowing()] {
        apply_filter(&filter.map_err(io::Error::other)?).map_err(io::Error::other)?;
    }
    Ok(())
}

/// A filter cannot read the flags of `clone3`, which are in memory. The C library uses `clone` where it is missing.
fn without_clone3() -> Result<BpfProgram, BackendError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, missing, SECCOMP)?.try_into()
}

fn allowing() -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        CALLS.iter().chain(OLDER_BROKER_CALLS).map(|call| (*call, Vec::new())).collect();
    // The other filter answers it.
    rules.insert(libc::SYS_clone3, Vec::new());
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![masked(0, THREAD, THREAD)?])?]);
    rules.insert(libc::SYS_openat, vec![SeccompRule::new(vec![masked(2, NOT_OPENED, libc::O_RDONLY)?])?]);
    // The end of an abort.
    rules.insert(libc::SYS_tgkill, one_of(0, &[getpid().as_raw_nonzero().get()])?);
    // Names of threads and of memory.
    rules.insert(libc::SYS_prctl, one_of(0, &[libc::PR_SET_NAME, libc::PR_SET_VMA])?);
    rules.insert(libc::SYS_socket, kinds(&SOCKETS)?);
    // The runtime wakes itself by one. Both ends stay connected to each other.
    rules.insert(libc::SYS_socketpair, kinds(&[(libc::AF_UNIX, libc::SOCK_STREAM, 0)])?);
    // Landlock looks at the connections that `connect` makes, and not at those that a sent message makes.
    let not_connecting = |number| masked(number, libc::MSG_FASTOPEN, 0);
    let nowhere = SeccompCondition::new(4, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    rules.insert(libc::SYS_sendto, vec![SeccompRule::new(vec![not_connecting(3)?, nowhere])?]);
    rules.insert(libc::SYS_sendmmsg, vec![SeccompRule::new(vec![not_connecting(3)?])?]);
    // Memory that is written is never executed; modules for name lookup are mapped from their files.
    let plain = [libc::PROT_NONE, libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE];
    let executable = libc::PROT_READ | libc::PROT_EXEC;
    rules.insert(libc::SYS_mprotect, one_of(2, &plain)?);
    rules.insert(libc::SYS_mmap, one_of(2, &[plain.as_slice(), &[executable]].concat())?);
    rules.insert(libc::SYS_fcntl, one_of(1, &FCNTL_COMMANDS)?);
    // Both are small and positive.
    rules.insert(libc::SYS_ioctl, one_of(1, &[libc::FIONREAD as libc::c_int, libc::FIONBIO as libc::c_int])?);
    let options = SOCKET_OPTIONS
        .into_iter()
        .map(|(level, option)| SeccompRule::new(vec![equals(1, level)?, equals(2, option)?]));
    rules.insert(libc::SYS_setsockopt, options.collect::<Result<_, _>>()?);
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    SeccompFilter::new(rules, denied, SeccompAction::Allow, SECCOMP)?.try_into()
}

/// Rules that are met when an argument, counted from 0, has one of these values.
fn one_of(number: u8, values: &[libc::c_int]) -> Result<Vec<SeccompRule>, BackendError> {
    values.iter().map(|value| SeccompRule::new(vec![equals(number, *value)?])).collect()
}

fn equals(number: u8, value: libc::c_int) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(number, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, bits(value))
}

fn masked(number: u8, mask: libc::c_int, value: libc::c_int) -> Result<SeccompCondition, BackendError> {
    let operator = SeccompCmpOp::MaskedEq(bits(mask));
    SeccompCondition::new(number, SeccompCmpArgLen::Dword, operator, bits(value))
}

/// The bits of an `int` as an argument of a system call has them.
fn bits(value: libc::c_int) -> u64 {
    u64::from(value.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jail::sockets::tries::{NO_SOCKETS, is_denied, pair, send, socket};

    #[test]
    fn brokers_have_no_socket_that_landlock_has_no_rule_for_but_udp() {
        std::thread::spawn(|| {
            restrict_calls().unwrap();
            for kind in NO_SOCKETS {
                assert!(is_denied(&socket(*kind)), "{kind:?}");
            }
            for (family, kind, protocol) in SOCKETS {
                let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
                assert!(!is_denied(&socket((family, kind, protocol))), "{family} {kind} {protocol}");
            }
            for kind in [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC] {
                assert!(is_denied(&pair((libc::AF_UNIX, kind, 0))), "{kind}");
            }
            pair((libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0)).unwrap();
            let tcp = socket((libc::AF_INET, libc::SOCK_STREAM, 0)).unwrap();
            for (call, flags, denied) in [
                (libc::SYS_sendto, 0, true),
                (libc::SYS_sendmsg, 0, true),
                (libc::SYS_sendmmsg, libc::MSG_FASTOPEN, true),
                (libc::SYS_sendmmsg, libc::MSG_NOSIGNAL, false),
            ] {
                assert_eq!(is_denied(&send(call, tcp, flags)), denied, "{call} {flags}");
            }
        })
        .join()
        .unwrap();
    }
}
