//! What a supervisor can write that a guest has taken over: the directory `machine/` of its workspace, and nothing else.
//! Whatever lies there harms no command.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use microagent_tests::{Finished, Home, User, host};
use serde_json::{Value, json};

fn home() -> Home {
    Home::new(User::unprivileged())
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_machine_needs_no_write_outside_of_its_own_directory() {
    let home = home();
    home.create("web", ["--volume", "data:/data"]);
    home.microagent(["start", "web", "--ttl", "1h"]).success();
    let (dir, volume) = (home.workspace("web"), home.state().join("volumes/data"));
    let (record, volume_record) = (dir.join("workspace.json"), volume.join("volume.json"));
    let kept =
        || [&record, &volume_record].map(|path| (fs::read(path).unwrap(), fs::metadata(path).unwrap().ino()));
    let before = kept();
    // Without these rights, as without the paths: the machine does all that it does.
    let closed = [(&record, 0o400), (&volume_record, 0o400), (&dir, 0o500), (&volume, 0o500)];
    for (path, closed) in closed {
        mode(path, closed);
    }
    home.microagent(["exec", "web", "--", "sh", "-c", "echo kept > /data/file; sync"]).success();
    let job = home.microagent(["exec", "-d", "web", "--", "echo", "done"]).success();
    home.microagent(["job", "wait", "web", job.text().trim()]).success();
    home.microagent(["touch", "web", "--ttl", "2h"]).success();
    home.microagent(["pause", "web"]).success();
    home.microagent(["resume", "web"]).success();
    home.microagent(["halt", "web"]).success();
    home.processes_end();
    assert_eq!(home.state_of("web"), "halted");
    assert_eq!(kept(), before);
    for (path, _) in closed {
        mode(path, if path.is_dir() { 0o700 } else { 0o600 });
    }
    home.microagent(["start", "web"]).success();
    assert_eq!(home.microagent(["exec", "web", "--", "cat", "/data/file"]).success().text(), "kept\n");
    home.microagent(["halt", "web"]).success();
    assert_eq!(kept(), before);
    home.microagent(["delete", "web", "--yes"]).success();
    home.microagent(["volume", "delete", "data", "--force"]).success();
    home.nothing_is_left();
}

/// Puts something in the place of a file.
struct Hostile {
    what: &'static str,
    place: Box<dyn Fn(&Path)>,
}

fn content(what: &'static str, content: impl AsRef<[u8]> + 'static) -> Hostile {
    Hostile { what, place: Box::new(move |path| fs::write(path, &content).unwrap()) }
}

/// A state that can be read, with this changed.
fn state(what: &'static str, fields: Value) -> Hostile {
    let mut state = json!({ "state": "halted", "changed_at": "2026-01-01T00:00:00Z" });
    state.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    content(what, state.to_string())
}

fn hostile(decoy: PathBuf) -> Vec<Hostile> {
    let escapes = "\u{1b}]0;owned\u{7}\u{1b}[2J\r\nError: forged\n\u{202e}";
    let wide = json!({ "pid": 1, "start_time": u64::MAX, "boot_id": escapes });
    let link = json!({ "stack": { "pid": -1, "start_time": 0, "boot_id": "" }, "published": [] });
    vec![
        content("empty", ""),
        content("torn", "{\"state\": \"run"),
        content("another type", "[[[[]]]]"),
        content("deep", "[".repeat(200_000)),
        content("binary", [0xff, 0, 0x1b, b'[']),
        content("large", format!("{{\"state\": \"halted\", \"x\": \"{}\"}}", "x".repeat(8 << 20))),
        content("an unknown state", json!({ "state": escapes }).to_string()),
        Hostile { what: "a link", place: Box::new(move |path| symlink(&decoy, path).unwrap()) },
        Hostile {
            what: "a FIFO",
            place: Box::new(|path| drop(host::must("mkfifo", &[path.to_str().unwrap()]))),
        },
        Hostile {
            what: "a directory",
            place: Box::new(|path| fs::create_dir_all(path.join("full")).unwrap()),
        },
        state("wrong types", json!({ "supervisor": "me", "weak_jail": 7, "expires_at": [] })),
        state(
            "escapes",
            json!({
                "state": "failed",
                "failure": { "kind": "boot", "message": escapes },
                "backend": escapes,
                "weak_jail": [escapes],
                "one_start": { "profile": escapes, "resources": { "memory_mib": 1, "cpu_count": 1, "size_mib": 1 } },
            }),
        ),
        state("processes", json!({ "state": "running", "supervisor": wide, "vmm": wide, "link": link })),
        state(
            "numbers",
            json!({
                "changed_at": "9999-12-30T22:00:00Z",
                "expires_at": "-009999-01-02T01:59:59Z",
                "one_start": { "profile": "x", "resources":
                    { "memory_mib": u32::MAX, "cpu_count": u32::MAX, "size_mib": u64::MAX } },
            }),
        ),
        state(
            "settings and paths",
            json!({
                "egress": { "mode": "open" },
                "disposable": true,
                "publish": [{ "host": "0.0.0.0", "host_port": 1, "guest_port": 1 }],
                "disks": [{ "source": { "image": "/etc/passwd" }, "mount_point": "/x", "read_only": true }],
                "layers": [{ "id": "../../x", "bytes": 1 }],
                "secrets": ["X=file:/etc/passwd"],
                "name": "../x",
                "record": "/etc/passwd",
            }),
        ),
    ]
}

/// It works, or fails with one line.
#[track_caller]
fn is_clear(finished: &Finished, what: &str) {
    let told = finished.told();
    assert!(!told.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{what}: {told:?}");
    assert!(!told.contains("panicked"), "{what}: {told}");
    let errors = finished.stderr.lines().filter(|line| line.starts_with("Error:")).count();
    // `wait` shows a failed workspace, which is its answer and no error.
    let is_shown = finished.stdout.contains(&b'\n');
    assert!(errors == usize::from(!finished.status.success()) || errors == 0 && is_shown, "{what}: {told}");
}

/// The settings as `status` shows them.
fn settings(home: &Home) -> Vec<Value> {
    let status = home.microagent(["status", "web", "--json"]).success().json();
    ["egress", "disks", "secrets", "port_forwards", "image", "resources", "profile", "disposable"]
        .map(|key| status[key].clone())
        .to_vec()
}

fn remove(path: &Path) {
    let _ = fs::remove_dir_all(path);
    let _ = fs::remove_file(path);
}

#[test]
fn a_hostile_state_harms_no_command() {
    let home = home();
    home.create("web", ["--profile", "tiny"]);
    let path = home.workspace("web").join("machine/state.json");
    let whole = fs::read(&path).unwrap();
    let expected = settings(&home);
    let record = fs::read(home.workspace("web").join("workspace.json")).unwrap();
    let decoy = home.write("decoy", &whole);
    for Hostile { what, place } in hostile(decoy.clone()) {
        let put = || {
            remove(&path);
            place(&path);
            let _ =
                host::must("chown", &["-h", "--reference", decoy.to_str().unwrap(), path.to_str().unwrap()]);
        };
        put();
        for words in [
            "list",
            "ps",
            "status web",
            "status web --json",
            "events web",
            "logs web",
            "wait web",
            "stats web",
            "network web",
            "result web",
            "jobs web",
            "port web",
            "snapshot list web",
            "system df",
            "doctor",
            "exec web -- true",
            "kill web",
            "halt web",
            "pause web",
            "touch web",
        ] {
            is_clear(&home.call().args(words.split(' ')).run(), &format!("{words}, {what}"));
        }
        put();
        assert_eq!(settings(&home), expected, "{what}");
        for words in ["clone web copy", "snapshot create web --tag one", "snapshot restore web one"] {
            put();
            is_clear(&home.call().args(words.split(' ')).run(), &format!("{words}, {what}"));
        }
        home.microagent(["snapshot", "delete", "web", "one"]).run();
        home.microagent(["delete", "copy", "--yes", "--force"]).success();
        put();
        home.microagent(["start", "web"]).success();
        assert_eq!(home.state_of("web"), "running", "{what}");
        home.microagent(["kill", "web"]).success();
        assert_eq!(fs::read(&decoy).unwrap(), whole, "{what}");
    }
    assert!(record.starts_with(b"{"));
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_machine_whose_state_is_a_lie_can_be_deleted() {
    let home = home();
    let halted = json!({ "state": "halted", "changed_at": "2026-01-01T00:00:00Z" }).to_string();
    for lie in ["{", halted.as_str()] {
        home.create("web", ["--profile", "tiny"]);
        home.microagent(["start", "web"]).success();
        let path = home.workspace("web").join("machine/state.json");
        fs::write(&path, lie).unwrap();
        home.microagent(["start", "web"]).run().code(75).says("in use");
        home.microagent(["delete", "web", "--yes"]).run().code(75).says("in use");
        home.microagent(["delete", "web", "--force"]).success();
        home.nothing_is_left();
    }
}

#[test]
fn a_workspace_of_an_earlier_format_is_moved_and_works() {
    let home = home();
    home.create("web", ["--profile", "tiny"]);
    home.microagent(["start", "web"]).success();
    home.microagent(["exec", "web", "--", "sh", "-c", "echo kept > /root/kept; sync"]).success();
    home.microagent(["halt", "web"]).success();
    home.processes_end();
    let events = home.microagent(["events", "web"]).success().text().to_owned();
    // As format 6 has it: one record, and everything beside it.
    let (dir, machine) = (home.workspace("web"), home.workspace("web").join("machine"));
    let read = |path: PathBuf| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
    let mut record = read(dir.join("workspace.json"));
    record.as_object_mut().unwrap().extend(read(machine.join("state.json")).as_object().unwrap().clone());
    record["format"] = 6.into();
    fs::write(dir.join("workspace.json"), record.to_string()).unwrap();
    fs::remove_file(machine.join("state.json")).unwrap();
    for entry in fs::read_dir(&machine).unwrap().flatten() {
        fs::rename(entry.path(), dir.join(entry.file_name())).unwrap();
    }
    fs::remove_dir(&machine).unwrap();

    assert_eq!(home.state_of("web"), "halted");
    assert_eq!(home.microagent(["events", "web"]).success().text(), events);
    assert!(machine.join("state.json").is_file() && !dir.join("events.jsonl").exists());
    assert_eq!(read(dir.join("workspace.json"))["format"], 8);
    assert_eq!(read(dir.join("workspace.json")).get("state"), None);
    home.microagent(["start", "web"]).success();
    assert_eq!(home.microagent(["exec", "web", "--", "cat", "/root/kept"]).success().text(), "kept\n");
    home.microagent(["delete", "web", "--force"]).success();
    home.nothing_is_left();
}

/// A machine that was taken over could write into the header of its disk what the next start would believe.
#[test]
fn a_disk_whose_header_has_another_size_is_refused() {
    let home = Home::new(User::unprivileged());
    home.create("web", []);
    let disk = home.workspace("web").join("disk.qcow2");
    let file = fs::OpenOptions::new().write(true).open(&disk).unwrap();
    file.write_all_at(&(1_u64 << 40).to_be_bytes(), 24).unwrap();
    for words in [&["start", "web"][..], &["cp", "web:/etc", "fetched"], &["export", "web", "-o", "root.tar"]]
    {
        home.call().args(words).run().code(1).says("its header has 1048576 MiB, the workspace 1024 MiB");
    }
    file.write_all_at(&[0; 4], 56).unwrap();
    home.microagent(["resize", "web", "2g"]).run().code(1).says("disk.qcow2");
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}
