//! What people from Docker type beside the documented pages: several names, lists for scripts, restarts, disk space.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use microagent_tests::{Home, User};

#[test]
fn several_workspaces_are_listed_filtered_and_changed_at_once() {
    let home = Home::new(User::unprivileged());
    home.create("web", []);
    home.create("api", []);
    home.microagent(["start", "web"]).success();
    assert_eq!(home.microagent(["ps", "-q"]).success().text(), "web\n");
    assert_eq!(home.microagent(["list", "-q", "--filter", "status=prepared"]).success().text(), "api\n");
    let format = home.microagent(["ps", "--format", "{{.Names}}\\t{{.State}}"]).success();
    assert_eq!(format.text(), "web\trunning\n");

    let restarted = home.microagent(["restart", "web", "api"]).success();
    let running = restarted.text().lines().filter(|line| *line == "State: running").count();
    assert_eq!(running, 2, "{}", restarted.told());
    let paused = home.microagent(["pause", "web", "api", "--json"]).success();
    assert_eq!(paused.text().matches("\"paused\"").count(), 2, "{}", paused.told());

    // One that does not exist keeps nothing from the others.
    home.microagent(["kill", "web", "gone", "api"]).run().code(1).says("gone");
    for name in ["web", "api"] {
        assert_eq!(home.state_of(name), "stopped");
    }
    assert_eq!(home.microagent(["ps"]).success().text(), "No running workspaces.\n");
    let used = home.microagent(["system", "df", "--json"]).success().json();
    assert_eq!(used["workspaces"]["count"], 2);
    assert!(used["workspaces"]["bytes"].as_u64().unwrap() > 0, "{used}");

    home.microagent(["delete", "web", "api", "--yes"]).success();
    let pruned = home.microagent(["system", "prune", "--all", "--volumes", "--yes"]).success();
    assert!(pruned.text().contains("Freed: "), "{}", pruned.told());
    let left = home.microagent(["system", "df", "--json"]).success().json();
    for kind in ["workspaces", "images", "volumes", "templates"] {
        assert_eq!(left[kind]["count"], 0, "{kind}: {left}");
    }
    home.nothing_is_left();
}

#[test]
fn create_takes_image_and_command_as_docker_does() {
    let home = Home::new(User::unprivileged());
    let image = home.image("busybox");
    let network = ["--network", "isolated"];
    home.microagent(["create", "--name", "c1", "--label", "team=web", "-l", "ci"])
        .args(network)
        .args([&image, "sleep", "1000"])
        .success();
    home.microagent(["start", "c1"]).success();
    let shown = home.microagent(["exec", "c1", "--", "cat", "/proc/1/cmdline"]).success();
    assert_eq!(shown.text(), "sleep\u{0}1000\u{0}");
    let status = home.microagent(["status", "c1"]).success();
    assert!(status.text().contains("Label: ci=\nLabel: team=web\n"), "{}", status.told());

    let made_up = home.microagent(["create", "--json"]).args(network).args([&image]).success().json();
    let name = made_up["workspace"].as_str().unwrap().to_owned();
    assert!(name.starts_with("busybox-") || name.starts_with("oci-"), "{name}");
    let entry = ["create", "c2", "--image", &image, "--entrypoint", "/bin/echo", "--label", "team=db"];
    home.microagent(entry).args(network).args(["hello"]).success();
    home.microagent(["start", "c2"]).success();
    home.microagent(["wait", "c2"]).success();
    assert!(home.microagent(["logs", "c2"]).success().text().contains("hello"));

    let listed =
        |filter: &str| home.microagent(["list", "-q", "--filter", filter]).success().text().to_owned();
    assert_eq!((listed("label=team"), listed("label=team=web")), ("c1\nc2\n".into(), "c1\n".into()));
    assert_eq!((listed("label=ci=x"), listed("label=ci")), (String::new(), "c1\n".into()));
    home.microagent(["delete", "--force", "c1", "c2", &name]).success();
    home.nothing_is_left();
}

/// Settings hold for service, commands and every start; what lies below them can be reached at rest.
#[test]
fn settings_of_the_system_hold_at_every_start() {
    let home = Home::new(User::unprivileged());
    home.create(
        "web",
        [
            "--sysctl=net.core.somaxconn=77",
            "--ulimit=nofile=100:200",
            "--tmpfs=/srv:size=4m,mode=0700",
            "--shm-size=8m",
            "--read-only",
            "--stop-signal=INT",
            "--service-command=trap 'exit 3' INT; ulimit -n > /srv/limit; sleep 1000 & wait",
            "--setup=mkdir -p /srv && echo below > /srv/file",
        ],
    );
    let look = "until [ -s /srv/limit ]; do sleep 0.1; done; cat /proc/sys/net/core/somaxconn /srv/limit; ulimit -n; ulimit -Hn; \
        df -m /srv /dev/shm | awk 'NR > 1 {print $2}'; stat -c %a /srv; touch /x 2>&1 | grep -o 'Read-only'; ls /srv";
    for start in ["cold", "warm"] {
        home.microagent(["start", "web"]).success();
        let shown = home.microagent(["exec", "web", "--", "sh", "-c", look]).success();
        assert_eq!(shown.text(), "77\n100\n100\n200\n4\n8\n700\nRead-only\nlimit\n", "{start}");
        // The exit code is that of a machine that has ended.
        let status = home.microagent(["status", "web"]).success();
        assert!(!status.text().contains("Exit code"), "{}", status.told());
        home.microagent(["stop", "web"]).success();
        assert_eq!(home.microagent(["result", "web", "--json"]).success().json()["result"]["exit_code"], 3);
    }
    let status = home.microagent(["status", "web"]).success();
    for line in [
        "Sysctl: net.core.somaxconn=77",
        "Limit: nofile=100:200",
        "Tmpfs: /srv:mode=700,size=4194304",
        "Root disk: read-only",
        "Stop signal: INT",
        "Command: /bin/sh -c trap 'exit 3' INT; ulimit -n",
    ] {
        assert!(status.text().contains(line), "{line}: {}", status.told());
    }
    home.microagent(["cp", "web:/srv/file", "below"]).success();
    assert_eq!(std::fs::read_to_string(home.path().join("below")).unwrap(), "below\n");

    home.create("odd", ["--sysctl=net.no.such=1"]);
    let odd = home.microagent(["start", "odd"]).run();
    assert!(!odd.told().contains("boots instead"), "no template is to blame: {}", odd.told());
    odd.code(1).says("the guest's kernel does not accept `net.no.such`");
    home.create("many", ["--ulimit=nofile=999999999"]);
    home.microagent(["start", "many"]).run().code(1).says("at most 1048576 open files");
    home.microagent(["delete", "--force", "web", "odd", "many"]).success();
    home.nothing_is_left();
}

#[test]
fn a_port_of_another_workspace_is_told_with_its_name() {
    let home = Home::new(User::unprivileged());
    let create = |name: &str, publish: &str| {
        let image = home.image("busybox");
        home.call().args(["create", name, "--image", &image, "--publish", publish]).success();
    };
    create("first", "0:80");
    home.microagent(["start", "first"]).success();
    let status = home.microagent(["status", "first", "--json"]).success().json();
    let publish = format!("{}:80", status["port_forwards"][0]["host_port"]);
    create("second", &publish);
    home.microagent(["start", "second"]).run().code(1).says("workspace `first` publishes that port");
    home.run("busybox", ["--publish", &publish], &["true"]).run().code(1).says("workspace `first`");
    home.microagent(["delete", "--force", "--yes", "first", "second"]).success();
    home.nothing_is_left();
}

#[test]
fn a_deleted_workspace_takes_its_unit_along() {
    let home = Home::new(User::unprivileged());
    home.create("web", []);
    home.microagent(["supervise", "web", "--install"]).success();
    let unit = home.path().join(".config/systemd/user/microagent-supervise-web.service");
    assert!(unit.is_file());
    home.microagent(["delete", "--yes", "web"]).success();
    assert!(!unit.exists());
    // The unit of another state directory's workspace stays.
    home.create("web", []);
    std::fs::create_dir_all(unit.parent().unwrap()).unwrap();
    std::fs::write(&unit, "ExecStart=\"/x\" --state-dir \"/elsewhere\" supervise web\n").unwrap();
    home.microagent(["delete", "--yes", "web"]).success();
    assert!(unit.exists());
    home.nothing_is_left();
}
