//! Runs whose streams are the caller's while they run, and runs in the background, on real guests.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::time::{Duration, Instant};

use microagent_tests::pty::Pty;
use microagent_tests::{Home, User, wait_for};
use rustix::process::Signal;
use serde_json::json;

/// How long a guest may take to come so far.
const DEADLINE: Duration = Duration::from_secs(120);

const SUMMARY: &str = "State: stopped\nProfile: small\nNetwork: isolated\n";

fn home() -> Home {
    Home::new(User::unprivileged())
}

/// Bytes that are no text, more than any buffer on the way.
fn bytes() -> Vec<u8> {
    (0..4_000_000u32).map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

/// Waits until a run prints this.
#[track_caller]
fn prints(home: &Home, name: &str, text: &str) {
    wait_for(&format!("`{text}` of {name}"), DEADLINE, || {
        let logs = home.microagent(["logs", name]).run();
        if logs.text().contains(text) { Ok(()) } else { Err((logs.text().to_owned(), logs.stderr)) }
    });
}

#[test]
fn standard_input_and_output_pass_without_loss() {
    let home = home();
    let bytes = bytes();
    let raw = home.run("busybox", ["-i", "--raw", "--network", "isolated"], &["cat"]).stdin(bytes.clone());
    let raw = raw.success();
    assert!(raw.stdout == bytes, "{} bytes came back", raw.stdout.len());
    // A command that does not read it ends all the same, and its end reaches one that does.
    home.run("busybox", ["-iq"], &["true"]).stdin(bytes).success();
    let counted = home.run("busybox", ["-iq"], &["wc", "-c"]).stdin("abc").success();
    assert_eq!((counted.text(), counted.stderr.as_str()), ("3\n", ""));
    home.nothing_is_left();
}

#[test]
fn live_output_leaves_the_summary_to_standard_error() {
    let home = home();
    let line = "echo out; echo err >&2; exit 3";
    let options = ["--stream", "--network", "isolated", "--setup", "echo prepared"];
    let ran = home.run("busybox", options, &["sh", "-c", line]).success();
    assert_eq!(ran.text(), "prepared\nout\n");
    let summary = ran.stderr.find(SUMMARY).unwrap_or_else(|| panic!("{}", ran.stderr));
    assert!(ran.stderr.find("err\n").unwrap() < summary, "{}", ran.stderr);
    assert!(ran.stderr.ends_with("Exit code: 3\n"), "{}", ran.stderr);

    let options = ["--quiet", "--propagate-exit-code", "--setup", "echo prepared"];
    let quiet = home.run("busybox", options, &["sh", "-c", line]).run().code(3);
    assert_eq!((quiet.text(), quiet.stderr.as_str()), ("out\n", "err\n"));
    let code =
        |value| home.run("busybox", ["-q"], &["sh", "-c", line]).env("MICROAGENT_PROPAGATE_EXIT_CODE", value);
    code("1").run().code(3);
    code("0").run().code(0);
    let one = home.run("busybox", ["-q", "-a", "stderr"], &["sh", "-c", line]).success();
    assert_eq!((one.text(), one.stderr.as_str()), ("", "err\n"));
    // A failed step prints what it has to say, even where only the command's output was wanted.
    let failed = home.run("busybox", ["-q", "--name", "bad", "--setup", "echo why; false"], &["true"]).run();
    assert_eq!(failed.code(1).text(), "why\n");
    home.nothing_but(&["bad"]);
}

#[test]
fn a_reader_that_goes_away_ends_the_run() {
    let home = home();
    let line = format!(
        "{} run -q --network isolated {} yes | head -n 1",
        home.program().display(),
        home.image("busybox")
    );
    let piped = home.other("sh").args(["-c", &line]).deadline(DEADLINE).success();
    assert_eq!((piped.text(), piped.stderr.as_str()), ("y\n", ""));
    home.nothing_is_left();
}

#[test]
fn a_document_goes_with_standard_input() {
    let home = home();
    let document = home.run("busybox", ["-i", "--json"], &["sh"]).stdin("echo fed; exit 4").success().json();
    assert_eq!(
        (&document["result"]["stdout"], &document["result"]["exit_code"]),
        (&json!("fed\n"), &json!(4))
    );
    for flag in ["--stream", "--raw", "-t", "-a=stdout"] {
        let refused = home.run("busybox", ["--json", flag], &["true"]).run().code(2);
        assert!(refused.json_error()["message"].as_str().unwrap().contains("--json"));
    }
    home.nothing_is_left();
}

#[test]
fn input_that_is_not_passed_is_noticed() {
    let home = home();
    let note = "standard input was not passed to the command; -i passes it";
    home.run("busybox", [], &["true"]).stdin("unwanted").success().says(note);
    let empty = home.run("busybox", [], &["true"]).success();
    assert!(!empty.stderr.contains("standard input"), "{}", empty.stderr);
    home.nothing_is_left();
}

#[test]
fn what_was_printed_before_a_failure_is_not_lost() {
    let home = home();
    let line = "echo out; echo err >&2; sleep 1000";
    // From a template it comes to its command at once, however slow a boot is.
    home.run("busybox", [], &["true"]).success();
    let options = ["--timeout", "20", "--name", "late"];
    let late = home.run("busybox", options, &["sh", "-c", line]).run().code(1);
    assert_eq!(late.text(), "out\n");
    let late = late.says("err\n").says("signal: killed").says("its time limit (--timeout) was reached");
    drop(late);
    home.microagent(["status", "late"]).success();
    let status = home.microagent(["status", "late"]).success();
    assert!(status.text().contains("the time limit was reached (signal: killed)"), "{}", status.text());
    let events = home.microagent(["events", "late"]).success();
    assert!(events.text().contains("the time limit was reached"), "{}", events.text());
    home.microagent(["delete", "late", "--yes"]).success();

    // A run without our streams is cancelled; the command of one with them gets the signal, and dies of it.
    for (option, code) in [("--cold", 130), ("-q", 143)] {
        let running = home.run("busybox", ["--name", "gone", option], &["sh", "-c", line]).start();
        prints(&home, "gone", "out");
        let asked = Instant::now();
        running.signal(Signal::TERM);
        assert_eq!(running.finish().code_or_cancelled(code, asked).text(), "out\n", "{option}");
        home.nothing_is_left();
    }
    let document = home.run("busybox", ["--json", "--timeout", "20"], &["sh", "-c", line]).run().code(1);
    let error = document.json_error();
    assert_eq!((&error["kind"], &error["stdout"]), (&json!("timeout"), &json!("out\n")));
}

#[test]
fn signals_reach_the_command_and_the_run_ends_whatever_it_does_with_them() {
    let home = home();
    let polite = "trap 'echo got it; exit 9' INT TERM; trap 'echo another' USR1; echo ready; sleep 1000 & \
        while :; do wait; done";
    let stubborn = "trap '' INT TERM; echo ready; while :; do sleep 1; done";
    let start = |line: &str| {
        let options = ["-iq", "--name", "one", "--network", "isolated"];
        let running = home.run("busybox", options, &["sh", "-c", line]).stdin_kept_open("").start();
        running.prints("ready\n");
        running
    };
    for signal in [Signal::INT, Signal::TERM] {
        let running = start(polite);
        // One that does not ask it to end has all the time that it needs.
        running.signal(Signal::USR1);
        running.prints("ready\nanother\n");
        let asked = Instant::now();
        running.signal(signal);
        let ended = running.finish().code_or_cancelled(9, asked);
        assert!(
            ended.text() == "ready\nanother\ngot it\n" || ended.status.code() == Some(130),
            "{}",
            ended.told()
        );
    }
    let running = start(stubborn);
    running.signal(Signal::TERM);
    running.finish().code(130).says("cancelled");
    // A stopped QEMU takes no signal.
    for signal in [Signal::INT, Signal::TERM] {
        let running = start(polite);
        running.qemu().signal(Signal::STOP);
        running.signal(signal);
        running.finish().code(130);
    }
    // Nor does the run wait for a reader that takes nothing.
    let running = home.run("busybox", ["-q", "--network", "isolated"], &["yes"]).stdout_unread().start();
    running.stalls();
    running.signal(Signal::TERM);
    // The command ends by the signal, or the run does when that takes too long.
    let code = running.finish().status.code();
    assert!(matches!(code, Some(130 | 143)), "{code:?}");
    home.nothing_is_left();
}

#[test]
fn interrupts_that_a_command_ignores_end_the_run() {
    let home = home();
    let line = "trap '' INT; echo ready; while :; do sleep 1; done";
    let options = ["-iq", "--name", "one", "--network", "isolated"];
    let mut running = home.run("busybox", options, &["sh", "-c", line]).stdin_kept_open("").start();
    prints(&home, "one", "ready");
    wait_for("the third interrupt to end it", DEADLINE, || {
        running.signal(Signal::INT);
        if running.is_over() { Ok(()) } else { Err(()) }
    });
    running.finish().code(130);
    // A fourth may have ended the command before it had removed everything, which a later command does.
    home.processes_end();
}

#[test]
fn a_run_can_have_the_terminal() {
    let home = home();
    let image = home.image("busybox");
    let words =
        ["run", "-it", "--name", "one", "--propagate-exit-code", "--network", "isolated", &image, "sh"];
    let runs = |job: &str| {
        let line = format!("ps | grep -c '[s]leep {job}'");
        wait_for("the job", DEADLINE, || {
            let seen = home.microagent(["exec", "one", "--", "sh", "-c", &line]).run();
            if seen.text() == "1\n" { Ok(()) } else { Err(seen.told()) }
        });
    };
    let mut pty = Pty::start(&home, &words, (33, 101));
    pty.shows("/ # ");
    pty.types("stty size; tty; echo TERM=$TERM\n");
    pty.shows("33 101");
    pty.shows("/dev/pts/0");
    pty.shows("TERM=xterm");
    pty.resize(20, 70);
    // The size comes on a way of its own.
    pty.types("until [ $(stty size | tr -d ' ') = 2070 ]; do sleep 0.1; done; stty size\n");
    pty.shows("20 70");
    // Keys are the guest's: Ctrl-C ends what runs there, Ctrl-Z stops it.
    pty.types("sleep 1000\n");
    runs("1000");
    pty.types("\x03");
    pty.types("echo $((40 + 2))\n");
    pty.shows("42");
    pty.types("sleep 2000\n");
    runs("2000");
    pty.types("\x1a");
    pty.shows("Stopped");
    pty.shows("/ # ");
    // A job that was just killed may still count as stopped; the second `exit` is not held up by it.
    pty.types("kill -9 %1; exit 5; exit 5\n");
    pty.shows("Exit code: 5");
    assert_eq!(pty.finish(), 5);
    home.nothing_is_left();
}

#[test]
fn the_terminal_is_as_before_however_the_run_ends() {
    let home = home();
    let image = home.image("busybox");
    let start = || {
        let mut pty = Pty::start(&home, &["run", "-itq", "--name", "one", &image, "sh"], (24, 80));
        pty.shows("/ # ");
        assert!(!pty.echoes());
        pty
    };
    let pty = start();
    pty.signal(Signal::TERM);
    pty.restored();
    assert_eq!(pty.finish(), 130);

    let mut pty = start();
    pty.types("exit\n");
    pty.restored();
    assert_eq!(pty.finish(), 0);

    let pty = start();
    let supervisor = home.processes().into_iter().find(|process| process.is_supervisor()).unwrap();
    supervisor.signal(Signal::KILL);
    pty.restored();
    assert_eq!(pty.finish(), 1);
    home.microagent(["delete", "one", "--yes"]).success();

    let pty = start();
    home.microagent(["kill", "one"]).success();
    pty.restored();
    assert_eq!(pty.finish(), 130);
    home.nothing_is_left();
}

#[test]
fn a_run_in_progress_is_a_workspace_for_other_terminals() {
    let home = home();
    let line = "echo first; while ! [ -e /tmp/go ]; do sleep 0.1; done; echo second; sleep 1000";
    let options = ["--name", "one", "--network", "isolated"];
    let running = home.run("busybox", options, &["sh", "-c", line]).start();
    prints(&home, "one", "first");
    let following = home.microagent(["logs", "-f", "one"]).start();
    following.prints("first\n");
    let mut pty = Pty::start(&home, &["connect", "one"], (24, 80));
    pty.shows("/ # ");
    pty.types("touch /tmp/go; exit 7\n");
    assert_eq!(pty.finish(), 7);
    prints(&home, "one", "second");
    assert!(home.microagent(["ps"]).success().text().contains("one "));
    home.microagent(["cp", "one:/etc/passwd", "copied"]).success();
    home.microagent(["stats", "one"]).success();
    home.microagent(["pause", "one"]).success();
    home.microagent(["resume", "one"]).success();
    // Nobody is asked for a run that would be ended under its caller unless that is said.
    home.microagent(["delete", "one", "--yes"]).run().code(0);
    assert_eq!(running.finish().says("another command ended it").text(), "first\nsecond\n");
    let followed = following.finish().code(0);
    assert!(followed.text().contains("second\n"), "{}", followed.text());
    home.nothing_is_left();
}

#[test]
fn a_run_in_the_background_is_a_workspace_with_a_service() {
    let home = home();
    let options = ["-dq", "--name", "web", "--network", "isolated", "--setup", "echo ready > /root/x"];
    let started = home.run("busybox", options, &["sh", "-c", "cat /root/x; sleep 1000"]).success();
    assert_eq!(started.text(), "web\n");
    prints(&home, "web", "ready");
    home.microagent(["stop", "web"]).success();
    home.microagent(["start", "web"]).success();
    assert_eq!(home.state_of("web"), "running");
    home.microagent(["kill", "web"]).success();
    home.microagent(["delete", "web", "--yes"]).success();

    // Removed with its end, whatever that is.
    let gone = || {
        wait_for("the end", DEADLINE, || {
            if home.workspaces().is_empty() { Ok(()) } else { Err(home.workspaces()) }
        });
    };
    let options = ["-dq", "--rm", "--network", "isolated", "--setup", "echo 1 > /root/x"];
    home.run("busybox", options, &["cat", "/root/x"]).success();
    gone();
    for verb in ["stop", "halt", "kill"] {
        let options = ["-d", "--rm", "--name", "web", "--network", "isolated"];
        home.run("busybox", options, &["sleep", "1000"]).success();
        home.microagent([verb, "web"]).success();
        gone();
    }
    home.run("busybox", ["-d", "--rm"], &["no-such-program"]).failure();
    home.run("busybox", ["-dit"], &["sh"]).run().code(2).says("-d cannot be combined with -i or -t");
    home.run("busybox", ["-d", "--timeout", "5"], &["sh"]).run().code(2).says("no time limit");
    home.nothing_is_left();
}
