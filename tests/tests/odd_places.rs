//! State directories, homes and inputs that are legal and unusual.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use microagent_tests::{Home, User};

#[test]
fn a_state_directory_may_be_called_anything_that_is_utf8() {
    let home = Home::new(User::Caller);
    let long = "a-rather-long-directory-name/".repeat(8);
    for name in ["with space, comma=equals;\"quotes' und Ümläute %s", &long] {
        let state = home.path().join(name);
        let words =
            ["run", "--keep", "--name", "odd", "--output", "x=/etc/hostname", "--hostname", "odd-box"];
        let run = home.call().env("MICROAGENT_STATE_DIR", &state).args(words);
        let run = run.args([home.image("busybox").as_str(), "echo", "fine"]).success();
        assert_eq!(run.guest_output(), "fine\n");
        let get =
            home.call().env("MICROAGENT_STATE_DIR", &state).args(["artifact", "get", "odd", "x", "hostname"]);
        get.success();
        assert_eq!(std::fs::read_to_string(home.path().join("hostname")).unwrap(), "odd-box\n");
        home.call().env("MICROAGENT_STATE_DIR", &state).args(["delete", "odd", "--yes"]).success();
    }
    home.processes_end();
}

#[test]
fn a_state_directory_that_is_not_utf8_is_refused_clearly() {
    let home = Home::new(User::Caller);
    let state = home.path().join(OsStr::from_bytes(b"not-utf8-\xff"));
    let image = home.image("busybox");
    let call = home.call().env("MICROAGENT_STATE_DIR", &state);
    call.args(["run", "--network", "isolated", &image, "true"]).run().code(1).says("not UTF-8");
    home.processes_end();
}

#[test]
fn a_relative_state_directory_and_a_missing_home_work_as_expected() {
    let home = Home::new(User::Caller);
    let image = home.image("busybox");
    let run = home
        .microagent(["--state-dir", "here", "run", "--network", "isolated", &image, "echo", "fine"])
        .success();
    assert_eq!(run.guest_output(), "fine\n");
    assert!(home.path().join("here/workspaces").is_dir());
    let homeless = home.microagent(["list"]).env("HOME", "").run();
    assert!(
        homeless.status.code() == Some(0) || homeless.stderr.contains("--state-dir"),
        "{}",
        homeless.told()
    );
}

/// The guest's standard input is empty; nothing waits for a terminal that is not there.
#[test]
fn a_command_that_reads_its_input_finds_the_end_of_it() {
    let home = Home::new(User::Caller);
    let run = home.run("busybox", ["--network", "isolated"], &["sh", "-c", "cat; read x; echo over"]);
    assert_eq!(run.stdin("not for the guest\n").success().guest_output(), "over\n");
}

#[test]
fn words_and_variables_arrive_as_they_are() {
    let home = Home::new(User::Caller);
    let odd = "two words \"quoted\" 'single' $HOME `id` \\n\ttab\nline ünïcode * ?";
    let show =
        "printf '%s|' \"$@\"; printf '%s|%s|' \"$ODD\" \"$FROM_HOST\"; [ \"${EMPTY-unset}\" ] || echo empty";
    let call = home.call().args([
        "run",
        "--network",
        "isolated",
        "-e",
        &format!("ODD={odd}"),
        "-e",
        "FROM_HOST",
        "-e",
        "EMPTY=",
    ]);
    let call =
        call.env("FROM_HOST", odd).arg(home.image("busybox")).args(["sh", "-c", show, "sh", odd, "", "--rm"]);
    assert_eq!(call.success().guest_output(), format!("{odd}||--rm|{odd}|{odd}|empty\n"));
}

/// A reader who has seen enough is no failure, and the machine is gone all the same.
#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let home = Home::new(User::Caller);
    let program = home.program().to_str().unwrap().to_owned();
    let line = "\"$0\" run --network isolated \"$1\" seq 1000000 | head -n 1; echo ${PIPESTATUS[0]}";
    let run = home.other("bash").args(["-c", line, &program, &home.image("busybox")]).success();
    let lines: Vec<_> = run.text().lines().collect();
    assert!(lines[0].starts_with("Workspace: ") && lines[1..] == ["0"], "{}", run.told());
    home.nothing_is_left();
}
