//! Machines end when their time to live has passed, and no more run at a time than may.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::time::Duration;

use jiff::Timestamp;
use microagent_tests::process::Process;
use microagent_tests::{Home, User, wait_for};
use rustix::process::Signal;
use serde_json::Value;

/// When the machine of a workspace ends by itself.
fn expiry(home: &Home, name: &str) -> Option<Timestamp> {
    let status = home.microagent(["status", name, "--json"]).success().json();
    status["expires_at"].as_str().map(|at| at.parse().unwrap())
}

/// Waits until a workspace has this state.
fn becomes(home: &Home, name: &str, wanted: &str) {
    wait_for(&format!("`{name}` to be {wanted}"), Duration::from_secs(120), || {
        let state = home.state_of(name);
        if state == wanted { Ok(()) } else { Err(state) }
    });
}

#[test]
fn a_workspace_is_halted_when_its_time_has_passed_and_nobody_looks() {
    let home = Home::new(User::unprivileged());
    home.create("box", ["--ttl", "3", "--service-command", "sleep 1000"]);
    home.create("paused", ["--ttl", "1h"]);
    let status = home.microagent(["status", "box"]).success();
    assert!(status.text().contains("Time to live: 3 s\n"), "{}", status.told());
    assert_eq!(expiry(&home, "box"), None);
    let started = home.microagent(["start", "box"]).success();
    assert!(started.text().contains("Expires: "), "{}", started.told());
    becomes(&home, "box", "halted");
    let events = home.microagent(["events", "box"]).success();
    assert!(events.text().contains("the time to live has ended"), "{}", events.told());
    assert_eq!(expiry(&home, "box"), None);

    // A start can have another, and a paused machine ends as well.
    home.microagent(["start", "paused", "--ttl", "4"]).success();
    home.microagent(["pause", "paused"]).success();
    becomes(&home, "paused", "halted");
    home.microagent(["delete", "--yes", "box", "paused"]).success();
    home.nothing_is_left();
}

#[test]
fn a_time_to_live_is_renewed() {
    let home = Home::new(User::unprivileged());
    home.write("spec.yaml", format!("name: box\nimage: {}\nttl: 1h\n", home.image("busybox")));
    home.microagent(["create", "--file", "spec.yaml"]).success();
    home.microagent(["touch", "box"]).run().code(1).says("cannot renew its time to live");
    let before = Timestamp::now();
    home.microagent(["start", "box"]).success();
    let first = expiry(&home, "box").unwrap();
    assert!(first >= before + Duration::from_secs(3600), "{first}");
    let touched = home.microagent(["touch", "box"]).success();
    assert!(touched.text().contains("Expires: "), "{}", touched.told());
    let second = expiry(&home, "box").unwrap();
    assert!(second > first, "{second}");
    home.microagent(["touch", "box", "--ttl", "3h"]).success();
    assert!(expiry(&home, "box").unwrap() > second + Duration::from_secs(3600));
    let row = home.microagent(["ps", "--json"]).success().json();
    assert!(row["workspaces"][0]["expires_at"].is_string(), "{row}");
    let table = home.microagent(["ps"]).success();
    assert!(table.text().lines().next().unwrap().contains(" TTL "), "{}", table.told());

    home.microagent(["touch", "box", "--ttl", "none"]).success();
    assert_eq!(expiry(&home, "box"), None);
    home.microagent(["touch", "box"]).run().code(2).says("has no time to live");
    home.microagent(["touch", "box", "--ttl", "soon"]).run().code(2).says("none");
    home.microagent(["halt", "box"]).success();
    home.microagent(["start", "box", "--ttl", "none"]).success();
    assert_eq!(expiry(&home, "box"), None);
    home.microagent(["delete", "--force", "--yes", "box"]).success();
    home.nothing_is_left();
}

#[test]
fn a_run_ends_as_at_its_timeout() {
    let home = Home::new(User::unprivileged());
    let run = home.run("busybox", ["--ttl", "2"], &["sh", "-c", "echo printed; sleep 1000"]).run().code(1);
    assert!(run.stderr.contains("the time to live has ended"), "{}", run.told());
    let failed = run.failed_workspace().to_owned();
    home.microagent(["delete", "--yes", &failed]).success();
    home.nothing_is_left();
}

#[test]
fn no_more_machines_run_than_may() {
    let home = Home::new(User::unprivileged());
    home.create("first", []);
    home.create("second", []);
    let limited = |words: &[&str]| home.call().args(words).env("MICROAGENT_MAX_RUNNING", "1");
    limited(&["start", "first"]).success();
    let refused = limited(&["start", "second"]).run().code(75);
    assert!(refused.stderr.contains("the limit for running machines (1) is reached"), "{}", refused.told());
    assert!(refused.stderr.contains("MICROAGENT_MAX_RUNNING"), "{}", refused.told());
    let run = limited(&["run", &home.image("busybox"), "true"]).run().code(75);
    assert!(run.stderr.contains("the limit for running machines (1) is reached"), "{}", run.told());
    let error: Value = limited(&["start", "second", "--json"]).run().code(75).json_error();
    assert_eq!(error["retryable"], true, "{error}");
    assert_eq!(home.workspaces(), ["first", "second"]);

    // The place of a supervisor that was killed is free.
    let supervisor = home.processes().into_iter().find(Process::is_supervisor).unwrap();
    supervisor.signal(Signal::KILL);
    becomes(&home, "first", "failed");
    limited(&["start", "second"]).success();
    home.microagent(["delete", "--force", "--yes", "first", "second"]).success();
    limited(&["ps"]).success();
    home.call().args(["ps"]).env("MICROAGENT_MAX_RUNNING", "0").run().code(2).says("expected a number");
    home.nothing_is_left();
}
