//! A guest whose agent lies: rubbish in place of messages, lengths of gigabytes, streams without an end, names that climb
//! out, silence, and its death at the worst moment. Every command returns, says what is wrong, and leaves nothing.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::thread;
use std::time::Duration;

use microagent_tests::hostile::let_the_agent_lie;
use microagent_tests::process::Process;
use microagent_tests::{Finished, Home, Invocation, User};

/// Most memory of a supervisor, in KiB: far below what a lie would need if it were believed.
const SUPERVISOR_KIB: u64 = 48 * 1024;

/// What a machine that its guest has ended is called.
const PANIC: &str = "the guest kernel panicked";

/// A home with the workspace `web` on a small disk, made by the real agent.
fn home() -> Home {
    let home = Home::new(User::unprivileged());
    // What a disk can hold bounds what is taken from its guest; of a gigabyte a test would never see the end.
    home.create("web", ["--profile", "tiny", "--size-mib", "16"]);
    home
}

/// Begins a call that boots its machine, if it does: a template would be another agent's.
fn call<'a>(home: &'a Home, words: &[&str]) -> Invocation<'a> {
    home.call().env("MICROAGENT_WARM", "off").args(words)
}

/// Starts the workspace with an agent that lies, but not yet.
#[track_caller]
fn start_lying(home: &Home, lie: &str) {
    let_the_agent_lie(home, lie);
    call(home, &["start", "web"]).success();
}

/// The workspace can be ended, whatever it is like, and nothing of it is left running.
#[track_caller]
fn end(home: &Home) {
    home.microagent(["kill", "web"]).success();
    home.processes_end();
}

#[track_caller]
fn says(finished: Finished, text: &str, lie: &str) {
    assert!(finished.stderr.contains(text), "{lie}: `{text}` is missing\n{}", finished.told());
}

#[test]
fn a_start_fails_clearly_however_the_agent_lies() {
    let home = home();
    for (lie, message) in [
        ("mute", "the guest did not answer within 10 s"),
        ("rubbish", "the guest sends something that is not an answer"),
        ("greeted-rubbish", "the control channel"),
        ("greeted-dead", PANIC),
        ("configure-huge", "a message of 4294967295 bytes was announced"),
        ("configure-wrong", "a message could not be decoded"),
        ("configure-closed", "the guest closed the control channel"),
        ("configure-dead", PANIC),
    ] {
        let_the_agent_lie(&home, lie);
        let patience = if lie == "mute" { "10" } else { "60" };
        let start = call(&home, &["start", "web"]).env("MICROAGENT_BOOT_TIMEOUT", patience).run().code(1);
        says(start, message, lie);
        home.processes_end();
        assert_eq!(home.state_of("web"), "failed", "{lie}");
        // Nor can its disk be looked at.
        if lie == "configure-wrong" {
            says(call(&home, &["cp", "web:/etc", "copy"]).run().code(1), message, lie);
            home.processes_end();
        }
    }
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn commands_end_clearly_however_the_agent_lies() {
    let home = home();
    let exec = ["exec", "web", "--", "true"];
    for (lie, message) in [
        ("exec-huge", "a message of 4294967295 bytes was announced"),
        ("exec-wrong", "a message could not be decoded"),
        ("exec-closed", "lost the connection to the guest"),
        ("exec-started-dead", "lost the connection to the guest"),
    ] {
        start_lying(&home, lie);
        says(home.microagent(exec).run().code(1), message, lie);
        if lie == "exec-started-dead" {
            home.processes_end();
            let status = home.microagent(["status", "web"]).success();
            assert!(status.text().contains(PANIC), "{}", status.told());
        } else {
            // It is one command's affair; the machine is still there, and can be halted.
            assert_eq!(home.state_of("web"), "running", "{lie}");
            home.microagent(["halt", "web"]).success();
        }
        end(&home);
    }

    start_lying(&home, "exec-endless");
    let microagent = home.program().to_str().unwrap();
    let line = format!("{microagent} exec --timeout 1 web -- true > /dev/null");
    home.other("sh").args(["-c", &line]).run().code(124).says("the time limit");
    let line = format!("{microagent} exec web -- true | head -c 10");
    assert_eq!(home.other("sh").args(["-c", &line]).run().text(), "xxxxxxxxxx");
    let supervisor = home.processes().into_iter().find(Process::is_supervisor).unwrap();
    let most = supervisor.memory_kib("VmHWM").unwrap();
    assert!(most < SUPERVISOR_KIB, "the supervisor needed {most} KiB");
    home.microagent(["delete", "web", "--force"]).success();
    home.nothing_is_left();
}

#[test]
fn copies_and_commits_leave_nothing_however_the_agent_lies() {
    let home = home();
    home.write("file", vec![7; 3_000_000]);
    home.make_dir("here");
    let out = ["cp", "web:/thing", "here/copy"];
    let stream = ["cp", "web:/thing", "-"];
    let into = ["cp", "file", "web:/srv/"];
    let commit = ["commit", "web", "web:1"];
    let sync = ["sync", "here", "web:/srv", "--back", "--delete", "--yes"];
    let too_much = "the guest sends more than its disk can hold";
    let cases: [(&str, &[&str], &str); 17] = [
        ("stat-wrong", &out, "a message could not be decoded"),
        ("stat-huge", &into, "a message of 4294967295 bytes was announced"),
        ("pack-wrong", &out, "a message could not be decoded"),
        ("pack-huge", &stream, "a message of 4294967295 bytes was announced"),
        ("pack-dead", &out, "lost the connection to the guest"),
        ("pack-climbing", &out, "climbed"),
        ("pack-endless", &out, too_much),
        ("unpack-wrong", &into, "a message could not be decoded"),
        ("unpack-closed", &into, "lost the connection to the guest"),
        ("unpack-dead", &into, "lost the connection to the guest"),
        ("list-wrong", &sync, "a message could not be decoded"),
        ("list-dead", &sync, "lost the connection to the guest"),
        ("list-climbing", &sync, "a path of it is not valid"),
        ("list-huge", &sync, "a message of 4294967295 bytes was announced"),
        ("diff-wrong", &commit, "a message could not be decoded"),
        ("diff-climbing", &commit, "climbed"),
        ("diff-endless", &commit, ""),
    ];
    for (lie, words, message) in cases {
        if words == commit {
            let_the_agent_lie(&home, lie);
        } else {
            start_lying(&home, lie);
        }
        says(call(&home, words).run().code(1), message, lie);
        end(&home);
        assert_eq!(fs::read_dir(home.path().join("here")).unwrap().count(), 0, "{lie}");
        assert!(!home.path().join("climbed").exists(), "{lie}");
    }
    start_lying(&home, "pack-endless");
    let line = format!("{} cp web:/thing - > /dev/null", home.program().to_str().unwrap());
    says(home.other("sh").args(["-c", &line]).run().code(1), too_much, "pack-endless");
    let images = home.microagent(["image", "list"]).success();
    assert!(!images.text().contains("web:1"), "{}", images.told());
    home.microagent(["delete", "web", "--force"]).success();
    home.nothing_is_left();
}

#[test]
fn a_halt_ends_the_machine_however_the_agent_lies() {
    let home = home();
    for lie in ["shutdown-wrong", "shutdown-huge", "shutdown-closed", "shutdown-dead"] {
        start_lying(&home, lie);
        says(home.microagent(["halt", "web"]).run().code(1), "it did not shut down cleanly", lie);
        home.processes_end();
        assert_eq!(home.state_of("web"), "failed", "{lie}");
    }
    // A look into a resting disk is halted, too.
    let look = call(&home, &["cp", "web:/etc", "-"]).run().code(1);
    says(look, "cannot flush its disk", "shutdown-dead");
    home.processes_end();
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

/// All at once, because each waits for the deadline of its own.
#[test]
fn silence_is_given_up_everywhere() {
    let cases: [(&str, &[&str], &[&str], &str); 4] = [
        ("configure-mute", &[], &["start", "web"], "the guest did not set up its disk within 60 s"),
        (
            "exec-mute",
            &["--service-command", "serve"],
            &["start", "web"],
            "the guest started nothing for 60 s",
        ),
        ("exec-mute", &[], &["exec", "web", "--", "true"], "it sent nothing for 60 s"),
        ("shutdown-mute", &[], &["stop", "web"], "the guest did not answer in time"),
    ];
    thread::scope(|scope| {
        for (lie, options, words, message) in cases {
            scope.spawn(move || {
                let home = Home::new(User::unprivileged());
                let image = home.image("busybox");
                let create =
                    ["create", "web", "--network", "isolated", "--profile", "tiny", "--image", &image];
                home.call().args(create).args(options).success();
                let_the_agent_lie(&home, lie);
                if words[0] != "start" {
                    call(&home, &["start", "web"]).success();
                }
                let deadline = Duration::from_secs(250);
                says(call(&home, words).deadline(deadline).run().code(1), message, lie);
                home.microagent(["delete", "web", "--force"]).success();
                home.nothing_is_left();
            });
        }
    });
}

/// Whoever waits for a guest that says nothing any more, or nothing that can be understood, is told.
#[test]
fn a_guest_that_hangs_or_breaks_its_channel_fails_and_everybody_who_waits_is_told() {
    for (lie, message) in [
        ("usage-mute", "the guest hangs: its agent did not answer"),
        ("channel-rubbish", "the guest broke the control channel"),
    ] {
        // What makes it lie; the other lie comes with the first question whether it is there.
        let is_provoked = lie == "channel-rubbish";
        let home = home();
        start_lying(&home, lie);
        let waiting = call(&home, &["wait", "web"]).start();
        let following = call(&home, &["logs", "-f", "web"]).start();
        if is_provoked {
            home.microagent(["exec", "web", "--", "true"]).run().code(1);
        }
        let waited = waiting.finish().code(1);
        assert_eq!(waited.summary("State"), "failed", "{lie}: {}", waited.told());
        let status = home.microagent(["status", "web"]).success();
        assert!(status.text().contains(message), "{lie}: {}", status.told());
        drop(following.finish());
        home.processes_end();
        home.microagent(["delete", "web", "--yes"]).success();
        home.nothing_is_left();
    }
}
