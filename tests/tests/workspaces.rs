//! Workspaces that are kept between their starts: their whole life, on real guests.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use microagent_tests::pty::Pty;
use microagent_tests::{Home, User, host};

fn home() -> Home {
    Home::new(User::unprivileged())
}

#[test]
fn a_workspace_lives_from_create_to_delete() {
    let home = home();
    let created = home.create("web", ["--setup", "echo set up > /root/made"]);
    assert_eq!((created.summary("Workspace"), created.summary("State")), ("web", "prepared"));
    assert_eq!(home.state_of("web"), "prepared");
    assert_eq!(home.microagent(["ps"]).success().text(), "No running workspaces.\n");
    home.microagent(["exec", "web", "--", "true"]).run().code(1).says("microagent start web");

    let started = home.microagent(["start", "web"]).success();
    assert_eq!(started.summary("State"), "running");
    assert!(home.microagent(["ps"]).success().text().contains("web"));
    home.microagent(["start", "web"]).run().code(1).says("is running");
    let made = home.microagent(["exec", "web", "--", "cat", "/root/made"]).success();
    assert_eq!(made.text(), "set up\n");
    home.microagent(["exec", "web", "--", "sh", "-c", "echo kept > /root/kept"]).success();

    assert_eq!(home.microagent(["halt", "web"]).success().summary("State"), "halted");
    home.processes_end();
    // Halting what rests is no error.
    home.microagent(["halt", "web"]).success();
    home.microagent(["start", "web"]).success();
    let kept = home.microagent(["exec", "web", "--", "cat", "/root/kept", "/root/made"]).success();
    assert_eq!(kept.text(), "kept\nset up\n");

    assert_eq!(home.microagent(["stop", "web"]).success().summary("State"), "stopped");
    home.microagent(["start", "web"]).success();
    assert_eq!(home.microagent(["kill", "web"]).success().summary("State"), "stopped");
    home.processes_end();
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_start_can_have_another_size_which_is_shown_while_it_lasts() {
    let home = home();
    home.create("web", []);
    let shown = || {
        let status = home.microagent(["status", "web", "--json"]).success().json();
        let list = home.microagent(["list", "--json"]).success().json();
        let of = |field: &str| status["resources"][field].as_u64().unwrap();
        (list["workspaces"][0]["profile"].as_str().unwrap().to_owned(), of("memory_mib"), of("cpu_count"))
    };
    let own = ("small".to_owned(), 512, 2);
    home.microagent(["start", "web", "--memory", "1"]).run().code(2).says("too little for a guest");
    home.microagent(["start", "web", "--memory", "900g"])
        .run()
        .code(2)
        .says("MiB of memory, and this host has");
    // Nobody writes to it, so whoever read it would wait for ever.
    host::must("mkfifo", &["-m", "666", home.path().join("fifo").to_str().unwrap()]);
    let image = home.image("busybox");
    let calls: [&[&str]; 4] = [
        &["snapshot", "import", "fifo", "other"],
        &["create", "other", "--image", &image, "--env-file", "fifo"],
        &["create", "other", "--image", &image, "--setup-file", "fifo"],
        &["create", "other", "--file", "fifo"],
    ];
    for call in calls {
        home.call().args(call).run().failure().says("not a regular file");
    }
    std::fs::remove_file(home.path().join("fifo")).unwrap();
    home.microagent(["start", "web", "--profile", "tiny", "--memory", "320m"]).success();
    assert_eq!(shown(), ("tiny".to_owned(), 320, 1));
    let guest =
        home.microagent(["exec", "web", "--", "sh", "-c", "nproc; grep MemTotal /proc/meminfo"]).success();
    let words: Vec<u64> = guest.text().split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert!(words[0] == 1 && (200 * 1024..320 * 1024).contains(&words[1]), "{}", guest.told());
    home.microagent(["halt", "web"]).success();
    assert_eq!(shown(), own);
    // The next start is of the workspace's own size.
    home.microagent(["start", "web"]).success();
    assert_eq!(shown(), own);
    assert_eq!(home.microagent(["exec", "web", "--", "nproc"]).success().text(), "2\n");
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_service_runs_from_start_to_end_and_decides_the_state() {
    let home = home();
    let service = "echo serving; while ! test -e /root/end; do sleep 0.1; done; exit $(cat /root/end)";
    home.create("api", ["--service-command", service]);
    for (code, state) in [("0", "stopped"), ("3", "failed")] {
        home.microagent(["start", "api"]).success();
        home.log_has("api", "console.log", "serving");
        let end = format!("echo {code} > /root/end.new; mv /root/end.new /root/end");
        home.microagent(["exec", "api", "--", "sh", "-c", &end]).run();
        home.processes_end();
        assert_eq!(home.state_of("api"), state);
        // The next start must not end at once.
        if code == "0" {
            home.microagent(["delete", "api", "--yes"]).success();
            home.create("api", ["--service-command", service]);
        }
    }
    let list = home.microagent(["list", "--json"]).success().json();
    assert_eq!(list["workspaces"][0]["problem"], "its service ended with exit code 3");
    home.microagent(["delete", "api", "--yes"]).success();

    home.create("none", ["--service-command", "exec no-such-program"]);
    home.microagent(["start", "none"]).success();
    home.processes_end();
    assert_eq!(home.state_of("none"), "failed");
    home.microagent(["delete", "none", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn stop_asks_the_service_and_says_when_it_does_not_follow() {
    let home = home();
    let deaf = "trap 'echo asked' TERM; echo serving; while :; do sleep 0.1; done";
    home.create("deaf", ["--service-command", deaf]);
    home.microagent(["start", "deaf"]).success();
    home.log_has("deaf", "console.log", "serving");
    let refused = home.microagent(["stop", "deaf"]).run().code(1);
    refused.says("its service did not end within").says("microagent kill deaf");
    assert_eq!(home.state_of("deaf"), "running");
    assert!(home.microagent(["logs", "deaf"]).success().text().contains("asked"));
    home.microagent(["exec", "deaf", "--", "true"]).success();
    home.microagent(["kill", "deaf"]).success();
    home.microagent(["delete", "deaf", "--yes"]).success();

    let following = "trap 'echo farewell; exit 5' TERM; echo serving; while :; do sleep 0.1; done";
    home.create("good", ["--service-command", following]);
    for verb in ["stop", "halt"] {
        home.microagent(["start", "good"]).success();
        home.log_has("good", "console.log", "serving");
        let state = home.microagent([verb, "good"]).success();
        assert_eq!(state.summary("State"), if verb == "stop" { "stopped" } else { "halted" });
        assert!(home.microagent(["logs", "good"]).success().text().contains("farewell"));
    }
    home.microagent(["delete", "good", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn halt_honours_the_stop_signal_of_the_image() {
    let home = home();
    let line = "trap 'echo got usr1; exit 0' USR1; trap 'echo got term' TERM; echo serving; \
        while :; do sleep 0.1; done";
    let config = ["--config.stopsignal", "SIGUSR1", "--config.cmd", "/bin/sh", "--config.cmd", "-c"];
    let image = home.configured_image("busybox", &[&config[..], &["--config.cmd", line]].concat());
    let words = ["create", "web", "--network", "isolated", "--image-command", "--image", &image];
    home.microagent(words).success();
    home.microagent(["start", "web"]).success();
    home.log_has("web", "console.log", "serving");
    home.microagent(["halt", "web"]).success();
    let logs = home.microagent(["logs", "web"]).success();
    assert!(logs.text().contains("got usr1") && !logs.text().contains("got term"), "{}", logs.told());
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_paused_guest_stands_still_and_goes_on() {
    let home = home();
    home.create("web", []);
    home.microagent(["start", "web"]).success();
    home.microagent(["resume", "web"]).run().code(1).says("is running");
    // A clock that is far behind, as after a long pause.
    home.microagent(["exec", "web", "--", "date", "-s", "@1000000000"]).success();
    assert_eq!(home.microagent(["pause", "web"]).success().summary("State"), "paused");
    home.microagent(["exec", "web", "--", "true"]).run().code(1).says("microagent resume web");
    assert_eq!(home.microagent(["resume", "web"]).success().summary("State"), "running");
    let shown = home.microagent(["exec", "web", "--", "date", "+%s"]).success();
    let guest: u64 = shown.text().trim().parse().unwrap();
    let host = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!(host.abs_diff(guest) < 300, "the guest's clock says {guest}, the host's {host}");
    home.microagent(["pause", "web"]).success();
    assert_eq!(home.microagent(["halt", "web"]).success().summary("State"), "halted");
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_failed_setup_leaves_its_logs_and_is_tried_again_at_the_next_start() {
    let home = home();
    let image = home.image("busybox");
    let setup = "echo trying; echo once >> /root/tries; test -e /bin/missing";
    let create = home.microagent(["create", "web", "--image", &image, "--network", "isolated"]);
    let create = create.args(["--setup", setup]).run().code(1).says("setup step 1 failed");
    assert_eq!(create.text(), "trying\n");
    assert_eq!(home.state_of("web"), "failed");
    home.microagent(["start", "web"]).run().code(1).says("setup step 1 failed");
    assert!(home.microagent(["logs", "web"]).success().text().contains("trying"));
    home.microagent(["delete", "web", "--yes"]).success();

    // A step that cannot be started says why.
    let create = home.microagent(["create", "web", "--image", &image, "--network", "isolated"]);
    let create = create.args(["--setup", "rm /bin/sh", "--setup", "true"]).run().code(1);
    create.says("setup step 2 could not be started (the image has no shell (/bin/sh)): true");
    let status = home.microagent(["status", "web"]).success();
    assert!(status.text().contains("the image has no shell"), "{}", status.told());
    home.microagent(["delete", "web", "--yes"]).success();

    // A name that is taken stays what it is, and nothing is left of what could not be made.
    let create = |image: &str| home.microagent(["create", "web", "--network", "isolated", "--image", image]);
    create("oci:no-such-layout").failure();
    assert_eq!(home.workspaces(), Vec::<String>::new());
    create(&image).success();
    create(&image).run().code(1).says("exists already");
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_running_workspace_is_deleted_by_shutting_it_down_or_by_force() {
    let home = home();
    for (flag, said) in [("--yes", "Stopped and deleted: web\n"), ("--force", "Killed and deleted: web\n")] {
        home.create("web", []);
        home.microagent(["start", "web"]).success();
        home.microagent(["delete", "web"]).run().code(2).says("--yes");
        assert_eq!(home.microagent(["delete", "web", flag]).success().text(), said);
        assert_eq!(home.microagent(["delete", "web", flag]).success().text(), "Nothing to delete: web\n");
        home.nothing_is_left();
    }
}

#[test]
fn delete_asks_and_offers_to_stop() {
    let home = home();
    home.create("web", []);
    home.microagent(["start", "web"]).success();
    let mut pty = Pty::start(&home, &["delete", "web"], (24, 80));
    pty.shows("web is running. Stop and delete web? [y/N]");
    pty.types("n\r");
    pty.shows("Nothing was deleted.");
    assert_eq!(pty.finish(), 0);
    assert_eq!(home.state_of("web"), "running");
    let mut pty = Pty::start(&home, &["delete", "web"], (24, 80));
    pty.shows("[y/N]");
    pty.types("y\r");
    pty.shows("Stopped and deleted: web");
    assert_eq!(pty.finish(), 0);
    home.nothing_is_left();
}

#[test]
fn a_kept_run_is_a_workspace_like_any_other() {
    let home = home();
    let words = ["sh", "-c", "echo kept > /root/kept"];
    let options = ["--keep", "--name", "web", "--network", "isolated", "-e", "SECRET=of the run"];
    home.run("busybox", options, &words).success();
    home.microagent(["start", "web"]).success();
    let words = ["exec", "web", "--", "sh", "-c", "cat /root/kept; echo secret: $SECRET"];
    assert_eq!(home.microagent(words).success().text(), "kept\nsecret:\n");
    home.microagent(["delete", "web", "--yes"]).success();
    // What a disposable run left for its logs cannot be started.
    let failed = home.run("busybox", ["--timeout", "2", "--network", "isolated"], &["sleep", "60"]).run();
    let failed = failed.code(1);
    let name = failed.failed_workspace();
    home.microagent(["start", name]).run().code(2).says("cannot be started");
    home.microagent(["delete", name, "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_state_directory_of_any_length_can_be_listened_in() {
    let home = home();
    let state = home.path().join("a-rather-long-directory-name/".repeat(12));
    let image = home.image("busybox");
    let call = |words: &[&str]| home.call().env("MICROAGENT_STATE_DIR", &state).args(words).success();
    call(&["create", "web", "--network", "isolated", "--image", &image]);
    call(&["start", "web"]);
    assert_eq!(call(&["exec", "web", "--", "echo", "fine"]).text(), "fine\n");
    call(&["halt", "web"]);
    call(&["delete", "web", "--yes"]);
    home.processes_end();
}

#[test]
fn the_unit_of_a_supervised_workspace_is_one_that_systemd_takes() {
    if !host::has_program("systemd-analyze") {
        return host::skip("systemd-analyze is not installed");
    }
    let home = home();
    home.create("web", ["--restart", "on-failure"]);
    // Nobody answers for this user's systemd, which is said with what to type.
    let installed = home.microagent(["supervise", "web", "--install"]).success();
    let installed = installed.says("systemctl --user daemon-reload");
    let unit = installed.summary("Installed").to_owned();
    let verify = home.other("systemd-analyze").env("XDG_RUNTIME_DIR", home.make_dir("run"));
    let verified = verify.args(["verify", "--user", "--man=no", &unit]).success();
    assert!(!verified.stderr.contains("microagent-supervise-web"), "{}", verified.told());
    assert_eq!(home.microagent(["supervise", "web", "--uninstall"]).success().summary("Removed"), unit);
    assert!(!std::path::Path::new(&unit).exists());
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}
