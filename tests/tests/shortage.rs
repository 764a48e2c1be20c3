//! What a guest has too little of is named, with what helps: memory, disk. So is a signal.

use microagent_tests::{Home, User, wait_for};
use serde_json::json;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

const SMALL: [&str; 4] = ["--network", "isolated", "--memory", "96"];

#[test]
fn memory_that_runs_out_is_named_once_with_what_helps() {
    let home = Home::new(User::unprivileged());
    // A run.
    let run = home.run("busybox", SMALL, &["tail", "/dev/zero"]).run();
    let run = run.says("the guest ran out of its 96 MiB of memory and killed `tail`").says("--memory 192");
    assert_eq!(run.summary("Exit code"), "137");
    assert_eq!(run.told().matches("and killed").count(), 1, "{}", run.told());
    let json =
        home.run("busybox", ["--json", "--network", "isolated", "--memory", "96"], &["tail", "/dev/zero"]);
    let document = json.run().json();
    assert_eq!(document["result"]["out_of_memory"], "tail", "{document}");
    assert_eq!(document["notices"].as_array().unwrap().len(), 1, "{document}");

    // A workspace: its command, what it leaves in the background, its events.
    home.call().args(["create", "web", "--image", &home.image("busybox")]).args(SMALL).success();
    home.microagent(["start", "web"]).success();
    let exec = home.microagent(["exec", "web", "--", "tail", "/dev/zero"]).run().code(137);
    exec.says("killed `tail`").says("microagent start web --memory 192").says("signal 9 (SIGKILL)");
    let events = || home.microagent(["events", "web"]).success().told();
    let told = wait_for("the event", PATIENCE, || match events() {
        told if told.contains("and killed `tail`") => Ok(told),
        told => Err(told),
    });
    assert_eq!(told.matches("and killed `tail`").count(), 1, "{told}");
    home.microagent(["exec", "web", "--", "sh", "-c", "(tail /dev/zero) >/dev/null 2>&1 &"]).success();
    wait_for("the second event", PATIENCE, || match events() {
        told if told.matches("and killed `tail`").count() == 2 => Ok(()),
        told => Err(told),
    });
    home.microagent(["delete", "web", "--force"]).success();

    // A kept run: its result names it.
    let kept = ["--keep", "--name", "kept", "--network", "isolated", "--memory", "96"];
    home.run("busybox", kept, &["tail", "/dev/zero"]).run();
    let result = home.microagent(["result", "kept"]).success();
    assert!(result.text().contains("Problem: memory ran out: the guest killed `tail`"), "{}", result.told());
    home.microagent(["delete", "kept", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_disk_that_is_full_is_named_when_a_command_fails() {
    let home = Home::new(User::unprivileged());
    home.microagent(["volume", "create", "small", "--size-mib", "16"]).success();
    let fill = ["sh", "-c", "cat /dev/zero > /data/fill"];
    let options = ["--json", "--network", "isolated", "-v", "small:/data"];
    let document = home.run("busybox", options, &fill).run().json();
    assert_eq!(document["result"]["disk_full"], "/data", "{document}");
    assert_eq!(document["notices"], json!(["the disk of the guest at `/data` is full"]), "{document}");
    let options = ["--network", "isolated", "-v", "small:/data"];
    let again = home.run("busybox", options, &["sh", "-c", "echo more > /data/more"]).run();
    again.says("the disk of the guest at `/data` is full; remove files").says("microagent volume resize");
    let fine = home.run("busybox", options, &["true"]).success();
    assert!(!fine.told().contains("is full"), "{}", fine.told());
    home.nothing_is_left();
}
