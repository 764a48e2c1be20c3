//! Prevents core dumps, which would contain secrets.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Limit of core dumps in bytes: too small for any. With 1 the kernel also does not start a program to which dumps
/// are piped (with 0 it does).
const NO_CORE: u64 = 1;

/// Disables core dumps of this process and of its later child processes. Other processes of the same user can no longer
/// attach to this process or read its memory; child processes can be attached to.
///
/// # Source
/// `core(5)`, `PR_SET_DUMPABLE(2const)`; Linux `fs/coredump.c` for the limit of 1.
pub fn never_dump_core() {
    // A process may always give up rights of its own, but for a limit that is lower already.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    for limit in [NO_CORE, 0] {
        if setrlimit(Resource::Core, Rlimit { current: Some(limit), maximum: Some(limit) }).is_ok() {
            return;
        }
    }
}
