//! `kill -9` of commands, supervisors and QEMUs at each step of what is done with snapshots and forks. Whatever is killed, the
//! workspace runs or rests with its disk whole, no layer is lost, and a prune leaves nothing that nobody needs.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use microagent_tests::process::Process;
use microagent_tests::{Home, User, wait_for};
use rustix::process::Signal;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

fn home() -> Home {
    Home::new(User::unprivileged())
}

#[track_caller]
fn sh(home: &Home, name: &str, line: &str) -> String {
    home.microagent(["exec", name, "--", "sh", "-c", line]).success().text().to_owned()
}

/// What is there before a command is begun, by which its steps are told.
struct Before {
    layers: usize,
    qemus: HashSet<i32>,
}

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Command,
    Supervisor(Machine),
    Qemu(Machine),
}

/// Whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Machine {
    /// The machine that ran before the command.
    Old,
    /// The one that the command starts.
    New,
}

/// Whether a step of the command with this process was reached.
type Step = fn(&Home, &Before, u32) -> bool;

struct Case {
    words: &'static [&'static str],
    what: &'static str,
    step: Step,
    victim: Victim,
}

fn record(dir: PathBuf) -> Option<Value> {
    serde_json::from_slice(&fs::read(dir.join("workspace.json")).ok()?).ok()
}

fn layers_of(record: &Value) -> Vec<String> {
    let layers = record["layers"].as_array().unwrap().iter();
    layers.map(|layer| layer["id"].as_str().unwrap().to_owned()).collect()
}

/// The layers that a record of a workspace or a snapshot names.
fn needed(home: &Home) -> HashSet<String> {
    let mut needed = HashSet::new();
    for name in home.workspaces() {
        let dir = home.workspace(&name);
        let snapshots = fs::read_dir(dir.join("snapshots")).into_iter().flatten().flatten();
        for owner in snapshots.map(|entry| entry.path()).chain([dir]) {
            needed.extend(layers_of(&record(owner).expect("each has a whole record")));
        }
    }
    needed
}

/// The layers that there are.
fn stored(home: &Home) -> HashSet<String> {
    let entries = fs::read_dir(home.state().join("layers")).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.extension().is_some_and(|extension| extension == "qcow2"));
    files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

fn in_tmp(home: &Home, path: &str) -> bool {
    let tmp = fs::read_dir(home.state().join("tmp")).unwrap().flatten();
    tmp.into_iter().any(|entry| entry.path().join(path).exists())
}

fn qemus(home: &Home) -> HashSet<i32> {
    home.processes().iter().filter(|process| process.is_qemu()).map(|process| process.pid).collect()
}

fn tags(home: &Home) -> Vec<String> {
    let listed = home.microagent(["snapshot", "list", "web", "-q"]).success();
    listed.text().lines().map(str::to_owned).collect()
}

/// Whether a process has a file without a name open, in which an export is written.
fn has_unnamed_file(pid: u32) -> bool {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let names = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    names
        .into_iter()
        .any(|name| name.to_string_lossy().contains("/#") && name.to_string_lossy().ends_with(" (deleted)"))
}

/// Kills the supervisor or the QEMU of a machine, if it is there (still).
fn kill_machine(home: &Home, before: &Before, machine: Machine, supervisor: bool) {
    let is_of = |process: &&Process| match machine {
        Machine::Old => before.qemus.contains(&process.pid),
        Machine::New => !before.qemus.contains(&process.pid),
    };
    let processes = home.processes();
    for qemu in processes.iter().filter(|process| process.is_qemu()).filter(is_of) {
        let of_session = |process: &&Process| process.pid == qemu.session;
        let killed = if supervisor { processes.iter().find(of_session) } else { Some(qemu) };
        killed.expect("the supervisor of a QEMU leads its session").signal(Signal::KILL);
    }
}

const STEPS: [Case; 20] = {
    use Machine::{New, Old};
    use Victim::{Command, Qemu, Supervisor};
    const CREATE: &[&str] = &["snapshot", "create", "web", "--tag", "new"];
    const RESTORE: &[&str] = &["snapshot", "restore", "web", "a", "--yes"];
    const FORK: &[&str] = &["fork", "web", "kid"];
    const FROM: &[&str] = &["create", "kid", "--from-snapshot", "web:a", "--start"];
    const DELETE: &[&str] = &["snapshot", "delete", "web", "b", "--yes"];
    const EXPORT: &[&str] = &["snapshot", "export", "web:a", "out.snapshot"];
    let layer: Step = |home, before, _| stored(home).len() > before.layers;
    let memory: Step = |home, _, _| in_tmp(home, "memory");
    let manifest: Step = |home, _, _| in_tmp(home, "manifest.json");
    let ended: Step = |home, before, _| qemus(home).is_disjoint(&before.qemus);
    let starts: Step = |home, before, _| qemus(home).iter().any(|pid| !before.qemus.contains(pid));
    let kid: Step = |home, _, _| home.workspace("kid").exists();
    let deleted: Step = |home, _, _| !home.workspace("web").join("snapshots/b").exists();
    let begun: Step = |_, _, pid| has_unnamed_file(pid);
    [
        Case { words: CREATE, what: "the layer", step: layer, victim: Qemu(Old) },
        Case { words: CREATE, what: "the layer", step: layer, victim: Supervisor(Old) },
        Case { words: CREATE, what: "the memory", step: memory, victim: Command },
        Case { words: CREATE, what: "the manifest", step: manifest, victim: Command },
        Case { words: CREATE, what: "the manifest", step: manifest, victim: Qemu(Old) },
        Case { words: RESTORE, what: "the end of the machine", step: ended, victim: Command },
        Case { words: RESTORE, what: "the new machine", step: starts, victim: Command },
        Case { words: RESTORE, what: "the new machine", step: starts, victim: Qemu(New) },
        Case { words: RESTORE, what: "the new machine", step: starts, victim: Supervisor(New) },
        Case { words: FORK, what: "the layer", step: layer, victim: Command },
        Case { words: FORK, what: "the layer", step: layer, victim: Qemu(Old) },
        Case { words: FORK, what: "the manifest", step: manifest, victim: Supervisor(Old) },
        Case { words: FORK, what: "the fork", step: kid, victim: Command },
        Case { words: FORK, what: "the fork's machine", step: starts, victim: Command },
        Case { words: FORK, what: "the fork's machine", step: starts, victim: Qemu(New) },
        Case { words: FROM, what: "the workspace", step: kid, victim: Command },
        Case { words: FROM, what: "its machine", step: starts, victim: Supervisor(New) },
        Case { words: DELETE, what: "the snapshot is gone", step: deleted, victim: Command },
        Case { words: EXPORT, what: "the file", step: begun, victim: Command },
        Case { words: EXPORT, what: "the file", step: begun, victim: Qemu(Old) },
    ]
};

/// Brings the workspace `web` to where each case begins: it runs, and has the snapshots `a` and `b`.
fn prepare(home: &Home) {
    if home.state_of("web") != "running" {
        home.microagent(["start", "web"]).success();
    }
    let has = tags(home);
    for tag in ["a", "b"] {
        if !has.iter().any(|found| found == tag) {
            home.microagent(["snapshot", "create", "web", "--tag", tag]).success();
        }
    }
}

#[test]
fn whoever_is_killed_at_whichever_step_the_disk_is_whole_and_nothing_is_left() {
    let home = home();
    home.create("web", []);
    home.microagent(["start", "web"]).success();
    sh(&home, "web", "echo kept > /root/file; sync");
    for (number, case) in STEPS.iter().enumerate() {
        let shown = format!("{number}: {:?} at {} of {:?}", case.victim, case.what, case.words);
        prepare(&home);
        sh(&home, "web", &format!("echo {number} > /root/last; sync"));
        let before = Before { layers: stored(&home).len(), qemus: qemus(&home) };
        let mut running = home.call().args(case.words).start();
        wait_for(&shown, PATIENCE, || {
            std::thread::yield_now();
            // A command that was faster than this has left nothing to kill, which is one of the ways.
            if (case.step)(&home, &before, running.id()) || running.is_over() {
                Ok(())
            } else {
                Err("not yet")
            }
        });
        match case.victim {
            Victim::Command => running.signal(Signal::KILL),
            Victim::Supervisor(machine) => kill_machine(&home, &before, machine, true),
            Victim::Qemu(machine) => kill_machine(&home, &before, machine, false),
        }
        running.finish();
        whole(&home, case, number, &shown);
        clean(&home, &shown);
    }
}

/// The workspaces run or rest, and have what was flushed, or what they were restored to.
#[track_caller]
fn whole(home: &Home, case: &Case, number: usize, shown: &str) {
    for name in home.workspaces() {
        let state = wait_for(shown, PATIENCE, || match home.state_of(&name).as_str() {
            state @ ("running" | "failed" | "stopped" | "halted" | "prepared") => Ok(state.to_owned()),
            other => Err(other.to_owned()),
        });
        if state != "running" {
            home.microagent(["start", &name]).success();
        }
        assert_eq!(sh(home, &name, "cat /root/file"), "kept\n", "{shown}: {name}");
        let last = sh(home, &name, "cat /root/last 2> /dev/null || true");
        let is_new = last == format!("{number}\n");
        let may_be_older =
            case.words.contains(&"restore") || (name == "kid" && case.words.contains(&"create"));
        assert!(is_new || may_be_older, "{shown}: {name} has {last:?}");
    }
    if home.workspace("kid").exists() {
        home.microagent(["delete", "kid", "--force"]).success();
    }
    if tags(home).iter().any(|tag| tag == "new") {
        // It is a snapshot as any other.
        home.microagent(["create", "kid", "--from-snapshot", "web:new"]).success();
        home.microagent(["delete", "kid", "--yes"]).success();
        home.microagent(["snapshot", "delete", "web", "new", "--yes"]).success();
    }
}

/// After a prune there is nothing that nobody needs, and all that somebody does.
#[track_caller]
fn clean(home: &Home, shown: &str) {
    for entry in fs::read_dir(home.state().join("tmp")).unwrap().flatten() {
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(600);
        fs::File::open(entry.path()).unwrap().set_modified(long_ago).unwrap();
    }
    home.microagent(["system", "prune", "--yes"]).success();
    assert_eq!(fs::read_dir(home.state().join("tmp")).unwrap().count(), 0, "{shown}");
    assert_eq!(home.workspaces(), ["web"], "{shown}");
    assert_eq!(stored(home), needed(home), "{shown}");
    let disks = fs::read_dir(home.workspace("web")).unwrap().flatten();
    let disks = disks.filter(|entry| entry.path().extension().is_some_and(|it| it == "qcow2")).count();
    assert!((1..=2).contains(&disks), "{shown}: {disks} overlays");
    assert_eq!(qemus(home).len(), 1, "{shown}");
    let _ = fs::remove_file(home.path().join("out.snapshot"));
    let files = fs::read_dir(home.path()).unwrap().flatten().map(|file| file.file_name());
    let exported: Vec<_> = files.filter(|name| name.to_string_lossy().contains("export")).collect();
    assert!(exported.is_empty(), "{shown}: {exported:?}");
}

#[test]
fn two_forks_and_what_comes_meanwhile_wait_for_each_other() {
    let home = home();
    home.create("web", []);
    home.microagent(["start", "web"]).success();
    sh(&home, "web", "echo kept > /root/file; sync");
    // Two forks at once.
    let forks: Vec<_> = [["one", "two"], ["three", "four"]]
        .map(|names| home.microagent(["fork", "web", names[0], names[1]]).start())
        .into();
    for fork in forks {
        fork.finish().code(0);
    }
    let names = ["one", "two", "three", "four"];
    for name in names {
        assert_eq!(sh(&home, name, "cat /root/file; hostname"), format!("kept\n{name}\n"));
    }
    home.microagent(["delete", "one", "two", "three", "four", "--force"]).success();
    // A snapshot and a commit, a restore and a fork, and the end of the source: each is done or refused, none hangs.
    let pairs: [[&[&str]; 2]; 4] = [
        [&["snapshot", "create", "web", "--tag", "a"], &["commit", "web", "made:1"]],
        [&["snapshot", "restore", "web", "a", "--yes"], &["fork", "web", "kid"]],
        [&["fork", "web", "kid"], &["halt", "web"]],
        [&["snapshot", "create", "web", "--tag", "b"], &["delete", "web", "--force"]],
    ];
    for pair in pairs {
        if home.state_of("web") != "running" {
            home.microagent(["start", "web"]).success();
        }
        let running = pair.map(|words| home.call().args(words).start());
        for (call, words) in running.into_iter().zip(pair) {
            let done = call.finish();
            assert!(matches!(done.status.code(), Some(0 | 1 | 75)), "{words:?}: {}", done.told());
        }
        for name in home.workspaces() {
            if home.state_of(&name) != "running" {
                home.microagent(["start", &name]).success();
            }
            assert_eq!(sh(&home, &name, "cat /root/file"), "kept\n", "{pair:?}: {name}");
        }
        home.microagent(["delete", "kid", "--force"]).run();
        home.microagent(["system", "prune", "--yes"]).success();
        assert_eq!(stored(&home), needed(&home), "{pair:?}");
    }
}
