//! Machines that their guest, another command or an accident ends: what waits returns and says why, and nothing is left.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use microagent_tests::process::Process;
use microagent_tests::{Finished, Home, Running, User, wait_for};
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(120);

const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";

fn in_guest(home: &Home, line: &str) -> Finished {
    home.microagent(["exec", "web", "--", "sh", "-c", line]).run()
}

/// What the line prints once it can be run, unless that is still this.
#[track_caller]
fn prints_something_else(home: &Home, line: &str, before: &str) -> String {
    wait_for("the guest to be up again", PATIENCE, || {
        let exec = in_guest(home, line);
        let is_new = exec.status.success() && exec.stdout != before.as_bytes();
        if is_new { Ok(exec.text().to_owned()) } else { Err(exec.told()) }
    })
}

#[test]
fn a_workspace_that_restarts_itself_boots_again_as_the_same_machine() {
    let home = Home::new(User::unprivileged());
    let service = "echo up >> /root/starts; cat /run/secrets/TOKEN > /root/token; sync; sleep 100000";
    let create =
        ["create", "web", "--network", "isolated", "--profile", "tiny", "--secret", "TOKEN=env:TOKEN"];
    home.call()
        .args(create)
        .args(["--service-command", service, "--image", &home.image("busybox")])
        .success();
    home.microagent(["start", "web"]).env("TOKEN", "s3cret").success();
    let qemu = home.processes().into_iter().find(microagent_tests::process::Process::is_qemu).unwrap();
    let mut boot_id = in_guest(&home, BOOT_ID).text().to_owned();
    // The last that it does before it sleeps.
    let service_has_its_secret = || {
        wait_for("the service with its secret", PATIENCE, || {
            let token = in_guest(&home, "cat /root/token");
            if token.text() == "s3cret" { Ok(()) } else { Err(token.told()) }
        });
    };
    service_has_its_secret();
    for restart in 1..3 {
        // Whoever waits for something in it is told.
        let sleeping = home.microagent(["exec", "web", "--", "sh", "-c", "echo here; sleep 100000"]).start();
        sleeping.prints("here");
        let rebooting = in_guest(&home, "rm /root/token; sync; reboot -f");
        let slept = sleeping.finish();
        assert!(!slept.status.success(), "{}\n{}", slept.told(), rebooting.told());
        boot_id = prints_something_else(&home, BOOT_ID, &boot_id);
        service_has_its_secret();
        let starts = in_guest(&home, "cat /root/starts");
        assert_eq!(starts.text().lines().count(), restart + 1, "{}", starts.told());
    }
    assert!(home.processes().contains(&qemu), "it is the same machine");
    wait_for("the state", PATIENCE, || match home.state_of("web") {
        state if state == "running" => Ok(()),
        state => Err(state),
    });
    home.microagent(["halt", "web"]).success();
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

/// The guest's first process turns it off; what else a program may do about that follows with the guest kernel.
#[test]
fn a_workspace_that_turns_itself_off_is_stopped() {
    let home = Home::new(User::unprivileged());
    home.create("web", []);
    home.microagent(["start", "web"]).success();
    let waiting = home.microagent(["wait", "web"]).start();
    let off = in_guest(&home, "echo kept > /root/file; poweroff");
    let waited = waiting.finish();
    assert_eq!(waited.summary("State"), "stopped", "{}\n{}", waited.told(), off.told());
    home.processes_end();
    home.microagent(["start", "web"]).success();
    assert_eq!(in_guest(&home, "cat /root/file").text(), "kept\n");
    home.microagent(["kill", "web"]).success();
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

/// A command in a guest that cannot deliver a signal ends by the first one all the same; any other decides for itself.
#[test]
fn one_signal_ends_a_command_whose_guest_does_not_answer() {
    let home = Home::new(User::Caller);
    home.create("web", []);
    home.microagent(["start", "web"]).success();
    let exec = |line: &str| home.microagent(["exec", "web", "--", "sh", "-c", line]).start();
    let is_there = |file: &str| {
        wait_for(file, PATIENCE, || {
            let seen = in_guest(&home, &format!("test -e /tmp/{file}"));
            if seen.status.success() { Ok(()) } else { Err(seen.told()) }
        });
    };
    let traps = exec(
        "trap 'touch /tmp/trapped' TERM; touch /tmp/waits; while test ! -e /tmp/over; do sleep 0.1; done",
    );
    is_there("waits");
    let asked = Instant::now();
    traps.signal(Signal::TERM);
    is_there("trapped");
    in_guest(&home, "touch /tmp/over");
    traps.finish().code_or_cancelled(0, asked);

    let qemu = home.processes().into_iter().find(Process::is_qemu).unwrap();
    for signal in [Signal::TERM, Signal::INT] {
        let silent = exec("touch /tmp/silent; sleep 100000");
        is_there("silent");
        in_guest(&home, "rm /tmp/silent");
        qemu.signal(Signal::STOP);
        silent.signal(signal);
        silent.finish().failure();
        qemu.signal(Signal::CONT);
    }
    let paused = exec("touch /tmp/paused; sleep 100000");
    is_there("paused");
    home.microagent(["pause", "web"]).success();
    paused.signal(Signal::TERM);
    paused.finish().failure();
    home.microagent(["kill", "web"]).success();
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

/// Starts a run that others can use.
fn run_in_progress(home: &Home) -> Running<'_> {
    let options = ["--name", "job", "--network", "isolated", "--profile", "tiny"];
    let run = home.run("busybox", options, &["sh", "-c", "echo working; sleep 100000"]).start();
    wait_for("the run", PATIENCE, || {
        let exec = home.microagent(["exec", "job", "--", "true"]).run();
        if exec.status.success() { Ok(()) } else { Err(exec.told()) }
    });
    run
}

#[test]
fn a_run_in_progress_is_used_and_ended_from_another_terminal() {
    let home = Home::new(User::unprivileged());
    for verb in ["stop", "halt", "kill"] {
        let run = run_in_progress(&home);
        let exec = home.microagent(["exec", "job", "--", "sh", "-c", "echo inside > /tmp/file"]).success();
        drop(exec);
        let copied = home.microagent(["cp", "job:/tmp/file", "-"]).success();
        assert!(copied.stdout.windows(6).any(|bytes| bytes == b"inside"), "{}", copied.told());
        home.log_has("job", "console.log", "working");
        home.microagent(["pause", "job"]).success();
        assert_eq!(home.state_of("job"), "paused");
        home.microagent(["resume", "job"]).success();
        home.microagent(["stats", "job"]).success();
        home.microagent(["quarantine", "job"]).failure();
        home.microagent([verb, "job"]).success();
        let run = run.finish();
        assert!(!run.status.success(), "{}", run.told());
        run.says("another command ended it");
        assert!(home.workspaces().is_empty(), "{verb}");
    }
    home.nothing_is_left();
}

#[test]
fn a_machine_whose_directory_was_removed_ends() {
    let home = Home::new(User::unprivileged());
    home.create("web", []);
    home.microagent(["start", "web"]).success();
    let exec = home.microagent(["exec", "web", "--", "sh", "-c", "echo here; sleep 100000"]).start();
    exec.prints("here");
    home.remove_dir(&home.workspace("web"));
    home.processes_end();
    exec.finish().code(1);
    home.nothing_is_left();
}

#[test]
fn clients_without_the_key_keep_nobody_out() {
    let home = Home::new(User::Caller);
    home.create("web", []);
    home.microagent(["start", "web"]).success();
    let socket = home.workspace("web").join("machine/control");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut held = std::collections::VecDeque::new();
                while !over.load(Ordering::Relaxed) {
                    if let Ok(stream) = UnixStream::connect(&socket) {
                        held.push_back(stream);
                    }
                    if held.len() > 100 {
                        held.pop_front();
                    }
                }
            });
        }
        for _ in 0..5 {
            let exec = home.microagent(["exec", "web", "--", "echo", "inside"]).run();
            let quick = exec.text() == "inside\n";
            if !quick {
                over.store(true, Ordering::Relaxed);
            }
            assert!(quick, "{}", exec.told());
        }
        let quarantine = home.microagent(["quarantine", "web"]).run();
        let halt = home.microagent(["halt", "web"]).run();
        over.store(true, Ordering::Relaxed);
        assert_eq!(quarantine.summary("State"), "quarantined", "{}", quarantine.told());
        assert_eq!(halt.summary("State"), "stopped", "{}", halt.told());
    });
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}
