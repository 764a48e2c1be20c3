//! The machine goes wrong: its programs are missing or killed, its kernel panics, is not a kernel, or never answers.
//!
//! Each time: one clear error, a true record, readable logs, a workspace that can be deleted, and nothing left.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::os::unix::fs::symlink;

use microagent_tests::{Finished, Home, User, host, kernel};
use rustix::process::Signal;

fn home() -> Home {
    Home::new(User::Caller)
}

/// A failed run left a record that tells the truth and can be deleted.
#[track_caller]
fn failed_and_deletable(home: &Home, run: &Finished) {
    let name = run.failed_workspace();
    home.processes_end();
    assert_eq!(home.state_of(name), "failed");
    home.microagent(["logs", name]).success();
    home.microagent(["delete", name, "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_missing_program_is_named_with_its_package() {
    let home = home();
    let bin = home.make_dir("bin");
    let run = home.run("busybox", [], &["true"]).env("PATH", &bin).run().code(1);
    let run = run.says("`qemu-system-x86_64` is not installed").says("apt-get install qemu-system-x86");
    assert_eq!(run.text(), "");
    let doctor = home.microagent(["doctor"]).env("PATH", &bin).run().code(1);
    assert!(doctor.text().contains("qemu-system-x86"), "{}", doctor.told());
    home.nothing_is_left();

    symlink(host::find_program("qemu-system-x86_64"), bin.join("qemu-system-x86_64")).unwrap();
    // Nothing but QEMU is needed, with a network as well.
    home.run("busybox", ["--network", "user"], &["true"]).env("PATH", &bin).success();
    home.nothing_is_left();
}

#[test]
fn qemu_killed_during_boot_fails_the_run() {
    let home = home();
    // A command that does not end by itself, however late QEMU is killed.
    let running = home.run("busybox", [], &["sleep", "600"]).start();
    running.qemu().signal(Signal::KILL);
    let run = running.finish().code(1).says("QEMU was killed by signal 9");
    failed_and_deletable(&home, &run);
}

#[test]
fn qemu_killed_during_the_command_fails_the_run() {
    let home = home();
    let running =
        home.run("busybox", ["--json", "--name", "victim"], &["sh", "-c", "echo working; sleep 600"]).start();
    home.log_has("victim", "console.log", "working");
    running.qemu().signal(Signal::KILL);
    let run = running.finish().code(1);
    let error = run.json_error();
    assert_eq!(error["kind"], "run_failed", "{}", run.told());
    assert_eq!(error["retryable"], false, "{}", run.told());
    assert!(error["message"].as_str().unwrap().contains("QEMU was killed by signal 9"), "{}", run.told());
    let logs = home.microagent(["logs", "victim"]).success();
    assert!(logs.text().contains("working"), "{}", logs.told());
    failed_and_deletable(&home, &run);
}

#[test]
fn a_panic_of_the_guest_kernel_is_reported_as_one() {
    let home = home();
    let panic = "echo 2 > /proc/sys/vm/panic_on_oom && tail /dev/zero";
    let run =
        home.run("busybox", ["--memory", "80", "--network", "isolated"], &["sh", "-c", panic]).run().code(1);
    let run = run.says("the guest kernel panicked").says("Out of memory");
    failed_and_deletable(&home, &run);
}

#[test]
fn a_guest_that_restarts_itself_fails_the_run() {
    let home = home();
    let run = home.run("busybox", ["--network", "isolated"], &["reboot", "-f"]).run().code(1);
    let run = run.says("the guest restarted itself");
    failed_and_deletable(&home, &run);
}

#[test]
fn a_guest_that_never_answers_is_given_up() {
    let home = home();
    let silent = home.write("silent", kernel::elf(kernel::SILENT));
    let silent = silent.to_str().unwrap();
    let run = home.run("busybox", ["--kernel", silent, "--network", "isolated"], &["true"]);
    let run =
        run.env("MICROAGENT_BOOT_TIMEOUT", "10").run().code(1).says("the guest did not answer within 10 s");
    failed_and_deletable(&home, &run);

    let run = home.run("busybox", ["--kernel", silent, "--timeout", "1"], &["true"]).run().code(1);
    let run = run.says("signal: killed");
    failed_and_deletable(&home, &run);
}

#[test]
fn a_kernel_that_is_none_is_refused_or_fails_the_run() {
    let home = home();
    let missing = home.run("busybox", ["--kernel", "./no-such-file"], &["true"]).failure();
    missing.says("no-such-file");
    let rubbish = home.write("rubbish", "this is not a kernel\n");
    let rubbish = home.run("busybox", ["--kernel", rubbish.to_str().unwrap()], &["true"]).failure();
    assert!(rubbish.stderr.contains("rubbish"), "{}", rubbish.told());

    let crashing = home.write("crashing", kernel::elf(kernel::CRASHING));
    let run = home.run("busybox", ["--kernel", crashing.to_str().unwrap()], &["true"]).run().code(1);
    let run = run.says("the guest restarted itself");
    failed_and_deletable(&home, &run);
}
