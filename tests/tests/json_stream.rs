//! `--json=stream` on real guests: one object a line, each as its schema says.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::time::Duration;

use microagent_tests::registry::Registry;
use microagent_tests::{Finished, Home, User, fixtures, wait_for};
use serde_json::{Value, json};

/// How long a guest may take to come so far.
const DEADLINE: Duration = Duration::from_secs(120);

fn types(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["type"].as_str().unwrap()).collect()
}

/// All that lines of one type say, put together; they must be text.
fn text(lines: &[Value], kind: &str) -> String {
    let data = lines.iter().filter(|line| line["type"] == kind).map(|line| {
        assert_eq!(line["encoding"], "utf-8", "{line}");
        line["data"].as_str().unwrap()
    });
    data.collect()
}

#[track_caller]
fn last<'a>(finished: &Finished, lines: &'a [Value]) -> &'a Value {
    lines.last().unwrap_or_else(|| panic!("no line\n{}", finished.told()))
}

#[test]
fn the_lines_of_a_pull_count_its_bytes() {
    let home = Home::new(User::unprivileged());
    let registry = Registry::start().unwrap();
    registry.push(&format!("oci:{}:latest", fixtures::layout("services").display()), "services").unwrap();
    let image = format!("{}/services", registry.address());
    let pulled = home.microagent(["image", "pull", &image, "--json=stream"]).success();
    let lines = pulled.json_lines();
    let pulling = lines.iter().find(|line| line["type"] == "pulling").unwrap();
    let done: Vec<u64> = lines
        .iter()
        .filter(|line| line["type"] == "layer_progress")
        .map(|line| {
            assert_eq!(line["bytes_total"], pulling["bytes_total"], "there is one layer: {line}");
            line["bytes_done"].as_u64().unwrap()
        })
        .collect();
    let total = pulling["bytes_total"].as_u64().unwrap();
    assert!(done.len() > 1 && done.is_sorted() && done.iter().all(|done| *done <= total), "{done:?} {total}");
    assert_eq!(last(&pulled, &lines)["type"], "image_pull");
}

#[test]
fn the_lines_of_a_run_and_of_commands_end_with_their_document() {
    let home = Home::new(User::unprivileged());
    let options = ["-i", "--json=stream", "--network", "isolated", "--setup", "echo prepared"];
    let ran =
        home.run("busybox", options, &["sh", "-c", "cat; echo err >&2; exit 3"]).stdin("grün").success();
    let lines = ran.json_lines();
    assert_eq!((text(&lines, "stdout"), text(&lines, "stderr")), ("prepared\ngrün".into(), "err\n".into()));
    let end = last(&ran, &lines);
    assert_eq!((&end["type"], &end["result"]["exit_code"]), (&json!("run"), &json!(3)), "{end}");
    for kind in ["image_ready", "booting", "setup", "command"] {
        assert!(types(&lines).contains(&kind), "{kind}: {:?}", types(&lines));
    }

    let image = home.image("busybox");
    let pulled = home.microagent(["image", "pull", &image, "--json=stream"]).success();
    assert_eq!(last(&pulled, &pulled.json_lines())["type"], "image_pull");
    let created = home
        .microagent(["create", "w", "--image", &image, "--network", "isolated", "--json=stream"])
        .success();
    let lines = created.json_lines();
    let end = last(&created, &lines);
    assert_eq!((&end["type"], &end["workspace"]), (&json!("create"), &json!("w")));
    let started = home.microagent(["start", "w", "--json=stream"]).success();
    let lines = started.json_lines();
    assert!(types(&lines).contains(&"booting"), "{:?}", types(&lines));
    let end = last(&started, &lines);
    assert_eq!((&end["type"], &end["state"]), (&json!("start"), &json!("running")));

    // A character in two pieces is one character; other bytes are base64.
    let line = r"printf 'a\342\202'; sleep 1; printf '\254'; printf '\377\000' >&2; exit 7";
    let exec = home.microagent(["exec", "--json=stream", "w", "--", "sh", "-c", line]).run().code(7);
    let lines = exec.json_lines();
    assert_eq!(text(&lines, "stdout"), "a€");
    let stderr = lines.iter().find(|line| line["type"] == "stderr").unwrap();
    assert_eq!((&stderr["data"], &stderr["encoding"]), (&json!("/wA="), &json!("base64")));
    let end = last(&exec, &lines);
    assert_eq!((&end["type"], &end["exit_code"], &end["stdout"]), (&json!("exec"), &json!(7), &json!("")));
    let job = ["exec", "--detach", "w", "--", "sh", "-c", "sleep 1; printf 'grün'; echo err >&2; exit 5"];
    home.microagent(job).success();
    let logs = home.microagent(["job", "logs", "-f", "--json=stream", "w", "1"]).success();
    let lines = logs.json_lines();
    assert_eq!((text(&lines, "stdout"), text(&lines, "stderr")), ("grün".into(), "err\n".into()));
    let end = last(&logs, &lines);
    assert_eq!(
        (&end["type"], &end["state"], &end["exit_code"]),
        (&json!("job"), &json!("exited"), &json!(5))
    );
    assert_eq!(
        home.microagent(["job", "logs", "--json=stream", "w", "1"]).success().json_lines().last(),
        Some(end)
    );
    // Of a command that is not there, the document is all there is.
    let missing = home.microagent(["exec", "--json=stream", "w", "--", "/none"]).run().code(127);
    assert_eq!(types(&missing.json_lines()), ["exec"]);

    home.microagent(["exec", "--json=stream", "none", "--", "true"]).run().code(1).json_error();
    let refused = home.microagent(["list", "--json=stream"]).run().code(2).json_error();
    assert_eq!(refused["hint"], "use --json", "{refused}");
    home.microagent(["exec", "-t", "--json=stream", "w", "--", "true"]).run().code(2).json_error();
    home.microagent(["run", "-d", "--json=stream", &image]).run().code(2).json_error();
    home.microagent(["delete", "w", "-f"]).success();
    home.nothing_is_left();
}

#[test]
fn what_is_followed_comes_as_lines_until_the_machine_ends() {
    let home = Home::new(User::unprivileged());
    home.create("w", ["--service-command", "echo up; until [ -e /go ]; do sleep 0.1; done; echo grün"]);
    home.microagent(["start", "w"]).success();
    let followed = ["logs", "events", "stats"].map(|command| {
        let out = home.path().join(command);
        let line = format!("{} {command} -f w --json=stream > {}", home.program().display(), out.display());
        (out, home.other("sh").args(["-c", &line]).start())
    });
    // Each has begun before the machine ends.
    for (out, _) in &followed {
        wait_for("the first line", DEADLINE, || {
            let text = std::fs::read_to_string(out).unwrap_or_default();
            if text.ends_with('\n') { Ok(()) } else { Err(text) }
        });
    }
    home.microagent(["exec", "w", "--", "touch", "/go"]).success();
    let mut lines = followed.into_iter().map(|(out, running)| {
        running.finish().code(0);
        let text = std::fs::read_to_string(&out).unwrap();
        let lines = text.lines().map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            assert_eq!(microagent_tests::schema::faults("stream", &line), None, "{line}");
            line
        });
        lines.collect::<Vec<_>>()
    });
    let (logs, events, stats) = (lines.next().unwrap(), lines.next().unwrap(), lines.next().unwrap());
    assert!(
        types(&logs).iter().all(|kind| *kind == "log") && text(&logs, "log").contains("grün"),
        "{logs:?}"
    );
    assert!(events.iter().any(|line| line["type"] == "state" && line["state"] == "stopped"), "{events:?}");
    assert_eq!((&stats[0]["type"], &stats[0]["workspace"]), (&json!("stats"), &json!("w")));

    // Without -f what there is comes as lines, too.
    for command in ["logs", "events", "egress"] {
        home.microagent([command, "w", "--json=stream"]).success().json_lines();
    }
    home.microagent(["delete", "w", "--yes"]).success();
    home.nothing_is_left();
}
