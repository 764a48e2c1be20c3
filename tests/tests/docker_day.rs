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
