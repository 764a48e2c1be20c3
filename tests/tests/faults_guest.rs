//! A guest that floods whatever it can write to. The host keeps what it bounded, counts what it dropped, and
//! needs no more memory than before.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;

use microagent_tests::process::Process;
use microagent_tests::{Finished, Home, Running, User};

/// Most memory of a supervisor, in KiB: far below what a flood would need if it were kept.
const SUPERVISOR_KIB: u64 = 48 * 1024;

/// Bound of a console log with the file before it, in bytes.
const CONSOLE_BYTES: u64 = 16 * 1024 * 1024;

/// Bound of a run's output, in bytes.
const OUTPUT_BYTES: u64 = 256 * 1024 * 1024;

/// Runs to the end and gives the most memory that the supervisor ever had, in KiB.
fn watch(mut running: Running<'_>) -> (Finished, u64) {
    let supervisor: Process = running.supervisor();
    let mut most = 0;
    while !running.is_over() {
        most = most.max(supervisor.memory_kib("VmHWM").unwrap_or(0));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(most > 0, "the supervisor was never seen");
    (running.finish(), most)
}

#[track_caller]
fn bounded_console(home: &Home, name: &str) {
    let dir = home.workspace(name).join("machine");
    let bytes: u64 = ["console.log", "console.log.1"]
        .iter()
        .filter_map(|log| fs::metadata(dir.join(log)).ok())
        .map(|m| m.len())
        .sum();
    assert!(bytes <= CONSOLE_BYTES, "{bytes} bytes of console log");
}

#[test]
fn a_flooded_console_stays_bounded() {
    let home = Home::new(User::Caller);
    let flood =
        "yes 'all work and no play' > /dev/console & cat /dev/zero > /dev/console & sleep 5; echo done";
    let options = ["--keep", "--name", "flood", "--network", "isolated"];
    let (run, most) = watch(home.run("busybox", options, &["sh", "-c", flood]).start());
    let run = run.code(0);
    assert_eq!(run.guest_output(), "done\n");
    assert!(most < SUPERVISOR_KIB, "the supervisor needed {most} KiB");
    bounded_console(&home, "flood");
    let logs = home.microagent(["logs", "flood"]).success();
    assert!(!logs.stdout.is_empty() && logs.stdout.len() as u64 <= CONSOLE_BYTES);
    home.microagent(["delete", "flood", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn flooded_output_is_kept_up_to_its_bound_and_the_rest_is_counted() {
    let home = Home::new(User::Caller);
    let blocks = OUTPUT_BYTES / 65_536 + 77;
    let flood = format!("dd if=/dev/zero bs=64k count={blocks} 2> /dev/null; echo the end >&2");
    let options = ["--keep", "--name", "flood", "--network", "isolated"];
    let (run, most) = watch(home.run("busybox", options, &["sh", "-c", &flood]).start());
    assert_eq!(run.status.code(), Some(0), "{}", run.stderr);
    assert!(run.stderr.contains("5046272 bytes of output were dropped"), "{}", run.stderr);
    assert!(run.stderr.contains("the end\n"), "{}", run.stderr);
    let summary = run.stdout.windows(2).position(|two| two == b"\n\n").unwrap() + 2;
    assert_eq!((run.stdout.len() - summary) as u64, OUTPUT_BYTES);
    assert!(most < SUPERVISOR_KIB, "the supervisor needed {most} KiB");
    bounded_console(&home, "flood");
    home.microagent(["delete", "flood", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn rubbish_on_the_control_channel_ends_no_worse_than_in_a_clear_error() {
    let home = Home::new(User::Caller);
    let rubbish =
        "for port in /dev/vport*; do head -c 3000000 /dev/urandom > $port; done 2>/dev/null; echo survived";
    let run = home.run("busybox", ["--network", "isolated"], &["sh", "-c", rubbish]).run();
    match run.status.code() {
        Some(0) => assert_eq!(run.guest_output(), "survived\n"),
        Some(1) => {
            let name = run.failed_workspace();
            assert!(run.stderr.starts_with("Error: run workspace"), "{}", run.told());
            home.microagent(["delete", name, "--yes"]).success();
        }
        _ => panic!("{}", run.told()),
    }
    home.nothing_is_left();
}
