//! What depends on the processor of host and guest: one module for each architecture, with the same names in it.
//!
//! Nothing else in this crate names an architecture, and its lists of system calls have only those that every
//! architecture has; `cargo xtask tidy` checks both. Only x86-64 is supported: for others there is no guest kernel.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
use aarch64 as here;
#[cfg(target_arch = "x86_64")]
use x86_64 as here;

pub(crate) use here::{
    CPU_FLAGS, EMULATED_CPU, HARDWARE_CPU, OLDER_BROKER_CALLS, OLDER_QEMU_CALLS, OLDER_STACK_CALLS,
    OLDER_STARTER_CALLS, OLDER_SUPERVISOR_CALLS, OPEN, SECCOMP,
};
pub use here::{KERNEL_COMMAND_LINE, QEMU_PACKAGE, QEMU_PROGRAM};
