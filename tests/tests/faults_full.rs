//! Kept workspaces on a full disk, the host's or their own: what cannot be done is said, what was there stays, and all goes
//! on when there is room again.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use microagent_tests::host::SmallDisk;
use microagent_tests::{Home, Invocation, User, host, user};

/// Exit code of "try again": the disk may have room later.
const TRY_AGAIN: i32 = 75;

/// A file that takes all room of a disk, but for some. Dropped, it gives it back.
struct Filler(PathBuf);

impl Filler {
    #[track_caller]
    fn leaving(dir: &Path, left_kib: usize) -> Filler {
        let path = dir.join("filler");
        let (room, block) = (dir.join("room"), vec![7; 4096]);
        fs::write(&room, vec![7; left_kib * 1024]).unwrap();
        let mut file = File::create(&path).unwrap();
        while file.write_all(&block).is_ok() {}
        fs::remove_file(room).unwrap();
        Filler(path)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        // It goes with its disk where a test has failed.
        let _ = fs::remove_file(&self.0);
    }
}

fn call<'a>(home: &'a Home, state: &Path, words: &[&str]) -> Invocation<'a> {
    // A template would take the room that the test counts on.
    home.call().env("MICROAGENT_STATE_DIR", state).env("MICROAGENT_WARM", "off").args(words)
}

#[test]
fn a_full_disk_of_the_host_keeps_nothing_half_made_and_loses_nothing_flushed() {
    if !user::is_root() {
        return host::skip("only root can mount a small disk");
    }
    let home = Home::new(User::Caller);
    let state = home.make_dir("state");
    let disk = SmallDisk::mount(&state, 96);
    let call = |words: &[&str]| call(&home, &state, words);
    let image = home.image("busybox");
    let create = ["create", "web", "--network", "isolated", "--image", &image];
    call(&["image", "pull", &image]).success();

    // Nothing fits: neither a new workspace nor the start of one.
    let full = Filler::leaving(&state, 0);
    call(&create).run().code(TRY_AGAIN).says("free some space");
    assert_eq!(call(&["list"]).success().text(), "No workspaces.\n");
    drop(full);
    call(&create).success();
    let full = Filler::leaving(&state, 0);
    call(&["start", "web"]).run().code(TRY_AGAIN).says("free some space");
    home.processes_end();
    assert!(call(&["list"]).success().text().contains("web"));
    drop(full);

    // It fills while the guest writes.
    call(&["start", "web"]).success();
    let write = |line: &str| call(&["exec", "web", "--", "sh", "-c", line]);
    write("echo kept > /root/kept; head -c 4000000 /dev/urandom > /root/big; sync").success();
    let full = Filler::leaving(&state, 2048);
    let lost = write("head -c 20000000 /dev/urandom > /root/more; sync; echo never").run().code(1);
    lost.says("lost the connection to the guest");
    home.processes_end();
    let status = call(&["status", "web"]).success();
    assert!(status.text().contains("Problem: the host's disk is full"), "{}", status.told());

    drop(full);
    // Room for a look at its disk, and for nothing that is large.
    let full = Filler::leaving(&state, 2048);
    // What would be larger than the room is not made, and nothing of it stays.
    let copy = state.join("copy");
    let cp = call(&["cp", "web:/root/big", copy.to_str().unwrap()]).run().code(TRY_AGAIN);
    cp.says("No space left on device").says("free some space");
    assert!(!copy.exists());
    call(&["clone", "web", "other"]).run().code(TRY_AGAIN).says("free some space");
    call(&["commit", "web", "web:1"]).run().code(TRY_AGAIN).says("free some space");
    home.processes_end();
    assert!(!call(&["image", "list"]).success().text().contains("web:1"));
    let list = call(&["list"]).success();
    assert!(list.text().contains("web") && !list.text().contains("other"), "{}", list.told());

    drop(full);
    disk.wait_for_free_mib(30);
    call(&["start", "web"]).success();
    assert_eq!(write("cat /root/kept; wc -c < /root/big").success().text(), "kept\n4000000\n");
    call(&["halt", "web"]).success();
    call(&["clone", "web", "other"]).success();
    call(&["commit", "web", "web:1"]).success();
    call(&["delete", "web", "other", "--yes"]).success();
    home.processes_end();
}

#[test]
fn a_workspace_whose_own_disk_is_full_says_so_and_can_be_halted_and_started() {
    let home = Home::new(User::unprivileged());
    home.create("web", []);
    home.microagent(["start", "web"]).success();
    let write = |line: &str| home.microagent(["exec", "web", "--", "sh", "-c", line]);
    write("echo kept > /root/kept").success();
    // In smaller and smaller pieces; one that does not fit whole takes what there is.
    write("n=0; for size in 400m 100m 10m 1m 64k 4k; do while fallocate -l $size /fill$n; do n=$((n + 1)); done; done")
        .run();
    write("echo more > /root/more").run().code(1).says("No space left on device");
    home.write("file", vec![7; 100_000]);
    home.microagent(["cp", "file", "web:/root/"]).run().code(1).says("No space left on device");
    // A command that writes nothing works, and so does all that follows.
    assert_eq!(write("cat /root/kept").success().text(), "kept\n");
    assert_eq!(home.microagent(["halt", "web"]).success().summary("State"), "halted");
    home.microagent(["cp", "file", "web:/root/"]).run().code(1).says("No space left on device");
    home.microagent(["start", "web"]).success();
    write("rm /fill*").success();
    home.microagent(["cp", "file", "web:/root/"]).success();
    assert_eq!(write("cat /root/kept; wc -c < /root/file").success().text(), "kept\n100000\n");
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}
