//! 64-bit ARM. Not supported yet: there is no guest kernel for it.
//!
//! # Source
//! QEMU's `virt` machine has a PL011 as its console and PSCI, with which a guest can turn itself off.

use libc::c_long;
use seccompiler::TargetArch;

/// The architecture of filters of system calls.
pub(crate) const SECCOMP: TargetArch = TargetArch::aarch64;

/// The program that emulates it, and Debian's package of that program.
pub const QEMU_PROGRAM: &str = "qemu-system-aarch64";
/// See [`QEMU_PROGRAM`].
pub const QEMU_PACKAGE: &str = "qemu-system-arm";

/// `/proc/cpuinfo` does not tell whether there is hardware virtualisation; KVM does.
pub(crate) const CPU_FLAGS: [&str; 0] = [];

/// The processor that QEMU emulates: all features.
pub(crate) const EMULATED_CPU: &str = "max";

/// The host's processor without its performance counters, which reveal other guests.
pub(crate) const HARDWARE_CPU: &str = "host,pmu=off";

/// Kernel command line. `scsi_mod.scan=manual`: as for x86-64.
pub const KERNEL_COMMAND_LINE: &str = "console=ttyAMA0 panic=-1 scsi_mod.scan=manual";

/// There is `openat` only.
pub(crate) const OPEN: Option<c_long> = None;

/// There are no older calls.
pub(crate) const OLDER_QEMU_CALLS: &[c_long] = &[];

/// See [`OLDER_QEMU_CALLS`].
pub(crate) const OLDER_SUPERVISOR_CALLS: &[c_long] = &[];

/// See [`OLDER_QEMU_CALLS`].
pub(crate) const OLDER_BROKER_CALLS: &[c_long] = &[];

/// See [`OLDER_QEMU_CALLS`].
pub(crate) const OLDER_STACK_CALLS: &[c_long] = &[];

/// See [`OLDER_QEMU_CALLS`].
pub(crate) const OLDER_STARTER_CALLS: &[c_long] = &[];
