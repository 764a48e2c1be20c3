//! Damaged, newer and contested records, and invalid names.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::time::Duration;

use microagent_tests::{Home, User, wait_for};

fn home() -> Home {
    Home::new(User::Caller)
}

fn keep(home: &Home, name: &str) {
    home.run("busybox", ["--keep", "--name", name, "--network", "isolated"], &["echo", "kept"]).success();
}

#[test]
fn a_damaged_record_is_shown_and_can_be_deleted() {
    let home = home();
    keep(&home, "whole");
    for (name, content) in [("torn", "{\"format\": 1, \"na"), ("empty", ""), ("binary", "\u{0}\u{1}")] {
        fs::create_dir(home.workspace(name)).unwrap();
        fs::write(home.workspace(name).join("workspace.json"), content).unwrap();
    }
    // A command that was killed between making the directory and writing the record.
    fs::create_dir(home.workspace("unborn")).unwrap();
    assert_eq!(home.state_of("whole"), "stopped");
    for name in ["torn", "empty", "binary", "unborn"] {
        assert_eq!(home.state_of(name), "damaged");
        home.microagent(["artifact", name]).run().code(1).says("delete");
        home.microagent(["delete", name, "--yes"]).success();
    }
    assert_eq!(home.workspaces(), ["whole"]);
    home.microagent(["delete", "whole", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn what_a_newer_release_wrote_is_refused() {
    let home = home();
    keep(&home, "future");
    let record = home.workspace("future").join("workspace.json");
    let mut newer: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    newer["format"] = 99.into();
    let newer = newer.to_string();
    fs::write(&record, &newer).unwrap();
    home.microagent(["artifact", "future"]).run().code(1).says("format 99");
    assert_eq!(home.state_of("future"), "damaged");
    assert_eq!(fs::read_to_string(&record).unwrap(), newer, "reading changes nothing");

    fs::write(home.state().join("format"), "{\"format\": 99}").unwrap();
    home.run("busybox", [], &["true"]).run().code(1).says("format 99").says("--state-dir");
}

#[test]
fn names_that_are_none_are_refused() {
    let home = home();
    let long = "x".repeat(64);
    for name in ["../escape", "a/b", "", ".", "..", "a b", "é", "*", &long] {
        let run = home.call().arg("run").arg(format!("--name={name}")).args(["busybox", "true"]).run();
        run.code(2).says("not a workspace name");
        home.microagent(["delete", "--yes", "--", name]).run().code(2);
        home.microagent(["logs", "--", name]).run().code(2);
    }
    assert!(!home.state().exists(), "a refused command touches nothing");
}

#[test]
fn a_name_is_taken_once() {
    let home = home();
    keep(&home, "taken");
    let again = home.run("busybox", ["--name", "taken"], &["true"]).run().code(1);
    again.says("workspace `taken` exists already").says("microagent delete taken --yes");
    let json = home.run("busybox", ["--json", "--name", "taken"], &["true"]).run().code(1);
    assert_eq!(json.json_error()["kind"], "already_exists", "{}", json.told());
    assert_eq!(home.state_of("taken"), "stopped");
    home.microagent(["delete", "taken", "--yes"]).success();
    home.microagent(["delete", "taken", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn one_of_two_runs_with_the_same_name_wins() {
    let home = home();
    home.run("busybox", ["--network", "isolated"], &["true"]).success();
    // Whoever wins keeps the name until the other has lost.
    let line = "while ! test -e /tmp/go; do sleep 0.1; done; echo won";
    let start =
        || home.run("busybox", ["--name", "same", "--network", "isolated"], &["sh", "-c", line]).start();
    let (mut one, mut other) = (start(), start());
    let one_lost =
        wait_for("one to lose", Duration::from_secs(100), || match (one.is_over(), other.is_over()) {
            (false, false) => Err("both run"),
            (one_lost, _) => Ok(one_lost),
        });
    let (winner, loser) = if one_lost { (other, one) } else { (one, other) };
    loser.finish().code(1).says("workspace `same` exists already");
    wait_for("the winner's guest", Duration::from_secs(100), || {
        let go = home.microagent(["exec", "same", "--", "touch", "/tmp/go"]).run();
        if go.status.success() { Ok(()) } else { Err(go.stderr) }
    });
    assert_eq!(winner.finish().code(0).guest_output(), "won\n");
    home.nothing_is_left();
}

#[test]
fn what_does_not_exist_is_said_so() {
    let home = home();
    for words in [&["logs", "nobody"][..], &["artifact", "nobody"], &["artifact", "get", "nobody", "x", "y"]]
    {
        let call = home.call().args(words).run().code(1).says("no workspace `nobody`");
        call.says("microagent list");
    }
    keep(&home, "plain");
    let get = home.microagent(["artifact", "get", "plain", "report", "./report"]).run().code(1);
    get.says("has no artifact `report`").says("--output");
    home.microagent(["delete", "plain", "--yes"]).success();
}
