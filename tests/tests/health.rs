//! Health checks: what they say of a workspace, who sees it, and what becomes of one that is not well.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use microagent_tests::hostile::let_the_agent_lie;
use microagent_tests::process::Process;
use microagent_tests::{Home, User, fixtures, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Most memory of a supervisor, in KiB, as in `faults_lies.rs`.
const SUPERVISOR_KIB: u64 = 48 * 1024;

const PATIENCE: Duration = Duration::from_secs(120);

/// Checks are as fast as they can be.
const FAST: [&str; 4] = ["--health-interval", "0.5s", "--health-timeout", "5s"];

fn status(home: &Home, name: &str) -> Value {
    home.microagent(["status", name, "--json"]).success().json()
}

fn create(home: &Home, name: &str, options: &[&str]) {
    let image = home.image("busybox");
    home.call().args(["create", name, "--image", &image]).args(options).success();
}

/// Waits until the checks of a workspace say this, and gives its status.
fn becomes(home: &Home, name: &str, health: &str) -> Value {
    let mut found = Value::Null;
    wait_for(&format!("`{name}` to be {health}"), PATIENCE, || {
        found = status(home, name);
        if found["health"]["state"] == health { Ok(()) } else { Err(found["health"].to_string()) }
    });
    found
}

fn newest(status: &Value) -> &Value {
    status["health"]["checks"].as_array().unwrap().last().unwrap()
}

/// Writes a blob into an OCI layout, and gives its descriptor's digest and size.
fn blob(layout: &Path, content: &Value) -> (String, usize) {
    let bytes = content.to_string().into_bytes();
    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(layout.join("blobs/sha256").join(&digest), &bytes).unwrap();
    (format!("sha256:{digest}"), bytes.len())
}

fn read(layout: &Path, descriptor: &Value) -> Value {
    let digest = descriptor["digest"].as_str().unwrap().replace(':', "/");
    serde_json::from_slice(&fs::read(layout.join("blobs").join(digest)).unwrap()).unwrap()
}

/// The busybox image with this health check, and this command.
fn image_with(home: &Home, check: &Value) -> String {
    let name = home.configured_image("busybox", &["--config.cmd", "sleep", "--config.cmd", "1000"]);
    let layout = home.path().join("busybox-configured");
    let mut index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let entry = index["manifests"].as_array_mut().unwrap().iter_mut();
    let entry = entry.into_iter().find(|entry| entry.to_string().contains(fixtures::TAG)).unwrap();
    let mut manifest = read(&layout, entry);
    let mut config = read(&layout, &manifest["config"]);
    config["config"]["Healthcheck"] = check.clone();
    let (digest, size) = blob(&layout, &config);
    (manifest["config"]["digest"], manifest["config"]["size"]) = (digest.into(), size.into());
    let (digest, size) = blob(&layout, &manifest);
    (entry["digest"], entry["size"]) = (digest.into(), size.into());
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    microagent_tests::host::must("chmod", &["-R", "a+rX", layout.to_str().unwrap()]);
    name
}

#[test]
fn a_workspace_is_as_healthy_as_its_checks_say() {
    let home = Home::new(User::unprivileged());
    let line = "echo looked; test -e /tmp/well";
    create(&home, "web", &[&["--health-cmd", line, "--health-retries", "2"][..], &FAST].concat());
    assert_eq!(status(&home, "web")["health_check"]["retries"], 2);
    home.microagent(["start", "web"]).success();
    let ill = becomes(&home, "web", "unhealthy");
    assert_eq!(
        (newest(&ill)["exit_code"].as_i64(), newest(&ill)["output"].as_str()),
        (Some(1), Some("looked\n"))
    );
    let waited = home.microagent(["wait", "--healthy", "web"]).run().code(1);
    let waited = waited.says("Error: workspace `web` is unhealthy").says("microagent status web");
    assert!(waited.text().ends_with("State: running\nHealth: unhealthy\n"), "{}", waited.told());
    assert!(home.microagent(["ps"]).success().text().contains(" running (unhealthy) "));
    assert_eq!(home.microagent(["ps", "-q", "--filter", "health=unhealthy"]).success().text(), "web\n");
    let shown = home.microagent(["status", "web"]).success();
    assert!(shown.text().contains("Health: unhealthy ("), "{}", shown.told());

    home.microagent(["exec", "web", "touch", "/tmp/well"]).success();
    let well = becomes(&home, "web", "healthy");
    assert_eq!(
        (well["health"]["failing_streak"].as_u64(), newest(&well)["exit_code"].as_i64()),
        (Some(0), Some(0))
    );
    home.microagent(["wait", "--healthy", "--timeout", "60", "web"]).success();
    let listed = home.microagent(["list", "--json"]).success().json();
    assert_eq!(listed["workspaces"][0]["health"], "healthy");
    let events = home.microagent(["events", "web"]).success();
    let told: Vec<_> =
        events.text().lines().filter_map(|line| Some(line.split_once("health: ")?.1)).collect();
    assert_eq!(told, ["unhealthy: the check exited with 1", "healthy"]);

    // A paused guest is not looked at, and an ended one has no health.
    home.microagent(["pause", "web"]).success();
    let paused = status(&home, "web")["health"].clone();
    home.microagent(["resume", "web"]).success();
    wait_for("another check", PATIENCE, || {
        let now = status(&home, "web")["health"].clone();
        if now == paused { Err(now.to_string()) } else { Ok(()) }
    });
    home.microagent(["halt", "web"]).success();
    assert_eq!(home.microagent(["list", "--json"]).success().json()["workspaces"][0]["health"], Value::Null);
    assert_eq!(home.microagent(["list", "-q", "--filter", "health=none"]).success().text(), "web\n");
    assert_eq!(status(&home, "web")["health"], Value::Null);
    home.microagent(["wait", "--healthy", "web"]).run().code(1).says("Error: workspace `web` is halted");
    home.microagent(["delete", "--yes", "web"]).success();
    home.nothing_is_left();
}

#[test]
fn an_images_check_runs_as_its_service_does() {
    let home = Home::new(User::unprivileged());
    let check = json!({
        "Test": ["CMD-SHELL", "id -u; pwd; echo $PLACE"], "Interval": 1_000_000, "Retries": 1,
    });
    let image = image_with(&home, &check);
    let options =
        ["run", "-d", "--name", "web", "--user", "7:7", "--workdir", "/srv/here", "-e", "PLACE=there"];
    home.call().args(options).arg(&image).success();
    let well = becomes(&home, "web", "healthy");
    assert_eq!(newest(&well)["output"], "7\n/srv/here\nthere\n");
    assert_eq!(well["health_check"]["interval_seconds"], 0.5, "as short as it may be");
    home.microagent(["delete", "--force", "--yes", "web"]).success();

    // One flag goes over the image's, all of it can be taken away, and it says nothing of a workspace without a service.
    home.call()
        .args(["create", "other", "--image", &image, "--image-command", "--health-retries", "9"])
        .success();
    assert_eq!(status(&home, "other")["health_check"]["retries"], 9);
    home.call().args(["create", "none", "--image", &image, "--image-command", "--no-healthcheck"]).success();
    home.call().args(["create", "idle", "--image", &image]).success();
    for name in ["none", "idle"] {
        assert_eq!(status(&home, name)["health_check"], Value::Null);
        home.microagent(["wait", "--healthy", name]).run().code(2).says("has no health check");
    }
    home.call().args(["run", "--health-cmd", "true", &image]).run().code(2).says("with -d");
    let short =
        home.call().args(["create", "--image", &image, "x", "--health-interval", "0.1s"]).run().code(2);
    assert!(short.stderr.contains("the interval of the health check is too short"), "{}", short.told());
    home.microagent(["delete", "--yes", "other", "none", "idle"]).success();
    home.nothing_is_left();
}

#[test]
fn a_spec_file_has_the_check_and_apply_changes_it() {
    let home = Home::new(User::unprivileged());
    let write = |check: &str| {
        home.write(
            "spec.yaml",
            format!("name: web\nimage: {}\nhealthCheck: {check}\n", home.image("busybox")),
        );
    };
    write("{command: [test, -e, /tmp/well], interval: 1, retries: 1}");
    home.microagent(["create", "--file", "spec.yaml"]).success();
    write("{command: 'true', interval: 0.5s, startPeriod: 1m}");
    let applied = home.microagent(["apply", "web", "--file", "spec.yaml"]).success();
    for key in ["healthCheck.command", "healthCheck.interval", "healthCheck.startPeriod"] {
        assert!(applied.text().contains(key), "{}", applied.told());
    }
    let check = status(&home, "web")["health_check"].clone();
    assert_eq!((&check["retries"], &check["start_period_seconds"]), (&json!(1), &json!(60.0)));
    home.microagent(["start", "web"]).success();
    becomes(&home, "web", "healthy");
    write("{disable: true}");
    home.microagent(["apply", "web", "--file", "spec.yaml"]).run().code(1);
    home.microagent(["halt", "web"]).success();
    home.microagent(["apply", "web", "--file", "spec.yaml"]).success();
    assert_eq!(status(&home, "web")["health_check"], Value::Null);
    write("{test: [CMD, 'true']}");
    home.microagent(["apply", "web", "--file", "spec.yaml"]).run().code(2).says("command");
    home.microagent(["delete", "--yes", "web"]).success();
    home.nothing_is_left();
}

#[test]
fn supervise_starts_an_unhealthy_workspace_again() {
    let home = Home::new(User::unprivileged());
    let options = ["--health-cmd", "exit 3", "--health-retries", "1", "--restart", "on-failure:1"];
    create(&home, "web", &[&options[..], &FAST, &["--service-command", "sleep 1000"]].concat());
    let supervised = home.microagent(["supervise", "web", "--interval", "0.1s"]).run().code(1);
    assert!(supervised.stderr.contains("restart 1"), "{}", supervised.told());
    let ended = status(&home, "web");
    assert_eq!((ended["state"].as_str(), ended["restarts"].as_u64()), (Some("failed"), Some(1)), "{ended}");
    assert_eq!(
        (&ended["problem"], &newest(&ended)["exit_code"]),
        (&json!("its health check failed"), &json!(3))
    );
    // Without `supervise` nothing ends it.
    home.microagent(["start", "web"]).success();
    becomes(&home, "web", "unhealthy");
    assert_eq!(home.state_of("web"), "running");
    home.microagent(["delete", "--force", "--yes", "web"]).success();
    home.nothing_is_left();
}

#[test]
fn a_check_that_stalls_is_killed_and_what_it_prints_is_only_text() {
    let home = Home::new(User::unprivileged());
    let forged = r#"printf '\033[2J","state":"healthy","exit_code":0\n\377'; exit 1"#;
    for (name, line) in [("forged", forged), ("stalled", "exec sleep 4321"), ("flood", "exec yes")] {
        let options = ["--health-cmd", line, "--health-retries", "1", "--health-interval", "0.5s"];
        create(&home, name, &[&options[..], &["--health-timeout", "1s"]].concat());
        home.microagent(["start", name]).success();
    }
    let forged = becomes(&home, "forged", "unhealthy");
    assert_eq!(newest(&forged)["output"], " [2J\",\"state\":\"healthy\",\"exit_code\":0\n\u{fffd}");
    let text = home.microagent(["status", "forged"]).success();
    assert!(!text.text().contains('\u{1b}'), "{}", text.told());
    let stalled = becomes(&home, "stalled", "unhealthy");
    assert_eq!(newest(&stalled)["problem"], "took longer than 1 s");
    // At most the one that runs now; those before it are gone.
    wait_for("one more check", PATIENCE, || {
        let streak = status(&home, "stalled")["health"]["failing_streak"].as_u64().unwrap();
        if streak >= 3 { Ok(()) } else { Err(streak.to_string()) }
    });
    let running = home.microagent(["exec", "stalled", "sh", "-c", "ps | grep -c '[s]leep 4321' || true"]);
    assert!(running.success().text().trim().parse::<u32>().unwrap() <= 1);
    let flood = becomes(&home, "flood", "unhealthy");
    assert!(newest(&flood)["output"].as_str().unwrap().len() <= 4096);
    for supervisor in home.processes().iter().filter(|process| process.is_supervisor()) {
        let used = supervisor.memory_kib("VmHWM").unwrap();
        assert!(used < SUPERVISOR_KIB, "{used} KiB");
    }
    home.microagent(["delete", "--force", "--yes", "forged", "stalled", "flood"]).success();
    home.nothing_is_left();
}

#[test]
fn nothing_is_checked_in_quarantine_and_a_killed_supervisor_leaves_no_health() {
    let home = Home::new(User::unprivileged());
    create(&home, "web", &[&["--health-cmd", "true"][..], &FAST].concat());
    home.microagent(["start", "web"]).success();
    becomes(&home, "web", "healthy");
    home.microagent(["quarantine", "web"]).success();
    let listed = home.microagent(["ps", "--json"]).success().json();
    assert_eq!(listed["workspaces"][0]["health"], Value::Null);
    home.microagent(["kill", "web"]).success();

    home.microagent(["start", "web"]).success();
    becomes(&home, "web", "healthy");
    home.processes().into_iter().find(Process::is_supervisor).unwrap().signal(Signal::KILL);
    wait_for("the workspace to be failed", PATIENCE, || {
        let state = home.state_of("web");
        if state == "failed" { Ok(()) } else { Err(state) }
    });
    assert_eq!(home.microagent(["list", "--json"]).success().json()["workspaces"][0]["health"], Value::Null);
    home.microagent(["start", "web"]).success();
    becomes(&home, "web", "healthy");
    home.microagent(["delete", "--force", "--yes", "web"]).success();
    home.nothing_is_left();
}

#[test]
fn an_agent_that_lies_only_makes_its_workspace_unhealthy() {
    let home = Home::new(User::unprivileged());
    let options = ["--health-cmd", "true", "--health-retries", "1", "--health-interval", "0.5s"];
    create(&home, "web", &[&options[..], &["--health-timeout", "1s"]].concat());
    for lie in ["exec-mute", "exec-huge", "exec-wrong", "exec-half", "exec-closed", "exec-endless"] {
        let_the_agent_lie(&home, lie);
        home.call().env("MICROAGENT_WARM", "off").args(["start", "web"]).success();
        let found = becomes(&home, "web", "unhealthy");
        assert!(newest(&found)["problem"].is_string(), "{lie}: {found}");
        let supervisor = home.processes().into_iter().find(Process::is_supervisor).unwrap();
        assert!(supervisor.memory_kib("VmHWM").unwrap() < SUPERVISOR_KIB, "{lie}");
        home.microagent(["kill", "web"]).success();
    }
    home.microagent(["delete", "--yes", "web"]).success();
    home.nothing_is_left();
}
