//! A workspace that is cut off: nothing of its guest acts any more, everything of it is kept, and only a word releases it.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::time::Duration;

use microagent_tests::process::Process;
use microagent_tests::{Home, User, wait_for};
use rustix::process::Signal;

/// Counts on its disk and on the console.
const COUNTER: &str = "n=$(cat /root/count || echo 0); while :; do n=$((n + 1)); echo $n > /root/new; \
    mv /root/new /root/count; sync; \
    echo count $n; sleep 0.05; done";

/// A home with the workspace `web`, which counts and has a network, running.
fn counting() -> Home {
    let home = Home::new(User::unprivileged());
    let create = ["create", "web", "--restart", "always", "--service-command", COUNTER];
    home.call().args(create).args(["--image", &home.image("busybox")]).success();
    home.microagent(["start", "web"]).success();
    home.log_has("web", "console.log", "count 2\n");
    home
}

fn count(home: &Home) -> u32 {
    let log = home.microagent(["logs", "web"]).success();
    let last = log.text().lines().rev().find_map(|line| line.strip_prefix("count ")).unwrap().to_owned();
    last.parse().unwrap()
}

fn process(home: &Home, wanted: fn(&Process) -> bool) -> Option<Process> {
    home.processes().into_iter().find(wanted)
}

#[test]
fn a_quarantined_guest_does_nothing_more_and_starts_again_with_its_disk_once_it_is_released() {
    let home = counting();
    let command = home.microagent(["exec", "web", "--", "sh", "-c", "touch /tmp/here; sleep 4321"]).start();
    wait_for("the command", Duration::from_secs(120), || {
        let seen = home.microagent(["exec", "web", "--", "test", "-e", "/tmp/here"]).run();
        if seen.status.success() { Ok(()) } else { Err(seen.stderr) }
    });
    let waiting = home.microagent(["wait", "web"]).start();
    let quarantined = home.microagent(["quarantine", "web", "--reason", "it counts too much"]).success();
    assert_eq!(quarantined.summary("State"), "quarantined");
    // What was at work in it has ended, and the way to the network with it.
    command.finish().code(1).says("lost the connection to the guest of workspace `web`");
    assert_eq!(waiting.finish().code(1).summary("State"), "quarantined");
    assert_eq!(process(&home, Process::is_network_stack), None);
    assert!(process(&home, Process::is_qemu).is_some(), "its memory is kept");
    // Again is no error.
    home.microagent(["quarantine", "web"]).success();

    for words in [
        &["exec", "web", "--", "true"][..],
        &["connect", "web", "--send", "true"],
        &["cp", "web:/root/count", "copy"],
        &["start", "web"],
        &["restart", "web"],
        &["rename", "web", "other"],
        &["fork", "web", "other"],
        &["pause", "web"],
        &["resume", "web"],
        &["stats", "web"],
        &["clone", "web", "other"],
        &["commit", "web", "web:1"],
    ] {
        home.call().args(words).run().code(1).says("is quarantined").says("microagent halt web");
    }
    // Its supervisor has answered since, so it has read the console to its end.
    let counted = count(&home);
    home.microagent(["delete", "web", "--yes"]).run().code(1).says("is quarantined").says("--force");
    assert_eq!(home.microagent(["supervise", "web"]).success().summary("State"), "quarantined");
    assert!(home.microagent(["ps"]).success().text().contains("quarantined"));
    let status = home.microagent(["status", "web"]).success();
    assert!(status.text().contains("Process: "), "{}", status.told());
    let events = home.microagent(["events", "web"]).success();
    assert!(events.text().contains("quarantined  it counts too much"), "{}", events.told());
    assert_eq!(count(&home), counted, "it continued counting");

    assert_eq!(home.microagent(["halt", "web"]).success().summary("State"), "stopped");
    let events = home.microagent(["events", "web"]).success();
    assert!(events.text().contains("released from its quarantine"), "{}", events.told());
    home.processes_end();
    assert_eq!(count(&home), counted, "it continued while it was halted");
    home.microagent(["start", "web"]).success();
    home.log_has("web", "console.log", "count ");
    // It continues from what it had flushed: at most the last round is missing.
    assert!(count(&home) >= counted, "{} after {counted}", count(&home));
    home.microagent(["delete", "web", "--force"]).success();
    home.nothing_is_left();
}

#[test]
fn no_death_of_a_process_lifts_a_quarantine() {
    let home = counting();
    home.microagent(["quarantine", "web"]).success();
    process(&home, Process::is_supervisor).unwrap().signal(Signal::KILL);
    home.processes_end();
    let released = || {
        assert_eq!(home.state_of("web"), "quarantined");
        assert_eq!(home.microagent(["ps"]).success().text(), "No running workspaces.\n");
        let status = home.microagent(["status", "web"]).success();
        assert!(status.text().contains("Problem: its memory is lost"), "{}", status.told());
        home.microagent(["start", "web"]).run().code(1).says("is quarantined");
    };
    released();
    assert_eq!(home.microagent(["stop", "web"]).success().summary("State"), "stopped");
    let events = home.microagent(["events", "web"]).success();
    assert!(events.text().contains("released from its quarantine"), "{}", events.told());
    home.microagent(["quarantine", "web"]).run().code(1).says("it has no machine");

    home.microagent(["start", "web"]).success();
    home.microagent(["pause", "web"]).success();
    home.microagent(["quarantine", "web"]).success();
    process(&home, Process::is_qemu).unwrap().signal(Signal::KILL);
    home.processes_end();
    released();
    assert_eq!(home.microagent(["kill", "web"]).success().summary("State"), "stopped");

    // A machine that does not do as it is told is ended, and the workspace quarantined all the same.
    home.microagent(["start", "web"]).success();
    process(&home, Process::is_qemu).unwrap().signal(Signal::STOP);
    home.microagent(["quarantine", "web"]).run().code(1).says("its memory is lost").says("it was killed");
    home.processes_end();
    released();
    home.microagent(["delete", "web", "--force"]).success();
    home.nothing_is_left();
}
