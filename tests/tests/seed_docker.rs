//! The page for those who come from Docker, row by row.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use microagent_tests::pty::Pty;
use microagent_tests::{Home, User};

#[test]
fn the_page_for_those_who_come_from_docker_can_be_followed() {
    let home = Home::new(User::unprivileged());
    let image = home.image("busybox");
    // docker run --rm IMAGE CMD
    let run = home.microagent(["run", "--network", "isolated", &image, "echo", "once"]).success();
    assert_eq!(run.guest_output(), "once\n");
    assert_eq!(home.microagent(["list"]).success().text(), "No workspaces.\n");
    // docker run -d --name web IMAGE
    let make = ["create", "--name", "web", "--image", &image, "--network", "isolated"];
    let service = ["--setup", "mkdir -p /srv", "--service-command", "echo serving; exec sleep 100000"];
    home.call().args(make).args(service).success();
    home.microagent(["start", "web"]).success();
    // docker ps
    assert!(home.microagent(["ps"]).success().text().lines().any(|line| line.starts_with("web ")));
    assert!(home.microagent(["ls"]).success().text().lines().any(|line| line.starts_with("web ")));
    // docker exec web CMD
    let exec =
        home.microagent(["exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]).run().code(3);
    assert_eq!((exec.text(), exec.stderr.as_str()), ("out\n", "err\n"));
    // docker exec -it web bash
    let mut pty = Pty::start(&home, &["connect", "web"], (24, 80));
    pty.types("echo $((40 + 2)) in the shell\r");
    pty.shows("42 in the shell");
    pty.types("exit\r");
    pty.finish();
    // docker logs web, and -f
    home.log_has("web", "console.log", "serving\n");
    assert_eq!(home.microagent(["logs", "web"]).success().text(), "serving\n");
    let following = home.microagent(["logs", "-f", "web"]).start();
    following.prints("serving\n");
    // docker stop web
    assert_eq!(home.microagent(["stop", "web"]).success().summary("State"), "stopped");
    assert_eq!(following.finish().code(0).text(), "serving\n");
    // docker cp app.py web:/srv/, on the stopped workspace
    home.write("app.py", "print('from the host')\n");
    home.microagent(["cp", "app.py", "web:/srv/"]).success();
    // docker commit web REF
    home.microagent(["commit", "web", "web:changed"]).success();
    assert!(home.microagent(["image", "list"]).success().text().contains("web:changed"));
    let run =
        home.microagent(["run", "--network", "isolated", "web:changed", "cat", "/srv/app.py"]).success();
    assert_eq!(run.guest_output(), "print('from the host')\n");
    // halt is not stop is not kill: all three leave the disk, and start uses it again.
    for (verb, state) in [("halt", "halted"), ("stop", "stopped"), ("kill", "stopped")] {
        home.microagent(["start", "web"]).success();
        let file = home.microagent(["exec", "web", "--", "cat", "/srv/app.py"]).success();
        assert_eq!(file.text(), "print('from the host')\n");
        assert_eq!(home.microagent([verb, "web"]).success().summary("State"), state);
    }
    // docker rm web: asks, and offers to stop it first
    home.microagent(["start", "web"]).success();
    home.microagent(["delete", "web"]).run().code(2).says("--force");
    home.microagent(["delete", "--force", "web"]).success();
    home.nothing_is_left();
    // docker volume create/ls/inspect/rm, and -v data:/work
    let created = home.microagent(["volume", "create", "data", "--size-mib", "64"]).success();
    assert_eq!(created.text(), "Created volume \"data\" (64 MiB)\n");
    let run = ["run", "--network", "isolated", "-v", "data:/work", &image];
    home.call().args(run).args(["sh", "-c", "echo kept > /work/file"]).success();
    assert_eq!(home.call().args(run).args(["cat", "/work/file"]).success().guest_output(), "kept\n");
    assert!(home.microagent(["volume", "list"]).success().text().lines().any(|row| row.starts_with("data ")));
    assert!(home.microagent(["volume", "status", "data"]).success().text().contains("Attached: -\n"));
    home.microagent(["volume", "delete", "data", "--yes"]).success();
    // docker network inspect web, and -p
    let make = ["create", "web", "--image", &image, "-p", "0:80"];
    home.call().args(make).success();
    let network = home.microagent(["network", "web"]).success();
    for part in ["Network: user", "Published: 127.0.0.1:0 -> 80/tcp"] {
        assert!(network.text().contains(part), "{}", network.told());
    }
    home.microagent(["delete", "web", "--yes"]).success();
    // What does not map is refused with the way that works.
    home.microagent(["create", "x", "--image", &image, "--privileged"]).run().code(2).says("--privileged");
    home.microagent(["create", "x", "--image", &image, "-v", "/a:/b"]).run().code(2).says("microagent cp");
}
