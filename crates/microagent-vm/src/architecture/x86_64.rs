//! x86-64.

use libc::c_long;
use seccompiler::TargetArch;

/// The architecture of filters of system calls.
pub(crate) const SECCOMP: TargetArch = TargetArch::x86_64;

/// The program that emulates it, and Debian's package of that program.
pub const QEMU_PROGRAM: &str = "qemu-system-x86_64";
/// See [`QEMU_PROGRAM`].
pub const QEMU_PACKAGE: &str = "qemu-system-x86";

/// Flags of a processor that has hardware virtualisation, as `/proc/cpuinfo` names them.
pub(crate) const CPU_FLAGS: [&str; 2] = ["vmx", "svm"];

/// The processor that QEMU emulates: all features except fast `rep movsb` and `rep stosb` (ERMS). Under emulation these
/// instructions process single bytes, and kernel and C library would use them for all copying and clearing.
pub(crate) const EMULATED_CPU: &str = "max,erms=off";

/// The host's processor without features that are useful mostly to an attacker: nested virtualisation, which the host's
/// kernel would emulate, and the host's performance counters, which reveal other guests.
pub(crate) const HARDWARE_CPU: &str = "host,svm=off,vmx=off,pmu=off";

/// Kernel command line. `reboot=t` and `panic=-1`: a machine without ACPI ends by a triple fault, which
/// QEMU takes as a reset and, with `-no-reboot`, as the end. `scsi_mod.scan=manual`: walking hundreds of
/// empty SCSI targets takes very long under TCG; the agent scans the targets that it needs.
pub const KERNEL_COMMAND_LINE: &str = "console=ttyS0 reboot=t panic=-1 scsi_mod.scan=manual";

/// The call that opens a file by its path alone.
pub(crate) const OPEN: Option<c_long> = Some(libc::SYS_open);

/// Calls of QEMU that newer architectures do not have, and the one for the thread pointer.
pub(crate) const OLDER_QEMU_CALLS: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_getdents,
    libc::SYS_getrlimit,
    libc::SYS_lstat,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_time,
];

/// The same of a supervisor.
pub(crate) const OLDER_SUPERVISOR_CALLS: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_epoll_wait,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_stat,
    libc::SYS_unlink,
];

/// The same of the brokers' process.
pub(crate) const OLDER_BROKER_CALLS: &[c_long] =
    &[libc::SYS_access, libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_stat];

/// The same of a process that starts one of these two.
pub(crate) const OLDER_STARTER_CALLS: &[c_long] =
    &[libc::SYS_access, libc::SYS_poll, libc::SYS_readlink, libc::SYS_stat];

/// The same of a network stack.
pub(crate) const OLDER_STACK_CALLS: &[c_long] = &[libc::SYS_epoll_wait];
