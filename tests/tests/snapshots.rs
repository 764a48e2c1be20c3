//! Snapshots of resting workspaces: what they keep, what they share, and what a killed command leaves.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;

use microagent_tests::{Home, User, wait_for};
use rustix::process::Signal;
use serde_json::Value;

fn home() -> Home {
    Home::new(User::unprivileged())
}

/// Starts the workspace, runs a shell line, and halts it.
#[track_caller]
fn sh(home: &Home, name: &str, line: &str) -> String {
    home.microagent(["start", name]).success();
    let output = home.microagent(["exec", name, "--", "sh", "-c", line]).success().text().to_owned();
    home.microagent(["halt", name]).success();
    output
}

/// Files of layers.
fn layers(home: &Home) -> Vec<PathBuf> {
    let entries = fs::read_dir(home.state().join("layers")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "qcow2")).collect()
}

fn record(home: &Home, name: &str) -> Value {
    serde_json::from_slice(&fs::read(home.workspace(name).join("workspace.json")).unwrap()).unwrap()
}

fn disks(home: &Home, name: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(home.workspace(name)).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "qcow2")).collect()
}

#[test]
fn a_disk_becomes_what_it_was_and_others_are_made_from_it() {
    let home = home();
    home.create("web", []);
    assert_eq!(sh(&home, "web", "echo one > /root/file; cat /root/file"), "one\n");
    let made = home.microagent(["snapshot", "create", "web", "--tag", "one"]).success();
    assert!(made.text().starts_with("snapshot one created (disk) at "), "{}", made.told());
    home.microagent(["snapshot", "create", "web", "--tag", "one"]).run().code(1).says("already");
    sh(&home, "web", "echo two > /root/file; rm /bin/vi; dd if=/dev/zero of=/root/large bs=1M count=8; sync");
    let second = home.microagent(["snapshot", "create", "web", "--json"]).success().json();
    assert!(second["tag"].as_str().unwrap().starts_with("snap-2"), "{second}");
    assert!(second["bytes"].as_u64().unwrap() >= 8 << 20, "{second}");

    let list = home.microagent(["snapshot", "list", "web"]).success();
    assert!(list.text().starts_with("TAG ") && list.text().lines().count() == 3, "{}", list.told());
    assert_eq!(home.microagent(["status", "web", "--json"]).success().json()["snapshots"], 2);
    let used = home.microagent(["system", "df", "--json"]).success().json();
    assert_eq!(used["snapshots"]["count"], 2, "{used}");
    assert!(used["snapshots"]["bytes"].as_u64().unwrap() >= 8 << 20, "{used}");

    // Nothing is lost unasked, and only at rest.
    home.microagent(["snapshot", "restore", "web", "one"]).run().code(2).says("--yes");
    home.microagent(["start", "web"]).success();
    home.microagent(["snapshot", "restore", "web", "one", "--yes"]).run().code(1).says("microagent halt web");
    let other = home.microagent(["create", "other", "--from-snapshot", "web:one"]).success();
    assert_eq!((other.summary("Workspace"), other.summary("State")), ("other", "stopped"));
    home.microagent(["halt", "web"]).success();

    home.microagent(["snapshot", "restore", "web", "one", "--yes"]).success();
    assert_eq!(sh(&home, "web", "cat /root/file; ls /bin/vi; ls /root/large || true"), "one\n/bin/vi\n");
    let newest = second["tag"].as_str().unwrap();
    home.microagent(["snapshot", "restore", "web", newest, "--yes"]).success();
    assert_eq!(sh(&home, "web", "cat /root/file; ls /bin/vi || true"), "two\n");
    assert_eq!(sh(&home, "other", "cat /root/file; hostname"), "one\nother\n");

    // What is shared stays as long as somebody needs it, and no longer.
    home.microagent(["delete", "web", "--yes"]).success();
    assert_eq!(layers(&home).len(), 1);
    assert_eq!(sh(&home, "other", "cat /root/file"), "one\n");
    home.microagent(["delete", "other", "--yes"]).success();
    assert_eq!(layers(&home), [] as [PathBuf; 0]);
    home.nothing_is_left();
}

#[test]
fn whatever_uses_the_disk_knows_its_layers() {
    let home = home();
    home.create("web", []);
    sh(&home, "web", "echo below > /root/below; sync");
    home.microagent(["snapshot", "create", "web", "--tag", "a"]).success();
    sh(&home, "web", "echo above > /root/above; sync");

    home.microagent(["clone", "web", "copy"]).success();
    assert_eq!(layers(&home).len(), 1, "a clone shares layers");
    home.microagent(["rename", "web", "site"]).success();
    home.microagent(["resize", "site", "2g"]).success();
    assert_eq!(sh(&home, "copy", "cat /root/below /root/above"), "below\nabove\n");
    let size = sh(&home, "site", "cat /root/below /root/above; df -m / | awk 'END { print ($2 > 1800) }'");
    assert_eq!(size, "below\nabove\n1\n");
    home.microagent(["cp", "site:/root/below", "fetched"]).success();
    assert_eq!(fs::read_to_string(home.path().join("fetched")).unwrap(), "below\n");
    // A disk that was enlarged stays so.
    home.microagent(["snapshot", "restore", "site", "a", "--yes"]).success();
    let restored = sh(
        &home,
        "site",
        "cat /root/below; ls /root/above || true; df -m / | awk 'END { print ($2 > 1800) }'",
    );
    assert_eq!(restored, "below\n1\n");
    home.microagent(["commit", "site", "made:1"]).success();
    let image = home.microagent(["run", "--network", "isolated", "made:1", "cat", "/root/below"]).success();
    assert_eq!(image.guest_output(), "below\n");

    // The image of a snapshot is needed as that of a workspace is.
    home.microagent(["delete", "copy", "--yes"]).success();
    home.microagent(["image", "delete", &home.image("busybox")]).run().code(1).says("site:a");
    home.microagent(["snapshot", "delete", "site", "a", "--yes"]).success();
    home.microagent(["snapshot", "delete", "site", "a", "--yes"]).success();
    home.microagent(["snapshot", "delete", "site", "a"]).run().code(1).says("no snapshot `a`");
    assert_eq!(sh(&home, "site", "cat /root/below"), "below\n");
}

#[test]
fn a_disk_has_few_layers_after_many_snapshots() {
    let home = home();
    home.create("web", []);
    for generation in 1..=50 {
        if [1, 16, 17, 40].contains(&generation) {
            sh(
                &home,
                "web",
                &format!(
                    "echo {generation} >> /root/generations; rm -f /root/only-*; touch /root/only-{generation}; sync"
                ),
            );
        }
        home.microagent(["snapshot", "create", "web", "--tag", &format!("g{generation}")]).success();
        let count = record(&home, "web")["layers"].as_array().unwrap().len();
        assert!((1..=16).contains(&count), "{count} layers in generation {generation}");
    }
    let seen = |expected: &str| assert_eq!(sh(&home, "web", "cat /root/generations; ls /root"), expected);
    seen("1\n16\n17\n40\ngenerations\nonly-40\n");
    for (tag, expected) in
        [("g16", "1\n16\ngenerations\nonly-16\n"), ("g39", "1\n16\n17\ngenerations\nonly-17\n")]
    {
        home.microagent(["snapshot", "restore", "web", tag, "--yes"]).success();
        seen(expected);
    }
    // Of the snapshots of a merged disk, each is still whole by itself.
    let others: Vec<_> = (1..=50).filter(|n| *n != 15).map(|n| format!("g{n}")).collect();
    let delete = ["snapshot", "delete", "web", "--yes"].into_iter().chain(others.iter().map(String::as_str));
    home.call().args(delete).success();
    home.microagent(["snapshot", "restore", "web", "g15", "--yes"]).success();
    seen("1\ngenerations\nonly-1\n");
    assert_eq!(layers(&home).len(), 15);
}

#[test]
fn fifty_generations_that_come_from_each_other_have_few_layers() {
    let home = home();
    home.create("g0", []);
    for generation in 1..=50 {
        let (before, next) = (format!("g{}", generation - 1), format!("g{generation}"));
        if [1, 16, 17, 33, 50].contains(&generation) {
            sh(
                &home,
                &before,
                &format!(
                    "echo {generation} >> /root/generations; rm -f /root/only-*; touch /root/only-{generation}; sync"
                ),
            );
        }
        home.microagent(["snapshot", "create", &before, "--tag", "s"]).success();
        let source = record(&home, &before)["layers"].as_array().unwrap().len();
        assert!((1..=16).contains(&source), "{source} layers in generation {generation}");
        home.microagent(["create", &next, "--from-snapshot", &format!("{before}:s")]).success();
        home.microagent(["delete", &before, "--yes"]).success();
        // What a start opens: the layers, and nothing of the generations that are gone.
        let own = record(&home, &next)["layers"].clone();
        assert_eq!(own.as_array().unwrap().len(), source);
        assert_eq!(layers(&home).len(), source);
    }
    assert_eq!(
        sh(&home, "g50", "cat /root/generations; ls /root; hostname"),
        "1\n16\n17\n33\n50\ngenerations\nonly-50\ng50\n"
    );
    home.microagent(["delete", "g50", "--yes"]).success();
    assert_eq!(layers(&home), [] as [PathBuf; 0]);
    home.nothing_is_left();
}

#[test]
fn a_damaged_layer_is_named_and_nothing_is_changed() {
    let home = home();
    home.create("web", []);
    sh(&home, "web", "echo kept > /root/kept; sync");
    home.microagent(["snapshot", "create", "web", "--tag", "a"]).success();
    let layer = layers(&home).remove(0);
    let whole = fs::read(&layer).unwrap();
    fs::set_permissions(&layer, fs::Permissions::from_mode(0o600)).unwrap();
    let before = record(&home, "web");
    fs::write(&layer, &whole[..whole.len() / 2]).unwrap();
    home.microagent(["start", "web"]).run().code(1).says("the layer is damaged");
    home.microagent(["snapshot", "restore", "web", "a", "--yes"]).run().code(1).says("is damaged");
    home.microagent(["create", "new", "--from-snapshot", "web:a"]).run().code(1).says("is damaged");
    assert_eq!(record(&home, "web")["layers"], before["layers"]);
    assert!(!home.workspace("new").exists());
    fs::write(&layer, &whole).unwrap();
    assert_eq!(sh(&home, "web", "cat /root/kept"), "kept\n");

    // A snapshot whose record is damaged is a row, keeps all layers, and can be deleted.
    fs::write(home.workspace("web").join("snapshots/a/workspace.json"), "{").unwrap();
    assert!(home.microagent(["snapshot", "list", "web"]).success().text().contains("damaged"));
    home.microagent(["snapshot", "restore", "web", "a", "--yes"]).run().code(1).says("web:a");
    home.microagent(["system", "prune", "--yes"]).run().code(1).says("web:a");
    // One of a newer release is not offered for deletion.
    let manifest = home.workspace("web").join("snapshots/a/manifest.json");
    let known = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, r#"{"format": 2, "more": true}"#).unwrap();
    let newer = home.microagent(["snapshot", "restore", "web", "a", "--yes"]).run().code(1);
    let newer = newer.says("has format 2, this build reads up to 1").says("use that release of microagent");
    assert!(!newer.stderr.contains("delete"), "{}", newer.told());
    fs::write(&manifest, known).unwrap();
    assert!(layer.exists());
    home.microagent(["snapshot", "delete", "web", "a", "--yes"]).success();
    assert_eq!(sh(&home, "web", "cat /root/kept"), "kept\n");
}

/// Whether a file of this step of a snapshot is there.
type Step = fn(&Home) -> bool;

#[test]
fn a_killed_command_loses_no_layer_and_leaves_none() {
    let home = home();
    home.create("web", []);
    sh(&home, "web", "echo 0 > /root/file; sync");
    let steps: [Step; 4] = [
        |home| !layers(home).is_empty(),
        |home| disks(home, "web").len() > 1 || !has_old_disk(home),
        |home| record(home, "web")["layers"] != Value::Array(Vec::new()),
        |home| home.workspace("web").join("snapshots").is_dir(),
    ];
    for (number, step) in (1..).zip(steps) {
        let content = format!("{}\n", number - 1);
        let running = home.microagent(["snapshot", "create", "web", "--tag", &format!("t{number}")]).start();
        wait_for("this step", std::time::Duration::from_secs(60), || {
            thread::yield_now();
            if step(&home) { Ok(()) } else { Err("not yet") }
        });
        running.signal(Signal::KILL);
        running.finish();
        assert_eq!(sh(&home, "web", &format!("cat /root/file; echo {number} > /root/file; sync")), content);
        let tags = home.microagent(["snapshot", "list", "web", "-q"]).success();
        for tag in tags.text().lines() {
            home.microagent(["snapshot", "delete", "web", tag, "--yes"]).success();
        }
        // A snapshot that is made afterwards cleans up; so does a prune.
        home.microagent(["snapshot", "create", "web", "--tag", "next"]).success();
        assert_eq!(disks(&home, "web").len(), 1);
        home.microagent(["system", "prune", "--yes"]).success();
        assert_eq!(layers(&home).len(), record(&home, "web")["layers"].as_array().unwrap().len());
        fresh(&home, number);
    }
}

fn has_old_disk(home: &Home) -> bool {
    home.workspace("web").join("disk.qcow2").exists()
}

/// Gives the workspace a disk without layers, with the same file.
fn fresh(home: &Home, number: u32) {
    home.microagent(["delete", "web", "--yes"]).success();
    assert_eq!(layers(home), [] as [&Path; 0]);
    home.create("web", []);
    sh(home, "web", &format!("echo {number} > /root/file; sync"));
}
