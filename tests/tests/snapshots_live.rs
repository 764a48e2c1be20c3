//! Snapshots of running workspaces: what continues, what is restored, and what a kill at any moment leaves.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use microagent_tests::host::SmallDisk;
use microagent_tests::{Home, User, host, user, wait_for};
use rustix::process::Signal;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

/// A service that counts into a file in memory.
const COUNTER: &str = "while true; do echo x >> /dev/shm/count; echo tick; sleep 0.2; done";

fn home() -> Home {
    Home::new(User::unprivileged())
}

#[track_caller]
fn sh(home: &Home, name: &str, line: &str) -> String {
    home.microagent(["exec", name, "--", "sh", "-c", line]).success().text().to_owned()
}

fn record(home: &Home, name: &str) -> Value {
    serde_json::from_slice(&fs::read(home.workspace(name).join("workspace.json")).unwrap()).unwrap()
}

fn layers(home: &Home) -> Vec<PathBuf> {
    let entries = fs::read_dir(home.state().join("layers")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "qcow2")).collect()
}

/// Waits until the service has counted on.
#[track_caller]
fn counts_on(home: &Home, name: &str) {
    let count = || sh(home, name, "wc -l < /dev/shm/count").trim().parse::<u32>().unwrap();
    let before = count();
    wait_for("the service counts on", PATIENCE, || if count() > before { Ok(()) } else { Err(before) });
}

#[test]
fn a_running_workspace_is_what_it_was_with_its_processes() {
    let home = home();
    home.create("web", ["--service-command", COUNTER]);
    home.microagent(["start", "web"]).success();
    sh(&home, "web", "echo one > /root/file; echo note > /dev/shm/note; sleep 100000 > /dev/null 2>&1 &");
    let made = home.microagent(["snapshot", "create", "web", "--tag", "one"]).success();
    assert!(
        made.text().starts_with("snapshot one created (") && made.text().contains("RAM"),
        "{}",
        made.told()
    );
    counts_on(&home, "web");
    sh(&home, "web", "echo two > /root/file; rm /dev/shm/note; killall sleep; rm /bin/vi; sync");

    let restored = home.microagent(["snapshot", "restore", "web", "one", "--yes"]).success();
    assert_eq!(restored.summary("State"), "running", "{}", restored.told());
    assert_eq!(
        sh(&home, "web", "cat /root/file /dev/shm/note; ls /bin/vi; hostname"),
        "one\nnote\n/bin/vi\nweb\n"
    );
    assert!(sh(&home, "web", "ps").contains("sleep 100000"));
    counts_on(&home, "web");

    // What it does afterwards is on its disk as ever, and the snapshot can be used again.
    sh(&home, "web", "echo three > /root/file; sync");
    home.microagent(["halt", "web"]).success();
    home.microagent(["start", "web"]).success();
    assert_eq!(
        sh(&home, "web", "cat /root/file; ls /dev/shm/note 2> /dev/null || echo none"),
        "three\nnone\n"
    );
    home.microagent(["halt", "web"]).success();
    let started = home.microagent(["start", "web", "--from-snapshot", "one"]).success();
    assert_eq!(started.summary("State"), "running");
    assert!(!started.says("Restoring web").told().contains("Booting"));
    assert_eq!(sh(&home, "web", "cat /root/file /dev/shm/note"), "one\nnote\n");
    home.microagent(["kill", "web"]).success();

    // At rest, the disk alone is restored.
    home.microagent(["snapshot", "restore", "web", "one", "--yes"]).success();
    home.microagent(["start", "web"]).success();
    assert_eq!(sh(&home, "web", "cat /root/file; ls /dev/shm/note 2> /dev/null || echo none"), "one\nnone\n");
    home.microagent(["delete", "web", "--force"]).success();
    assert_eq!(layers(&home), [] as [PathBuf; 0]);
    home.nothing_is_left();
}

#[test]
fn a_disk_has_few_layers_after_many_snapshots_of_a_running_machine() {
    let home = home();
    home.create("web", []);
    home.microagent(["start", "web"]).success();
    for generation in 1..=20 {
        sh(&home, "web", &format!("echo {generation} >> /root/generations"));
        home.microagent(["snapshot", "create", "web", "--disk-only", "--tag", &format!("g{generation}")])
            .success();
        let record = record(&home, "web");
        let layers = record["layers"].as_array().unwrap();
        assert!(layers.len() <= 17, "{} layers in generation {generation}", layers.len());
        assert!(layers.iter().all(|layer| layer["bytes"].as_u64() > Some(0)), "{record}");
    }
    let all: String = (1..=20).map(|generation| format!("{generation}\n")).collect();
    assert_eq!(sh(&home, "web", "cat /root/generations"), all);
    home.microagent(["kill", "web"]).success();
    home.microagent(["start", "web"]).success();
    assert_eq!(sh(&home, "web", "cat /root/generations"), all);
    // A snapshot of the disk cannot bring back processes.
    let restore = || home.microagent(["snapshot", "restore", "web", "g5", "--yes"]).run().code(1);
    restore().says("`web:g5` has the disk only").says("it has no snapshot with memory");
    home.microagent(["snapshot", "create", "web", "--tag", "all"]).success();
    restore().says("with memory: `all`").says("microagent halt web");
    home.microagent(["halt", "web"]).success();
    home.microagent(["snapshot", "restore", "web", "g5", "--yes"]).success();
    home.microagent(["start", "web"]).success();
    assert_eq!(sh(&home, "web", "cat /root/generations"), "1\n2\n3\n4\n5\n");
}

#[test]
fn a_guest_of_before_a_larger_disk_says_so_until_it_boots() {
    let home = home();
    home.create("web", []);
    home.microagent(["start", "web"]).success();
    home.microagent(["snapshot", "create", "web", "--tag", "a"]).success();
    let disk_mib = || sh(&home, "web", "df -m / | awk 'END { print $2 }'").trim().parse::<u32>().unwrap();
    let before = disk_mib();
    home.microagent(["halt", "web"]).success();
    home.microagent(["resize", "web", "8g"]).success();
    home.microagent(["start", "web"]).success();
    assert!(disk_mib() > 2 * before, "{before}");
    let note = "the disk of workspace web has 8192 MiB; its guest, which is that of the snapshot, uses";
    let restored = home.microagent(["snapshot", "restore", "web", "a", "--yes", "--json"]).success();
    let notices = restored.json()["notices"].clone();
    assert!(notices[0].as_str().unwrap().starts_with(note), "{notices}");
    assert_eq!(disk_mib(), before);
    home.microagent(["kill", "web"]).success();
    home.microagent(["start", "web", "--from-snapshot", "a"]).success().says(note);
    assert_eq!(disk_mib(), before);
    home.microagent(["restart", "web"]).success();
    assert!(disk_mib() > 2 * before, "{before}");
}

#[test]
fn generations_that_continue_from_each_other_have_few_layers() {
    let home = home();
    home.create("g0", ["--service-command", COUNTER]);
    home.microagent(["start", "g0"]).success();
    for generation in 1..=18 {
        let (before, next) = (format!("g{}", generation - 1), format!("g{generation}"));
        sh(
            &home,
            &before,
            &format!("echo {generation} >> /root/generations; echo {generation} >> /dev/shm/note"),
        );
        home.microagent(["snapshot", "create", &before, "--tag", "s"]).success();
        let snapshot = format!("{before}:s");
        home.microagent(["create", &next, "--from-snapshot", &snapshot, "--start"]).success();
        home.microagent(["delete", &before, "--force"]).success();
        let count = record(&home, &next)["layers"].as_array().unwrap().len();
        assert!(count <= 17, "{count} layers in generation {generation}");
    }
    let all: String = (1..=18).map(|generation| format!("{generation}\n")).collect();
    assert_eq!(sh(&home, "g18", "cat /root/generations"), all);
    assert_eq!(sh(&home, "g18", "cat /dev/shm/note; hostname"), format!("{all}g18\n"));
    counts_on(&home, "g18");
    assert_eq!(layers(&home).len(), record(&home, "g18")["layers"].as_array().unwrap().len());
}

#[test]
fn a_paused_workspace_stays_paused() {
    let home = home();
    home.create("web", ["--service-command", COUNTER]);
    home.microagent(["start", "web"]).success();
    sh(&home, "web", "echo one > /root/file; sync");
    home.microagent(["pause", "web"]).success();
    home.microagent(["snapshot", "create", "web", "--tag", "disk", "--disk-only"]).success();
    home.microagent(["snapshot", "create", "web", "--tag", "all"]).success();
    // Its programs are held from the first memory on.
    home.microagent(["snapshot", "create", "web", "--tag", "again"]).success();
    assert_eq!(home.state_of("web"), "paused");
    home.microagent(["fork", "web", "twin"]).success();
    counts_on(&home, "twin");
    home.microagent(["create", "late", "--from-snapshot", "web:again", "--start"]).success();
    counts_on(&home, "late");
    home.microagent(["resume", "web"]).success();
    counts_on(&home, "web");
    sh(&home, "web", "echo two > /root/file");
    home.microagent(["create", "kid", "--from-snapshot", "web:all", "--start"]).success();
    assert_eq!(sh(&home, "kid", "cat /root/file"), "one\n");
    counts_on(&home, "kid");
    counts_on(&home, "web");
    home.microagent(["create", "other", "--from-snapshot", "web:disk", "--start"]).success();
    assert_eq!(sh(&home, "other", "cat /root/file"), "one\n");
}

#[test]
fn memory_that_a_snapshot_must_not_have_is_refused() {
    let home = home();
    home.write("token", "correct-horse");
    home.create("web", ["--secret", "TOKEN=file:token"]);
    home.microagent(["volume", "create", "data"]).success();
    home.create("db", ["--volume", "data:/data"]);
    for (name, why) in [("web", "values of secrets"), ("db", "the disk at `/data`")] {
        home.microagent(["start", name]).success();
        home.microagent(["snapshot", "create", name]).run().code(1).says(why);
        let hint = format!("microagent create NEW --from-snapshot {name}:T");
        home.microagent(["fork", name, "other"]).run().code(1).says("cannot fork it").says(&hint);
        home.microagent(["snapshot", "create", name, "--tag", "disk", "--disk-only"]).success();
        assert!(!home.workspace("other").exists());
        sh(&home, name, "true");
    }
}

#[test]
fn a_memory_that_does_not_fit_is_refused_before_anything_is_lost() {
    let home = home();
    home.create("web", []);
    home.microagent(["start", "web"]).success();
    home.microagent(["snapshot", "create", "web", "--tag", "a"]).success();
    sh(&home, "web", "echo kept > /root/kept; sync");
    let dir = home.workspace("web").join("snapshots/a");
    let (path, memory) = (dir.join("memory.json"), dir.join("memory"));
    let good = fs::read_to_string(&path).unwrap();
    let mut other: Value = serde_json::from_str(&good).unwrap();
    other["shape"]["qemu"]["bytes"] = Value::from(1);
    let whole = fs::read(&memory).unwrap();
    let restore = || home.microagent(["snapshot", "restore", "web", "a", "--yes"]).run();
    let create = || home.microagent(["create", "kid", "--from-snapshot", "web:a", "--start"]).run();
    let mut changed = whole.clone();
    changed[1000..40_000].fill(7);
    let damages: [(&str, &dyn Fn()); 6] = [
        ("its memory: cannot read", &|| fs::remove_file(&path).unwrap()),
        ("its memory was changed", &|| {
            fs::write(&path, &good).unwrap();
            fs::write(&memory, &changed).unwrap();
        }),
        ("its memory: ", &|| fs::remove_file(&memory).unwrap()),
        ("the QEMU is different", &|| {
            fs::write(&path, other.to_string()).unwrap();
            fs::write(&memory, &whole).unwrap();
        }),
        ("is damaged", &|| fs::write(&path, "{").unwrap()),
        ("bytes of", &|| {
            fs::write(&path, &good).unwrap();
            fs::write(&memory, &whole[..whole.len() / 2]).unwrap();
        }),
    ];
    for (why, damage) in damages {
        damage();
        restore().code(1).says(why);
        create().code(1).says(why);
        assert!(!home.workspace("kid").exists());
        assert_eq!(sh(&home, "web", "cat /root/kept"), "kept\n");
    }
    // A memory without a digest is of an earlier release. One with another content makes a clear failure, and the disk is
    // whole.
    let mut undigested: Value = serde_json::from_str(&good).unwrap();
    undigested["sha256"] = Value::Null;
    fs::write(&path, undigested.to_string()).unwrap();
    fs::write(&memory, changed).unwrap();
    create().code(1).says("kid");
    assert_eq!(home.state_of("kid"), "failed");
    home.microagent(["start", "kid"]).success();
    assert_eq!(sh(&home, "web", "cat /root/kept"), "kept\n");
    home.microagent(["create", "disk", "--from-snapshot", "web:a"]).success();
}

#[test]
fn a_secret_that_was_added_since_is_delivered() {
    let home = home();
    let image = home.image("busybox");
    let spec = |more: &str| home.write("lab.yaml", format!("image: '{image}'\n{more}"));
    let path = spec("");
    let file = path.to_str().unwrap();
    home.microagent(["create", "web", "--file", file]).success();
    home.microagent(["start", "web"]).success();
    sh(&home, "web", "echo note > /dev/shm/note");
    home.microagent(["snapshot", "create", "web", "--tag", "a"]).success();
    home.microagent(["halt", "web"]).success();
    spec("secrets:\n  TOKEN: env:TEST_TOKEN\n");
    home.microagent(["apply", "web", "--file", file]).success();
    let start = || home.microagent(["start", "web", "--from-snapshot", "a"]);
    start().env("TEST_TOKEN", "correct-horse").success();
    assert_eq!(sh(&home, "web", "cat /dev/shm/note /run/secrets/TOKEN"), "note\ncorrect-horse");
    home.microagent(["snapshot", "create", "web"]).run().code(1).says("values of secrets");
}

#[test]
fn snapshots_of_a_quarantined_workspace_are_kept_as_they_are() {
    let home = home();
    home.create("web", []);
    home.microagent(["start", "web"]).success();
    home.microagent(["snapshot", "create", "web", "--tag", "a"]).success();
    home.microagent(["quarantine", "web"]).success();
    let calls: [&[&str]; 5] = [
        &["snapshot", "delete", "web", "a", "--yes"],
        &["snapshot", "restore", "web", "a", "--yes"],
        &["create", "kid", "--from-snapshot", "web:a"],
        &["create", "kid", "--from-snapshot", "web:a", "--start"],
        &["start", "web", "--from-snapshot", "a"],
    ];
    for call in calls {
        home.call().args(call).run().code(1).says("quarantined");
    }
    assert_eq!(home.workspaces(), ["web"]);
    assert_eq!(home.microagent(["snapshot", "list", "web", "-q"]).success().text(), "a\n");
    home.microagent(["snapshot", "delete", "web", "a", "--force"]).success();
    assert_eq!(home.microagent(["snapshot", "list", "web", "-q"]).success().text(), "");
    assert_eq!(home.microagent(["kill", "web"]).success().summary("State"), "stopped");
    home.microagent(["start", "web"]).success();
    home.microagent(["delete", "web", "--force"]).success();
    home.nothing_is_left();
}

#[test]
fn evidence_of_a_quarantined_workspace_is_kept_and_used_by_nobody() {
    let home = home();
    home.write("token", "correct-horse");
    home.create("web", ["--secret", "TOKEN=file:token"]);
    home.microagent(["start", "web"]).success();
    sh(&home, "web", "echo kept > /root/file; sync; echo evidence-in-memory > /dev/shm/note");
    home.microagent(["snapshot", "create", "web", "--forensic"]).run().code(1).says("is running");
    home.microagent(["quarantine", "web", "--capture"]).success().says("has memory and disk of web");
    let listed = home.microagent(["snapshot", "list", "web", "--json"]).success().json();
    let snapshots = listed["snapshots"].as_array().unwrap();
    assert!(snapshots.iter().all(|snapshot| snapshot["kind"] == "forensic"), "{listed}");
    let first = snapshots[0]["tag"].as_str().unwrap();
    // It is captured once, and nothing that is said of that would release it.
    let again = home.microagent(["snapshot", "create", "web", "--forensic"]).run().code(1);
    let again = again.says("captured as evidence before").says(first).says("microagent snapshot list web");
    assert!(!again.stderr.contains("restart"), "{}", again.told());
    assert_eq!(home.state_of("web"), "quarantined");
    let events = home.microagent(["events", "web"]).success();
    assert!(events.text().contains("captured as evidence"), "{}", events.told());
    assert!(first.starts_with("forensic-"), "{listed}");
    let memory = fs::read(home.workspace("web").join("snapshots").join(first).join("memory")).unwrap();
    let note = b"evidence-in-memory";
    assert!(memory.windows(note.len()).any(|window| window == note), "{} bytes", memory.len());
    // The machine goes, as with the host; the evidence stays, and the workspace can be used again.
    home.microagent(["halt", "web"]).success();
    let calls: [&[&str]; 5] = [
        &["snapshot", "restore", "web", first, "--yes"],
        &["start", "web", "--from-snapshot", first],
        &["create", "kid", "--from-snapshot", &format!("web:{first}"), "--start"],
        &["create", "kid", "--from-snapshot", &format!("web:{first}")],
        &["snapshot", "export", &format!("web:{first}"), "out"],
    ];
    for call in calls {
        home.call().args(call).run().code(1).says("is evidence");
    }
    home.microagent(["start", "web"]).success();
    assert_eq!(sh(&home, "web", "cat /root/file"), "kept\n");
    let kept = home.microagent(["snapshot", "delete", "web", first, "--yes"]).run().code(1);
    kept.says("is evidence").says(&format!("microagent snapshot delete web {first} --force"));
    home.microagent(["snapshot", "delete", "web", first, "--force"]).success();
    home.microagent(["delete", "web", "--force"]).success();
    home.nothing_is_left();
}

#[test]
fn a_killed_command_leaves_a_disk_that_is_whole() {
    let home = home();
    home.create("web", []);
    home.microagent(["start", "web"]).success();
    let mut expected = String::new();
    let recorded = || record(&home, "web")["layers"].as_array().unwrap().len();
    let made = || fs::read_dir(home.state().join("tmp")).unwrap().count();
    let steps: [(&dyn Fn() -> usize, &str); 3] =
        [(&|| layers(&home).len(), "the layer"), (&recorded, "the record"), (&made, "the snapshot")];
    for (number, (step, what)) in steps.iter().enumerate() {
        // What the last one has left is removed.
        home.microagent(["system", "prune", "--yes"]).success();
        let before = step();
        sh(&home, "web", &format!("echo {number} >> /root/file"));
        expected += &format!("{number}\n");
        let running = home.microagent(["snapshot", "create", "web", "--tag", &format!("t{number}")]).start();
        wait_for(what, PATIENCE, || {
            std::thread::yield_now();
            if step() > before { Ok(()) } else { Err(before) }
        });
        running.signal(Signal::KILL);
        running.finish();
        sh(&home, "web", &format!("echo after {number} >> /root/file"));
        expected += &format!("after {number}\n");
    }
    assert_eq!(sh(&home, "web", "cat /root/file"), expected);
    // The next one continues from there, and so does the next start.
    home.microagent(["snapshot", "create", "web", "--tag", "next"]).success();
    home.microagent(["system", "prune", "--yes"]).success();
    home.microagent(["halt", "web"]).success();
    home.microagent(["start", "web"]).success();
    assert_eq!(sh(&home, "web", "cat /root/file"), expected);
    let record = record(&home, "web");
    let known = record["layers"].as_array().unwrap();
    assert!(known.iter().all(|layer| layer["bytes"].as_u64() > Some(0)), "{record}");
    home.microagent(["create", "kid", "--from-snapshot", "web:next", "--start"]).success();
    assert_eq!(sh(&home, "kid", "cat /root/file"), expected);
}

#[test]
fn a_machine_that_dies_while_it_is_captured_loses_nothing_that_was_flushed() {
    let home = home();
    home.create("web", []);
    for victim in ["qemu", "supervisor"] {
        home.microagent(["start", "web"]).success();
        sh(&home, "web", &format!("echo {victim} >> /root/file; sync"));
        let processes = home.processes();
        let is_victim = |process: &&microagent_tests::process::Process| match victim {
            "qemu" => process.is_qemu(),
            _ => process.is_supervisor(),
        };
        let process = processes.iter().find(is_victim).expect("the machine runs");
        let before = record(&home, "web")["layers"].as_array().unwrap().len();
        let running = home.microagent(["snapshot", "create", "web", "--tag", victim]).start();
        wait_for("the new record", PATIENCE, || {
            std::thread::yield_now();
            if record(&home, "web")["layers"].as_array().unwrap().len() > before {
                Ok(())
            } else {
                Err(before)
            }
        });
        process.signal(Signal::KILL);
        // It may have been captured just before.
        running.finish();
        wait_for("the workspace rests", PATIENCE, || match home.state_of("web").as_str() {
            "failed" => Ok(()),
            state => Err(state.to_owned()),
        });
    }
    home.microagent(["start", "web"]).success();
    assert_eq!(sh(&home, "web", "cat /root/file"), "qemu\nsupervisor\n");
}

#[test]
fn commands_at_the_same_time_wait_for_each_other() {
    let home = home();
    home.create("web", ["--service-command", COUNTER]);
    home.microagent(["start", "web"]).success();
    sh(&home, "web", "echo kept > /root/file; sync");
    let calls: [&[&str]; 6] = [
        &["snapshot", "create", "web", "--tag", "a"],
        &["fork", "web", "one", "two"],
        &["snapshot", "create", "web", "--tag", "b", "--disk-only"],
        &["exec", "web", "--", "cat", "/root/file"],
        &["commit", "web", "made:1"],
        &["pause", "web"],
    ];
    let running: Vec<_> = calls.iter().map(|words| home.call().args(*words).start()).collect();
    for call in running {
        // One that comes while the workspace is paused or compared is refused.
        let done = call.finish();
        assert!(matches!(done.status.code(), Some(0 | 1 | 75)), "{}", done.told());
    }
    // A pause that came first has kept others from the guest.
    home.microagent(["resume", "web"]).run();
    counts_on(&home, "web");
    let capture = home.microagent(["snapshot", "create", "web", "--tag", "c"]).start();
    home.microagent(["halt", "web"]).success();
    assert!(matches!(capture.finish().status.code(), Some(0 | 1)));
    home.microagent(["start", "web"]).success();
    assert_eq!(sh(&home, "web", "cat /root/file"), "kept\n");
    let tags = home.microagent(["snapshot", "list", "web", "-q"]).success();
    for tag in tags.text().lines() {
        home.microagent(["create", &format!("from-{tag}"), "--from-snapshot", &format!("web:{tag}")])
            .success();
        home.microagent(["start", &format!("from-{tag}")]).success();
        assert_eq!(sh(&home, &format!("from-{tag}"), "cat /root/file"), "kept\n");
    }
}

#[test]
fn a_full_disk_of_the_host_costs_the_snapshot_and_not_the_machine() {
    if !user::is_root() {
        return host::skip("only root can mount a small disk");
    }
    let home = Home::new(User::Caller);
    let state = home.make_dir("state");
    let _disk = SmallDisk::mount(&state, 64);
    let call = |words: &[&str]| {
        home.call().env("MICROAGENT_STATE_DIR", &state).env("MICROAGENT_WARM", "off").args(words)
    };
    let image = home.image("busybox");
    let create = ["create", "web", "--network", "isolated", "--profile", "tiny", "--image", &image];
    call(&create).success();
    call(&["start", "web"]).success();
    call(&[
        "exec",
        "web",
        "--",
        "sh",
        "-c",
        "head -c 64000000 /dev/urandom > /dev/shm/full; echo kept > /root/file; sync",
    ])
    .success();
    call(&["snapshot", "create", "web", "--tag", "a"]).run().code(1).says("No space left");
    assert_eq!(fs::read_dir(state.join("tmp")).unwrap().count(), 0);
    call(&["exec", "web", "--", "sh", "-c", "cat /root/file; rm /dev/shm/full; echo more >> /root/file"])
        .success();
    // The disk of it fits, and is whole.
    call(&["snapshot", "create", "web", "--tag", "disk", "--disk-only"]).success();
    call(&["halt", "web"]).success();
    call(&["start", "web"]).success();
    assert_eq!(call(&["exec", "web", "--", "cat", "/root/file"]).success().text(), "kept\nmore\n");
    call(&["delete", "web", "--force"]).success();
}
