//! Snapshots as files: what comes back on another host, and what is refused.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use microagent_tests::host::{self, SmallDisk};
use microagent_tests::snapshot_file::Pieces;
use microagent_tests::{Home, User, user, wait_for};
use rustix::process::Signal;

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

fn home() -> Home {
    Home::new(User::unprivileged())
}

#[track_caller]
fn sh(home: &Home, name: &str, line: &str) -> String {
    home.microagent(["exec", name, "--", "sh", "-c", line]).success().text().to_owned()
}

/// Writes a snapshot `a` of a running workspace to a file in its home.
fn exported(home: &Home) -> PathBuf {
    let (image, service) = (home.image("busybox"), "while true; do sleep 1; done");
    let create = ["create", "web", "--image", &image, "--publish", "0:80", "--service-command", service];
    home.microagent(create).success();
    home.microagent(["start", "web"]).success();
    sh(
        home,
        "web",
        "echo one > /root/file; rm /bin/vi; echo note > /dev/shm/note; sleep 100000 > /dev/null 2>&1 &",
    );
    home.microagent(["snapshot", "create", "web", "--tag", "a"]).success();
    let written = home.microagent(["snapshot", "export", "web:a", "web.snapshot"]).success();
    assert!(written.says("published ports").text().starts_with("File: web.snapshot\nSize: "));
    home.path().join("web.snapshot")
}

/// Copies a file to where another home's commands find it.
fn bring(file: &Path, to: &Home) {
    to.write("brought", fs::read(file).unwrap());
}

/// Files that an import makes and does not leave behind: layers, base disks, and what is half-made.
fn files(home: &Home) -> Vec<PathBuf> {
    let dirs = ["layers", "images/disks", "tmp", "workspaces"].map(|dir| home.state().join(dir));
    let entries = dirs.into_iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let mut found: Vec<_> =
        paths.filter(|path| path.file_name().is_some_and(|name| name != "lock")).collect();
    found.sort();
    found
}

/// What killed commands have left is old enough to be removed.
fn time_passes(home: &Home) {
    for entry in fs::read_dir(home.state().join("tmp")).unwrap().flatten() {
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(600);
        fs::File::open(entry.path()).unwrap().set_modified(long_ago).unwrap();
    }
}

#[test]
fn a_snapshot_continues_in_another_state_directory() {
    let (home, other) = (home(), home());
    let file = exported(&home);
    bring(&file, &other);
    let imported = other.microagent(["snapshot", "import", "brought", "twin"]).success();
    assert_eq!(imported.text(), "Workspace: twin\nSnapshot: a (memory)\n");
    let status = other.microagent(["status", "twin", "--json"]).success().json();
    assert_eq!((&status["state"], &status["snapshots"]), (&"stopped".into(), &1.into()), "{status}");
    assert_eq!(status["port_forwards"].as_array().map(Vec::len), Some(0), "{status}");
    other.microagent(["start", "twin", "--from-snapshot", "a"]).success();
    assert_eq!(
        sh(&other, "twin", "cat /root/file /dev/shm/note; hostname; ls /bin/vi 2> /dev/null || echo gone"),
        "one\nnote\ntwin\ngone\n"
    );
    assert!(sh(&other, "twin", "ps").contains("sleep 100000"));
    // It is a workspace as any other, whose image is not in the cache here.
    sh(&other, "twin", "echo two > /root/file; sync");
    other.microagent(["restart", "twin"]).success();
    assert_eq!(sh(&other, "twin", "cat /root/file"), "two\n");
    other.microagent(["system", "prune", "--yes"]).success();
    other.microagent(["snapshot", "create", "twin", "--tag", "b", "--disk-only"]).success();
    other.microagent(["halt", "twin"]).success();
    // From there back, through a pipe, to where there is another workspace of that name.
    let passed = other.microagent(["snapshot", "export", "twin:b", "-", "--disk-only"]).success();
    home.microagent(["snapshot", "import", "-", "back", "--disk-only"])
        .stdin(passed.stdout.clone())
        .success();
    home.microagent(["start", "back"]).success();
    assert_eq!(
        sh(&home, "back", "cat /root/file; ls /dev/shm/note 2> /dev/null || echo none"),
        "two\nnone\n"
    );
    other.microagent(["delete", "twin", "--force"]).success();
    other.microagent(["system", "prune", "--yes", "--all"]).run();
    other.microagent(["image", "prune"]).success();
    assert_eq!(files(&other), [] as [PathBuf; 0]);
}

#[test]
fn what_is_no_whole_snapshot_is_refused_and_leaves_nothing() {
    let (home, other) = (home(), home());
    let whole = fs::read(exported(&home)).unwrap();
    let import = |bytes: &[u8], why: &str| {
        other.write("brought", bytes);
        other.microagent(["snapshot", "import", "brought", "twin"]).run().code(1).says(why);
        assert_eq!(files(&other), [] as [PathBuf; 0]);
    };
    import(b"", "not a usable snapshot");
    import(&[7; 100_000], "not a usable snapshot");
    for part in [1, 2, 3] {
        import(&whole[..whole.len() * part / 4], "ends early");
    }
    import(&whole[..whole.len() - 1], "not a usable snapshot");
    let mut changed = whole.clone();
    let middle = whole.len() / 2;
    changed[middle] ^= 1;
    import(&changed, "not a usable snapshot");
    other.microagent(["snapshot", "import", "missing", "twin"]).run().code(1).says("missing");
    home.write("brought", &whole);
    home.microagent(["snapshot", "import", "brought", "web"]).run().code(1).says("exists");
    home.microagent(["snapshot", "export", "web:none", "out"]).run().code(1).says("no snapshot `none`");
    home.microagent(["snapshot", "export", "web", "out"]).run().code(2).says("WORKSPACE:TAG");
    assert!(!home.path().join("out").exists());
}

#[test]
fn what_a_newer_release_has_written_is_refused_and_so_is_each_part_that_is_wrong() {
    let (home, other) = (home(), home());
    let whole = Pieces::read(&exported(&home));
    let import = |pieces: &Pieces, why: &[&str]| {
        pieces.write(&other.write("brought", ""));
        let refused = other.microagent(["snapshot", "import", "brought", "twin"]).run().code(1);
        why.iter().fold(refused, |refused, text| refused.says(text));
        assert_eq!(files(&other), [] as [PathBuf; 0], "{why:?}");
    };
    // A newer file may have other fields, and lack those of today.
    let mut newer = whole.clone();
    newer.set_header(&serde_json::json!({ "format": 2, "version": "9.8.7", "more": true }));
    import(&newer, &["format 2", "release 9.8.7", "reads formats up to 1", "use that release of microagent"]);

    let with = |change: &dyn Fn(&mut Pieces)| {
        let mut changed = whole.clone();
        change(&mut changed);
        changed
    };
    let field = |name: &str, value: serde_json::Value| {
        with(&|pieces| {
            let mut header = pieces.header();
            header[name] = value.clone();
            pieces.set_header(&header);
        })
    };
    let [base, disk, memory] = ["base", "disk", "memory"].map(|kind| whole.first(kind));
    let cases: [(&str, Pieces); 12] = [
        ("`microagent-snapshot.json` in it", with(&|pieces| pieces.0[0].1.truncate(100))),
        ("does not begin as an export", with(&|pieces| drop(pieces.0.remove(0)))),
        ("not a workspace name", field("workspace", "../web".into())),
        (
            "its image has no digest",
            with(&|pieces| {
                let mut header = pieces.header();
                header["image"]["disk"] = "../../etc/passwd".into();
                pieces.set_header(&header);
            }),
        ),
        ("its base disk is larger than its disk", field("base_bytes", (1_u64 << 50).into())),
        // The kind of the first range of a part, its offset, and its length.
        ("not a usable snapshot", with(&|pieces| pieces.0[base].1[0] = 7)),
        ("not a usable snapshot", with(&|pieces| pieces.0[disk].1[8] = 0xff)),
        ("not a usable snapshot", with(&|pieces| pieces.0[disk].1[16] = 0xff)),
        ("not a usable snapshot", with(&|pieces| pieces.0[disk].1.truncate(20))),
        ("its memory is shorter than it says", with(&|pieces| pieces.0[memory].1.truncate(4096))),
        (
            "its memory is longer than it says",
            with(&|pieces| {
                let last = pieces.0.len() - 1;
                pieces.0[last].1.push(0);
            }),
        ),
        (
            "does not belong there",
            with(&|pieces| {
                let part = pieces.0.remove(base);
                pieces.0.push(part);
            }),
        ),
    ];
    for (why, pieces) in cases {
        import(&pieces, &[why]);
    }
    whole.write_with_sum(&other.write("brought", ""), &"0".repeat(64));
    other.microagent(["snapshot", "import", "brought", "twin"]).run().code(1).says("its sum is another");
    assert_eq!(files(&other), [] as [PathBuf; 0]);
    // What was put together unchanged is as good as what was exported.
    whole.write(&other.write("brought", ""));
    other.microagent(["snapshot", "import", "brought", "twin"]).success();
    other.microagent(["start", "twin"]).success();
    assert_eq!(sh(&other, "twin", "cat /root/file"), "one\n");
}

#[test]
fn a_memory_of_another_qemu_is_refused_and_its_disk_is_not() {
    let (home, other) = (home(), home());
    bring(&exported(&home), &other);
    let bin = other.make_dir("bin");
    // The same program from another build, by its time.
    let qemu = bin.join("qemu-system-x86_64");
    fs::copy(host::find_program("qemu-system-x86_64"), &qemu).unwrap();
    // It looks for firmware and modules beside itself.
    other.make_dir("share");
    symlink("/usr/share/qemu", other.path().join("share/qemu")).unwrap();
    symlink("/usr/lib", other.path().join("lib")).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let import = ["snapshot", "import", "brought", "twin"];
    let refused = other.microagent(import).env("PATH", &path).run().code(1);
    refused.says("the memory in the file cannot be restored here: the QEMU is different").says("--disk-only");
    assert_eq!(files(&other), [] as [PathBuf; 0]);
    other.microagent(import).arg("--disk-only").env("PATH", &path).success();
    other.microagent(["start", "twin"]).success();
    assert_eq!(sh(&other, "twin", "cat /root/file"), "one\n");
}

#[test]
fn commands_that_are_killed_on_the_way_leave_nothing() {
    let (home, other) = (home(), home());
    let file = exported(&home);
    bring(&file, &other);
    let made = |home: &Home| {
        let entries = fs::read_dir(home.state().join("tmp")).into_iter().flatten().flatten();
        entries.flat_map(|entry| fs::read_dir(entry.path()).into_iter().flatten().flatten()).count()
    };
    // The base disk, the layer and the memory are made one after the other, beside the lock.
    for count in 2..=4 {
        let importing = other.microagent(["snapshot", "import", "brought", "twin"]).start();
        wait_for("the next file", PATIENCE, || {
            std::thread::yield_now();
            if made(&other) >= count || other.workspace("twin").exists() { Ok(()) } else { Err(made(&other)) }
        });
        importing.signal(Signal::KILL);
        importing.finish();
        if other.workspace("twin").exists() {
            other.microagent(["delete", "twin", "--force"]).success();
        }
        time_passes(&other);
        other.microagent(["system", "prune", "--yes"]).success();
        other.microagent(["image", "prune"]).success();
        assert_eq!(files(&other), [] as [PathBuf; 0]);
    }
    other.microagent(["snapshot", "import", "brought", "twin"]).success();
    let exporting = home.microagent(["snapshot", "export", "web:a", "again"]).start();
    wait_for("the export", PATIENCE, || {
        let open = fs::read_dir(format!("/proc/{}/fd", exporting.id())).into_iter().flatten().flatten();
        let begun = open.filter_map(|entry| fs::read_link(entry.path()).ok());
        let begun =
            begun.filter(|name| name.starts_with(home.path()) && name.to_string_lossy().contains("/#"));
        if begun.count() > 0 || home.path().join("again").exists() { Ok(()) } else { Err("not yet") }
    });
    exporting.signal(Signal::KILL);
    exporting.finish();
    let names = fs::read_dir(home.path()).unwrap().flatten().map(|entry| entry.file_name());
    let left: Vec<_> = names.filter(|name| name.to_string_lossy().contains("export")).collect();
    assert!(left.is_empty(), "{left:?}");
    home.microagent(["snapshot", "export", "web:a", "again"]).success();
    assert_eq!(fs::metadata(home.path().join("again")).unwrap().len(), fs::metadata(file).unwrap().len());
}

#[test]
fn a_full_disk_costs_the_import_and_nothing_else() {
    if !user::is_root() {
        return host::skip("only root can mount a small disk");
    }
    let home = Home::new(User::Caller);
    let file = exported(&home);
    let state = home.make_dir("small");
    let _disk = SmallDisk::mount(&state, 64);
    let call = |words: &[&str]| home.call().env("MICROAGENT_STATE_DIR", &state).args(words);
    let file = file.to_str().unwrap();
    call(&["snapshot", "import", file, "twin"]).run().code(75).says("No space left");
    assert_eq!(fs::read_dir(state.join("tmp")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(state.join("workspaces")).unwrap().count(), 0);
}
