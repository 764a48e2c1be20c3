//! Files with holes keep them on every way: into a guest, out of it, and into an image.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

use microagent_tests::{Home, User};

const GIB: u64 = 1 << 30;

#[test]
fn holes_stay_holes_in_copies_and_commits() {
    let home = Home::new(User::unprivileged());
    let file = home.path().join("holes");
    let written = fs::File::create(&file).unwrap();
    written.write_all_at(b"data", 2 * GIB).unwrap();
    written.set_len(4 * GIB).unwrap();
    drop(written);

    // The disk is far smaller than what the file says that it has.
    home.create("sparse", ["--size-mib", "1024"]);
    home.microagent(["start", "sparse"]).success();
    home.call().arg("cp").arg(&file).arg("sparse:/holes").success();
    let used = home.microagent(["exec", "sparse", "--", "du", "-k", "/holes"]).success();
    let used: u64 = used.text().split_whitespace().next().unwrap().parse().unwrap();
    assert!(used < 1024, "{used} KiB");
    home.microagent(["cp", "sparse:/holes", "back"]).success();
    let back = fs::File::open(home.path().join("back")).unwrap();
    let mut data = [0; 4];
    back.read_exact_at(&mut data, 2 * GIB).unwrap();
    assert_eq!((back.metadata().unwrap().len(), &data), (4 * GIB, b"data"));
    assert!(back.metadata().unwrap().blocks() < 4096);
    home.microagent(["halt", "sparse"]).success();

    let committed = home.microagent(["commit", "--json", "sparse", "sparse:1"]).success().json();
    assert!(committed["layer_bytes"].as_u64().unwrap() < 1 << 20, "{committed}");
    let run = home.microagent(["run", "--pull", "never", "--network", "isolated", "sparse:1"]);
    let run = run.args(["stat", "-c", "%s %b", "/holes"]).success();
    let (size, blocks) = run.guest_output().trim().split_once(' ').unwrap();
    assert_eq!(size.parse::<u64>().unwrap(), 4 * GIB);
    assert!(blocks.parse::<u64>().unwrap() < 4096, "{blocks} blocks");
    home.microagent(["delete", "sparse", "--yes"]).success();
    home.nothing_is_left();
}
