//! Images whose program is an init: it is process 1, starts its services, and ends the machine. What takes longer is in
//! `tests/tests/programs/init.rs`.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::time::Duration;

use microagent_tests::{Finished, Home, User, wait_for};

const PATIENCE: Duration = Duration::from_secs(120);

fn sh(home: &Home, line: &str) -> Finished {
    home.microagent(["exec", "box", "--", "bash", "-c", line]).run()
}

/// Waits until systemd has started everything.
fn boots(home: &Home) {
    home.microagent(["start", "box"]).success();
    let jobs = "systemctl list-jobs; systemctl --failed";
    wait_for("the end of the boot", PATIENCE, || match sh(home, "systemctl is-system-running") {
        state if state.text() == "running\n" => Ok(()),
        state => Err(format!("{}\n{}", state.told(), sh(home, jobs).told())),
    });
}

#[test]
fn systemd_starts_its_services_and_is_shut_down() {
    let home = Home::new(User::unprivileged());
    let image = home.configured_image("systemd", &["--config.stopsignal", "SIGRTMIN+3"]);
    let create = home.microagent(["create", "box", "--image", &image, "--network", "isolated"]);
    create.args(["--image-command", "--memory", "512"]).success();
    boots(&home);
    for unit in ["multi-user.target", "nginx", "ssh", "cron", "dbus"] {
        assert_eq!(sh(&home, &format!("systemctl is-active {unit}")).text(), "active\n", "{unit}");
    }
    let request = "exec 3<>/dev/tcp/127.0.0.1/80; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; head -n 1 <&3";
    let answered = sh(&home, request);
    assert_eq!(answered.text(), "HTTP/1.1 200 OK\r\n", "{}", answered.told());
    // A unit whose end leaves a file: only a clean shutdown does.
    let end =
        "systemd-run --quiet --property='ExecStop=/bin/sh -c \"echo stopped > /root/end\"' sleep infinity";
    sh(&home, end).code(0);
    let halted = home.microagent(["halt", "box"]).success();
    assert_eq!(halted.summary("State"), "halted", "{}", halted.told());
    let copy = home.path().join("end");
    home.microagent(["cp", "box:/root/end", copy.to_str().unwrap()]).success();
    assert_eq!(std::fs::read_to_string(copy).unwrap(), "stopped\n");
    home.microagent(["delete", "box", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn an_init_that_wants_to_be_process_1_has_nothing_to_say() {
    let home = Home::new(User::unprivileged());
    let quiet = ["--quiet", "--network", "isolated"];
    let run = home.run("systemd", quiet, &["tini", "--", "sh", "-c", "echo child of $PPID; exit 3"]).run();
    assert_eq!(run.text(), "child of 1\n", "{}", run.told());
    assert!(!run.told().contains("Tini is not"), "{}", run.told());
    home.nothing_is_left();
}
