//! The page "Run one-shot commands", followed line by line, as root and as an ordinary user.
//!
//! The image of the page cannot be had everywhere, so one of the same name is imported; the package that the
//! page installs needs Alpine's servers, so setup steps do other work here (`debian.rs` installs it for real).

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;

use microagent_tests::{Home, User, fixtures, host, user};

const IMAGE: &str = "docker.io/library/alpine:3.20";

/// The page's user: one with its image at hand.
fn home(user: User) -> Home {
    let home = Home::new(user);
    // Debian's busybox has no `printenv`.
    let printenv = "#!/bin/sh\nfor name; do eval \"echo \\\"\\$$name\\\"\"; done\n";
    let tar = fixtures::rootfs_tar(&[("etc/alpine-release", "3.20.10\n"), ("bin/printenv", printenv)]);
    home.microagent(["image", "import", "-", IMAGE]).stdin(tar).success();
    home
}

fn is_generated_name(name: &str) -> bool {
    let digits = name.strip_prefix("run-").unwrap_or_default();
    digits.len() == 19 && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// 1. "Run an image and a command", to the letter.
fn image_and_command(home: &Home) {
    let run = home.microagent(["run", IMAGE, "cat", "/etc/alpine-release"]).success();
    let name = run.summary("Workspace").to_owned();
    assert!(is_generated_name(&name), "{name}");
    let page = format!(
        "Workspace: {name}\nState: stopped\nProfile: small\nNetwork: user\n\
         Resources: memory=512MiB cpus=2 disk=1024MiB\nExit code: 0\n\n3.20.10\n"
    );
    assert_eq!(run.text(), page);
    home.nothing_is_left();

    let run = home.microagent(["run", "--image", IMAGE, "--exec", "echo hello from $(hostname)"]).success();
    assert_eq!(run.guest_output(), format!("hello from {}\n", run.summary("Workspace")));
}

/// 2. "Add setup steps".
fn setup_steps(home: &Home) {
    let script = home.write("steps.sh", "#!/bin/sh\necho '(2/2) Installing'\n");
    let run =
        home.microagent(["run", "--image", IMAGE, "--setup", "echo '(1/2) Installing'", "--setup-file"]);
    let run = run
        .arg(script)
        .args(["--setup", "echo jq-1.7.1 > /tmp/version", "--exec", "cat /tmp/version"])
        .success();
    assert_eq!(run.guest_output(), "(1/2) Installing\n(2/2) Installing\njq-1.7.1\n");
}

/// 3. "Pass environment variables".
fn environment(home: &Home) {
    let words =
        ["run", "-e", "GREETING=hello", "--env", "TARGET=microvm", IMAGE, "printenv", "GREETING", "TARGET"];
    assert_eq!(home.microagent(words).success().guest_output(), "hello\nmicrovm\n");
}

/// 4. "Get files back out".
fn files_back_out(home: &Home) {
    let exec = "mkdir -p /workspace && echo 'artifact content' > /workspace/report.txt";
    let words = ["run", "--keep", "--name", "report-run", "--image", IMAGE];
    let run =
        home.microagent(words).args(["--output", "report=/workspace/report.txt", "--exec", exec]).success();
    assert_eq!(run.summary("Workspace"), "report-run");

    let listed = home.microagent(["artifact", "report-run"]).success();
    assert!(
        listed.text().contains("report") && listed.text().contains("/workspace/report.txt"),
        "{}",
        listed.told()
    );
    home.microagent(["artifact", "get", "report-run", "report", "./report.txt"]).success();
    assert_eq!(fs::read_to_string(home.path().join("report.txt")).unwrap(), "artifact content\n");

    assert_eq!(home.state_of("report-run"), "stopped");
    home.microagent(["delete", "report-run", "--yes"]).success();
    for flag in ["--delete", "--rm"] {
        home.microagent(["run", flag, IMAGE, "true"]).success();
        home.nothing_is_left();
    }
}

/// 5. "Bound the run with a timeout", and "Clean up".
fn timeout_and_clean_up(home: &Home) {
    // The page has 5 seconds, in which a busy host may not come to the command.
    let words = ["run", "--timeout", "20", IMAGE, "sh", "-c", "echo asleep; exec sleep 60"];
    let run = home.microagent(words).failure();
    let error = run.stderr.lines().find(|line| line.starts_with("Error: ")).unwrap_or_default();
    let name = error.split('"').nth(1).unwrap_or_default();
    assert!(is_generated_name(name), "{}", run.told());
    assert!(error.starts_with(&format!("Error: run workspace \"{name}\" failed (backend=linux-")), "{error}");
    assert!(error.ends_with("): signal: killed"), "{error}");

    assert_eq!(home.state_of(name), "failed");
    let logs = home.microagent(["logs", name]).success();
    assert!(logs.text().contains("asleep"), "{}", logs.told());
    home.processes_end();
    home.microagent(["delete", name, "--yes"]).success();
    assert_eq!(home.microagent(["list"]).success().text(), "No workspaces.\n");
    home.nothing_is_left();
}

fn page(user: User) {
    let home = home(user);
    image_and_command(&home);
    setup_steps(&home);
    environment(&home);
    files_back_out(&home);
    timeout_and_clean_up(&home);
}

#[test]
fn the_page_is_true_for_the_caller() {
    page(User::Caller);
}

#[test]
fn the_page_is_true_for_an_ordinary_user() {
    if !user::is_root() {
        return host::skip("the caller is an ordinary user already");
    }
    page(User::Ordinary);
}
