//! A directory of the host and one of a workspace, kept the same, on real guests.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use microagent_tests::{Finished, Home, User, wait_for};
use serde_json::{Value, json};

/// What the system says of a file that the user may not read.
const DENIED: &str = "Permission denied (os error 13)";

/// How long a change may take to be in a guest.
const DEADLINE: Duration = Duration::from_secs(120);

/// A running workspace, and a directory of the host with some files.
fn home() -> Home {
    let home = Home::new(User::unprivileged());
    home.create("web", []);
    home.microagent(["start", "web"]).success();
    home.make_dir("src");
    home.make_dir("src/lib");
    home.write("src/main.py", "print(1)\n");
    home.write("src/lib/one.py", "1\n");
    home.write("src/lib/two.py", "2\n");
    home
}

#[track_caller]
fn end(home: &Home) {
    home.microagent(["delete", "web", "--yes", "--force"]).success();
    home.nothing_is_left();
}

#[track_caller]
fn sync(home: &Home, options: &[&str]) -> Finished {
    home.microagent(["sync", "src", "web:/srv/app", "--json"]).args(options).run()
}

/// What a sync did: what it copied, removed and kept, and its conflicts.
#[track_caller]
fn done(home: &Home, options: &[&str]) -> [Value; 4] {
    of(&sync(home, options).code(0).json())
}

fn of(report: &Value) -> [Value; 4] {
    ["copied", "removed", "kept", "conflicts"].map(|key| report[key].clone())
}

#[track_caller]
fn guest(home: &Home, line: &str) -> String {
    home.microagent(["exec", "web", "--", "sh", "-c", line]).success().text().to_owned()
}

/// Sets the time of a file, so that no test depends on how soon one change follows another.
fn touch(path: &Path, seconds: u64) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
}

fn none() -> Value {
    json!([])
}

#[test]
fn what_has_changed_is_copied_and_nothing_is_removed_unasked() {
    let home = home();
    let src = home.path().join("src");
    // A plan changes nothing, and needs nothing to exist.
    let plan = sync(&home, &["--dry-run"]).code(0).json();
    assert_eq!(plan["copied"], json!(["lib", "lib/one.py", "lib/two.py", "main.py"]));
    assert_eq!(guest(&home, "ls /srv 2>/dev/null; true"), "");
    assert!(!home.workspace("web").join("sync").exists());

    let first = sync(&home, &[]).code(0).json();
    assert_eq!((&first["copied"], &first["unchanged"]), (&plan["copied"], &json!(0)));
    assert_eq!(guest(&home, "cd /srv/app; cat main.py lib/*"), "print(1)\n1\n2\n");
    let again = sync(&home, &[]).code(0).json();
    assert_eq!((of(&again), &again["unchanged"]), ([none(), none(), none(), none()], &json!(4)));

    // One file is written, one gets other permissions, one only another time; a directory is renamed.
    home.write("src/main.py", "print(22)\n");
    assert_eq!(done(&home, &[]), [json!(["main.py"]), none(), none(), none()]);
    fs::set_permissions(src.join("main.py"), Permissions::from_mode(0o755)).unwrap();
    touch(&src.join("lib/two.py"), 1_000_000);
    assert_eq!(done(&home, &[]), [json!(["main.py"]), none(), none(), none()]);
    fs::rename(src.join("lib"), src.join("library")).unwrap();
    let renamed = json!(["library", "library/one.py", "library/two.py"]);
    assert_eq!(done(&home, &[]), [renamed, none(), none(), none()]);
    assert_eq!(guest(&home, "cd /srv/app; stat -c %a main.py; cat lib/one.py library/one.py"), "755\n1\n1\n");

    let removed = json!(["lib/two.py", "lib/one.py", "lib"]);
    assert_eq!(done(&home, &["--delete"]), [none(), removed, none(), none()]);
    assert_eq!(
        guest(&home, "cd /srv/app; find . -type f | sort"),
        "./library/one.py\n./library/two.py\n./main.py\n"
    );

    // A resting workspace is booted for it, and a directory that is gone is made again.
    guest(&home, "rm -r /srv/app");
    home.microagent(["halt", "web"]).success();
    home.microagent(["sync", "src", "web:srv/app"]).success();
    home.microagent(["start", "web"]).success();
    assert_eq!(guest(&home, "cat /srv/app/main.py"), "print(22)\n");
    end(&home);
}

#[test]
fn what_is_excluded_is_neither_copied_nor_removed() {
    let home = home();
    let src = home.path().join("src");
    home.write("src/.gitignore", "*.log\n/target/\n");
    for dir in ["src/target", "src/.git", "src/lib/target"] {
        home.make_dir(dir);
    }
    for file in ["src/a.log", "src/target/x", "src/.git/config", "src/lib/target/y", "src/notes.txt"] {
        home.write(file, "x");
    }
    let copied =
        json!([".gitignore", "lib", "lib/one.py", "lib/target", "lib/target/y", "lib/two.py", "main.py"]);
    assert_eq!(done(&home, &["--exclude", "*.txt"]), [copied, none(), none(), none()]);
    guest(&home, "cd /srv/app; mkdir -p target .git; touch target/made .git/index b.log own.txt extra");
    assert_eq!(done(&home, &["--exclude", "*.txt", "--delete"]), [none(), json!(["extra"]), none(), none()]);
    assert_eq!(
        guest(&home, "cd /srv/app; ls -A | sort | tr '\\n' ' '"),
        ".git .gitignore b.log lib main.py own.txt target "
    );
    fs::remove_file(src.join(".gitignore")).unwrap();
    let all = json!([".git/config", "a.log", "notes.txt", "target/x"]);
    assert_eq!(done(&home, &["--no-gitignore"])[0], all);
    // The state directory, with disks and keys, is never part of what is above it, nor a directory that can be synced.
    let above = home.microagent(["sync", ".", "web:/srv/home", "--dry-run", "--json"]).success().json();
    let copied: Vec<&str> = above["copied"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(
        copied.contains(&"src/main.py") && !copied.iter().any(|path| path.contains(".microagent")),
        "{above}"
    );
    home.microagent(["sync", ".microagent/workspaces", "web:/srv/home"]).run().code(2).says("own state");
    home.microagent(["sync", "src", "web:/srv/app", "--exclude", "a{b"]).run().code(2).says("is not valid");
    end(&home);
}

#[test]
fn names_and_links_stay_as_they_are_and_no_link_is_followed() {
    let home = home();
    let src = home.path().join("src");
    let odd = OsStr::from_bytes(b"odd \xff\nname");
    fs::write(src.join(odd), "odd").unwrap();
    symlink("main.py", src.join("link")).unwrap();
    symlink("/etc", src.join("etc")).unwrap();
    symlink("nowhere", src.join("dangling")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(src.join("socket")).unwrap();
    let report = sync(&home, &[]).code(0).json();
    assert_eq!(report["special"], 1);
    let names = ["dangling", "etc", "lib", "lib/one.py", "lib/two.py", "link", "main.py", "odd \\xff\nname"];
    assert_eq!(report["copied"], json!(names));
    assert_eq!(
        guest(
            &home,
            "cd /srv/app; for l in etc link dangling; do readlink $l; done; cat odd*; test -e socket || echo no socket"
        ),
        "/etc\nmain.py\nnowhere\noddno socket\n"
    );
    assert_eq!(sync(&home, &["--delete"]).code(0).json()["unchanged"], 8);

    fs::remove_file(src.join("socket")).unwrap();

    // A directory that a link has replaced in the guest: what it leads to is not touched.
    guest(&home, "cd /srv/app; rm -r lib; mkdir /safe; echo safe > /safe/one.py; ln -s /safe lib");
    let conflict = json!([{ "path": "lib", "reason": "other_kind" }]);
    home.write("src/lib/one.py", "evil\n");
    assert_eq!(of(&sync(&home, &[]).code(1).json()), [none(), none(), none(), conflict]);
    let overwritten = sync(&home, &["--delete", "--overwrite"]).code(0).json();
    assert_eq!(overwritten["removed"], json!(["lib"]));
    assert_eq!(guest(&home, "cat /safe/one.py /srv/app/lib/one.py"), "safe\nevil\n");
    // The directory itself, and one on the way to it.
    guest(&home, "mv /srv/app /srv/moved; ln -s /safe /srv/app");
    sync(&home, &["--delete"]).code(1).says("symbolic link");
    guest(&home, "rm /srv/app; mkdir /real; ln -s /real /way");
    home.microagent(["sync", "src", "web:/way/app"]).run().code(1).says("symbolic link");
    assert_eq!(guest(&home, "ls /real; cat /safe/one.py"), "safe\n");
    for path in ["web:/", "web:/srv/.."] {
        home.microagent(["sync", "src", path]).run().code(2).says("cannot be synced");
    }
    home.microagent(["sync", "missing", "web:/srv/app"]).run().code(1).says("missing");
    home.microagent(["sync", "src/main.py", "web:/srv/app"]).run().code(1);
    end(&home);
}

#[test]
fn what_the_guest_has_changed_is_kept_or_a_conflict() {
    let home = home();
    let src = home.path().join("src");
    sync(&home, &[]).code(0);
    guest(&home, "cd /srv/app; echo guest > main.py; echo guest > lib/one.py");
    home.write("src/main.py", "host version\n");
    let conflict = json!([{ "path": "main.py", "reason": "both_changed" }]);
    let report = sync(&home, &[]).code(1).says("--overwrite").json();
    assert_eq!(of(&report), [none(), none(), json!(["lib/one.py"]), conflict.clone()]);
    assert_eq!(guest(&home, "cat /srv/app/main.py"), "guest\n");
    // Back, it is a conflict as well; what only the guest has changed comes.
    let report = sync(&home, &["--back"]).code(1).json();
    assert_eq!(of(&report), [json!(["lib/one.py"]), none(), none(), conflict]);
    assert_eq!(fs::read_to_string(src.join("lib/one.py")).unwrap(), "guest\n");
    assert_eq!(fs::read_to_string(src.join("main.py")).unwrap(), "host version\n");
    assert_eq!(done(&home, &["--overwrite"]), [json!(["main.py"]), none(), none(), none()]);
    assert_eq!(guest(&home, "cat /srv/app/main.py"), "host version\n");
    // Removed on one side and changed on the other.
    guest(&home, "echo again >> /srv/app/lib/two.py");
    fs::remove_file(src.join("lib/two.py")).unwrap();
    let conflict = json!([{ "path": "lib/two.py", "reason": "removed_and_changed" }]);
    assert_eq!(of(&sync(&home, &["--delete"]).code(1).json())[3], conflict);
    assert_eq!(guest(&home, "cat /srv/app/lib/two.py"), "2\nagain\n");
    end(&home);
}

#[test]
fn a_workspace_that_was_restored_is_synced_as_if_for_the_first_time() {
    let home = home();
    home.microagent(["halt", "web"]).success();
    sync(&home, &[]).code(0);
    home.microagent(["snapshot", "create", "web", "--tag", "before"]).success();
    home.write("src/main.py", "print(22)\n");
    assert_eq!(done(&home, &[])[0], json!(["main.py"]));
    home.microagent(["snapshot", "restore", "web", "before", "--yes"]).success();
    assert_eq!(done(&home, &[]), [json!(["main.py"]), none(), none(), none()]);
    end(&home);
}

#[test]
fn files_come_back_from_the_guest() {
    let home = home();
    let src = home.path().join("src");
    sync(&home, &[]).code(0);
    guest(
        &home,
        "cd /srv/app; mkdir new; echo made > new/made; chmod 4711 new/made; chmod 500 new; ln -s made new/l; mkfifo p; \
         mkdir .git; echo evil > .git/config; rm lib/two.py; \
         mkdir -p bare/objects bare/refs; echo 'ref: refs/heads/main' > bare/HEAD; echo evil > bare/config",
    );
    let report = sync(&home, &["--back"]).code(0).json();
    let copied = json!(["bare", "bare/config", "bare/objects", "bare/refs", "new", "new/l", "new/made"]);
    assert_eq!(of(&report), [copied, none(), none(), none()]);
    assert_eq!(report["special"], 1);
    assert_eq!(fs::read_to_string(src.join("new/made")).unwrap(), "made\n");
    let mode = |name: &str| fs::symlink_metadata(src.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("new"), mode("new/made")), (0o500, 0o711));
    assert_eq!(fs::read_link(src.join("new/l")).unwrap(), Path::new("made"));
    // Git takes no directory for a bare repository without this file.
    assert!(src.join("bare/config").exists() && !src.join("bare/HEAD").exists());
    assert!(!src.join(".git").exists() && src.join("lib/two.py").exists());
    assert_eq!(sync(&home, &["--back"]).code(0).json()["copied"], none());
    // What was removed in the guest is removed on the host when somebody says that.
    home.microagent(["sync", "src", "web:/srv/app", "--back", "--delete"]).run().code(2).says("--yes");
    assert!(src.join("lib/two.py").exists());
    let removed = done(&home, &["--back", "--delete", "--yes"]);
    assert_eq!(removed, [none(), json!(["lib/two.py"]), none(), none()]);
    assert!(!src.join("lib/two.py").exists());
    // What the host has removed does not come back by itself.
    fs::remove_file(src.join("lib/one.py")).unwrap();
    assert_eq!(done(&home, &["--back"]), [none(), none(), json!(["lib/one.py"]), none()]);
    assert_eq!(done(&home, &["--back", "--overwrite"])[0], json!(["lib/one.py"]));

    // A directory of the host that is a link leads nowhere.
    fs::remove_dir_all(src.join("lib")).unwrap();
    let outside = home.make_dir("outside");
    symlink(&outside, src.join("lib")).unwrap();
    sync(&home, &["--back", "--overwrite"]).code(1);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    home.microagent(["sync", "src", "web:/nothing", "--back"]).run().code(1).says("does not exist");
    fs::set_permissions(src.join("new"), Permissions::from_mode(0o700)).unwrap();
    end(&home);
}

#[test]
fn a_watching_sync_copies_what_is_saved_and_ends_with_the_machine() {
    let home = home();
    let src = home.path().join("src");
    let watch =
        home.microagent(["sync", "src", "web:/srv/app", "--watch", "--delete", "--json=stream"]).start();
    watch.prints(r#""copied":["lib","lib/one.py","lib/two.py","main.py"]"#);
    let arrives = |path: &str, content: &str| {
        wait_for(&format!("{path} in the guest"), DEADLINE, || {
            let line = format!("cat /srv/app/{path} 2>&1; true");
            let seen = guest(&home, &line);
            if seen == content { Ok(()) } else { Err(seen) }
        });
    };
    // As editors save: a new file that takes the place of the old one.
    home.write("src/.main.py.swp", "saved\n");
    fs::rename(src.join(".main.py.swp"), src.join("main.py")).unwrap();
    arrives("main.py", "saved\n");
    // In a directory that is new, in one that was renamed, and gone again.
    home.make_dir("src/deep");
    home.make_dir("src/deep/er");
    home.write("src/deep/er/file", "deep\n");
    arrives("deep/er/file", "deep\n");
    fs::rename(src.join("lib"), src.join("library")).unwrap();
    arrives("library/one.py", "1\n");
    home.write("src/library/one.py", "11\n");
    arrives("library/one.py", "11\n");
    arrives("lib/one.py", "cat: can't open '/srv/app/lib/one.py': No such file or directory\n");
    // A conflict is reported once, and left alone.
    guest(&home, "echo guest > /srv/app/main.py");
    home.write("src/main.py", "host version\n");
    watch.prints(r#""reason":"both_changed""#);
    assert_eq!(guest(&home, "cat /srv/app/main.py"), "guest\n");

    // A paused machine gets what has changed when it is resumed.
    home.microagent(["pause", "web"]).success();
    home.write("src/paused.py", "paused\n");
    home.microagent(["resume", "web"]).success();
    arrives("paused.py", "paused\n");
    home.microagent(["halt", "web"]).success();
    let ended = watch.finish().code(1).says("workspace `web` is halted");
    let lines = ended.json_lines();
    assert!(lines.iter().all(|line| line["type"] == "sync"), "{}", ended.told());
    end(&home);
}

#[test]
fn what_cannot_be_read_is_reported_and_everything_else_is_synced() {
    let home = home();
    let src = home.path().join("src");
    let mode = |path: &str, mode: u32| {
        fs::set_permissions(src.join(path), Permissions::from_mode(mode)).unwrap();
    };
    sync(&home, &[]).code(0);
    home.write("src/main.py", "print(22)\n");
    home.write("src/new.py", "new\n");
    mode("main.py", 0o200);
    mode("lib", 0o000);
    let unreadable = json!([{ "path": "lib", "reason": DENIED }, { "path": "main.py", "reason": DENIED }]);
    // What nobody could look at is not removed either.
    let report = sync(&home, &["--delete"]).code(1).says("2 unreadable paths").says("--exclude").json();
    assert_eq!(of(&report), [json!(["new.py"]), none(), none(), none()]);
    assert_eq!((&report["unreadable"], &report["copied_bytes"]), (&unreadable, &json!(4)));
    assert_eq!(guest(&home, "cd /srv/app; cat lib/one.py main.py"), "1\nprint(1)\n");
    let text = home.microagent(["sync", "src", "web:/srv/app"]).run().code(1);
    assert!(text.text().contains("unreadable lib: Permission denied"), "{}", text.told());
    // Back, a directory that cannot be looked into gets nothing.
    guest(&home, "echo guest > /srv/app/lib/one.py");
    assert_eq!(of(&sync(&home, &["--back"]).code(1).json())[0], none());
    guest(&home, "echo 1 > /srv/app/lib/one.py");
    let excluded = ["--exclude", "lib", "--exclude", "main.py"];
    assert_eq!(sync(&home, &excluded).code(0).json()["unreadable"], none());

    // A sync that watches continues, and copies it when it can.
    let watch = home.microagent(["sync", "src", "web:/srv/app", "--watch", "--json=stream"]).start();
    watch.prints(&format!(r#""unreadable":{unreadable}"#));
    home.write("src/other.py", "other\n");
    watch.prints(r#""copied":["other.py"]"#);
    mode("main.py", 0o600);
    watch.prints(r#""copied":["main.py"]"#);
    mode("lib", 0o700);
    home.write("src/lib/three.py", "3\n");
    wait_for("a file of a directory that became readable", DEADLINE, || {
        let seen = guest(&home, "cat /srv/app/lib/three.py 2>&1; true");
        if seen == "3\n" { Ok(()) } else { Err(seen) }
    });
    assert_eq!(guest(&home, "cat /srv/app/main.py"), "print(22)\n");
    home.microagent(["halt", "web"]).success();
    let lines = watch.finish().code(1).json_lines();
    let told = lines.iter().filter(|line| line["unreadable"] != none()).count();
    assert_eq!(told, 1, "{lines:?}");
    end(&home);
}

#[test]
fn a_watching_sync_ends_when_asked_or_when_its_directory_is_gone() {
    let home = home();
    home.make_dir("src/new");
    for way in ["signal", "gone"] {
        let watch = home.microagent(["sync", "src", "web:/srv/app", "--watch", "--delete"]).start();
        watch.prints("copied");
        if way == "signal" {
            watch.signal(rustix::process::Signal::INT);
            watch.finish().code(0);
        } else {
            fs::rename(home.path().join("src"), home.path().join("moved")).unwrap();
            watch.finish().code(1).says("was removed or replaced");
        }
    }
    assert_eq!(guest(&home, "cat /srv/app/main.py"), "print(1)\n");
    home.microagent(["halt", "web"]).success();
    let words = ["sync", "moved", "web:/srv/app", "--watch"];
    home.microagent(words).run().code(1).says("workspace `web` is halted");
    end(&home);
}
