//! Confines the supervisor before it reads the first byte of a guest. From then on it can manage the machine that it
//! has started and nothing else: it cannot execute programs or create sockets, and it can open only files in the one
//! directory of its workspace that it writes to. The settings of the workspace are not there. It can kill what it has
//! started, through the descriptors that it has of these processes, and signal nothing else.
//!
//! The walls apply to the thread that communicates with the guest, from the call of [`confine`] on: a seccomp filter
//! that lists the allowed system calls, and Landlock rules. If root runs the supervisor, its only capability is the
//! one to end a QEMU of another user. Sockets and disks that were opened before stay open. No new program is needed:
//! QEMU resets a machine that restarts, and the QEMU that boots after a failed restore was forked before and waits.
//!
//! # Source
//! Linux `Documentation/userspace-api/seccomp_filter.rst` and `landlock.rst`. The calls are those that `strace` shows
//! of cold and warm starts, freezes, every request of a client, rotated logs, full disks and every end.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use landlock::{
    Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreated, RulesetError,
    Scope,
};
use libc::c_long;
use microagent_store::{StateDir, WorkspaceDir};
use rustix::process::getpid;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::architecture::{OLDER_SUPERVISOR_CALLS, OPEN, SECCOMP};
use crate::descriptors::leave_apart;
use crate::jail::{NEWEST, allow, give_up_capabilities, give_up_capabilities_but_kill};
use crate::spawn::Numbers;

/// Files of the system that may be read.
const SYSTEM_READ: [&str; 2] = ["/proc/sys/kernel/random/boot_id", "/proc/self"];

/// Devices that may be opened.
const DEVICES: [&str; 2] = ["/dev/null", "/dev/urandom"];

/// Calls that are allowed with any arguments.
const ALLOWED: &[c_long] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Files, below Landlock's rules.
    libc::SYS_close,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_linkat,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_sendfile,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
    // Events, time, randomness.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_getrandom,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_restart_syscall,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    // Sockets that there are, and clients of the control socket. No new ones.
    libc::SYS_accept4,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    // Signals as they are taken, and the end of what was started.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // What a process may know of itself, and how it ends.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// Allowed requests of `ioctl`: set a descriptor non-blocking, query how much can be read, and query whether it is a
/// terminal; take and answer a call of QEMU. Requests that insert input into a terminal are not allowed.
const IOCTL_REQUESTS: [u64; 5] = [
    libc::FIONBIO,
    libc::FIONREAD,
    libc::TCGETS,
    libc::SECCOMP_IOCTL_NOTIF_RECV,
    libc::SECCOMP_IOCTL_NOTIF_SEND,
];

/// Options of sockets that are read. None gives a descriptor of the process at the other end, as `SO_PEERPIDFD` does.
const SOCKET_OPTIONS: [i32; 2] = [libc::SO_ERROR, libc::SO_PEERCRED];

/// Commands of `fcntl`: copies of descriptors and their flags. None sends a signal: the owner of a pipe that is told of
/// its data can be any process.
const FCNTL_COMMANDS: [i32; 5] =
    [libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL];

/// How files are opened, as masks and values of the flags. What is opened for reading is not emptied, and the access mode
/// 3, which needs no right to a file and can empty it, is refused: Landlock covers truncation from Linux 6.2 on only.
const OPENED: [(i32, i32); 3] = [
    (libc::O_ACCMODE | libc::O_TRUNC, libc::O_RDONLY),
    (libc::O_ACCMODE, libc::O_WRONLY),
    (libc::O_ACCMODE, libc::O_RDWR),
];

/// What a supervisor needs after its confinement.
#[derive(Debug)]
pub(crate) struct Needs {
    /// Directory of its workspace.
    pub(crate) dir: WorkspaceDir,
    /// Directory of the templates.
    pub(crate) state: StateDir,
    /// What it does with templates.
    pub(crate) templates: Templates,
    /// Whether it removes its workspace itself at its end.
    pub(crate) removes: bool,
    /// Directories of control groups in which it removes groups.
    pub(crate) groups: Vec<PathBuf>,
    /// The processes that it has started, which it may kill and inspect.
    pub(crate) children: Vec<Numbers>,
    /// Whether one of them belongs to another user.
    pub(crate) other_user: bool,
}

/// What a supervisor does with templates.
#[derive(Debug)]
pub(crate) enum Templates {
    /// Nothing.
    None,
    /// It removes the template in this directory if it cannot be restored. The right to remove the directories of others
    /// is of no use: they are not empty.
    Discards(PathBuf),
    /// It creates a template in this directory, renames it, and removes surplus templates.
    Makes(PathBuf),
}

/// Confines the calling thread.
///
/// # Errors
/// Fails if the kernel supports Landlock and refuses the rules, or refuses the filter.
pub(crate) fn confine(needs: &Needs) -> io::Result<()> {
    match needs.other_user {
        true => give_up_capabilities_but_kill()?,
        false => give_up_capabilities()?,
    }
    rules(needs).and_then(|rules| rules.restrict_self().map(drop)).map_err(io::Error::other)?;
    leave_apart()?;
    let filter = filter(&needs.children).map_err(io::Error::other)?;
    seccompiler::apply_filter(&filter).map_err(io::Error::other)
}

/// Takes the permissions on templates away again, for good: a second set of Landlock rules without them, in addition to the
/// first one. The guest has run none of the image's programs before. `needs` is without templates.
///
/// # Errors
/// Fails when the kernel refuses the rules.
pub(crate) fn leave_templates(needs: &Needs) -> io::Result<()> {
    rules(needs).and_then(|rules| rules.restrict_self().map(drop)).map_err(io::Error::other)
}

fn rules(needs: &Needs) -> Result<RulesetCreated, RulesetError> {
    let all = AccessFs::from_all(NEWEST) & !AccessFs::Execute;
    // Files and directories, and nothing that leads elsewhere or that a reader would wait for.
    let own = AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        // What it kills is not in its domain: it was started before.
        .scope(Scope::AbstractUnixSocket)?
        .create()?;
    ruleset = allow(ruleset, &needs.dir.machine(), own)?;
    let removed = AccessFs::ReadDir | AccessFs::RemoveDir | AccessFs::RemoveFile;
    match &needs.templates {
        Templates::None => {}
        Templates::Discards(template) => {
            ruleset = allow(ruleset, &needs.state.templates(), AccessFs::RemoveDir.into())?;
            ruleset = allow(ruleset, template, removed)?;
        }
        Templates::Makes(scratch) => {
            // Those that are there are read and moved away, and not written to.
            let kept = removed | AccessFs::MakeDir | AccessFs::Refer;
            ruleset = allow(ruleset, &needs.state.templates(), kept | AccessFs::ReadFile)?;
            ruleset = allow(ruleset, &needs.state.tmp(), kept)?;
            ruleset = allow(ruleset, scratch, all)?;
        }
    }
    if needs.removes {
        // It is emptied where it is: a right to move it would be one to move all workspaces. The right to remove
        // directories of others is of use for empty ones only.
        ruleset = allow(ruleset, &needs.state.workspaces(), AccessFs::RemoveDir.into())?;
        ruleset = allow(ruleset, needs.dir.path(), removed)?;
        let lock = AccessFs::ReadFile | AccessFs::WriteFile;
        ruleset = allow(ruleset, &needs.dir.lock_file(), lock)?;
    }
    for parent in &needs.groups {
        ruleset = allow(ruleset, parent, AccessFs::RemoveDir.into())?;
    }
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let children = needs.children.iter().map(|child| PathBuf::from(format!("/proc/{}", child.pid)));
    for path in SYSTEM_READ.iter().map(PathBuf::from).chain(children) {
        ruleset = allow(ruleset, &path, read)?;
    }
    for path in DEVICES {
        ruleset = allow(ruleset, Path::new(path), AccessFs::ReadFile | AccessFs::WriteFile)?;
    }
    Ok(ruleset)
}

fn filter(children: &[Numbers]) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().chain(OLDER_SUPERVISOR_CALLS).map(|call| (*call, Vec::new())).collect();
    // Memory that is written is not executed: a call for both is not listed.
    let not_executable = [(libc::PROT_EXEC, 0)];
    rules.insert(libc::SYS_mmap, masked(2, &not_executable)?);
    rules.insert(libc::SYS_mprotect, masked(2, &not_executable)?);
    rules.insert(libc::SYS_openat, masked(2, &OPENED)?);
    if let Some(open) = OPEN {
        rules.insert(open, masked(1, &OPENED)?);
    }
    rules.insert(libc::SYS_fcntl, one_of(1, FCNTL_COMMANDS.map(bits))?);
    // Times of what is open. Landlock has no rule for times and modes, so no call changes them by a path.
    rules.insert(libc::SYS_utimensat, vec![rule(1, SeccompCmpOp::Eq, 0)?]);
    rules.insert(libc::SYS_ioctl, one_of(1, IOCTL_REQUESTS)?);
    // More rules of Landlock, which only take away.
    for call in
        [libc::SYS_landlock_create_ruleset, libc::SYS_landlock_add_rule, libc::SYS_landlock_restrict_self]
    {
        rules.insert(call, Vec::new());
    }
    rules.insert(libc::SYS_prctl, one_of(0, [libc::PR_SET_NO_NEW_PRIVS.unsigned_abs().into()])?);
    rules.insert(libc::SYS_getsockopt, options()?);
    // The end of an abort.
    rules.insert(libc::SYS_tgkill, one_of(0, [bits(getpid().as_raw_nonzero().get())])?);
    let killed = children.iter().map(|child| kills(child.handle)).collect::<Result<Vec<_>, _>>()?;
    if !killed.is_empty() {
        rules.insert(libc::SYS_pidfd_send_signal, killed);
    }
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    SeccompFilter::new(rules, denied, SeccompAction::Allow, SECCOMP)?.try_into()
}

/// A call that kills the process with this descriptor, whose number no other descriptor can have, and not its group.
fn kills(handle: RawFd) -> Result<SeccompRule, BackendError> {
    let without_group = condition(3, SeccompCmpOp::Eq, 0)?;
    let by_handle = condition(0, SeccompCmpOp::Eq, bits(handle))?;
    SeccompRule::new(vec![by_handle, condition(1, SeccompCmpOp::Eq, bits(libc::SIGKILL))?, without_group])
}

/// A call that reads one of the listed options.
fn options() -> Result<Vec<SeccompRule>, BackendError> {
    let of_socket = |option: &i32| {
        let level = condition(1, SeccompCmpOp::Eq, bits(libc::SOL_SOCKET))?;
        SeccompRule::new(vec![level, condition(2, SeccompCmpOp::Eq, bits(*option))?])
    };
    SOCKET_OPTIONS.iter().map(of_socket).collect()
}

/// An argument, counted from 0, that has one of these values.
fn one_of(number: u8, values: impl IntoIterator<Item = u64>) -> Result<Vec<SeccompRule>, BackendError> {
    values.into_iter().map(|value| rule(number, SeccompCmpOp::Eq, value)).collect()
}

/// An argument that has the value of one of these pairs where its mask has ones.
fn masked(number: u8, pairs: &[(i32, i32)]) -> Result<Vec<SeccompRule>, BackendError> {
    let rules =
        pairs.iter().map(|(mask, value)| rule(number, SeccompCmpOp::MaskedEq(bits(*mask)), bits(*value)));
    rules.collect()
}

fn rule(number: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![condition(number, operator, value)?])
}

fn condition(number: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(number, SeccompCmpArgLen::Dword, operator, value)
}

/// The bits of an `int` as an argument of a system call has them.
fn bits(value: i32) -> u64 {
    value.cast_unsigned().into()
}

#[cfg(test)]
mod tests;
