//! `top`, `diff`, `export` and `image history`: what is in a workspace and in its image, on real guests.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::time::Duration;

use microagent_tests::pty::Pty;
use microagent_tests::{Home, User, wait_for};
use serde_json::{Value, json};

/// How long a guest may take to come to what is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

fn home() -> Home {
    Home::new(User::unprivileged())
}

/// Lines of `diff`.
#[track_caller]
fn diff(home: &Home, name: &str) -> Vec<String> {
    home.microagent(["diff", name]).success().text().lines().map(str::to_owned).collect()
}

#[track_caller]
fn processes(home: &Home, name: &str) -> Vec<Value> {
    let document = home.microagent(["top", name, "--json"]).success().json();
    document["processes"].as_array().unwrap().clone()
}

#[test]
fn processes_are_listed_as_the_guest_sees_them() {
    let home = home();
    let service = "echo up; exec sleep 31415";
    home.create("web", ["--service-command", service]);
    home.microagent(["top", "web"]).run().code(1).says("microagent start web");
    home.microagent(["start", "web"]).success();
    let user = ["exec", "--detach", "--user", "1234", "web", "--", "sleep", "2718"];
    home.microagent(user).success();
    let is_there = || {
        let all = processes(&home, "web");
        let found = all.iter().any(|process| process["command"] == json!(["sleep", "2718"]));
        if found { Ok(()) } else { Err(all) }
    };
    wait_for("the job's command", PATIENCE, is_there);

    let all = processes(&home, "web");
    let of = |command: Value| {
        all.iter().find(|process| process["command"] == command).unwrap_or_else(|| panic!("{all:?}"))
    };
    let main = of(json!(["sleep", "31415"]));
    assert_eq!((&main["pid"], &main["parent_pid"], &main["user"]), (&json!(1), &json!(0), &json!("root")));
    assert!(
        main["memory_bytes"].as_u64().unwrap() > 0 && main["age_seconds"].as_f64().unwrap() >= 0.0,
        "{main}"
    );
    let job = of(json!(["sleep", "2718"]));
    assert_eq!((&job["uid"], &job["user"]), (&json!(1234), &json!("1234")));
    // The numbers are those that programs in the guest see, and the agent is not among them.
    let pid = job["pid"].as_u64().unwrap();
    let seen = home.microagent(["exec", "web", "--", "cat", &format!("/proc/{pid}/cmdline")]).success();
    assert_eq!(seen.text(), "sleep\x002718\x00");
    assert_eq!(all.len(), 2, "{all:?}");

    let table = home.microagent(["top", "web"]).success();
    assert!(
        table.text().starts_with("PID     USER       CPU     TIME      MEMORY       COMMAND\n"),
        "{}",
        table.told()
    );
    assert!(
        table.text().lines().any(|line| line.starts_with("1       root ") && line.ends_with(" sleep 31415"))
    );
    home.microagent(["top", "web", "aux"]).run().code(2).says("microagent exec NAME -- ps OPTIONS");
    home.microagent(["delete", "web", "--force"]).success();
    home.nothing_is_left();
}

#[test]
fn changes_of_a_running_and_of_a_resting_workspace_are_the_same() {
    let home = home();
    home.microagent(["volume", "create", "data", "--size-mib", "16"]).success();
    let change = "mkdir -p /srv/app && echo x > '/srv/app/a b' && rm /bin/wget && echo y >> /etc/passwd \
        && echo z > /data/file && echo up && exec sleep 10000";
    home.create("web", ["--volume", "data:/data", "--tmpfs", "/scratch", "--service-command", change]);
    assert_eq!(diff(&home, "web"), [""; 0], "nothing has run");
    home.microagent(["start", "web"]).success();
    home.log_has("web", "console.log", "up\n");
    home.microagent(["exec", "web", "--", "touch", "/scratch/file"]).success();

    let wanted = [
        "C /bin",
        "D /bin/wget",
        "A /data",
        "C /etc",
        "C /etc/passwd",
        "A /scratch",
        "A /srv",
        "A /srv/app",
        "A /srv/app/a b",
    ];
    let running = diff(&home, "web");
    assert_eq!(running, wanted);
    // The disk that it was compared with is gone from the guest again, and can come back.
    wait_for("the end of the base disk", PATIENCE, || {
        let disks = home.microagent(["exec", "web", "--", "sh", "-c", "ls /sys/class/scsi_disk"]).success();
        if disks.text().contains(":255:") { Err(disks.told()) } else { Ok(()) }
    });
    assert_eq!(diff(&home, "web"), wanted);
    let document = home.microagent(["diff", "web", "--json"]).success().json();
    assert_eq!(document["changes"][1], json!({"kind": "deleted", "path": "/bin/wget"}));
    assert_eq!(document["truncated"], false);

    home.microagent(["pause", "web"]).success();
    home.microagent(["diff", "web"]).run().code(1).says("paused");
    home.microagent(["resume", "web"]).success();
    home.microagent(["halt", "web"]).success();
    assert_eq!(diff(&home, "web"), wanted);
    assert_eq!(home.state_of("web"), "halted");
    home.microagent(["delete", "web", "--yes"]).success();
    home.microagent(["volume", "delete", "data", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_killed_comparison_leaves_the_guest_as_it_was() {
    let home = home();
    home.create("web", ["--service-command", "echo up; exec sleep 10000"]);
    home.microagent(["start", "web"]).success();
    let comparing = home.microagent(["diff", "web"]).start();
    comparing.kill();
    // Whichever of the two is first: in the end there is one.
    wait_for("a comparison", PATIENCE, || {
        let again = home.microagent(["diff", "web"]).run();
        if again.status.success() { Ok(()) } else { Err(again.told()) }
    });
    assert_eq!(diff(&home, "web"), [""; 0]);
    home.microagent(["exec", "web", "--", "sh", "-c", "echo still writable > /root/file"]).success();
    assert_eq!(diff(&home, "web"), ["C /root", "A /root/file"]);
    home.microagent(["delete", "web", "--force"]).success();
    home.nothing_is_left();
}

#[test]
fn a_root_is_exported_without_what_is_mounted_in_it() {
    let home = home();
    home.microagent(["volume", "create", "data", "--size-mib", "16"]).success();
    let service = "echo mine > /root/file; chown 5:6 /root/file; echo up; exec sleep 10000";
    home.create("web", ["--volume", "data:/data", "--service-command", service]);
    home.microagent(["start", "web"]).success();
    home.log_has("web", "console.log", "up\n");
    home.microagent(["exec", "web", "--", "sh", "-c", "echo > /data/file; echo > /dev/shm/file"]).success();

    let running = home.microagent(["export", "web", "-o", "running.tar"]).success();
    assert!(running.text().starts_with("File: running.tar\nSize: "), "{}", running.told());
    home.microagent(["halt", "web"]).success();
    let document = home.microagent(["export", "web", "-o", "resting.tar", "--json"]).success().json();
    assert_eq!(document["bytes"], std::fs::metadata(home.path().join("resting.tar")).unwrap().len());
    for file in ["running.tar", "resting.tar"] {
        let list = home.other("tar").args(["--numeric-owner", "-tvf", file]).success();
        let line = |name: &str| list.text().lines().find(|line| line.ends_with(&format!(" {name}")));
        assert!(line("./root/file").is_some_and(|line| line.contains(" 5/6 ")), "{}", list.text());
        assert!(line("./bin/busybox").is_some() && line("./data/").is_some(), "{}", list.text());
        for mounted in ["./data/file", "./dev/shm/file", "./proc/1/"] {
            assert!(line(mounted).is_none(), "{file}: {mounted}");
        }
    }
    // What is exported can be imported and run.
    let exported = home.microagent(["export", "web"]).success();
    home.microagent(["image", "import", "-", "web:flat"]).stdin(exported.stdout).success();
    let run = home.microagent(["run", "--network", "isolated", "web:flat", "cat", "/root/file"]).success();
    assert_eq!(run.guest_output(), "mine\n");

    home.microagent(["export", "web", "--json"]).run().code(2).says("omit --json");
    let mut terminal = Pty::start(&home, &["export", "web"], (24, 80));
    terminal.shows("cannot be written to a terminal");
    home.microagent(["export", "web", "-o", "missing/dir.tar"]).run().code(1).says("missing/dir.tar");
    home.microagent(["delete", "web", "--yes"]).success();
    home.microagent(["volume", "delete", "data", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn the_steps_of_an_image_are_shown() {
    let home = home();
    let image = home.image("busybox");
    home.microagent(["history", &image]).run().code(1).says("no image");
    home.microagent([
        "run",
        "--keep",
        "--name",
        "web",
        "--network",
        "isolated",
        &image,
        "touch",
        "/root/new",
    ])
    .success();
    home.microagent(["commit", "web", "web:2", "--message", "a file more"]).success();
    let document = home.microagent(["image", "history", "web:2", "--json"]).success().json();
    let steps = document["steps"].as_array().unwrap();
    assert_eq!(document["resolved_reference"], "docker.io/library/web:2");
    assert_eq!(
        (&steps[0]["created_by"], &steps[0]["comment"]),
        (&json!("microagent commit web"), &json!("a file more"))
    );
    let layer = &steps[0]["layer"];
    assert!(
        layer["digest"].as_str().unwrap().starts_with("sha256:") && layer["bytes"].as_u64().unwrap() > 0,
        "{layer}"
    );

    let short = home.microagent(["history", "web:2"]).success();
    assert!(
        short.text().starts_with("LAYER ") && short.text().contains("microagent commit web"),
        "{}",
        short.told()
    );
    let digest = layer["digest"].as_str().unwrap();
    assert!(!short.text().contains(digest), "{}", short.told());
    let whole = home.microagent(["image", "history", "--no-trunc", "web:2"]).success();
    assert!(whole.text().contains(digest), "{}", whole.told());
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}
