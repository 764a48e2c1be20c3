//! Jobs: commands in the background of a workspace, on real guests. Clients, supervisor, guest and machine end at bad moments.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use microagent_tests::host::SmallDisk;
use microagent_tests::{Finished, Home, Invocation, User, host, user, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};

/// How long a guest may take for what takes no time.
const PATIENCE: Duration = Duration::from_secs(120);

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
    home.microagent(["delete", "web", "--force"]).success();
    home.nothing_is_left();
}

/// Starts a shell line as a job; gives its number.
#[track_caller]
fn start(home: &Home, options: &[&str], line: &str) -> String {
    let words = [&["exec", "--detach"], options, &["web", "--", "sh", "-c", line]].concat();
    home.call().args(words).success().text().trim().to_owned()
}

fn job<'a>(home: &'a Home, verb: &str, id: &str) -> Invocation<'a> {
    home.microagent(["job", verb, "web", id])
}

#[track_caller]
fn status(home: &Home, id: &str) -> Value {
    job(home, "status", id).arg("--json").success().json()
}

/// Waits until a job has printed this.
#[track_caller]
fn printed(home: &Home, id: &str, text: &str) {
    wait_for("what the job prints", PATIENCE, || {
        let logs = job(home, "logs", id).success();
        if logs.text().contains(text) { Ok(()) } else { Err(logs.told()) }
    });
}

#[track_caller]
fn in_guest(home: &Home, line: &str) -> Finished {
    home.microagent(["exec", "web", "--", "sh", "-c", line]).success()
}

#[test]
fn a_job_needs_no_client_and_keeps_output_and_exit_code() {
    let home = running(["-e", "GIVEN=yes"]);
    let line = "echo out $GIVEN; echo err >&2; until [ -e /tmp/go ]; do sleep 0.1; done; echo late; exit 7";
    let id = start(&home, &[], line);
    assert_eq!(id, "1");
    printed(&home, &id, "out yes\n");
    let shown = status(&home, &id);
    assert_eq!((&shown["state"], &shown["exit_code"]), (&json!("running"), &Value::Null));

    // Two clients watch; one is killed, and the job continues.
    let killed = job(&home, "logs", &id).args(["--follow"]).start();
    killed.kill();
    let follower = job(&home, "logs", &id).args(["--follow"]).start();
    let waiter = job(&home, "wait", &id).start();
    let before = job(&home, "logs", &id).arg("--json").success().json();
    in_guest(&home, "touch /tmp/go");
    waiter.finish().code(7);
    let followed = follower.finish().code(0);
    assert_eq!((followed.text(), followed.stderr.as_str()), ("out yes\nlate\n", "err\n"));

    // From now on, the last line, and by the place where the answer before ended.
    assert_eq!(job(&home, "logs", &id).args(["--follow", "--tail", "0"]).success().text(), "");
    assert_eq!(job(&home, "logs", &id).args(["--tail", "1"]).success().text(), "late\n");
    let from = before["next_position"].to_string();
    let after = job(&home, "logs", &id).args(["--from", &from, "--json"]).success().json();
    assert_eq!((&after["stdout"], &after["position"]), (&json!("late\n"), &before["next_position"]));
    assert_eq!((&after["state"], &after["exit_code"]), (&json!("exited"), &json!(7)));

    // A command that cannot be started is no job.
    let refused = home.microagent(["exec", "-d", "web", "--", "no-such-program"]).run();
    assert_eq!(refused.code(127).text(), "");
    assert_eq!(home.microagent(["jobs", "web", "-q"]).success().text(), "1\n");

    // It is all there without a machine.
    home.microagent(["halt", "web"]).success();
    job(&home, "wait", &id).run().code(7);
    assert_eq!(job(&home, "logs", &id).success().text(), "out yes\nlate\n");
    home.microagent(["exec", "-d", "web", "--", "true"]).run().code(1).says("start it first");
    job(&home, "kill", &id).run().code(1).says("has ended").says("job logs web 1");
    job(&home, "status", "9").run().code(1).says("has no job 9").says("microagent jobs web");
    end(&home);
}

#[test]
fn a_job_takes_input_signals_and_a_time_limit() {
    let home = running([]);
    let id = start(&home, &["-i"], "while read -r line; do echo \"got $line\"; done; echo end");
    // The input stays open from one client to the next.
    for line in ["one", "two"] {
        job(&home, "stdin", &id).stdin(format!("{line}\n")).success();
        printed(&home, &id, &format!("got {line}\n"));
    }
    job(&home, "stdin", &id).arg("--close").stdin("three\n").success();
    job(&home, "wait", &id).run().code(0);
    assert_eq!(job(&home, "logs", &id).success().text(), "got one\ngot two\ngot three\nend\n");
    job(&home, "stdin", &id).stdin("four\n").run().code(1).says("has ended");

    // More than any buffer on the way, and not text; a command that has no input.
    let bytes: Vec<u8> =
        (0..3_000_000u32).map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let id = start(&home, &["-i"], "cat");
    job(&home, "stdin", &id).arg("--close").stdin(bytes.clone()).success();
    job(&home, "wait", &id).run().code(0);
    assert!(job(&home, "logs", &id).success().stdout == bytes);
    let id =
        start(&home, &[], "trap 'echo told' HUP; trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done");
    job(&home, "stdin", &id).stdin("x").run().code(1).says("has no standard input");
    printed(&home, &id, "up\n");
    job(&home, "signal", &id).arg("HUP").success();
    printed(&home, &id, "told\n");
    job(&home, "signal", &id).success();
    job(&home, "wait", &id).run().code(9);

    // Killed with what it started.
    let id = start(&home, &[], "trap '' TERM; sleep 4321 & echo up; sleep 4321");
    printed(&home, &id, "up");
    job(&home, "kill", &id).success();
    let late = start(&home, &["--timeout", "1"], "sleep 4321 & sleep 4321");
    job(&home, "wait", &late).run().code(124);
    assert_eq!((&status(&home, &id)["exit_code"], &status(&home, &id)["signal"]), (&json!(137), &json!(9)));
    assert_eq!(status(&home, &late)["state"], "timed_out");
    wait_for("the end of what they started", PATIENCE, || {
        let left = in_guest(&home, "ps | grep '[s]leep 4321' || true");
        if left.text().is_empty() { Ok(()) } else { Err(left.text().to_owned()) }
    });
    let ended = job(&home, "wait", &id).args(["--timeout", "60"]).run().code(137);
    ended.says("SIGKILL");
    end(&home);
}

#[test]
fn a_job_ends_with_its_machine_and_says_so() {
    let home = running([]);
    let line = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done";
    let up = |options: &[&str], line: &str| {
        let id = start(&home, options, line);
        printed(&home, &id, "up");
        id
    };
    // A pause does not end it, and nothing can be told to it meanwhile.
    let id = up(&[], line);
    home.microagent(["pause", "web"]).success();
    assert_eq!(status(&home, &id)["state"], "running");
    job(&home, "signal", &id).run().code(1).says("resume it first");
    home.microagent(["resume", "web"]).success();

    // A clean end lets it end cleanly.
    home.microagent(["halt", "web"]).success();
    let ended = status(&home, &id);
    assert_eq!((&ended["state"], &ended["exit_code"]), (&json!("machine_ended"), &json!(3)));
    assert_eq!(job(&home, "logs", &id).success().text(), "up\nbye\n");

    // Its supervisor is killed.
    home.microagent(["start", "web"]).success();
    let id = up(&[], line);
    let waiter = job(&home, "wait", &id).start();
    let follower = job(&home, "logs", &id).arg("-f").start();
    let supervisor = home.processes().into_iter().find(|process| process.is_supervisor()).unwrap();
    supervisor.signal(Signal::KILL);
    waiter.finish().code(1).says("ended with its machine").says("microagent events web");
    assert_eq!(follower.finish().code(0).text(), "up\n");
    home.processes_end();
    assert_eq!(status(&home, &id)["state"], "machine_ended");

    // Numbers go up over starts. The guest restarts, and its machine continues.
    home.microagent(["start", "web"]).success();
    let id = up(&[], line);
    assert_eq!(id, "3");
    home.microagent(["exec", "web", "--", "reboot", "-f"]).run();
    job(&home, "wait", &id).run();
    assert_eq!(status(&home, &id)["state"], "machine_ended");
    wait_for("the restarted guest", PATIENCE, || {
        let ran = home.microagent(["exec", "web", "--", "true"]).run();
        if ran.status.success() { Ok(()) } else { Err(ran.told()) }
    });
    let id = up(&[], line);
    home.microagent(["quarantine", "web"]).success();
    assert_eq!(status(&home, &id)["state"], "machine_ended");
    home.microagent(["kill", "web"]).success();
    end(&home);
}

#[test]
fn a_service_takes_its_jobs_along() {
    let home = running(["--service-command", "until [ -e /tmp/stop ]; do sleep 0.1; done"]);
    let id = start(&home, &[], "trap '' TERM; echo up; sleep 4321");
    printed(&home, &id, "up");
    in_guest(&home, "touch /tmp/stop");
    job(&home, "wait", &id).run();
    // The kernel killed it, because process 1 had ended.
    assert_eq!(status(&home, &id)["state"], "machine_ended");
    home.microagent(["wait", "web"]).success();
    end(&home);
}

#[test]
fn running_and_kept_jobs_are_bounded() {
    let home = running([]);
    let gate = "until [ -e /tmp/go ]; do sleep 1; done";
    for _ in 0..32 {
        start(&home, &[], gate);
    }
    home.microagent(["exec", "-d", "web", "--", "true"]).run().code(75).says("32 jobs run");
    // Commands have their own share.
    in_guest(&home, "touch /tmp/go");
    for id in 1..=32 {
        job(&home, "wait", &id.to_string()).run().code(0);
    }
    for _ in 0..34 {
        let id = start(&home, &[], "true");
        job(&home, "wait", &id).run().code(0);
    }
    let ids: Vec<u32> = home
        .microagent(["jobs", "web", "-q"])
        .success()
        .text()
        .lines()
        .map(|id| id.parse().unwrap())
        .collect();
    assert_eq!(ids, (3..=66).collect::<Vec<_>>());
    job(&home, "status", "2").run().code(1).says("has no job 2");
    end(&home);
}

#[test]
fn a_reader_that_stalls_holds_no_job_up_and_what_is_not_kept_is_counted() {
    let home = running([]);
    // The reader is stalled before most is printed: the job waits for it.
    let flood = "yes first | head -c 1000000; until [ -e /tmp/go ]; do sleep 0.1; done; \
                 head -c 50000000 /dev/zero; echo last";
    let id = start(&home, &[], flood);
    let reader = job(&home, "logs", &id).arg("-f").stdout_unread().start();
    reader.stalls();
    in_guest(&home, "touch /tmp/go");
    job(&home, "wait", &id).run().code(0);
    reader.signal(Signal::TERM);
    reader.finish().code(0);

    let total = 51_000_005;
    assert_eq!(status(&home, &id)["printed_bytes"], json!(total));
    let logs = job(&home, "logs", &id).success();
    let kept = logs.stdout.len();
    assert!(logs.stdout.ends_with(b"last\n"));
    assert!((27 << 20..=33 << 20).contains(&kept), "{kept} bytes");
    let missing = total - kept;
    assert!(logs.stderr.contains(&format!("{missing} bytes of output are missing")), "{}", logs.stderr);
    let document = job(&home, "logs", &id).args(["--json", "--tail", "1"]).success().json();
    assert_eq!(document["next_position"], json!(total));
    end(&home);
}

#[test]
fn a_full_disk_of_the_host_costs_output_and_no_exit_code() {
    if !user::is_root() {
        return host::skip("only root can mount a small disk");
    }
    let home = Home::new(User::Caller);
    home.create("web", []);
    let jobs = home.workspace("web").join("machine/jobs");
    fs::create_dir(&jobs).unwrap();
    let disk = SmallDisk::mount(&jobs, 8);
    home.microagent(["start", "web"]).success();
    let line = "echo before; read -r go; head -c 300000 /dev/zero; touch /tmp/printed; read -r go; echo after; \
                read -r go; exit 5";
    let id = start(&home, &["-i"], line);
    printed(&home, &id, "before\n");

    let full = fill(&jobs);
    job(&home, "stdin", &id).stdin("go\n").success();
    wait_for("what nothing shows", PATIENCE, || {
        let seen = home.microagent(["exec", "web", "--", "ls", "/tmp/printed"]).run();
        if seen.status.success() { Ok(()) } else { Err(seen.told()) }
    });
    home.microagent(["exec", "-d", "web", "--", "true"]).run().code(75).says("free some space");
    fs::remove_file(full).unwrap();
    job(&home, "stdin", &id).stdin("go\n").success();
    printed(&home, &id, "after\n");
    let logs = job(&home, "logs", &id).arg("--json").success().json();
    assert_ne!(logs["dropped_bytes"], 0);
    assert_eq!(logs["next_position"], json!("before\nafter\n".len() + 300_000));

    // The exit code has room of its own.
    let full = fill(&jobs);
    // The job reads the line and may have ended before it is sent the end of its input.
    let sent = job(&home, "stdin", &id).stdin("go\n").run();
    assert!(sent.status.success() || sent.stderr.contains("has ended"), "{}", sent.told());
    job(&home, "wait", &id).run().code(5);
    assert_eq!(home.microagent(["jobs", "web", "-q"]).success().text(), format!("{id}\n"));
    fs::remove_file(full).unwrap();
    home.microagent(["halt", "web"]).success();
    drop(disk);
    end(&home);
}

/// Takes all room of a disk; gives the file that does.
#[track_caller]
fn fill(dir: &Path) -> PathBuf {
    let path = dir.join("filler");
    let mut file = File::create(&path).unwrap();
    while file.write_all(&[7; 4096]).is_ok() {}
    path
}
