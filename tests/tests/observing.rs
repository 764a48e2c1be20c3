//! What is seen of workspaces from outside, and copies of them: on real guests.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::time::Duration;

use microagent_tests::{Home, User, listing, wait_for};
use serde_json::{Value, json};

fn home() -> Home {
    Home::new(User::unprivileged())
}

/// States of the events of a workspace.
#[track_caller]
fn states(home: &Home, name: &str) -> Vec<String> {
    let document = home.microagent(["events", name, "--json"]).success().json();
    let events = document["events"].as_array().unwrap();
    events.iter().map(|event| event["state"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_whole_life_can_be_watched() {
    let home = home();
    home.create("web", []);
    home.microagent(["result", "web"]).run().code(1).says("nothing has ended");
    home.microagent(["stats", "web"]).run().code(1).says("microagent start web");
    home.microagent(["start", "web"]).success();
    let watching = home.microagent(["events", "web", "-f"]).start();
    let waiting = home.microagent(["wait", "web", "--json"]).start();
    home.microagent(["wait", "web", "--timeout", "1"]).run().code(1).says("still has a machine");

    let status = home.microagent(["status", "web", "--json"]).success().json();
    assert_eq!((&status["state"], &status["restart"]), (&json!("running"), &json!("never")));
    let pid = status["vmm_pid"].as_i64().unwrap();
    assert!(home.processes().iter().any(|process| process.is_qemu() && i64::from(process.pid) == pid));
    let stats = home.microagent(["stats", "web", "--json"]).success().json();
    assert_eq!(stats["pid"], pid);
    assert!(stats["memory_bytes"].as_u64().unwrap() > 10 << 20, "{stats}");
    assert!(stats["memory_bytes"].as_u64() < stats["memory_limit_bytes"].as_u64(), "{stats}");

    home.microagent(["pause", "web"]).success();
    home.microagent(["resume", "web"]).success();
    home.microagent(["halt", "web"]).success();
    let wanted = ["prepared", "starting", "running", "paused", "running", "stopping", "halted"];
    assert_eq!(states(&home, "web"), wanted);
    let watched = watching.finish().code(0);
    assert!(watched.text().contains("paused") && watched.text().contains("halted"), "{}", watched.told());
    let ended = json!({"workspace": "web", "state": "halted", "health": null, "ok": true});
    assert_eq!(waiting.finish().code(0).json(), ended);
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn logs_are_followed_to_the_end_and_cut_to_their_last_lines() {
    let home = home();
    let service = "echo one; echo two; while ! test -e /root/go; do sleep 0.1; done; echo three; exit 6";
    home.create("job", ["--service-command", service]);
    home.microagent(["start", "job"]).success();
    home.log_has("job", "console.log", "two");
    assert_eq!(home.microagent(["logs", "job", "--tail", "1"]).success().text(), "two\n");
    assert_eq!(home.microagent(["logs", "job", "--since", "1h"]).success().text(), "one\ntwo\n");
    assert_eq!(home.microagent(["logs", "job", "--since", "2100-01-01T00:00:00Z"]).success().text(), "");
    let following = home.microagent(["logs", "job", "-f", "--tail", "2"]).start();
    let console = home.microagent(["connect", "job", "--console"]).start();
    // What is followed begins with what is there when it is looked at.
    following.prints("one\ntwo\n");
    console.prints("one\ntwo\n");
    home.microagent(["exec", "job", "--", "touch", "/root/go"]).run();
    assert_eq!(following.finish().code(0).text(), "one\ntwo\nthree\n");
    assert_eq!(console.finish().code(0).text(), "one\ntwo\nthree\n");
    home.microagent(["wait", "job"]).run().code(1);
    let result = home.microagent(["result", "job", "--json"]).success().json();
    assert_eq!(result["result"]["exit_code"], 6, "{result}");
    let status = home.microagent(["status", "job"]).success();
    assert!(status.text().contains("Problem: its service ended with exit code 6"), "{}", status.told());
    assert!(status.text().contains("Exit code: 6"), "{}", status.told());
    home.microagent(["delete", "job", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn looking_changes_nothing_also_after_a_crash() {
    let home = home();
    home.create("web", []);
    home.microagent(["start", "web"]).success();
    let supervisor = home.processes().into_iter().find(|process| process.is_supervisor()).unwrap();
    supervisor.signal(rustix::process::Signal::KILL);
    home.processes_end();
    let before = listing::listing(&home.state());
    for words in
        [&["list"][..], &["ps"], &["status", "web"], &["events", "web"], &["logs", "web"], &["wait", "web"]]
    {
        let seen = home.call().args(words).run();
        assert!(seen.status.code() == Some(0) || words[0] == "wait", "{}", seen.told());
    }
    assert_eq!(listing::listing(&home.state()), before);
    assert_eq!(home.state_of("web"), "failed");
    let status = home.microagent(["status", "web", "--json"]).success().json();
    assert_eq!((&status["problem"], &status["vmm_pid"]), (&json!("its supervisor was killed"), &Value::Null));
    assert_eq!(home.microagent(["ps"]).success().text(), "No running workspaces.\n");
    // And it starts.
    home.microagent(["start", "web"]).success();
    home.microagent(["delete", "web", "--force"]).success();
    home.nothing_is_left();
}

#[test]
fn a_clone_has_the_disk_and_its_own_identity() {
    let home = home();
    home.create("web", ["-e", "GIVEN=value"]);
    home.microagent(["start", "web"]).success();
    home.microagent(["clone", "web", "copy"]).run().code(1).says("microagent halt web");
    home.microagent(["exec", "web", "--", "sh", "-c", "echo kept > /root/file; cat /etc/machine-id"])
        .success();
    home.microagent(["halt", "web"]).success();
    assert_eq!(home.microagent(["clone", "web", "copy"]).success().summary("State"), "stopped");
    home.microagent(["clone", "web", "copy"]).run().code(1).says("exists already");
    for name in ["web", "copy"] {
        home.microagent(["start", name]).success();
    }
    let ask = |name: &str| {
        let line = "cat /root/file; echo $GIVEN $HOSTNAME; hostname; cat /etc/machine-id";
        home.microagent(["exec", name, "--", "sh", "-c", line]).success().text().to_owned()
    };
    let (web, copy) = (ask("web"), ask("copy"));
    assert!(web.starts_with("kept\nvalue web\nweb\n"), "{web}");
    assert!(copy.starts_with("kept\nvalue copy\ncopy\n"), "{copy}");
    assert_ne!(web.lines().last(), copy.lines().last());
    // The machine's identity stays through its starts.
    home.microagent(["halt", "copy"]).success();
    home.microagent(["start", "copy"]).success();
    assert_eq!(ask("copy"), copy);
    home.microagent(["delete", "web", "copy", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_workspace_is_kept_running_as_its_policy_says() {
    let home = home();
    let service =
        "echo life >> /root/lives; echo lives $(wc -l < /root/lives); test $(wc -l < /root/lives) -ge 3";
    home.create("job", ["--restart", "on-failure", "--service-command", service]);
    let words = ["supervise", "job", "--interval", "200ms"];
    let supervised = home.microagent(words).success().says("restart 1 in 0.2 s");
    assert_eq!(supervised.summary("State"), "stopped");
    assert!(home.microagent(["logs", "job"]).success().text().contains("lives 3"));
    home.microagent(["delete", "job", "--yes"]).success();

    home.create("gone", ["--restart", "always", "--service-command", "exit 4"]);
    let limited = home.microagent(["supervise", "gone", "--interval", "200ms", "--max-restarts", "1"]).run();
    assert_eq!(limited.code(1).summary("State"), "failed");
    home.microagent(["delete", "gone", "--yes"]).success();

    // What somebody halts stays so; and Ctrl-C halts it.
    home.create("web", ["--restart", "always", "--service-command", "echo up; sleep 1000"]);
    for by_signal in [false, true] {
        let supervising = home.microagent(["supervise", "web"]).start();
        wait_for("the start", Duration::from_secs(120), || {
            let state = home.state_of("web");
            if state == "running" { Ok(()) } else { Err(state) }
        });
        if by_signal {
            supervising.signal(rustix::process::Signal::INT);
        } else {
            home.microagent(["halt", "web"]).success();
        }
        assert_eq!(supervising.finish().code(0).summary("State"), "halted");
    }
    let unit = home.microagent(["supervise", "web", "--install"]).success();
    let path = unit.text().trim().strip_prefix("Installed: ").unwrap().to_owned();
    assert!(std::fs::read_to_string(&path).unwrap().contains("supervise web\n"));
    home.microagent(["supervise", "web", "--uninstall"]).success();
    assert!(!std::path::Path::new(&path).exists());
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

/// Waits until a workspace runs.
fn runs(home: &Home, name: &str) {
    wait_for("the start", Duration::from_secs(120), || {
        let state = home.state_of(name);
        if state == "running" { Ok(()) } else { Err(state) }
    });
}

fn restarts(home: &Home, name: &str) -> Value {
    home.microagent(["status", name, "--json"]).success().json()["restarts"].clone()
}

#[test]
fn restarts_after_failures_are_counted_and_have_a_limit() {
    let home = home();
    home.create("job", ["--restart", "on-failure:2", "--service-command", "echo run; exit 4"]);
    assert_eq!(restarts(&home, "job"), 0);
    let supervised = home.microagent(["supervise", "job", "--interval", "100ms"]).run().code(1);
    assert_eq!(supervised.summary("State"), "failed");
    assert_eq!(restarts(&home, "job"), 2);
    let status = home.microagent(["status", "job"]).success();
    assert!(status.text().contains("Restart: on-failure:2 (restarted 2 times)\n"), "{}", status.told());
    home.create("x", []);
    let create = ["create", "y", "--image", "busybox", "--restart", "sometimes"];
    home.microagent(create).run().code(2).says("unless-stopped");
    home.microagent(["delete", "job", "x", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn what_a_user_has_stopped_is_not_started_again_unless_it_is_to_be() {
    let home = home();
    home.create("web", ["--restart", "unless-stopped", "--service-command", "echo up; exec sleep 1000"]);
    let supervising = home.microagent(["supervise", "web"]).start();
    runs(&home, "web");
    // At the end of a login or of the host.
    supervising.signal(rustix::process::Signal::TERM);
    assert_eq!(supervising.finish().status.code(), Some(0));
    assert_eq!(home.state_of("web"), "halted");
    let supervising = home.microagent(["supervise", "web"]).start();
    runs(&home, "web");
    home.microagent(["halt", "web"]).success();
    assert_eq!(supervising.finish().code(0).summary("State"), "halted");
    let not_started = home.microagent(["supervise", "web"]).success().says("workspace web was stopped");
    assert_eq!(not_started.summary("State"), "halted");
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_hangup_ends_a_command_with_input_without_a_word() {
    let home = home();
    home.create("web", ["--service-command", "echo up; exec sleep 1000"]);
    home.microagent(["start", "web"]).success();
    // As ssh does with its ProxyCommand at the end of a connection.
    let words = ["exec", "-i", "web", "--", "sh", "-c", "echo up; exec cat"];
    let command = home.microagent(words).stdin_kept_open("").start();
    command.prints("up\n");
    command.signal(rustix::process::Signal::HUP);
    let ended = command.finish().code(129);
    assert_eq!((ended.text(), ended.stderr.as_str()), ("up\n", ""), "{}", ended.told());
    home.microagent(["delete", "web", "--force"]).success();
    home.nothing_is_left();
}
