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

/// Where a call has the argument that tells it apart, and the value.
type Argument = Option<(u8, u64)>;

fn main() {
    let mut words = std::env::args().skip(1);
    let wall = words.next().expect("the first argument is a wall");
    let program = words.next().expect("the second argument is a program");
    let (calls, result): (&[(i64, Argument)], u32) = match wall.as_str() {
        // As a kernel without Landlock answers.
        "landlock" => (&[(libc::SYS_landlock_create_ruleset, None)], libc::ENOSYS as u32),
        // They succeed without doing anything.
        "filter" => (&[(libc::SYS_seccomp, Some((0, libc::SECCOMP_SET_MODE_FILTER as u64)))], 0),
        "user" => (
            &[
                (libc::SYS_setresuid, None),
                (libc::SYS_setresgid, None),
                (libc::SYS_setgroups, None),
                (libc::SYS_capset, None),
                (libc::SYS_prctl, Some((0, libc::PR_CAPBSET_DROP as u64))),
                (libc::SYS_prctl, Some((0, libc::PR_SET_SECUREBITS as u64))),
            ],
            0,
        ),
        // As Ubuntu and hardened hosts answer ordinary users.
        "namespaces" => (&[(libc::SYS_unshare, None), (libc::SYS_setns, None)], libc::EPERM as u32),
        // As some network file systems answer.
        "locks" => (
            &[
                (libc::SYS_flock, None),
                (libc::SYS_fcntl, Some((1, libc::F_SETLK as u64))),
                (libc::SYS_fcntl, Some((1, libc::F_SETLKW as u64))),
                (libc::SYS_fcntl, Some((1, libc::F_OFD_SETLK as u64))),
                (libc::SYS_fcntl, Some((1, libc::F_OFD_SETLKW as u64))),
            ],
            libc::ENOLCK as u32,
        ),
        "reflink" => (
            &[(libc::SYS_ioctl, Some((1, libc::FICLONE))), (libc::SYS_copy_file_range, None)],
            libc::EOPNOTSUPP as u32,
        ),
        "links" => (&[(libc::SYS_link, None), (libc::SYS_linkat, None)], libc::EPERM as u32),
        "vsock" => (&[(libc::SYS_socket, Some((0, libc::AF_VSOCK as u64)))], libc::EAFNOSUPPORT as u32),
        "ipv6" => (&[(libc::SYS_socket, Some((0, libc::AF_INET6 as u64)))], libc::EAFNOSUPPORT as u32),
        "netlink" => (&[(libc::SYS_socket, Some((0, libc::AF_NETLINK as u64)))], libc::EACCES as u32),
        "pidfd" => (&[(libc::SYS_pidfd_open, None)], libc::ENOSYS as u32),
        other => panic!("`{other}` is not a wall"),
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for (call, argument) in calls {
        let rules = rules.entry(*call).or_default();
        if let Some((index, value)) = argument {
            let condition = SeccompCondition::new(*index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *value);
            let rule = SeccompRule::new(vec![condition.expect("the argument exists")]);
            rules.push(rule.expect("a rule has a condition"));
        }
    }
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(result), TargetArch::x86_64);
    let filter: seccompiler::BpfProgram =
        filter.and_then(TryInto::try_into).expect("the filter is well-formed");
    seccompiler::apply_filter(&filter).expect("the kernel takes the filter");
    let error = Command::new(&program).args(words).exec();
    panic!("cannot execute {program}: {error}");
}
