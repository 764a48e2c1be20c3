//! What lies in the state directory is what is expected there, and what is written there can be read again.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::symlink;

use microagent_tests::{Home, User, host};

fn home() -> Home {
    Home::new(User::Caller)
}

#[test]
fn a_setup_script_of_the_largest_size_is_stored_and_run() {
    let home = home();
    let mut script = "echo ran > /ran\n".to_owned();
    script.push_str(&"#\"\\\n".repeat((1024 * 1024 - script.len()) / 4));
    home.write("setup.sh", &script);
    home.create("web", ["--setup-file", "setup.sh"]);
    assert_eq!(home.state_of("web"), "prepared");
    home.microagent(["start", "web"]).success();
    assert_eq!(home.microagent(["exec", "web", "--", "cat", "/ran"]).success().text(), "ran\n");
    home.microagent(["kill", "web"]).success();

    script.push_str(&"#".repeat(8));
    home.write("setup.sh", &script);
    let refused = home
        .microagent(["create", "other", "--image", &home.image("busybox"), "--setup-file", "setup.sh"])
        .failure();
    refused.says("1 MiB");
    assert_eq!(home.workspaces(), ["web"]);
}

#[test]
fn what_no_message_can_carry_is_refused_before_a_boot() {
    let home = home();
    let names: Vec<String> = (0..7).map(|number| format!("env{number}")).collect();
    for name in &names {
        home.write(name, format!("{name}={}\n", "x".repeat(1000 * 1000)));
    }
    let files: Vec<_> = names.iter().flat_map(|name| ["--env-file", name.as_str()]).collect();
    let run = home
        .call()
        .arg("run")
        .args(&files)
        .args(["--network", "isolated", &home.image("busybox"), "true"])
        .run();
    run.code(2).says("arguments and environment are larger than 6 MiB");
    let create =
        home.call().args(["create", "web", "--image", &home.image("busybox"), "--service-command", "true"]);
    create.args(&files).run().code(2).says("arguments and environment are larger than 6 MiB");
    home.nothing_is_left();
    assert!(!home.state().join("workspaces/web").exists());
}

#[test]
fn nothing_but_a_regular_file_is_written_or_waited_for() {
    let home = home();
    home.create("web", []);
    let decoy = home.write("decoy", "precious");
    let logs = ["console.log", "vmm.log", "supervisor.log", "output", "egress.jsonl"];
    for log in logs {
        let path = home.workspace("web").join(log);
        for is_fifo in [true, false] {
            let _ = fs::remove_file(&path);
            if is_fifo {
                host::must("mkfifo", &[path.to_str().unwrap()]);
            } else {
                symlink(&decoy, &path).unwrap();
            }
            let started = home.microagent(["start", "web"]).run();
            if !started.status.success() {
                assert!(started.told().contains("not a regular file"), "{log}: {}", started.told());
            }
            home.microagent(["logs", "web"]).run();
            home.microagent(["kill", "web"]).run();
            assert_eq!(fs::read_to_string(&decoy).unwrap(), "precious", "{log}");
        }
        fs::remove_file(&path).unwrap();
    }
    home.microagent(["start", "web"]).success();
    assert_eq!(home.microagent(["exec", "web", "--", "echo", "fine"]).success().text(), "fine\n");
    home.microagent(["kill", "web"]).success();
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}
