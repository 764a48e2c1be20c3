//! Readers of our output that stop reading: time limits and signals are obeyed all the same.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::time::Duration;

use microagent_tests::process::Process;
use microagent_tests::pty::Pty;
use microagent_tests::{Home, User, wait_for};
use rustix::process::Signal;

#[track_caller]
fn running() -> Home {
    let home = Home::new(User::unprivileged());
    home.create("web", []);
    home.microagent(["start", "web"]).success();
    home
}

/// Waits until no `yes` runs in the guest.
#[track_caller]
fn yes_is_gone(home: &Home) {
    wait_for("the end of the command", Duration::from_secs(120), || {
        let found = home.microagent(["exec", "web", "--", "pidof", "yes"]).run();
        if found.text().trim().is_empty() { Ok(()) } else { Err(found.text().to_owned()) }
    });
}

#[test]
fn exec_keeps_its_time_limit_while_nobody_reads() {
    let home = running();
    let late = home.microagent(["exec", "--timeout", "2", "web", "--", "yes"]).stdout_unread().run();
    late.code(124).says("the time limit");
    yes_is_gone(&home);
    // A command that ignores signals is killed as well.
    let deaf = ["sh", "-c", "trap '' TERM INT; yes"];
    let late = home.microagent(["exec", "--timeout", "2", "web", "--"]).args(deaf).stdout_unread().run();
    late.code(124).says("the time limit");
    yes_is_gone(&home);
    home.microagent(["delete", "web", "--force"]).success();
    home.nothing_is_left();
}

#[test]
fn signals_end_what_nobody_reads() {
    let home = running();
    for signal in [Signal::TERM, Signal::INT] {
        for (is_deaf, words) in [
            (false, &["exec", "web", "--", "yes"][..]),
            (false, &["connect", "web", "--send", "yes"]),
            (true, &["exec", "web", "--", "sh", "-c", "trap '' TERM INT; yes"]),
        ] {
            let call = home.call().args(words).stdout_unread().start();
            call.stalls();
            call.signal(signal);
            let code = call.finish().status.code();
            // Its end is seen where all that it had printed found room.
            let by_signal = !is_deaf && code == Some(128 + signal.as_raw());
            assert!(by_signal || code == Some(130), "{code:?}");
            yes_is_gone(&home);
        }
        let copy = home.microagent(["cp", "web:/", "-"]).stdout_unread().start();
        copy.stalls();
        copy.signal(signal);
        copy.finish().code(130);
    }
    let flood = "yes stalled | head -c 300000 > /dev/console";
    home.microagent(["exec", "web", "--", "sh", "-c", flood]).success();
    let logs = home.microagent(["logs", "web", "-f"]).stdout_unread().start();
    logs.stalls();
    // Whoever ends what is followed has had what was wanted.
    logs.signal(Signal::TERM);
    logs.finish().code(0);
    // Without a terminal the console shows its last lines and what comes, so something comes until it stalls.
    let console = home.microagent(["connect", "web", "--console"]).stdout_unread().start();
    let floods = format!("while :; do {flood}; sleep 0.1; done");
    let flooding = home.microagent(["exec", "web", "--", "sh", "-c", &floods]).start();
    console.stalls();
    drop(flooding);
    console.signal(Signal::TERM);
    console.finish().code(130);
    home.microagent(["delete", "web", "--force"]).success();
    home.nothing_is_left();
}

#[test]
fn a_session_on_a_terminal_that_nobody_reads_is_left_by_its_key_and_by_signals() {
    let home = running();
    let session = ["connect", "web", "--shell", "yes"];
    let mut pty = Pty::start_unread(&home, &session, (24, 80));
    pty.stalls();
    pty.types("typed\r");
    pty.types("\u{1d}");
    pty.restored();
    assert_eq!(pty.finish(), 0);
    yes_is_gone(&home);

    let pty = Pty::start_unread(&home, &session, (24, 80));
    pty.stalls();
    pty.signal(Signal::TERM);
    pty.restored();
    // The command ends by the signal, too; its code is known if the kernel had room for the rest of its output.
    let code = pty.finish();
    assert!([130, 143].contains(&code), "{code}");
    yes_is_gone(&home);

    // More keys than may wait, since what they are for is not shown either.
    let flood = "while :; do yes stalled | head -c 2000; sleep 0.1; done > /dev/console < /dev/null 2>&1";
    home.microagent(["exec", "web", "--", "setsid", "sh", "-c", flood]).success();
    let mut pty = Pty::start_unread(&home, &["connect", "web", "--console"], (24, 80));
    pty.stalls();
    for _ in 0..50 {
        pty.types("typed\r");
    }
    pty.types("\u{1d}");
    pty.restored();
    assert_eq!(pty.finish(), 0);
    home.microagent(["delete", "web", "--force"]).success();
    home.nothing_is_left();
}

#[test]
fn a_run_that_nobody_reads_ends_on_the_first_signal() {
    let home = Home::new(User::unprivileged());
    for signal in [Signal::TERM, Signal::INT] {
        let words = ["sh", "-c", "yes stalled | head -c 300000"];
        let run = home.run("busybox", ["--network", "isolated"], &words).stdout_unread().start();
        run.stalls();
        run.signal(signal);
        run.finish().code(130);
        home.nothing_is_left();
    }
}

#[test]
fn supervise_waits_for_a_copy_that_has_the_workspace() {
    let home = Home::new(User::unprivileged());
    home.create("web", ["--service-command", "echo up; sleep 9999", "--restart", "always"]);
    // A resting workspace is booted offline for the copy, and locked as long as it lasts.
    let copy = home.microagent(["cp", "web:/", "-"]).stdout_unread().start();
    copy.stalls();
    let program = home.program().to_str().unwrap();
    let line = format!("exec {program} supervise web --interval 200ms 2> told");
    let supervise = home.other("sh").args(["-c", &line]).start();
    wait_for("the first try", Duration::from_secs(120), || {
        let told = std::fs::read_to_string(home.path().join("told")).unwrap_or_default();
        if told.contains("in use by another command; next try") { Ok(()) } else { Err(told) }
    });
    copy.signal(Signal::TERM);
    copy.finish().code(130);
    home.log_has("web", "console.log", "up");
    supervise.signal(Signal::INT);
    supervise.finish().code(0);
    assert_eq!(home.state_of("web"), "halted");
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_signal_ends_each_command_while_the_guest_does_nothing() {
    let home = running();
    home.write("file", "content");
    let qemu = home.processes().into_iter().find(Process::is_qemu).unwrap();
    qemu.stop();
    // Without the signal each of them would wait for two minutes and more.
    let patience = Duration::from_secs(60);
    for signal in [Signal::TERM, Signal::INT] {
        for words in [
            &["exec", "web", "true"][..],
            &["cp", "file", "web:/root/"],
            &["cp", "web:/etc", "fetched"],
            &["diff", "web"],
            &["export", "web", "-o", "root.tar"],
            &["logs", "-f", "web"],
            &["wait", "web"],
        ] {
            let command = home.call().args(words).deadline(patience).start();
            wait_for("the command to connect", patience, || {
                let waits = fs::read_to_string(format!("/proc/{}/wchan", command.id()));
                if waits.is_ok_and(|place| place.contains("poll")) { Ok(()) } else { Err("it works") }
            });
            command.signal(signal);
            let code = if words[0] == "logs" { 0 } else { 130 };
            command.finish().code(code);
        }
    }
    qemu.signal(Signal::CONT);
    home.microagent(["delete", "web", "--force"]).success();
    home.nothing_is_left();
}
