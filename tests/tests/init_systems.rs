//! Images whose program is an init: it is process 1, starts its services, and ends the machine.

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
    let greeting = sh(&home, "head -n 1 < /dev/tcp/127.0.0.1/22");
    assert!(greeting.text().starts_with("SSH-2.0-OpenSSH"), "{}", greeting.told());
    // A unit of its own, with a result that the journal has.
    sh(&home, "systemd-run --wait --quiet --unit=probe sh -c 'echo from the unit'").code(0);
    let journal = sh(&home, "journalctl -u probe --no-pager");
    assert!(journal.text().contains("from the unit"), "{}", journal.told());
    sh(&home, "systemctl restart cron && systemctl is-active cron").code(0);

    let halted = home.microagent(["halt", "box"]).success();
    assert_eq!(halted.summary("State"), "halted", "{}", halted.told());
    boots(&home);
    let journal = sh(&home, "journalctl -b -1 --no-pager");
    assert!(journal.text().contains("Stopped cron.service"), "{}", journal.told());
    // The machine ends itself.
    sh(&home, "systemctl poweroff");
    home.microagent(["wait", "box"]).deadline(PATIENCE).run();
    assert_eq!(home.state_of("box"), "stopped");
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
