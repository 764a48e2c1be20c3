//! Kept workspaces whose processes are killed, freeze or race: afterwards the state is a true one, the next
//! command works, and what the guest had flushed is there.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::thread;
use std::time::Duration;

use microagent_tests::process::Process;
use microagent_tests::{Finished, Home, User, wait_for};
use rustix::process::Signal;

/// How long something may take that must come about: a guest may have to boot for it.
const PATIENCE: Duration = Duration::from_secs(120);

fn home() -> Home {
    Home::new(User::unprivileged())
}

#[track_caller]
fn find(home: &Home, what: &str, wanted: fn(&Process) -> bool) -> Process {
    wait_for(what, PATIENCE, || {
        let processes = home.processes();
        processes.iter().find(|process| wanted(process)).cloned().ok_or(processes)
    })
}

/// Waits until what was interrupted is over: the workspace rests and has no process left, or it can be used. Its record may
/// say that it runs while a request to end it is on its way, or before its supervisor has seen the end of QEMU.
#[track_caller]
fn settles(home: &Home) {
    wait_for("a workspace that rests or works", PATIENCE, || {
        let state = home.state_of("web");
        if RESTING.contains(&state.as_str()) && home.processes().is_empty() {
            return Ok(());
        }
        let used = home.microagent(["exec", "web", "--", "true"]).run();
        if state == "running" && used.status.success() { Ok(()) } else { Err((state, used.stderr)) }
    });
}

/// Starts the workspace if it rests, and checks that it works and has its file.
#[track_caller]
fn works_and_has_its_file(home: &Home, name: &str) {
    if home.state_of(name) != "running" {
        home.microagent(["start", name]).success();
    }
    assert_eq!(home.microagent(["exec", name, "--", "cat", "/root/kept"]).success().text(), "kept\n");
}

const RESTING: [&str; 4] = ["prepared", "halted", "stopped", "failed"];

#[test]
fn whichever_process_is_killed_the_workspace_starts_again_with_what_was_flushed() {
    let home = home();
    // With a network, so that there is a network stack to kill.
    home.microagent(["create", "web", "--image", &home.image("busybox")]).success();
    home.microagent(["start", "web"]).success();
    home.microagent(["exec", "web", "--", "sh", "-c", "echo kept > /root/kept; sync"]).success();
    for (wanted, problem) in [
        (Process::is_supervisor as fn(&Process) -> bool, "its supervisor was killed"),
        (Process::is_qemu, "QEMU was killed by signal 9"),
    ] {
        find(&home, "the process", wanted).signal(Signal::KILL);
        home.processes_end();
        assert_eq!(home.state_of("web"), "failed");
        let status = home.microagent(["status", "web"]).success();
        assert!(status.text().contains(problem), "{}", status.told());
        home.microagent(["exec", "web", "--", "true"]).run().code(1).says("microagent start web");
        works_and_has_its_file(&home, "web");
    }
    // Without its network the machine continues.
    find(&home, "the keeper of the network stack", Process::is_network_keeper).signal(Signal::KILL);
    works_and_has_its_file(&home, "web");
    home.microagent(["halt", "web"]).success();
    works_and_has_its_file(&home, "web");
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

/// A process that shows how far a command has come.
type Point = (&'static str, fn(&Process) -> bool);

/// The points in a command at which its caller or its supervisor is killed.
const POINTS: [Point; 2] = [("a supervisor", Process::is_supervisor), ("QEMU", Process::is_qemu)];

#[test]
fn a_start_that_is_killed_at_any_point_leaves_a_workspace_that_starts() {
    let home = home();
    home.create("web", ["--setup", "echo kept > /root/kept"]);
    for cold in [true, false] {
        for (what, point) in POINTS {
            for kill_caller in [true, false] {
                let warm = if cold { "off" } else { "on" };
                let starting = home.microagent(["start", "web"]).env("MICROAGENT_WARM", warm).start();
                let process = find(&home, what, point);
                if kill_caller {
                    starting.signal(Signal::KILL);
                } else {
                    process.signal(Signal::KILL);
                }
                drop(starting.finish());
                // It may have come so far that it needs its caller no more.
                settles(&home);
                works_and_has_its_file(&home, "web");
                home.microagent(["kill", "web"]).success();
                home.processes_end();
            }
        }
    }
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_setup_that_is_killed_is_done_by_the_next_start_on_a_fresh_disk() {
    let home = home();
    let image = home.image("busybox");
    // The first time it does not come to its end by itself; what tells the second from it is not on its disk.
    let setup = "test ! -e /root/half || exit 1; echo half > /root/half; \
        if ! test -e /seen/it; then touch /seen/it; sync; echo halfway; sleep 100000; fi; echo kept > /root/kept";
    for (volume, kill_caller) in [("one", true), ("two", false)] {
        let mount = format!("{volume}:/seen");
        let words =
            ["create", "web", "--network", "isolated", "--image", &image, "-v", &mount, "--setup", setup];
        let creating = home.microagent(words).start();
        home.log_has("web", "console.log", "halfway");
        if kill_caller {
            creating.kill();
        } else {
            find(&home, "a supervisor", Process::is_supervisor).signal(Signal::KILL);
            creating.finish().failure();
        }
        home.processes_end();
        assert_eq!(home.state_of("web"), "failed");
        works_and_has_its_file(&home, "web");
        home.microagent(["delete", "web", "--force"]).success();
    }
    home.nothing_is_left();
}

#[test]
fn a_command_that_is_killed_while_it_ends_or_copies_leaves_a_workspace_that_works() {
    let home = home();
    home.create("web", ["--setup", "echo kept > /root/kept"]);
    for verb in ["halt", "stop", "kill"] {
        home.microagent(["start", "web"]).success();
        let ending = home.microagent([verb, "web"]).start();
        ending.signal(Signal::KILL);
        drop(ending.finish());
        // What was asked for, or nothing of it.
        wait_for("a workspace with its file", PATIENCE, || {
            settles(&home);
            let started = home.microagent(["start", "web"]).run();
            let read = home.microagent(["exec", "web", "--", "cat", "/root/kept"]).run();
            // One that was used may still be ended by what was asked before.
            if read.text() == "kept\n" { Ok(()) } else { Err((started.stderr, read.stderr)) }
        });
        home.microagent(["halt", "web"]).success();
    }
    // A look into the resting disk ends with its caller, and a copy with whatever it needs. Nobody reads this one, so it does
    // not come to its end by itself.
    for ((what, point), kill_caller) in POINTS.into_iter().flat_map(|point| [(point, true), (point, false)]) {
        let mut copying = home.microagent(["cp", "web:/", "-"]).stdout_unread().start();
        let process = find(&home, what, point);
        if !kill_caller {
            process.signal(Signal::KILL);
            // A machine that was killed while it was restored is followed by one that boots.
            let is_another = |other: &Process| other.is_qemu() && other.pid != process.pid;
            wait_for("the end of the copy, or another machine", PATIENCE, || {
                let processes = home.processes();
                let over = copying.is_over() || processes.iter().any(is_another) && !process.is_supervisor();
                if over { Ok(()) } else { Err(processes) }
            });
        }
        copying.signal(Signal::KILL);
        drop(copying.finish());
        home.processes_end();
        assert_eq!(home.state_of("web"), "halted");
        home.microagent(["cp", "web:/root/kept", "copy"]).success();
        assert_eq!(fs::read_to_string(home.path().join("copy")).unwrap(), "kept\n");
        fs::remove_file(home.path().join("copy")).unwrap();
    }
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn an_exec_whose_processes_are_killed_ends_and_the_workspace_is_what_it_says() {
    let home = home();
    home.create("web", ["--setup", "echo kept > /root/kept"]);
    for target in [None, Some(POINTS[0]), Some(POINTS[1])] {
        home.microagent(["start", "web"]).success();
        // Only what is flushed is still there when QEMU was killed.
        let line = "echo $$ > /root/pid && sync && echo > /dev/shm/flushed && exec sleep 100000";
        let running = home.microagent(["exec", "web", "--", "sh", "-c", line]).start();
        wait_for("the command in the guest", PATIENCE, || {
            let look = home.microagent(["exec", "web", "--", "test", "-e", "/dev/shm/flushed"]).run();
            if look.status.success() { Ok(()) } else { Err(look.stderr) }
        });
        match target {
            // What it ran in the guest ends with it; the workspace keeps running.
            None => {
                running.signal(Signal::KILL);
                drop(running.finish());
                let gone = "! kill -0 $(cat /root/pid) 2>/dev/null";
                wait_for("the end of it in the guest", PATIENCE, || {
                    let look = home.microagent(["exec", "web", "--", "sh", "-c", gone]).run();
                    if look.status.success() { Ok(()) } else { Err(look.stderr) }
                });
                assert_eq!(home.state_of("web"), "running");
            }
            Some((what, target)) => {
                find(&home, what, target).signal(Signal::KILL);
                running.finish().failure();
                home.processes_end();
                assert_eq!(home.state_of("web"), "failed", "{what}");
            }
        }
        works_and_has_its_file(&home, "web");
        home.microagent(["exec", "web", "--", "rm", "/root/pid"]).success();
        home.microagent(["halt", "web"]).success();
    }
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_halt_whose_machine_or_supervisor_is_killed_fails_and_loses_nothing_flushed() {
    let home = home();
    // It does not end by itself; the halt gives it ten seconds.
    let service = "trap 'echo asked; sleep 100000' TERM; echo serving; while :; do sleep 1; done";
    home.create("web", ["--setup", "echo kept > /root/kept", "--service-command", service]);
    for (what, target) in POINTS {
        home.microagent(["start", "web"]).success();
        home.log_has("web", "console.log", "serving");
        let halting = home.microagent(["halt", "web"]).start();
        home.log_has("web", "console.log", "asked");
        find(&home, what, target).signal(Signal::KILL);
        halting.finish().failure();
        home.processes_end();
        assert_eq!(home.state_of("web"), "failed", "{what}");
        works_and_has_its_file(&home, "web");
        home.microagent(["kill", "web"]).success();
        home.processes_end();
    }
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_making_or_a_delete_that_is_killed_leaves_all_of_the_workspace_or_nothing() {
    let home = home();
    let image = home.image("busybox");
    let create = ["create", "web", "--network", "isolated", "--image", &image];
    // The image is here by then, so that the making itself is what is killed.
    home.microagent(create).success();
    home.microagent(["delete", "web", "--yes"]).success();
    let tmp = home.state().join("tmp");
    let half_made = || fs::read_dir(&tmp).unwrap().next().is_some();
    let whole = || !home.workspaces().is_empty();
    let points: [(&str, &dyn Fn() -> bool); 3] =
        [("nothing yet", &|| true), ("half-made", &|| half_made() || whole()), ("whole", &whole)];
    for (what, point) in points {
        let creating = home.microagent(create).start();
        wait_for(what, PATIENCE, || if point() { Ok(()) } else { Err(()) });
        creating.signal(Signal::KILL);
        drop(creating.finish());
        if home.workspaces().is_empty() {
            home.microagent(create).success();
        }
        assert_eq!(home.state_of("web"), "prepared", "{what}");
        home.microagent(["start", "web"]).success();
        // Now the delete: at once, when the machine is gone, and when the name is.
        let gone: &dyn Fn() -> bool = match what {
            "nothing yet" => &|| true,
            "half-made" => &|| !home.processes().iter().any(Process::is_qemu),
            _ => &|| home.workspaces().is_empty(),
        };
        let deleting = home.microagent(["delete", "web", "--force"]).start();
        wait_for("the point of the delete", PATIENCE, || if gone() { Ok(()) } else { Err(()) });
        deleting.signal(Signal::KILL);
        drop(deleting.finish());
        home.microagent(["delete", "web", "--force", "--yes"]).success();
        home.processes_end();
        assert!(home.workspaces().is_empty(), "{what}");
    }
    assert_eq!(home.microagent(["list"]).success().text(), "No workspaces.\n");
}

#[test]
fn a_machine_or_a_supervisor_that_stands_still_holds_nobody_up_for_ever() {
    let home = home();
    home.create("web", []);
    home.microagent(["start", "web"]).success();
    home.microagent(["exec", "web", "--", "sh", "-c", "echo kept > /root/kept; sync"]).success();
    find(&home, "QEMU", Process::is_qemu).signal(Signal::STOP);
    home.microagent(["exec", "--timeout", "1", "web", "--", "true"]).run().code(124);
    home.microagent(["pause", "web"]).run().code(1).says("QEMU did not answer");
    home.microagent(["ps"]).success();
    home.microagent(["halt", "web"]).run().code(1).says("did not shut down cleanly");
    home.processes_end();
    works_and_has_its_file(&home, "web");

    find(&home, "a supervisor", Process::is_supervisor).signal(Signal::STOP);
    home.microagent(["exec", "web", "--", "true"])
        .run()
        .code(1)
        .says("did not answer")
        .says("microagent kill web");
    assert_eq!(home.microagent(["kill", "web"]).success().summary("State"), "stopped");
    home.processes_end();
    works_and_has_its_file(&home, "web");
    home.microagent(["delete", "web", "--force"]).success();
    home.nothing_is_left();
}

/// Runs calls at once and gives how they ended.
fn race(home: &Home, calls: &[&[&str]]) -> Vec<Finished> {
    let running: Vec<_> = calls.iter().map(|words| home.call().args(*words).start()).collect();
    running.into_iter().map(microagent_tests::Running::finish).collect()
}

/// The loser of a race reports an error that says what to do, or to try again.
#[track_caller]
fn lost_clearly(loser: &Finished) {
    let code = loser.status.code();
    assert!(code == Some(1) || code == Some(75), "{}", loser.told());
    assert!(loser.stderr.starts_with("Error: ") || loser.stderr.contains("\nError: "), "{}", loser.told());
}

#[test]
fn of_two_commands_at_once_one_wins_and_the_other_says_so() {
    let home = home();
    let image = home.image("busybox");
    let make = ["create", "web", "--network", "isolated", "--image", &image];
    let made = race(&home, &[&make, &make, &make]);
    let (won, lost): (Vec<_>, Vec<_>) = made.iter().partition(|call| call.status.success());
    assert_eq!(won.len(), 1);
    lost.into_iter().for_each(lost_clearly);

    let started = race(&home, &[&["start", "web"], &["start", "web"], &["start", "web"]]);
    let (won, lost): (Vec<_>, Vec<_>) = started.iter().partition(|call| call.status.success());
    assert_eq!(won.len(), 1, "{started:#?}");
    lost.into_iter().for_each(lost_clearly);
    assert_eq!(home.state_of("web"), "running");

    let ended = race(&home, &[&["halt", "web"], &["exec", "web", "--", "sleep", "2"], &["halt", "web"]]);
    for call in &ended {
        assert!(call.status.code().is_some(), "{}", call.told());
    }
    assert!(ended[0].status.success() && ended[2].status.success(), "{ended:#?}");
    assert_eq!(home.state_of("web"), "halted");

    let both = race(&home, &[&["start", "web"], &["delete", "web", "--yes"]]);
    for call in both.iter().filter(|call| !call.status.success()) {
        lost_clearly(call);
    }
    home.microagent(["delete", "web", "--force"]).success();
    home.nothing_is_left();
}

#[test]
fn what_is_renamed_or_started_while_it_is_deleted_is_whole_or_gone() {
    let home = home();
    let image = home.image("busybox");
    for _ in 0..6 {
        home.microagent(["create", "a", "--network", "isolated", "--image", &image]).success();
        let both = race(&home, &[&["rename", "a", "b"], &["delete", "a", "--yes"]]);
        let deleted = both[1].text().contains("Deleted: a");
        assert_ne!(both[0].status.success(), deleted, "{both:#?}");
        both.iter().filter(|call| !call.status.success()).for_each(lost_clearly);
        assert_eq!(home.workspaces(), if deleted { vec![] } else { vec!["b".to_owned()] }, "{both:#?}");
        home.microagent(["delete", "b", "--yes"]).success();

        home.microagent(["create", "a", "--network", "isolated", "--image", &image]).success();
        let both = race(&home, &[&["rename", "a", "b"], &["rename", "a", "c"], &["clone", "a", "d"]]);
        both.iter().filter(|call| !call.status.success()).for_each(lost_clearly);
        let known = home.workspaces();
        assert_eq!(known.iter().filter(|name| *name != "d").count(), 1, "{known:?} {both:#?}");
        assert!(both[..2].iter().filter(|call| call.status.success()).count() <= 1, "{both:#?}");
        home.microagent(["delete", "a", "b", "c", "d", "--yes"]).success();

        home.microagent(["create", "a", "--network", "isolated", "--image", &image]).success();
        let both = race(&home, &[&["start", "a"], &["delete", "a", "--yes"]]);
        for call in both.iter().filter(|call| !call.status.success()) {
            lost_clearly(call);
            assert!(!call.stderr.contains("cannot lock") && !call.stderr.contains("logs"), "{}", call.told());
        }
        let list = home.microagent(["list"]).success();
        assert!(!list.text().contains("damaged"), "{} {both:#?}", list.told());
        home.microagent(["delete", "a", "--force"]).success();
    }
    home.nothing_is_left();
}

#[test]
fn a_damaged_record_is_nobody_elses_problem() {
    let home = home();
    home.create("good", []);
    home.create("bad", []);
    for (file, content) in [("workspace.json", "{\"format\": 2, \"na"), ("workload.json", "[]")] {
        let path = home.workspace("bad").join(file);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, content).unwrap();
        home.microagent(["start", "bad"]).run().code(1).says("bad").says("delete");
        home.microagent(["start", "good"]).success();
        home.microagent(["exec", "good", "--", "true"]).success();
        home.microagent(["halt", "good"]).success();
        home.microagent(["list"]).success();
        fs::write(&path, whole).unwrap();
    }
    home.microagent(["start", "bad"]).success();
    home.microagent(["delete", "good", "bad", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn after_a_restart_of_the_host_the_truth_is_told_and_everything_starts() {
    let home = home();
    home.create("web", []);
    home.microagent(["start", "web"]).success();
    home.microagent(["exec", "web", "--", "sh", "-c", "echo kept > /root/kept; sync"]).success();
    find(&home, "a supervisor", Process::is_supervisor).signal(Signal::KILL);
    home.processes_end();
    // As it looks after a power cut: the record of an earlier boot, with numbers that are others' by now.
    let path = home.workspace("web").join("machine/state.json");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let record = fs::read_to_string(&path).unwrap().replace(boot.trim(), "another-boot");
    let me = format!("\"pid\": {}", std::process::id());
    let record: Vec<_> = record
        .lines()
        .map(|line| if line.contains("\"pid\"") { format!("{me},") } else { line.into() })
        .collect();
    fs::write(&path, record.join("\n")).unwrap();
    let status = home.microagent(["status", "web"]).success();
    assert!(status.text().contains("Problem: the host was restarted"), "{}", status.told());
    assert_eq!(home.microagent(["ps"]).success().text(), "No running workspaces.\n");
    works_and_has_its_file(&home, "web");
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn fifty_workspaces_are_used_by_eight_at_once_without_a_failure() {
    let home = home();
    let image = home.image("busybox");
    home.microagent(["image", "pull", &image]).success();
    let next = std::sync::Mutex::new(0..50);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let Some(number) = next.lock().unwrap().next() else { return };
                    let name = format!("w{number}");
                    let make =
                        ["create", &name, "--network", "isolated", "--profile", "tiny", "--image", &image];
                    home.microagent(make).success();
                    home.microagent(["start", &name]).success();
                    let said = home.microagent(["exec", &name, "--", "echo", &name]).success();
                    assert_eq!(said.text(), format!("{name}\n"));
                    home.microagent(["delete", &name, "--yes"]).success();
                }
            });
        }
    });
    home.nothing_is_left();
}
