//! Forks of workspaces with volumes: who gets copies, what is in them, and what is left when something fails.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use microagent_tests::fixtures::rootfs_tar;
use microagent_tests::host::{self, SmallDisk};
use microagent_tests::{Home, User, user, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// Numbers its lines in the volume, and keeps the newest number in memory.
const WRITER: &str = "n=$(tail -n 1 /data/log 2> /dev/null); while true; do n=$((n + 1)); echo $n >> /data/log; \
     sync /data/log; echo $n > /dev/shm/newest; sleep 0.05; done";

fn home() -> Home {
    Home::new(User::unprivileged())
}

#[track_caller]
fn sh(home: &Home, name: &str, line: &str) -> String {
    home.microagent(["exec", name, "--", "sh", "-c", line]).success().text().to_owned()
}

fn disk_of(home: &Home, volume: &str) -> PathBuf {
    home.state().join("volumes").join(volume).join("disk.ext4")
}

fn volumes(home: &Home) -> Vec<String> {
    let listed = home.microagent(["volume", "list", "-q"]).success();
    listed.text().lines().map(str::to_owned).collect()
}

/// Makes a workspace that writes to a volume and a bundle, and reads another volume, and starts it.
fn writing(home: &Home) {
    home.write("in.tar", rootfs_tar(&[("note", "from the bundle")]));
    home.microagent(["volume", "create", "data", "--size-mib", "64"]).success();
    home.microagent(["volume", "create", "seed", "--size-mib", "16"]).success();
    home.create(
        "db",
        ["-v", "data:/data", "-v", "seed:/seed:ro", "-v", "in.tar:/in", "--service-command", WRITER],
    );
    home.microagent(["start", "db"]).success();
    writes_on(home, "db");
}

/// Waits until the service has written on.
#[track_caller]
fn writes_on(home: &Home, name: &str) {
    let newest =
        || sh(home, name, "cat /dev/shm/newest 2> /dev/null || echo 0").trim().parse::<u64>().unwrap_or(0);
    let before = newest();
    wait_for("the service writes on", PATIENCE, || if newest() > before { Ok(()) } else { Err(before) });
}

/// Fails if a number is missing in the volume, or is there twice: then memory and volume are not of one moment.
#[track_caller]
fn is_in_order(home: &Home, name: &str) {
    let wrong = sh(home, name, "awk 'NR != $1 { print NR, $1; exit }' /data/log");
    assert_eq!(wrong, "", "the log of {name}");
}

/// What killed commands have left is old enough to be removed.
fn time_passes(home: &Home) {
    for entry in fs::read_dir(home.state().join("tmp")).unwrap().flatten() {
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(600);
        fs::File::open(entry.path()).unwrap().set_modified(long_ago).unwrap();
    }
}

#[test]
fn each_fork_gets_copies_of_what_its_source_writes_to() {
    let home = home();
    writing(&home);
    let refused = home.microagent(["fork", "db", "kid"]).run().code(1);
    refused.says("can write to").says("cannot fork it").says("microagent fork db NAME... --copy-volumes");
    assert_eq!((home.workspaces(), volumes(&home).len()), (vec!["db".to_owned()], 2));

    let forked = home.microagent(["fork", "db", "--count", "2", "--copy-volumes", "--json"]).success().json();
    let copies: Vec<&Value> =
        forked["forks"].as_array().unwrap().iter().map(|fork| &fork["copied_volumes"]).collect();
    assert_eq!(
        copies,
        [
            &json!([{"volume": "data", "copy": "data-db-1"}]),
            &json!([{"volume": "data", "copy": "data-db-2"}]),
        ]
    );
    for name in ["db", "db-1", "db-2"] {
        writes_on(&home, name);
        is_in_order(&home, name);
        assert_eq!(
            sh(&home, name, "cat /in/note; echo of-$(hostname) > /in/note; cat /in/note"),
            format!("from the bundleof-{name}\n")
        );
    }
    let mounted = home.microagent(["status", "db-1", "--json"]).success().json()["disks"].clone();
    assert!(mounted.to_string().contains("data-db-1"), "{mounted}");
    let seed = home.microagent(["volume", "status", "seed", "--json"]).success().json();
    assert_eq!(seed["readers"].as_array().unwrap().len(), 3, "{seed}");
    home.microagent(["volume", "delete", "seed", "--yes"]).run().code(75).says("in use by workspace");

    // A paused source stays so. The names are told.
    home.microagent(["pause", "db"]).success();
    let forked = home.microagent(["fork", "db", "v1.2", "--copy-volumes"]).success();
    assert_eq!(forked.text(), "v1.2 (running), volume data-v1-2 (copy of data)\n");
    assert_eq!(home.state_of("db"), "paused");
    writes_on(&home, "v1.2");
    is_in_order(&home, "v1.2");
    home.microagent(["resume", "db"]).success();
    writes_on(&home, "db");

    // They are volumes as any other: whole, and kept.
    for (name, volume) in [("db-1", "data-db-1"), ("v1.2", "data-v1-2"), ("db", "data")] {
        home.microagent(["halt", name]).success();
        host::e2fsck(&disk_of(&home, volume));
    }
    home.microagent(["start", "db-1"]).success();
    writes_on(&home, "db-1");
    is_in_order(&home, "db-1");
    home.microagent(["delete", "db", "db-1", "db-2", "v1.2", "--force"]).success();
    assert_eq!(volumes(&home), ["data", "data-db-1", "data-db-2", "data-v1-2", "seed"]);
    home.microagent(["volume", "prune", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_name_that_is_taken_makes_nothing_and_a_resting_source_is_copied_too() {
    let home = home();
    home.microagent(["volume", "create", "data", "--size-mib", "64"]).success();
    home.create("db", ["-v", "data:/data"]);
    home.microagent(["start", "db"]).success();
    sh(&home, "db", "echo kept > /data/file; sync");
    home.microagent(["volume", "create", "data-b", "--size-mib", "16"]).success();
    let taken = home.microagent(["fork", "db", "a", "b", "--copy-volumes"]).run().code(1);
    taken.says("data-b").says("exists already");
    assert_eq!(
        (home.workspaces(), volumes(&home)),
        (vec!["db".to_owned()], vec!["data".to_owned(), "data-b".to_owned()])
    );
    home.microagent(["fork", "db", &"x".repeat(60), "--copy-volumes"]).run().code(2).says("too long");

    home.microagent(["halt", "db"]).success();
    let shared = home.microagent(["fork", "db", "twin"]).success();
    shared.says("attach the same volume data as db").says("--copy-volumes");
    home.microagent(["start", "twin"]).success();
    // What a machine writes to is not copied for another workspace.
    home.microagent(["fork", "db", "kid", "--copy-volumes"])
        .run()
        .code(75)
        .says("in use by workspace `twin`");
    assert!(!home.workspace("kid").exists());
    home.microagent(["halt", "twin"]).success();
    let copied = home.microagent(["fork", "db", "kid", "--copy-volumes"]).success();
    assert_eq!(copied.text(), "kid (stopped), volume data-kid (copy of data)\n");
    home.microagent(["start", "kid"]).success();
    home.microagent(["start", "db"]).success();
    sh(&home, "kid", "echo more >> /data/file; sync");
    assert_eq!(sh(&home, "kid", "cat /data/file"), "kept\nmore\n");
    assert_eq!(sh(&home, "db", "cat /data/file"), "kept\n");
}

#[test]
fn an_image_file_of_the_host_is_not_copied() {
    let home = home();
    let image = home.write("data.ext4", "");
    fs::File::options().write(true).open(&image).unwrap().set_len(32 << 20).unwrap();
    host::must("mke2fs", &["-q", "-F", "-t", "ext4", image.to_str().unwrap()]);
    home.create("db", ["-v", "data.ext4:/data"]);
    home.microagent(["start", "db"]).success();
    let refused = home.microagent(["fork", "db", "kid", "--copy-volumes"]).run().code(1);
    refused.says("can write to the image file at `/data`").says("--disk-only");
    assert_eq!((home.workspaces(), volumes(&home).len()), (vec!["db".to_owned()], 0));
}

/// Whether a file of this step of a fork is there.
type Step = fn(&Home) -> bool;

#[test]
fn a_killed_fork_leaves_no_copy_that_nobody_knows() {
    let home = home();
    writing(&home);
    let steps: [(&str, Step); 4] = [
        ("the copies in the capture", |home| has_in_tmp(home, "volumes")),
        ("the copies of the fork", |home| has_in_tmp(home, "volumes/data-kid")),
        ("the fork", |home| home.workspace("kid").exists()),
        ("the volume", |home| disk_of(home, "data-kid").exists()),
    ];
    for (what, step) in steps {
        let forking = home.microagent(["fork", "db", "kid", "--copy-volumes"]).start();
        wait_for(what, PATIENCE, || {
            std::thread::yield_now();
            if step(&home) { Ok(()) } else { Err("not yet") }
        });
        forking.signal(Signal::KILL);
        forking.finish();
        // The source writes on, and its disks are whole.
        assert_eq!(home.state_of("db"), "running", "{what}");
        writes_on(&home, "db");
        is_in_order(&home, "db");
        // A fork that is there is whole, or can be deleted: its copies are where it says.
        if home.workspace("kid").exists() {
            home.microagent(["kill", "kid"]).success();
            home.microagent(["start", "kid"]).success();
            writes_on(&home, "kid");
            is_in_order(&home, "kid");
            home.microagent(["delete", "kid", "--force"]).success();
            home.microagent(["volume", "delete", "data-kid", "--yes"]).success();
        }
        time_passes(&home);
        home.microagent(["system", "prune", "--yes"]).success();
        assert_eq!(volumes(&home), ["data", "seed"], "{what}");
        assert_eq!(fs::read_dir(home.state().join("tmp")).unwrap().count(), 0, "{what}");
    }
}

/// Whether something in the directory of half-made files has this path.
fn has_in_tmp(home: &Home, path: &str) -> bool {
    let tmp = fs::read_dir(home.state().join("tmp")).unwrap().flatten();
    tmp.into_iter().any(|entry| entry.path().join(path).exists())
}

#[test]
fn a_source_whose_fork_is_killed_or_cancelled_meanwhile_continues() {
    let home = home();
    writing(&home);
    // So much that the copy takes a while on a file system that does not share blocks.
    sh(&home, "db", "dd if=/dev/urandom of=/data/large bs=1M count=40 2> /dev/null; sync");
    for signal in [Signal::KILL, Signal::INT] {
        let forking = home.microagent(["fork", "db", "kid", "--copy-volumes"]).start();
        wait_for("the copies", PATIENCE, || {
            std::thread::yield_now();
            if has_in_tmp(&home, "volumes/data") { Ok(()) } else { Err("not yet") }
        });
        forking.signal(signal);
        forking.finish();
        writes_on(&home, "db");
        is_in_order(&home, "db");
        if home.workspace("kid").exists() {
            home.microagent(["delete", "kid", "--force"]).success();
        }
        home.microagent(["volume", "delete", "data-kid", "--yes"]).run();
    }
    home.microagent(["fork", "db", "next", "--copy-volumes"]).success();
    writes_on(&home, "next");
}

#[test]
fn a_full_disk_of_the_host_costs_the_fork_and_not_its_source() {
    if !user::is_root() {
        return host::skip("only root can mount a small disk");
    }
    let home = Home::new(User::Caller);
    let state = home.make_dir("state");
    let _disk = SmallDisk::mount(&state, 256);
    let call = |words: &[&str]| {
        home.call().env("MICROAGENT_STATE_DIR", &state).env("MICROAGENT_WARM", "off").args(words)
    };
    let image = home.image("busybox");
    call(&["volume", "create", "data", "--size-mib", "64"]).success();
    let create =
        ["create", "db", "--network", "isolated", "--profile", "tiny", "--image", &image, "-v", "data:/data"];
    call(&create).success();
    call(&["start", "db"]).success();
    let fill = "dd if=/dev/urandom of=/data/large bs=1M count=50 2> /dev/null; echo kept > /data/file; sync";
    call(&["exec", "db", "--", "sh", "-c", fill]).success();
    call(&["fork", "db", "kid", "--copy-volumes"]).run().failure().says("No space left");
    assert_eq!(fs::read_dir(state.join("tmp")).unwrap().count(), 0);
    let names: Vec<_> = ["workspaces", "volumes"]
        .iter()
        .flat_map(|dir| fs::read_dir(state.join(dir)).unwrap().flatten().map(|entry| entry.file_name()))
        .collect();
    assert_eq!(names, ["db", "data"]);
    assert_eq!(call(&["exec", "db", "--", "cat", "/data/file"]).success().text(), "kept\n");
    call(&["delete", "db", "--force"]).success();
}
