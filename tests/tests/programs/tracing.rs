//! Programs that look into the kernel.

use crate::support::Guests;

/// A tracepoint, and a probe of the kernel with the types of its BTF.
const PROBES: [(&str, &str); 2] = [
    ("tracepoint:syscalls:sys_enter_openat /comm == \"cat\"/ { @[comm] = count(); }", "@[cat]: "),
    (
        "kprobe:vfs_read { $t = (struct task_struct *)curtask; @[$t->real_parent->tgid > 0] = count(); }",
        "@[1]: ",
    ),
];

#[test]
#[ignore = "cargo xtask programs"]
fn bpftrace_sees_calls_and_types_of_the_kernel() {
    let mut guests = Guests::of("tools");
    guests.start("box", 1024, &["--network", "isolated"]);
    guests.sh("box", "mount -t debugfs debugfs /sys/kernel/debug");
    for (probe, wanted) in PROBES {
        let lines = format!("bpftrace -e '{probe}' -c '/bin/cat /etc/hostname'");
        let printed = guests.sh("box", &lines);
        assert!(printed.contains(wanted), "{probe}: {printed}");
    }
    guests.end();
}
