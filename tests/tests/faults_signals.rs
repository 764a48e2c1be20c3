//! Ctrl-C and `kill -9`, at each stage. Nothing is orphaned, and the record is true.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::net::TcpListener;
use std::time::Duration;

use microagent_tests::{Home, Invocation, Running, User, fixtures, process, wait_for};
use rustix::process::Signal;

fn home() -> Home {
    Home::new(User::Caller)
}

/// A run that works until somebody ends it.
fn endless<'a, const N: usize>(home: &'a Home, options: [&str; N]) -> Invocation<'a> {
    home.run("busybox", options, &["sh", "-c", "echo working; sleep 600"])
}

/// Starts it and waits until its command works.
fn working<'a>(home: &'a Home, name: &str, invocation: Invocation<'a>) -> Running<'a> {
    let running = invocation.start();
    home.log_has(name, "console.log", "working");
    running
}

/// The network stack of a running machine; it names no directory, so it is found through its parent.
fn network_stack(home: &Home) -> process::Process {
    home.processes().into_iter().find(process::Process::is_network_stack).expect("network user has a stack")
}

#[test]
fn ctrl_c_during_a_pull_leaves_nothing() {
    let home = home();
    // A registry that takes connections and never answers.
    let registry = TcpListener::bind("127.0.0.1:0").unwrap();
    let image = format!("127.0.0.1:{}/some/image:1", registry.local_addr().unwrap().port());
    let running = home.microagent(["run", &image, "true"]).start();
    let (_peer, _) = registry.accept().unwrap();
    running.signal(Signal::INT);
    running.finish().code(130);
    home.nothing_is_left();
    assert_eq!(
        home.microagent(["image", "list", "--json"]).success().json()["images"],
        serde_json::json!([])
    );
}

#[test]
fn ctrl_c_during_boot_leaves_nothing() {
    let home = home();
    let running = endless(&home, []).start();
    running.qemu();
    running.signal(Signal::INT);
    running.finish().code(130);
    home.nothing_is_left();
}

#[test]
fn ctrl_c_during_the_command_leaves_nothing_of_a_disposable_run() {
    let home = home();
    let running = working(&home, "victim", endless(&home, ["--name", "victim"]));
    running.signal(Signal::INT);
    running.finish().code(130);
    home.nothing_is_left();
}

#[test]
fn sigterm_ends_a_kept_run_and_its_record_says_so() {
    let home = home();
    let running = working(&home, "kept", endless(&home, ["--keep", "--name", "kept"]));
    running.signal(Signal::TERM);
    running.finish().code(130);
    home.processes_end();
    assert_eq!(home.state_of("kept"), "failed");
    let logs = home.microagent(["logs", "kept"]).success();
    assert!(logs.text().contains("working"), "{}", logs.told());
    home.microagent(["delete", "kept", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_killed_command_takes_its_machine_along_during_boot() {
    let home = home();
    let running = endless(&home, []).start();
    running.qemu();
    running.kill();
    home.nothing_is_left();
}

#[test]
fn a_killed_command_takes_its_machine_along_while_the_guest_works() {
    let home = home();
    let running = working(&home, "victim", endless(&home, ["--name", "victim"]));
    network_stack(&home);
    running.kill();
    home.nothing_is_left();
}

#[test]
fn a_killed_supervisor_takes_its_machine_along() {
    let home = home();
    let running = working(&home, "victim", endless(&home, ["--name", "victim"]));
    let (qemu, stack) = (running.qemu(), network_stack(&home));
    assert_eq!(home.state_of("victim"), "running");
    running.supervisor().signal(Signal::KILL);
    let run = running.finish().code(1).says("its supervisor was killed");
    wait_for("QEMU and the network stack to end", Duration::from_secs(60), || {
        if qemu.is_alive() || stack.is_alive() { Err((qemu.is_alive(), stack.is_alive())) } else { Ok(()) }
    });
    assert_eq!(run.failed_workspace(), "victim");
    assert_eq!(home.state_of("victim"), "failed");
    let logs = home.microagent(["logs", "victim"]).success();
    assert!(logs.text().contains("working"), "{}", logs.told());
    home.microagent(["delete", "victim", "--yes"]).success();
    home.nothing_is_left();
}

/// A guest that asks for a name that its stack knows.
const LOOK_UP: &str = "echo working; while ! test -e /tmp/go; do sleep 0.1; done; \
    for n in $(seq 60); do nslookup host.microagent.internal > /tmp/log 2>&1 && echo connected && exit; sleep 1; done; \
    echo cut off";

#[test]
fn a_killed_network_stack_is_replaced_and_the_run_goes_on() {
    let home = home();
    // It does not look at the network before the stack is gone.
    let working = working(&home, "victim", home.run("busybox", ["--name", "victim"], &["sh", "-c", LOOK_UP]));
    let stack = network_stack(&home);
    stack.signal(Signal::KILL);
    wait_for("the end of the network stack", Duration::from_secs(60), || {
        if stack.is_alive() { Err(&stack) } else { Ok(()) }
    });
    home.microagent(["exec", "victim", "--", "touch", "/tmp/go"]).success();
    let run = working.finish().code(0).says("the network is interrupted and starts again");
    assert_eq!(run.guest_output(), "working\nconnected\n");
    home.nothing_is_left();
}

#[test]
fn a_killed_keeper_costs_the_network_and_not_the_run() {
    let home = home();
    let work = "echo working; while ! test -e /tmp/go; do sleep 0.1; done; nc -w 1 10.0.2.3 53 < /dev/null || echo cut off";
    let running = working(&home, "victim", home.run("busybox", ["--name", "victim"], &["sh", "-c", work]));
    let keeper = home.processes().into_iter().find(process::Process::is_network_keeper).expect("a keeper");
    let stack = network_stack(&home);
    keeper.signal(Signal::KILL);
    wait_for("the end of keeper and stack", Duration::from_secs(60), || {
        if keeper.is_alive() || stack.is_alive() { Err((&keeper, &stack)) } else { Ok(()) }
    });
    home.microagent(["exec", "victim", "--", "touch", "/tmp/go"]).success();
    assert_eq!(running.finish().code(0).guest_output(), "working\ncut off\n");
    home.nothing_is_left();
}

/// A machine that hangs is ended by the clock, and by Ctrl-C.
#[test]
fn a_machine_that_stands_still_is_ended_all_the_same() {
    let home = home();
    // From a template it comes to its command at once, however slow a boot is.
    home.run("busybox", [], &["true"]).success();
    let running = working(&home, "timed", endless(&home, ["--name", "timed", "--timeout", "20"]));
    running.qemu().signal(Signal::STOP);
    running.finish().code(1).says("signal: killed");
    home.processes_end();
    home.microagent(["delete", "timed", "--yes"]).success();

    let running = working(&home, "kept", endless(&home, ["--name", "kept", "--keep"]));
    running.qemu().signal(Signal::STOP);
    running.signal(Signal::INT);
    running.finish().code(130);
    home.processes_end();
    home.microagent(["delete", "kept", "--yes"]).success();
    home.nothing_is_left();
}

/// A host that swaps, or has too few processors, may take long to end a machine. Whoever cancels does not wait for it.
#[test]
fn a_supervisor_that_does_not_get_to_it_ends_its_machine_without_its_caller() {
    let home = home();
    let running = working(&home, "victim", endless(&home, ["--name", "victim"]));
    let supervisor = running.supervisor();
    supervisor.signal(Signal::STOP);
    running.signal(Signal::TERM);
    running.finish().code(130).says("the machine has not ended yet");
    assert!(supervisor.is_alive());
    supervisor.signal(Signal::CONT);
    home.processes_end();
    home.nothing_is_left();
}

#[test]
fn both_killed_leave_a_record_that_tells_so() {
    let home = home();
    let running = working(&home, "victim", endless(&home, ["--name", "victim"]));
    let supervisor = running.supervisor();
    running.signal(Signal::STOP);
    supervisor.signal(Signal::KILL);
    running.kill();
    home.processes_end();
    assert_eq!(home.state_of("victim"), "failed");
    let list = home.microagent(["list", "--json"]).success();
    assert_eq!(list.json()["workspaces"][0]["problem"], "its supervisor was killed", "{}", list.told());
    home.microagent(["delete", "victim", "--yes"]).success();
    home.nothing_is_left();
}

/// The name of a run that ended is free at once, also after a bad end.
#[test]
fn a_running_workspace_is_not_deleted_unasked() {
    let home = home();
    for how in ["--yes", "--force"] {
        let running = working(&home, "busy", endless(&home, ["--keep", "--name", "busy"]));
        home.microagent(["delete", "busy"]).run().code(2).says("--yes");
        home.microagent(["delete", "busy", how]).success();
        running.finish().failure();
        home.nothing_is_left();
    }
}

#[test]
fn a_killed_import_leaves_no_half_made_image() {
    let home = home();
    let tar = fixtures::rootfs_tar(&[("srv/marker", "whole")]);
    // Standard input stays open with half of the tar in it, so the import waits in the middle.
    let half = tar[..tar.len() / 2].to_vec();
    let running = home.microagent(["image", "import", "-", "half"]).stdin_kept_open(half).start();
    wait_for("half of the image to be taken", Duration::from_secs(120), || {
        let bytes = microagent_tests::listing::disk_usage(&home.state());
        if bytes > 100_000 { Ok(()) } else { Err(bytes) }
    });
    running.kill();
    home.processes_end();
    assert_eq!(
        home.microagent(["image", "list", "--json"]).success().json()["images"],
        serde_json::json!([])
    );
    home.microagent(["image", "import", "-", "half"]).stdin(tar).success();
    let run = home.microagent(["run", "--network", "isolated", "half", "cat", "/srv/marker"]).success();
    assert_eq!(run.guest_output(), "whole");
    home.nothing_is_left();
}
