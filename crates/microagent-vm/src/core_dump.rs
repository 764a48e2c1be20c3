//! Keeping what a process holds in memory out of files that it leaves when it crashes.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Bytes of a core dump: too few for any, and the one number that a program which the kernel pipes dumps into is
/// not started for either (0 does not keep it from being started).
const NO_CORE: u64 = 1;

/// Sees to it that no core is dumped of this process and of those that it starts from here on, and that no other
/// process of the same user can attach to this one or read its memory. What it starts can be attached to again.
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
