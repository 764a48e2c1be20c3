//! Commands and sessions in running workspaces, on real guests.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::time::{Duration, Instant};

use microagent_tests::pty::Pty;
use microagent_tests::{Home, User, wait_for};
use rustix::process::Signal;
use serde_json::json;

/// A home with the isolated workspace `web` running.
#[track_caller]
fn running<const N: usize>(options: [&str; N]) -> Home {
    let home = Home::new(User::unprivileged());
    home.create("web", options);
    home.microagent(["start", "web"]).success();
    home
}

#[track_caller]
fn end(home: &Home) {
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn exec_keeps_the_streams_apart_and_passes_the_exit_code_on() {
    let home = running(["-e", "GIVEN=at creation", "--hostname", "box"]);
    let words = ["sh", "-c", "echo out $GIVEN $LATER; echo err >&2; pwd; exit 7"];
    let ran = home.microagent(["exec", "-e", "LATER=now", "--cwd", "/tmp", "web", "--"]).args(words).run();
    let ran = ran.code(7);
    assert_eq!((ran.text(), ran.stderr.as_str()), ("out at creation now\n/tmp\n", "err\n"));

    let document = home.microagent(["exec", "--json", "web", "--"]).args(words).run().code(7).json();
    assert_eq!(document["status"], "exited");
    assert_eq!((&document["exit_code"], &document["stderr"]), (&json!(7), &json!("err\n")));
    for (words, code) in [(["no-such-program"], 127), (["/etc/passwd"], 126)] {
        home.microagent(["exec", "web", "--"]).args(words).run().code(code).says("could not be started");
    }
    let killed = home.microagent(["exec", "web", "--", "sh", "-c", "kill -9 $$"]).run();
    killed.code(137);
    let nobody = home.microagent(["exec", "--user", "1000", "web", "--", "id", "-u"]).success();
    assert_eq!(nobody.text(), "1000\n");
    let late =
        home.microagent(["exec", "--timeout", "1", "web", "--", "sh", "-c", "sleep 4321 & sleep 4321"]);
    late.run().code(124).says("the time limit");
    let left = home.microagent(["exec", "web", "--", "sh", "-c", "ps | grep -c '[s]leep 4321'"]).run();
    assert_eq!(left.text(), "0\n");
    end(&home);
}

#[test]
fn standard_input_comes_from_a_pipe_or_a_file_without_loss() {
    let home = running([]);
    // More than any buffer on the way, and not text.
    let bytes: Vec<u8> =
        (0..8_000_000u32).map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let file = home.write("bytes", &bytes);
    let words = ["exec", "web", "-i", "--", "cat"];
    assert!(home.microagent(words).stdin(bytes.clone()).success().stdout == bytes);
    let words = ["exec", "web", "--stdin", file.to_str().unwrap(), "--", "cat"];
    assert!(home.microagent(words).success().stdout == bytes);
    // Without either it is empty, whatever is on ours.
    assert_eq!(home.microagent(["exec", "web", "--", "cat"]).stdin("unwanted").success().text(), "");
    // A command that does not read it ends all the same.
    home.microagent(["exec", "web", "-i", "--", "true"]).stdin(bytes).success();
    home.microagent(["exec", "web", "--stdin", "missing", "--", "cat"]).run().code(1).says("missing");
    end(&home);
}

#[test]
fn signals_reach_the_command_and_a_killed_caller_takes_it_along() {
    let home = running([]);
    let line = "trap 'echo got int; exit 9' INT; trap 'echo got usr1' USR1; echo ready; sleep 1000 & \
        while :; do wait; done";
    let call = home.microagent(["exec", "web", "--", "sh", "-c", line]).start();
    call.prints("ready\n");
    // One that does not ask it to end has all the time that it needs.
    call.signal(Signal::USR1);
    call.prints("ready\ngot usr1\n");
    let asked = Instant::now();
    call.signal(Signal::INT);
    let ended = call.finish().code_or_cancelled(9, asked);
    let is_told = ended.text() == "ready\ngot usr1\ngot int\n";
    assert!(is_told || ended.status.code() == Some(130), "{}", ended.told());

    let line = "echo ready; exec sleep 7654";
    let call = home.microagent(["exec", "web", "--", "sh", "-c", line]).start();
    call.prints("ready\n");
    call.kill();
    wait_for("the command to go", Duration::from_secs(120), || {
        let words = ["exec", "web", "--", "sh", "-c", "ps | grep -c '[s]leep 7654'"];
        let seen = home.microagent(words).run().text().to_owned();
        if seen == "0\n" { Ok(()) } else { Err(seen) }
    });
    end(&home);
}

#[test]
fn many_commands_run_at_once() {
    let home = running([]);
    let calls: Vec<_> = (0..20)
        .map(|number| home.microagent(["exec", "web", "--", "sh", "-c", &format!("echo {number}")]).start())
        .collect();
    for (number, call) in calls.into_iter().enumerate() {
        assert_eq!(call.finish().code(0).text(), format!("{number}\n"));
    }
    end(&home);
}

#[test]
fn more_commands_than_there_is_room_for_are_told_to_try_again() {
    let home = running([]);
    let calls: Vec<_> =
        (0..70).map(|_| home.microagent(["exec", "web", "--", "sleep", "3"]).start()).collect();
    let ended: Vec<_> = calls.into_iter().map(microagent_tests::Running::finish).collect();
    let (done, crowded): (Vec<_>, Vec<_>) = ended.into_iter().partition(|call| call.status.success());
    assert!(done.len() >= 50, "only {} ran at once", done.len());
    for call in crowded {
        call.code(75).says("try again when one of them has ended");
    }
    home.microagent(["exec", "web", "--", "true"]).success();
    end(&home);
}

/// Waits for a foreground job.
#[track_caller]
fn sleeps(home: &Home, seconds: &str) {
    let line = format!("ps | grep '[s]leep {seconds}' | grep -vc 'sh -c'");
    wait_for("the foreground job", Duration::from_secs(120), || {
        let seen = home.microagent(["exec", "web", "--", "sh", "-c", &line]).run().text().to_owned();
        if seen == "1\n" { Ok(()) } else { Err(seen) }
    });
}

#[test]
fn a_session_has_a_terminal_with_our_size_and_leaves_the_machine_running() {
    let home = running([]);
    home.microagent(["connect", "web"]).run().code(2).says("--send");
    let sent = home.microagent(["connect", "web", "--send", "echo sent; exit 4"]).run().code(4);
    assert_eq!(sent.text(), "sent\n");

    let mut pty = Pty::start(&home, &["connect", "web"], (30, 100));
    pty.shows("#");
    pty.types("stty size; tty; echo gr\u{fc}n\r");
    pty.shows("30 100");
    pty.shows("/dev/pts/");
    pty.shows("gr\u{fc}n");
    pty.resize(40, 120);
    // The size comes on a way of its own.
    pty.types("until [ $(stty size | tr -d ' ') = 40120 ]; do sleep 0.1; done; stty size\r");
    pty.shows("40 120");
    // Job control: Ctrl-C ends the foreground job and not the shell.
    pty.types("sleep 4711\r");
    sleeps(&home, "4711");
    pty.types("\u{3}");
    pty.types("echo still $((6 * 7)) here\r");
    pty.shows("still 42 here");
    pty.types("exit 3\r");
    assert_eq!(pty.finish(), 3);

    let mut pty = Pty::start(&home, &["connect", "web"], (24, 80));
    pty.shows("#");
    pty.types("\u{1d}");
    assert_eq!(pty.finish(), 0);
    assert_eq!(home.state_of("web"), "running");

    let mut pty =
        Pty::start(&home, &["exec", "-it", "web", "--", "sh", "-c", "tty && read x && echo =$x="], (24, 80));
    pty.shows("/dev/pts/");
    pty.types("typed\r");
    pty.shows("=typed=");
    assert_eq!(pty.finish(), 0);
    home.microagent(["exec", "-t", "web", "--", "true"]).run().code(2).says("omit -t");
    end(&home);
}

#[test]
fn the_console_takes_keys_from_one_session_and_is_logged_all_the_same() {
    let home = running([]);
    // What reads the keys is the guest's business: here a shell at the serial port.
    let shell = "exec sh -i < /dev/ttyS0 > /dev/ttyS0 2>&1";
    home.microagent(["exec", "web", "--", "setsid", "sh", "-c", shell]).success();
    home.log_has("web", "console.log", "#");

    let mut pty = Pty::start(&home, &["connect", "web", "--console"], (24, 80));
    pty.shows("Ctrl-] detaches from the console");
    pty.types("echo typed $((6 * 7)) at $(tty)\r");
    pty.shows("typed 42 at /dev/ttyS0");
    // Ctrl-C is the guest's, and there is one session at a time.
    pty.types("sleep 4712\r");
    sleeps(&home, "4712");
    pty.types("\u{3}");
    pty.types("echo still $((40 + 2)) here\r");
    pty.shows("still 42 here");
    let mut other = Pty::start(&home, &["connect", "web", "--console"], (24, 80));
    other.shows("another session has the console");
    assert_eq!(other.finish(), 75);
    pty.types("\u{1d}");
    pty.shows("detached");
    assert_eq!(pty.finish(), 0);
    let logs = home.microagent(["logs", "web"]).success();
    assert!(logs.text().contains("typed 42 at /dev/ttyS0"), "{}", logs.told());

    // The next one finds it free, and ends with the machine; without a terminal it shows only.
    let mut pty = Pty::start(&home, &["connect", "web", "--console"], (24, 80));
    pty.shows("still 42 here");
    pty.types("echo again $((20 + 1))\r");
    pty.shows("again 21");
    let shown = home.microagent(["connect", "web", "--console"]).start();
    home.microagent(["halt", "web"]).success();
    pty.shows("the machine has ended");
    assert_eq!(pty.finish(), 0);
    assert!(shown.finish().code(0).text().contains("again 21"));
    home.microagent(["connect", "web", "--console"]).success();
    end(&home);
}
