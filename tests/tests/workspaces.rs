//! Workspaces that are kept between their starts: their whole life, on real guests.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use microagent_tests::{Finished, Home, User};
use serde_json::json;

fn home() -> Home {
    Home::new(User::unprivileged())
}

/// Makes an isolated workspace from busybox.
#[track_caller]
fn create<const N: usize>(home: &Home, name: &str, options: [&str; N]) -> Finished {
    let image = home.image("busybox");
    home.microagent(["create", name, "--network", "isolated", "--image", &image]).args(options).success()
}

#[test]
fn a_workspace_lives_from_create_to_delete() {
    let home = home();
    let created = create(&home, "web", ["--setup", "echo set up > /root/made"]);
    assert_eq!((created.summary("Workspace"), created.summary("State")), ("web", "prepared"));
    assert_eq!(home.state_of("web"), "prepared");
    assert_eq!(home.microagent(["ps"]).success().text(), "No workspaces.\n");
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
fn exec_keeps_the_streams_apart_and_passes_the_exit_code_on() {
    let home = home();
    create(&home, "web", ["-e", "GIVEN=at creation", "--hostname", "box"]);
    home.microagent(["start", "web"]).success();
    let words = ["sh", "-c", "echo out $GIVEN $LATER; echo err >&2; pwd; exit 7"];
    let ran = home.microagent(["exec", "-e", "LATER=now", "--cwd", "/tmp", "web", "--"]).args(words).run();
    let ran = ran.code(7);
    assert_eq!((ran.text(), ran.stderr.as_str()), ("out at creation now\n/tmp\n", "err\n"));

    let document = home.microagent(["exec", "--json", "web", "--"]).args(words).run().code(7).json();
    assert_eq!(document["status"], "exited");
    assert_eq!((&document["exit_code"], &document["stderr"]), (&json!(7), &json!("err\n")));
    for (words, code) in [(["no-such-program"], 127), (["/etc/passwd"], 126)] {
        home.microagent(["exec", "web", "--"]).args(words).run().code(code).says("could not be started");
    }
    let killed = home.microagent(["exec", "web", "--", "sh", "-c", "kill -9 $$"]).run();
    killed.code(137);
    let nobody = home.microagent(["exec", "--user", "1000", "web", "--", "id", "-u"]).success();
    assert_eq!(nobody.text(), "1000\n");
    let late =
        home.microagent(["exec", "--timeout", "1", "web", "--", "sh", "-c", "sleep 4321 & sleep 4321"]);
    late.run().code(124).says("its time was up");
    let left = home.microagent(["exec", "web", "--", "sh", "-c", "ps | grep -c '[s]leep 4321'"]).run();
    assert_eq!(left.text(), "0\n");
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_service_runs_from_start_to_end_and_decides_the_state() {
    let home = home();
    let service = "echo serving; while ! test -e /root/end; do sleep 0.1; done; exit $(cat /root/end)";
    create(&home, "api", ["--service-command", service]);
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
            create(&home, "api", ["--service-command", service]);
        }
    }
    let list = home.microagent(["list", "--json"]).success().json();
    assert_eq!(list["workspaces"][0]["problem"], "its service ended with exit code 3");
    home.microagent(["delete", "api", "--yes"]).success();

    create(&home, "none", ["--service-command", "exec no-such-program"]);
    home.microagent(["start", "none"]).success();
    home.processes_end();
    assert_eq!(home.state_of("none"), "failed");
    home.microagent(["delete", "none", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_paused_guest_stands_still_and_goes_on() {
    let home = home();
    create(&home, "web", []);
    home.microagent(["start", "web"]).success();
    home.microagent(["resume", "web"]).run().code(1).says("is running");
    assert_eq!(home.microagent(["pause", "web"]).success().summary("State"), "paused");
    home.microagent(["exec", "web", "--", "true"]).run().code(1).says("microagent resume web");
    assert_eq!(home.microagent(["resume", "web"]).success().summary("State"), "running");
    home.microagent(["exec", "web", "--", "true"]).success();
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
        create(&home, "web", []);
        home.microagent(["start", "web"]).success();
        home.microagent(["delete", "web"]).run().code(2).says("--yes");
        assert_eq!(home.microagent(["delete", "web", flag]).success().text(), said);
        assert_eq!(home.microagent(["delete", "web", flag]).success().text(), "Nothing to delete: web\n");
        home.nothing_is_left();
    }
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
