//! Verbs that take several workspaces, and the time that a workspace has to end.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use microagent_tests::pty::Pty;
use microagent_tests::{Home, User};

#[test]
fn verbs_take_several_names() {
    let home = Home::new(User::unprivileged());
    for name in ["web", "api"] {
        let service = format!("echo {name} serves; while :; do sleep 0.1; done");
        home.create(name, ["--service-command", &service]);
    }
    let started = home.microagent(["start", "web", "gone", "api"]).run().code(1).says("gone");
    assert_eq!(started.text().matches("State: running").count(), 2, "{}", started.told());
    for name in ["web", "api"] {
        home.log_has(name, "console.log", "serves");
    }

    let status = home.microagent(["status", "web", "api"]).success();
    assert!(status.text().contains("\n\nWorkspace: api\n"), "{}", status.told());
    let logs = home.microagent(["logs", "web", "api"]).success();
    for line in ["web | web serves\n", "api | api serves\n"] {
        assert!(logs.text().contains(line), "{}", logs.told());
    }
    let logs = home.microagent(["logs", "web", "api", "--json"]).success();
    assert_eq!(logs.text().matches("\"workspace\"").count(), 2, "{}", logs.told());

    let table = home.microagent(["stats"]).success();
    let names: Vec<_> = table.text().lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, ["NAME", "api", "web"], "{}", table.told());
    let table = home.microagent(["stats", "--no-stream", "web", "api", "--json"]).success().json();
    let workspaces = table["workspaces"].as_array().unwrap();
    assert_eq!(workspaces.len(), 2, "{table}");
    assert_eq!(workspaces[0]["workspace"], "web");

    let following = home.microagent(["logs", "-f", "web", "api"]).start();
    following.prints("api | api serves");
    let waiting = home.microagent(["wait", "web", "api"]).start();
    home.microagent(["halt", "--timeout", "1", "web", "api"]).success();
    let waited = waiting.finish().code(0);
    assert_eq!(waited.text().matches("State: halted").count(), 2, "{}", waited.told());
    let followed = following.finish().code(0);
    assert!(followed.text().contains("web | web serves\n"), "{}", followed.told());
    home.microagent(["stats", "web", "api"]).run().code(1).says("microagent start ");
    home.microagent(["delete", "web", "api", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_table_of_all_is_redrawn_on_a_terminal() {
    let home = Home::new(User::unprivileged());
    home.create("web", []);
    home.microagent(["start", "web"]).success();
    let listed = home.microagent(["ps"]).success();
    let row = listed.text().lines().nth(1).unwrap();
    assert!(row.starts_with("web ") && row.ends_with(&home.image("busybox")), "{}", listed.told());
    let mut terminal = Pty::start(&home, &["stats"], (24, 100));
    terminal.shows("\x1b[HNAME");
    terminal.types("\x03");
    assert_eq!(terminal.finish(), 0);
    home.microagent(["delete", "--force", "web"]).success();
    home.nothing_is_left();
}

/// A service that takes its time gets it, as an option of the workspace or of one call.
#[test]
fn a_service_has_its_stop_timeout() {
    let home = Home::new(User::unprivileged());
    let deaf = "trap 'echo asked' TERM; echo serving; while :; do sleep 0.1; done";
    home.create("deaf", ["--service-command", deaf, "--stop-timeout", "1"]);
    home.microagent(["start", "deaf"]).success();
    home.log_has("deaf", "console.log", "serving");
    home.microagent(["stop", "deaf"]).run().code(1).says("its service did not end within 1 s");
    home.microagent(["stop", "-t", "2", "deaf"]).run().code(1).says("its service did not end within 2 s");
    home.microagent(["halt", "-t", "90000", "deaf"]).run().code(2).says("longer than a day");
    let status = home.microagent(["status", "deaf"]).success();
    assert!(status.text().contains("Stop timeout: 1 s\n"), "{}", status.told());
    home.microagent(["halt", "deaf"]).success();

    // It is one of the things that a spec file changes, and longer ones hold, too.
    home.write("spec.yaml", "stopTimeout: 1m");
    let applied = home.microagent(["apply", "deaf", "--file", "spec.yaml"]).success();
    assert!(applied.text().contains("stopTimeout"), "{}", applied.told());
    let slow = "trap 'sleep 12; echo done; exit 0' TERM; echo serving; while :; do sleep 0.1; done";
    home.create("slow", ["--service-command", slow, "--stop-timeout", "1m"]);
    home.microagent(["start", "slow"]).success();
    home.log_has("slow", "console.log", "serving");
    home.microagent(["stop", "slow"]).success();
    assert_eq!(home.microagent(["result", "slow", "--json"]).success().json()["result"]["exit_code"], 0);
    home.microagent(["delete", "--yes", "deaf", "slow"]).success();
    home.nothing_is_left();
}

#[test]
fn a_workspace_is_renamed_and_its_disk_enlarged() {
    let home = Home::new(User::unprivileged());
    home.create("web", ["-v", "data:/work"]);
    home.create("other", []);
    home.microagent(["start", "web"]).success();
    home.microagent(["exec", "web", "--", "sh", "-c", "hostname > /root/name"]).success();
    home.microagent(["rename", "web", "shop"]).run().code(1).says("microagent halt web");
    home.microagent(["resize", "web", "2g"]).run().code(1).says("is running");
    home.microagent(["halt", "web"]).success();
    home.microagent(["rename", "web", "other"]).run().code(1).says("exists already");
    home.microagent(["rename", "gone", "shop"]).run().code(1).says("gone");

    assert_eq!(home.microagent(["rename", "web", "shop"]).success().summary("Workspace"), "shop");
    assert_eq!(home.workspaces(), ["other", "shop"]);
    let resized = home.microagent(["resize", "shop", "2g"]).success();
    assert!(resized.text().contains("resources.sizeMiB: 1024 -> 2048"), "{}", resized.told());
    home.microagent(["resize", "shop", "512"]).run().code(2).says("a disk only grows");
    home.microagent(["start", "shop"]).success();
    let look = "hostname; cat /root/name; df -m / | awk 'NR == 2 {print ($2 > 1500)}'; echo $HOSTNAME";
    let shown = home.microagent(["exec", "shop", "--", "sh", "-c", look]).success();
    assert_eq!(shown.text(), "shop\nweb\n1\nshop\n");
    let events = home.microagent(["events", "shop"]).success();
    assert!(events.text().contains("prepared"), "its past stays: {}", events.told());

    // A volume that a workspace attaches is never pruned.
    home.microagent(["volume", "create", "free", "--size", "64m"]).success();
    home.microagent(["volume", "prune"]).run().code(2).says("--yes");
    let pruned = home.microagent(["volume", "prune", "--yes"]).success();
    assert!(pruned.text().starts_with("Deleted volume \"free\"\nFreed: "), "{}", pruned.told());
    home.microagent(["delete", "--force", "shop", "other"]).success();
    home.microagent(["volume", "delete", "data", "--yes"]).success();
    home.nothing_is_left();
}

/// A command that is killed between the two steps of a rename leaves one whole workspace, and the next one completes it.
#[test]
fn a_directory_that_was_renamed_is_the_workspace_of_its_new_name() {
    let home = Home::new(User::unprivileged());
    home.create("web", []);
    std::fs::rename(home.workspace("web"), home.workspace("shop")).unwrap();
    let status = home.microagent(["status", "shop", "--json"]).success().json();
    assert_eq!((&status["workspace"], &status["hostname"]), (&"shop".into(), &"web".into()));
    home.microagent(["start", "shop"]).success();
    assert_eq!(home.microagent(["ps", "-q"]).success().text(), "shop\n");
    home.microagent(["delete", "--force", "shop"]).success();
    home.nothing_is_left();
}

#[test]
fn defaults_come_from_the_configuration_file() {
    let home = Home::new(User::unprivileged());
    let file = home.write("config.toml", "profile = \"tiny\"\nnetwork = \"isolated\"\n");
    let image = home.image("busybox");
    let run = |words: &[&str]| {
        home.microagent(["run"])
            .env("MICROAGENT_CONFIG", &file)
            .env("MICROAGENT_PROFILE", "medium")
            .args(words)
            .args([&image, "true"])
            .success()
    };
    let chosen = run(&[]);
    assert_eq!((chosen.summary("Profile"), chosen.summary("Network")), ("medium", "isolated"));
    let flags = run(&["--profile", "small", "--network", "user"]);
    assert_eq!((flags.summary("Profile"), flags.summary("Network")), ("small", "user"));
    let spec = home.write("spec.yaml", "profile: large\nresources: {memoryMiB: 300}");
    let of_spec = run(&["--file", spec.to_str().unwrap()]);
    assert_eq!((of_spec.summary("Profile"), of_spec.summary("Network")), ("large", "isolated"));

    let config = |file: &std::path::Path| home.microagent(["config", "show"]).env("MICROAGENT_CONFIG", file);
    let shown = config(&file).env("MICROAGENT_PROFILE", "medium").success();
    for words in [
        ["profile", "medium", "MICROAGENT_PROFILE"],
        ["network", "isolated", file.to_str().unwrap()],
        ["egress", "public", "default"],
    ] {
        let mut lines = shown.text().lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        assert!(lines.any(|line| line == words), "{words:?}: {}", shown.told());
    }
    let document = config(&file).arg("--json").success().json();
    assert_eq!(document["settings"][1]["origin"], "file");
    let wrong = home.write("wrong.toml", "netwrok = \"user\"\n");
    home.microagent(["ps"]).env("MICROAGENT_CONFIG", &wrong).run().code(2).says("did you mean `network`?");
    config(&home.path().join("missing.toml")).run().code(1).says("cannot read");
    home.nothing_is_left();
}
