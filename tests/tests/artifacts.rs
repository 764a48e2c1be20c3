//! Declared outputs come back whole, from well-ended and from killed workspaces, and never by halves.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;

use microagent_tests::{Home, User};

#[test]
fn files_directories_and_links_come_back_as_they_are() {
    let home = Home::new(User::unprivileged());
    let make = "mkdir -p '/out/deep er/x' && cd /out && seq 200000 > big && echo inner > 'deep er/x/file' && : > empty \
                && ln -s big link && ln -s /etc/passwd outward && chmod 750 'deep er' && chmod 4755 empty";
    let outputs = ["--output", "dir=/out", "--output", "file=/out/big", "--output", "gone=/no/such"];
    let call = home.call().args(["run", "--keep", "--name", "maker", "--network", "isolated"]).args(outputs);
    call.arg(home.image("busybox")).args(["sh", "-c", make]).success();

    let numbers: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    home.microagent(["artifact", "get", "maker", "file", "numbers"]).success();
    assert!(fs::read_to_string(home.path().join("numbers")).unwrap() == numbers);
    // Into an existing directory, under its own name.
    let results = home.make_dir("results");
    home.microagent(["artifact", "get", "maker", "file", "results"]).success();
    assert!(fs::read_to_string(results.join("big")).unwrap() == numbers);

    let got = home.microagent(["artifact", "get", "maker", "dir", "tree"]).success();
    got.says("1 symbolic link was left out");
    let tree = home.path().join("tree");
    assert!(fs::read_to_string(tree.join("big")).unwrap() == numbers);
    assert_eq!(fs::read_to_string(tree.join("deep er/x/file")).unwrap(), "inner\n");
    assert_eq!(fs::read_link(tree.join("link")).unwrap().to_str(), Some("big"));
    assert!(!tree.join("outward").is_symlink(), "a link to a file of the host is not made");
    let mode = fs::metadata(tree.join("empty")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7000, 0, "no set-id bit of a guest comes to the host");

    let stream = home.microagent(["artifact", "get", "maker", "file", "-"]).success();
    let mut archive = tar::Archive::new(&stream.stdout[..]);
    let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
    assert_eq!(entry.path().unwrap().to_str(), Some("big"));
    let mut text = String::new();
    entry.read_to_string(&mut text).unwrap();
    assert!(text == numbers);
    assert!(!home.path().join("-").exists());
    home.microagent(["artifact", "get", "maker", "file", "-", "--json"]).run().code(2).says("omit --json");

    let gone = home.microagent(["artifact", "get", "maker", "gone", "nothing"]).run().code(1);
    gone.says("/no/such");
    assert!(!home.path().join("nothing").exists());
    let json = home.microagent(["artifact", "maker", "--json"]).success().json();
    assert_eq!(json["artifacts"]["egress"].as_array().unwrap().len(), 3);
    home.microagent(["delete", "maker", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn what_a_killed_run_had_written_can_still_be_fetched() {
    let home = Home::new(User::Caller);
    // From a template it comes to its command at once, however slow a boot is.
    home.sh(&[], "true");
    let work = "echo early > /result; sync; echo working; sleep 600";
    let options = [
        "--name",
        "late",
        "--keep",
        "--timeout",
        "20",
        "--output",
        "result=/result",
        "--network",
        "isolated",
    ];
    home.run("busybox", options, &["sh", "-c", work]).run().code(1).says("signal: killed");
    assert_eq!(home.state_of("late"), "failed");
    home.microagent(["artifact", "get", "late", "result", "result"]).success();
    assert_eq!(fs::read_to_string(home.path().join("result")).unwrap(), "early\n");
    let logs = home.microagent(["logs", "late"]).success();
    assert!(logs.text().contains("working"), "fetching loses no log\n{}", logs.told());
    assert_eq!(home.state_of("late"), "failed", "fetching changes no record");
    home.microagent(["delete", "late", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_running_workspace_is_not_looked_into() {
    let home = Home::new(User::Caller);
    let options = ["--name", "busy", "--keep", "--output", "x=/etc/passwd", "--network", "isolated"];
    let running = home.run("busybox", options, &["sh", "-c", "echo working; sleep 600"]).start();
    home.log_has("busy", "console.log", "working");
    home.microagent(["artifact", "get", "busy", "x", "x"]).run().code(1).says("busy").says("running");
    assert!(!home.path().join("x").exists());
    home.microagent(["delete", "busy", "--force"]).success();
    running.finish().failure();
    home.nothing_is_left();
}
