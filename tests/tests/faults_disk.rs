//! The state directory cannot be written, or its disk is full: while unpacking, while the guest runs.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use microagent_tests::host::SmallDisk;
use microagent_tests::{Home, User, host, listing, user};

/// Exit code of "try again": the disk may have room later.
const TRY_AGAIN: i32 = 75;

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_state_directory_that_cannot_be_written_is_named() {
    let home = Home::new(User::unprivileged());
    let closed = home.make_dir("closed");
    set_mode(&closed, 0o500);
    let state = closed.join("state");
    let run = home.run("busybox", ["--state-dir", state.to_str().unwrap()], &["true"]).run().code(1);
    run.says(state.to_str().unwrap()).says("Permission denied").says("--state-dir");
    let list = home.microagent(["list"]).env("MICROAGENT_STATE_DIR", &state).success();
    assert_eq!(list.text(), "No workspaces.\n");

    let file = home.write("file", "");
    let run = home.run("busybox", ["--state-dir", file.to_str().unwrap()], &["true"]).run().code(1);
    run.says(file.to_str().unwrap()).says("--state-dir");
    set_mode(&closed, 0o700);
}

#[test]
fn a_state_directory_that_became_read_only_is_named_and_still_readable() {
    if !user::is_root() {
        return host::skip("only root can mount a small disk");
    }
    let home = Home::new(User::Caller);
    let state = home.make_dir("state");
    let disk = SmallDisk::mount(&state, 128);
    let call = || home.call().env("MICROAGENT_STATE_DIR", &state);
    let image = home.image("busybox");
    call()
        .args(["run", "--keep", "--name", "kept", "--network", "isolated", &image, "echo", "before"])
        .success();
    disk.set_read_only(true);
    let list = call().arg("list").success();
    assert!(list.text().contains("kept"), "{}", list.told());
    let logs = call().args(["logs", "kept"]).success();
    assert!(logs.text().contains("before"), "{}", logs.told());
    let run = call().args(["run", "--network", "isolated", &image, "true"]).run().code(1);
    run.says("Read-only file system");
    call().args(["delete", "kept", "--yes"]).run().code(1).says("Read-only file system");
    disk.set_read_only(false);
    call().args(["delete", "kept", "--yes"]).success();
    home.processes_end();
}

#[test]
fn a_disk_that_fills_while_an_image_is_unpacked_fails_clearly_and_keeps_nothing_half_made() {
    if !user::is_root() {
        return host::skip("only root can mount a small disk");
    }
    let home = Home::new(User::Caller);
    let state = home.make_dir("state");
    let _disk = SmallDisk::mount(&state, 96);
    let call = || home.call().env("MICROAGENT_STATE_DIR", &state);
    // Debian is larger than the disk, busybox is not.
    let run =
        call().args(["run", "--network", "isolated", &home.image("debian"), "true"]).run().code(TRY_AGAIN);
    run.says("disk full").says("image prune");
    assert_eq!(call().args(["image", "list", "--json"]).success().json()["images"], serde_json::json!([]));
    assert_eq!(call().arg("list").success().text(), "No workspaces.\n");
    call().args(["image", "prune"]).success();
    let used = listing::disk_usage(&state.join("images")) + listing::disk_usage(&state.join("tmp"));
    assert!(used < 1 << 20, "{used} bytes are left:\n{:#?}", listing::listing(&state));

    let run = call().args(["run", "--network", "isolated", &home.image("busybox"), "echo", "fits"]).success();
    assert_eq!(run.guest_output(), "fits\n");
}

/// From "not even the guest kernel fits" to "no room for a template": each stage finds the disk full once.
#[test]
fn a_disk_that_is_too_small_is_said_so_at_every_stage() {
    if !user::is_root() {
        return host::skip("only root can mount a small disk");
    }
    let home = Home::new(User::Caller);
    let state = home.make_dir("state");
    for (size_mib, fits) in [(1, false), (20, false), (40, false), (46, true), (70, true)] {
        let _disk = SmallDisk::mount(&state, size_mib);
        let call = || home.call().env("MICROAGENT_STATE_DIR", &state);
        let run = call().args(["run", "--network", "isolated", &home.image("busybox"), "echo", "fits"]).run();
        if fits {
            assert_eq!(run.code(0).guest_output(), "fits\n", "{size_mib} MiB");
        } else {
            let run = run.code(TRY_AGAIN).says("free some space");
            assert!(
                run.stderr.contains("disk full") || run.stderr.contains("No space left"),
                "{}",
                run.told()
            );
        }
        assert_eq!(call().arg("list").success().text(), "No workspaces.\n");
        home.processes_end();
    }
}

#[test]
fn a_disk_that_fills_while_the_guest_writes_fails_clearly_and_everything_else_still_works() {
    if !user::is_root() {
        return host::skip("only root can mount a small disk");
    }
    let home = Home::new(User::Caller);
    let state = home.make_dir("state");
    let disk = SmallDisk::mount(&state, 96);
    let call = || home.call().env("MICROAGENT_STATE_DIR", &state);
    let fill = "echo filling; dd if=/dev/zero bs=1M count=300 | tr '\\000' x > /big; sync; echo never";
    let image = home.image("busybox");
    let run =
        call().args(["run", "--name", "filler", "--network", "isolated", &image, "sh", "-c", fill]).run();
    let run = run.code(TRY_AGAIN).says("the host's disk is full").says("image prune");
    assert_eq!(run.failed_workspace(), "filler");
    home.processes_end();
    let list = call().arg("list").success();
    assert!(list.text().contains("filler") && list.text().contains("failed"), "{}", list.told());
    let logs = call().args(["logs", "filler"]).success();
    assert!(logs.text().contains("filling"), "{}", logs.told());
    call().args(["delete", "filler", "--yes"]).success();
    disk.wait_for_free_mib(20);
    let run = call().args(["run", "--network", "isolated", &image, "echo", "room again"]).success();
    assert_eq!(run.guest_output(), "room again\n");
    home.processes_end();
}

/// The guest's own disk is full: that is the guest's affair, and the run completes.
#[test]
fn a_full_guest_disk_is_the_guests_affair() {
    let home = Home::new(User::Caller);
    let run =
        home.run("busybox", ["--network", "isolated"], &["fallocate", "-l", "2000000000", "/big"]).success();
    assert_ne!(run.summary("Exit code"), "0");
    assert!(run.stderr.contains("No space left on device"), "{}", run.told());
    home.nothing_is_left();
}
