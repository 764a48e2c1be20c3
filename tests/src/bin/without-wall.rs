//! Runs a command on a host that lacks one wall, or something else: `without-wall WALL COMMAND…`.
//!
//! A seccomp filter makes the system calls that raise the wall do nothing, for the command and all that it starts, so
//! that the product behaves as it does on a kernel without that wall, or as if it had a fault there.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::Command;

use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use Argument::{Any, HasBits, Is};

/// Where a call has the argument that tells it apart, and what it is.
#[derive(Debug, Clone, Copy)]
enum Argument {
    Any,
    Is(u8, u64),
    HasBits(u8, u64),
}

/// Memory that can be written and executed, as emulation needs it.
const WRITE_AND_EXECUTE: u64 = (libc::PROT_WRITE | libc::PROT_EXEC) as u64;

/// The bit of `O_TMPFILE` that `O_DIRECTORY` does not have.
const TMPFILE_BIT: u64 = (libc::O_TMPFILE & !libc::O_DIRECTORY) as u64;

fn main() {
    let mut words = std::env::args().skip(1);
    let wall = words.next().expect("the first argument is a wall");
    let program = words.next().expect("the second argument is a program");
    let (calls, result) = calls_without(&wall);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for (call, argument) in calls {
        let rules = rules.entry(*call).or_default();
        let (index, is, value) = match *argument {
            Any => continue,
            Is(index, value) => (index, SeccompCmpOp::Eq, value),
            HasBits(index, bits) => (index, SeccompCmpOp::MaskedEq(bits), bits),
        };
        let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, is, value);
        let rule = SeccompRule::new(vec![condition.expect("the argument exists")]);
        rules.push(rule.expect("a rule has a condition"));
    }
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(result), TargetArch::x86_64);
    let filter: seccompiler::BpfProgram =
        filter.and_then(TryInto::try_into).expect("the filter is well-formed");
    seccompiler::apply_filter(&filter).expect("the kernel takes the filter");
    let error = Command::new(&program).args(words).exec();
    panic!("cannot execute {program}: {error}");
}

/// The calls that a host without this wall answers itself, and the number of the error, or 0.
fn calls_without(wall: &str) -> (&'static [(i64, Argument)], u32) {
    match wall {
        // As a kernel without Landlock answers.
        "landlock" => (&[(libc::SYS_landlock_create_ruleset, Any)], libc::ENOSYS as u32),
        // They succeed without doing anything.
        "filter" => (&[(libc::SYS_seccomp, Is(0, libc::SECCOMP_SET_MODE_FILTER as u64))], 0),
        "user" => (
            &[
                (libc::SYS_setresuid, Any),
                (libc::SYS_setresgid, Any),
                (libc::SYS_setgroups, Any),
                (libc::SYS_capset, Any),
                (libc::SYS_prctl, Is(0, libc::PR_CAPBSET_DROP as u64)),
                (libc::SYS_prctl, Is(0, libc::PR_SET_SECUREBITS as u64)),
            ],
            0,
        ),
        // As Ubuntu and hardened hosts answer ordinary users.
        "namespaces" => (&[(libc::SYS_unshare, Any), (libc::SYS_setns, Any)], libc::EPERM as u32),
        // As some network file systems answer.
        "locks" => (
            &[
                (libc::SYS_flock, Any),
                (libc::SYS_fcntl, Is(1, libc::F_SETLK as u64)),
                (libc::SYS_fcntl, Is(1, libc::F_SETLKW as u64)),
                (libc::SYS_fcntl, Is(1, libc::F_OFD_SETLK as u64)),
                (libc::SYS_fcntl, Is(1, libc::F_OFD_SETLKW as u64)),
            ],
            libc::ENOLCK as u32,
        ),
        "reflink" => (
            &[(libc::SYS_ioctl, Is(1, libc::FICLONE)), (libc::SYS_copy_file_range, Any)],
            libc::EOPNOTSUPP as u32,
        ),
        // As SELinux answers a program that is not trusted with it.
        "execmem" => (
            &[
                (libc::SYS_mmap, HasBits(2, WRITE_AND_EXECUTE)),
                (libc::SYS_mprotect, HasBits(2, WRITE_AND_EXECUTE)),
            ],
            libc::EACCES as u32,
        ),
        // As NFS and some FUSE file systems answer.
        "tmpfile" => (&[(libc::SYS_openat, HasBits(2, TMPFILE_BIT))], libc::EOPNOTSUPP as u32),
        "links" => (&[(libc::SYS_link, Any), (libc::SYS_linkat, Any)], libc::EPERM as u32),
        "vsock" => (&[(libc::SYS_socket, Is(0, libc::AF_VSOCK as u64))], libc::EAFNOSUPPORT as u32),
        "ipv6" => (&[(libc::SYS_socket, Is(0, libc::AF_INET6 as u64))], libc::EAFNOSUPPORT as u32),
        "netlink" => (&[(libc::SYS_socket, Is(0, libc::AF_NETLINK as u64))], libc::EACCES as u32),
        "pidfd" => (&[(libc::SYS_pidfd_open, Any)], libc::ENOSYS as u32),
        other => panic!("`{other}` is not a wall"),
    }
}
