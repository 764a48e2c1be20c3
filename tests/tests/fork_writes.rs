//! Forks and snapshots in the middle of heavy writes: what a program was told is on the disk is there, also without the memory.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::path::PathBuf;

use microagent_tests::snapshot_file::Pieces;
use microagent_tests::{Home, Running, User, host};

/// Writers in the guest.
const WRITERS: u32 = 3;

/// Writes numbered files with their number in them, flushes each, and prints that, on the root disk and on a volume.
const WRITE: &str = "mkdir -p /root/w /data/w; n=0; while true; do n=$((n + 1)); for dir in /root/w /data/w; do \
     echo $n > $dir/$WRITER-$n.new; sync $dir/$WRITER-$n.new; mv $dir/$WRITER-$n.new $dir/$WRITER-$n; sync $dir; done; \
     echo acked-$WRITER-$n; done";

fn home() -> Home {
    Home::new(User::unprivileged())
}

#[track_caller]
fn sh(home: &Home, name: &str, line: &str) -> String {
    home.microagent(["exec", name, "--", "sh", "-c", line]).success().text().to_owned()
}

/// Starts the writers, and waits until each was told of so many files.
#[track_caller]
fn writers<'a>(home: &'a Home, name: &str, files: u32) -> Vec<Running<'a>> {
    let start = |number| {
        let line = format!("WRITER={number}; {WRITE}");
        home.microagent(["exec", name, "--", "sh", "-c", &line]).start()
    };
    let running: Vec<_> = (1..=WRITERS).map(start).collect();
    for (number, writer) in (1..).zip(&running) {
        writer.prints(&format!("acked-{number}-{files}\n"));
    }
    running
}

/// Fails unless a directory has each of these files of all writers, with its number in it.
#[track_caller]
fn has_files(home: &Home, name: &str, dir: &str, files: u32) {
    let line = format!(
        "for w in $(seq 1 {WRITERS}); do for n in $(seq 1 {files}); do [ \"$(cat {dir}/$w-$n)\" = $n ] || echo $w-$n; \
         done; done"
    );
    assert_eq!(sh(home, name, &line), "", "missing in {dir} of {name}");
}

/// The root disk of a resting workspace as a raw image.
#[track_caller]
fn raw_disk(home: &Home, name: &str) -> PathBuf {
    home.microagent(["snapshot", "create", name, "--tag", "raw"]).success();
    let file = format!("{name}.snapshot");
    home.microagent(["snapshot", "export", &format!("{name}:raw"), &file]).success();
    let disk = home.path().join(format!("{name}.raw"));
    Pieces::read(&home.path().join(&file)).write_disk(&disk);
    fs::remove_file(home.path().join(file)).unwrap();
    disk
}

#[test]
fn what_was_flushed_is_in_forks_and_snapshots_and_their_disks_are_clean() {
    let home = home();
    home.microagent(["volume", "create", "data", "--size-mib", "64"]).success();
    home.create("db", ["-v", "data:/data", "--size-mib", "1g"]);
    home.microagent(["start", "db"]).success();
    let running = writers(&home, "db", 10);
    home.microagent(["fork", "db", "kid", "--copy-volumes"]).success();
    home.microagent(["snapshot", "create", "db", "--disk-only", "--tag", "disk"]).success();
    for (number, writer) in (1..).zip(&running) {
        writer.prints(&format!("acked-{number}-15\n"));
    }
    // With the memory of that moment, and after a power cut with the disks alone.
    for dir in ["/root/w", "/data/w"] {
        has_files(&home, "kid", dir, 10);
    }
    home.microagent(["kill", "kid"]).success();
    home.microagent(["start", "kid"]).success();
    for dir in ["/root/w", "/data/w"] {
        has_files(&home, "kid", dir, 10);
        has_files(&home, "db", dir, 15);
    }
    home.microagent(["create", "late", "--from-snapshot", "db:disk"]).success();
    for writer in running {
        writer.kill();
    }
    home.microagent(["halt", "db"]).success();
    home.microagent(["start", "late"]).success();
    has_files(&home, "late", "/root/w", 10);
    // Each of them has replayed its journal.
    home.microagent(["halt", "kid", "late"]).success();
    for name in ["db", "kid", "late"] {
        host::e2fsck(&raw_disk(&home, name));
    }
    for volume in ["data", "data-kid"] {
        host::e2fsck(&home.state().join("volumes").join(volume).join("disk.ext4"));
    }
}

#[test]
fn a_rollback_in_the_middle_of_writes_has_what_was_flushed_before_it() {
    let home = home();
    home.create("db", ["--size-mib", "1g"]);
    home.microagent(["start", "db"]).success();
    let running = writers(&home, "db", 8);
    home.microagent(["snapshot", "create", "db", "--tag", "a"]).success();
    home.microagent(["snapshot", "restore", "db", "a", "--yes"]).success();
    for writer in running {
        // Its command has ended with the machine.
        writer.finish().failure();
    }
    has_files(&home, "db", "/root/w", 8);
    home.microagent(["kill", "db"]).success();
    home.microagent(["start", "db"]).success();
    has_files(&home, "db", "/root/w", 8);
    home.microagent(["halt", "db"]).success();
    host::e2fsck(&raw_disk(&home, "db"));
}
