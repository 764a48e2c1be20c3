//! `serve mcp` with a real client and real guests.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::time::Duration;

use microagent_tests::mcp::{Era, McpClient};
use microagent_tests::{Home, User, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// How long a guest may take to come so far.
const DEADLINE: Duration = Duration::from_secs(120);

fn home() -> Home {
    Home::new(User::unprivileged())
}

fn server(home: &Home, era: Era, options: &[&str]) -> McpClient {
    let image = home.image("busybox");
    McpClient::start(home, era, &[&["--allow-image", &image, "--profile", "tiny"], options].concat())
}

/// Runs a shell line in a workspace; gives its standard output.
#[track_caller]
fn sh(client: &McpClient, name: &str, line: &str) -> String {
    let result = client.done("exec", json!({"name": name, "shell": line}));
    assert_eq!(result["exit_code"], 0, "{line}: {result}");
    result["stdout"].as_str().unwrap().to_owned()
}

/// Waits until a shell line succeeds in a workspace.
#[track_caller]
fn holds(client: &McpClient, name: &str, line: &str) {
    wait_for(line, DEADLINE, || {
        let result = client.call("exec", json!({"name": name, "shell": line}));
        match &result {
            Ok(result) if result["exit_code"] == 0 => Ok(()),
            _ => Err(result),
        }
    });
}

#[test]
fn a_model_runs_commands_in_both_eras_of_the_protocol() {
    let home = home();
    let image = home.image("busybox");
    for era in [Era::Initialize, Era::Discover] {
        let client = server(&home, era, &[]);
        let names: Vec<String> = client.tools().iter().map(|tool| tool.name.to_string()).collect();
        assert_eq!(
            names,
            [
                "run",
                "create",
                "start",
                "exec",
                "exec_start",
                "exec_poll",
                "exec_stop",
                "write_file",
                "read_file",
                "list_files",
                "list",
                "status",
                "logs",
                "halt",
                "delete",
                "snapshot",
                "restore",
                "delete_snapshot",
                "fork"
            ]
        );
        let line = "echo out; cat >&2; exit 3";
        let ran = client.done("run", json!({"image": image, "shell": line, "stdin": "grün"}));
        assert_eq!((&ran["status"], &ran["exit_code"]), (&json!("exited"), &json!(3)), "{ran}");
        assert_eq!((&ran["stdout"], &ran["stderr"]), (&json!("out\n"), &json!("grün")), "{ran}");
        let missing = client.done("run", json!({"image": image, "command": ["/none"]}));
        assert_eq!(
            (&missing["status"], &missing["exit_code"]),
            (&json!("not_started"), &json!(127)),
            "{missing}"
        );
        let late =
            client.done("run", json!({"image": image, "shell": "echo begun; sleep 10000", "timeout_s": 20}));
        assert_eq!((&late["status"], &late["exit_code"]), (&json!("timed_out"), &json!(124)), "{late}");
        assert!(client.close().success());
        home.nothing_is_left();
    }
}

#[test]
fn a_workspace_keeps_its_files_until_it_is_deleted() {
    let home = home();
    let image = home.image("busybox");
    let client = server(&home, Era::Discover, &[]);
    let made = client.done(
        "create",
        json!({"image": image, "name": "w", "env": {"LEVEL": "7"}, "setup": ["echo s > /s"]}),
    );
    assert_eq!(
        (&made["name"], &made["state"], &made["network"]),
        (&json!("w"), &json!("running"), &json!("isolated"))
    );
    assert_eq!(sh(&client, "w", "cat /s; echo $LEVEL"), "s\n7\n");

    let script = "#!/bin/sh\necho grün from $1\n";
    client.done(
        "write_file",
        json!({"name": "w", "path": "/srv/a/run.sh", "content": script, "executable": true}),
    );
    let ran = client.done("exec", json!({"name": "w", "command": ["/srv/a/run.sh", "here"]}));
    assert_eq!(ran["stdout"], "grün from here\n", "{ran}");
    client.done(
        "write_file",
        json!({"name": "w", "path": "/srv/bin", "content": "/wD+", "encoding": "base64"}),
    );
    let read = client.done("read_file", json!({"name": "w", "path": "/srv/bin"}));
    assert_eq!(
        (&read["content"], &read["encoding"], &read["size"]),
        (&json!("/wD+"), &json!("base64"), &json!(3))
    );
    let part =
        client.done("read_file", json!({"name": "w", "path": "/srv/a/run.sh", "offset": 10, "max_bytes": 4}));
    assert_eq!((&part["content"], &part["next_offset"]), (&json!("echo"), &json!(14)), "{part}");
    assert_eq!(part["omitted_bytes"], script.len() as u64 - 14);

    sh(&client, "w", "ln -s a /srv/link; mkdir /srv/a/deep; touch /srv/a/deep/f");
    let listed = client.done("list_files", json!({"name": "w", "path": "/srv"}));
    let all = json!([{"path": "a/"}, {"path": "bin", "size": 3}, {"path": "link", "target": "a"}]);
    assert_eq!((&listed["entries"], &listed["omitted_entries"]), (&all, &json!(0)), "{listed}");

    assert_eq!(client.done("halt", json!({"name": "w"}))["state"], "halted");
    let resting = client.fails("exec", json!({"name": "w", "command": ["true"]}), "wrong_state");
    assert!(resting["hint"].as_str().unwrap().contains("`start`"), "{resting}");
    // Files of a halted workspace are within reach.
    let read = client.done("read_file", json!({"name": "w", "path": "/srv/a/run.sh"}));
    assert_eq!(read["content"], script);
    let deep = json!({"name": "w", "path": "srv/link", "depth": 2, "max_entries": 2});
    let listed = client.done("list_files", deep);
    assert_eq!(listed["entries"], json!([{"path": "deep/"}, {"path": "deep/f", "size": 0}]), "{listed}");
    assert_eq!(listed["omitted_entries"], 1, "{listed}");
    client.fails("list_files", json!({"name": "w", "path": "/none"}), "not_found");
    client.fails("list_files", json!({"name": "w", "path": "/srv/bin"}), "invalid");
    client.fails("read_file", json!({"name": "w", "path": "/srv"}), "invalid");
    client.fails("list_files", json!({"name": "w", "depth": 17}), "invalid");
    assert_eq!(client.done("start", json!({"name": "w"}))["state"], "running");
    assert_eq!(sh(&client, "w", "cat /s"), "s\n");
    assert_eq!(client.done("status", json!({"name": "w"}))["state"], "running");
    client.done("logs", json!({"name": "w"}));

    assert_eq!(client.done("delete", json!({"name": "w"}))["deleted"], true);
    client.fails("status", json!({"name": "w"}), "not_found");
    assert!(client.close().success());
    home.nothing_is_left();
}

#[test]
fn a_command_in_the_background_is_read_in_parts_and_ended() {
    let home = home();
    let image = home.image("busybox");
    let client = server(&home, Era::Discover, &["--max-timeout", "1h"]);
    client.done("create", json!({"image": image, "name": "w"}));
    let line =
        "cat; echo one; echo two >&2; while [ ! -e /go ]; do sleep 0.1; done; echo three; exec sleep 4242";
    let started = client.done("exec_start", json!({"name": "w", "shell": line, "stdin": "grün\n"}));
    assert_eq!((&started["job"], &started["status"]), (&json!("1"), &json!("running")), "{started}");

    // What both streams have, however many results it takes.
    let mut position = json!(0);
    let mut read = |more: &str| {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        wait_for(more, DEADLINE, || {
            let poll =
                json!({"name": "w", "job": "1", "position": position, "wait_s": 20, "max_output_bytes": 7});
            let part = client.done("exec_poll", poll);
            stdout += part["stdout"].as_str().unwrap();
            stderr += part["stderr"].as_str().unwrap();
            assert_eq!(part["omitted_bytes"], 0);
            position = part["next_position"].clone();
            let all = format!("{stdout}|{stderr}");
            if all == more { Ok(()) } else { Err(all) }
        });
    };
    read("grün\none\n|two\n");
    sh(&client, "w", "touch /go");
    read("three\n|");
    let stopped = client.done("exec_stop", json!({"name": "w", "job": "1"}));
    assert_eq!((&stopped["status"], &stopped["signal"]), (&json!("signaled"), &json!(9)), "{stopped}");
    assert_eq!(client.done("exec_stop", json!({"name": "w", "job": "1"})), stopped);
    let end = client.done("exec_poll", json!({"name": "w", "job": "1", "position": position, "wait_s": 20}));
    assert_eq!((&end["status"], &end["stdout"]), (&json!("signaled"), &json!("")), "{end}");

    let term =
        client.done("exec_start", json!({"name": "w", "command": ["sleep", "4242"], "timeout_s": 3000}));
    client.done("exec_stop", json!({"name": "w", "job": term["job"], "signal": "TERM"}));
    let ended = client.done("exec_poll", json!({"name": "w", "job": term["job"], "wait_s": 50}));
    assert_eq!(ended["exit_code"], 143, "{ended}");

    for (tool, arguments, kind) in [
        ("exec_poll", json!({"name": "w", "job": "9"}), "not_found"),
        ("exec_poll", json!({"name": "w", "job": "../1"}), "invalid"),
        ("exec_poll", json!({"name": "w", "job": "1", "wait_s": 51}), "invalid"),
        ("exec_poll", json!({"name": "w", "job": "1", "max_output_bytes": 0}), "invalid"),
        ("exec_stop", json!({"name": "w", "job": "1", "signal": "NONE"}), "invalid"),
        ("exec_start", json!({"name": "w"}), "invalid"),
        ("exec_start", json!({"name": "w", "command": ["true"], "timeout_s": 3601}), "refused"),
    ] {
        client.fails(tool, arguments, kind);
    }
    let waiting = client.begin("exec_poll", {
        let job = client.done("exec_start", json!({"name": "w", "command": ["sleep", "4242"]}));
        json!({"name": "w", "job": job["job"], "wait_s": 50})
    });
    waiting.give_up();
    assert!(client.close().success());
    home.nothing_is_left();
}

#[test]
fn a_run_gets_files_and_gives_those_that_it_makes() {
    let home = home();
    let image = home.image("busybox");
    let client = server(&home, Era::Discover, &["--max-workspaces", "1"]);
    let files = json!([
        {"path": "/srv/in.sh", "content": "cat; tr a-z A-Z < /srv/deep/in > out; head -c 70000 /dev/zero > zeros; exit 3",
         "executable": true},
        {"path": "srv/deep/in", "content": "Z3LDvG4=", "encoding": "base64"},
    ]);
    let ran = client.done(
        "run",
        json!({"image": image, "command": ["sh", "/srv/in.sh"], "stdin": "in", "working_dir": "/tmp", "files": files,
               "outputs": ["/tmp/out", "/tmp/zeros", "/tmp/none", "/tmp"], "env": {"A": "b"}}),
    );
    assert_eq!((&ran["stdout"], &ran["exit_code"]), (&json!("in"), &json!(3)), "{ran}");
    let out = json!({"path": "/tmp/out", "content": "GRüN", "encoding": "utf-8", "size": 5, "omitted_bytes": 0,
                     "next_offset": 5});
    assert_eq!(ran["files"][0], out, "{ran}");
    assert_eq!(ran["files"][1]["omitted_bytes"], 70000 - 65536);
    let unread: Vec<&Value> =
        ran["unread_files"].as_array().unwrap().iter().map(|file| &file["path"]).collect();
    assert_eq!(unread, ["/tmp/none", "/tmp"], "{ran}");
    // The image's own command, a shell without anything to do; and a file that one time limit leaves.
    let own = client.done("run", json!({"image": image, "outputs": ["/etc/hostname"]}));
    assert_eq!((&own["exit_code"], &own["files"][0]["path"]), (&json!(0), &json!("/etc/hostname")), "{own}");
    let late =
        json!({"image": image, "shell": "echo half > /f; sleep 10000", "outputs": ["/f"], "timeout_s": 5});
    let late = client.done("run", late);
    assert_eq!(
        (&late["status"], &late["files"][0]["content"]),
        (&json!("timed_out"), &json!("half\n")),
        "{late}"
    );

    let many: Vec<Value> =
        (0..65).map(|number| json!({"path": format!("/{number}"), "content": ""})).collect();
    for wrong in [
        json!({"files": many}),
        json!({"files": [{"path": "/a", "content": "!", "encoding": "base64"}]}),
        json!({"files": [{"path": "/srv/", "content": ""}]}),
        json!({"files": [{"path": "/a", "content": "", "from": "/etc/passwd"}]}),
        json!({"outputs": vec!["/f"; 17]}),
    ] {
        let mut arguments = wrong;
        arguments["image"] = json!(image);
        client.fails("run", arguments, "invalid");
    }
    assert_eq!(client.done("list", json!({}))["workspaces"], json!([]));
    assert!(client.close().success());
    home.nothing_is_left();
}

#[test]
fn a_fork_continues_on_its_own() {
    let home = home();
    let image = home.image("busybox");
    let client = server(&home, Era::Initialize, &["--max-workspaces", "3"]);
    client.done("create", json!({"image": image, "name": "w"}));
    client.done("exec_start", json!({"name": "w", "shell": "echo before > /f; exec sleep 4242"}));
    holds(&client, "w", "test -s /f && pidof sleep");
    let fork = client.done("fork", json!({"name": "w"}));
    assert_eq!((&fork["name"], &fork["state"]), (&json!("w-1"), &json!("running")), "{fork}");
    // Its processes, too.
    assert_eq!(sh(&client, "w-1", "pidof sleep > /dev/null; cat /f; echo fork > /f"), "before\n");
    assert_eq!(sh(&client, "w", "cat /f"), "before\n");
    client.done("halt", json!({"name": "w"}));
    let clone = client.done("fork", json!({"name": "w", "new_name": "c"}));
    assert_eq!((&clone["name"], &clone["image"]), (&json!("c"), &json!(image)), "{clone}");
    client.fails("fork", json!({"name": "w"}), "busy");
    client.done("delete", json!({"name": "c"}));
    client.fails("fork", json!({"name": "w", "new_name": "w-1"}), "invalid");
    client.fails("fork", json!({"name": "w", "new_name": "../c"}), "invalid");
    client.fails("fork", json!({"name": "none"}), "not_found");
    assert!(client.close().success());
    home.nothing_is_left();
}

#[test]
fn files_are_what_they_were_at_a_snapshot() {
    let home = home();
    let image = home.image("busybox");
    let client = server(&home, Era::Discover, &[]);
    client.done("create", json!({"image": image, "name": "w", "setup": ["echo before > /f"]}));
    // With its processes, as it runs.
    client.done("snapshot", json!({"name": "w", "tag": "running"}));
    client.done("restore", json!({"name": "w", "tag": "running"}));
    client.done("halt", json!({"name": "w"}));
    let made = client.done("snapshot", json!({"name": "w", "tag": "t"}));
    assert_eq!((&made["tag"], &made["tags"]), (&json!("t"), &json!(["running", "t"])), "{made}");
    let taken = client.fails("snapshot", json!({"name": "w", "tag": "t"}), "already_exists");
    assert!(taken["hint"].as_str().unwrap().contains("another tag"), "{taken}");
    client.done("start", json!({"name": "w"}));
    sh(&client, "w", "echo after > /f");
    client.done("halt", json!({"name": "w"}));
    client.done("restore", json!({"name": "w", "tag": "t"}));
    client.fails("restore", json!({"name": "w", "tag": "none"}), "not_found");
    client.fails("restore", json!({"name": "w", "tag": "../t"}), "invalid");
    let read = client.done("read_file", json!({"name": "w", "path": "/f"}));
    assert_eq!(read["content"], "before\n");
    assert_eq!(client.done("status", json!({"name": "w"}))["snapshots"], json!(["running", "t"]));
    let deleted = client.done("delete_snapshot", json!({"name": "w", "tag": "running"}));
    assert_eq!(deleted["tags"], json!(["t"]), "{deleted}");
    client.fails("delete_snapshot", json!({"name": "w", "tag": "running"}), "not_found");
    assert!(client.close().success());
    home.nothing_is_left();
}

#[test]
fn what_the_policy_does_not_allow_is_refused_with_its_rule() {
    let home = home();
    let image = home.image("busybox");
    home.create("mine", []);
    home.microagent(["start", "mine"]).success();
    let client = server(&home, Era::Discover, &["--max-workspaces", "1", "--max-timeout", "90"]);
    let refused =
        client.fails("run", json!({"image": "registry.example.org/evil", "shell": "id"}), "refused");
    assert!(refused["message"].as_str().unwrap().contains("`allow-image`"), "{refused}");
    for path in ["oci:/etc", "oci-archive:/root/secret.tar", "docker-archive:-", "docker-daemon:app"] {
        client.fails("create", json!({"image": path}), "refused");
    }
    client.fails("run", json!({"image": image, "shell": "id", "timeout_s": 91}), "refused");
    // What only the person decides is no argument, and the error says which.
    for (name, value) in [
        ("volumes", json!(["/:/host"])),
        ("network", json!("user")),
        ("egress", json!("open")),
        ("secrets", json!(["env:HOME"])),
        ("publish", json!(["22"])),
        ("broker", json!("A=https://example.org,secret=env:HOME")),
    ] {
        for tool in ["run", "create"] {
            let mut arguments = json!({"image": image});
            arguments[name] = value.clone();
            let refused = client.fails(tool, arguments, "invalid");
            assert!(refused["message"].as_str().unwrap().contains(&format!("`{name}`")), "{refused}");
            assert!(refused["hint"].as_str().unwrap().contains("image"), "{refused}");
        }
    }
    client.fails("run", json!({"image": image, "shell": "id", "command": ["id"]}), "invalid");
    client.fails("exec", json!({"name": "../mine", "shell": "id"}), "invalid");

    // Workspaces of others do not exist, whatever the tool.
    for tool in ["start", "status", "logs", "halt", "delete"] {
        client.fails(tool, json!({"name": "mine"}), "not_found");
    }
    client.fails("exec", json!({"name": "mine", "shell": "id"}), "not_found");
    client.fails("read_file", json!({"name": "mine", "path": "/etc/passwd"}), "not_found");
    client.fails("write_file", json!({"name": "mine", "path": "/x", "content": ""}), "not_found");
    assert_eq!(client.done("list", json!({}))["workspaces"], json!([]));
    let unusable = client.fails("create", json!({"image": image, "name": "mine"}), "invalid");
    assert_eq!(unusable["message"], "the name `mine` cannot be used", "{unusable}");
    assert_eq!(unusable["hint"], "choose another name, or omit it to have one made up", "{unusable}");

    client.done("create", json!({"image": image, "name": "w", "start": false}));
    let taken = client.fails("create", json!({"image": image, "name": "w"}), "already_exists");
    assert!(taken["hint"].as_str().unwrap().contains("tool `status`"), "{taken}");
    let full = client.fails("create", json!({"image": image}), "busy");
    assert_eq!(full["retryable"], true, "{full}");
    client.fails("run", json!({"image": image, "shell": "id"}), "busy");
    client.done("delete", json!({"name": "w"}));
    assert_eq!(client.done("run", json!({"image": image, "shell": "echo ok"}))["stdout"], "ok\n");
    assert!(client.close().success());

    assert_eq!(home.state_of("mine"), "running");
    home.microagent(["delete", "mine", "-f"]).success();
    home.nothing_is_left();
}

#[test]
fn a_policy_file_decides_as_its_options_do() {
    let home = home();
    let image = home.image("busybox");
    home.write(
        "agents.toml",
        format!("allow-image = [\"{image}\"]\nprofile = \"tiny\"\nmax-workspaces = 1\nmax-timeout = 90\n"),
    );
    let client = McpClient::start(&home, Era::Discover, &["--policy", "agents.toml", "--max-timeout", "60"]);
    client.done("create", json!({"image": image, "name": "w", "start": false}));
    let rules = [
        ("run", json!({"image": "alpine", "shell": "id"}), "refused", "`allow-image`"),
        ("create", json!({"image": image}), "busy", "`max-workspaces`"),
        ("exec", json!({"name": "w", "shell": "id", "timeout_s": 61}), "refused", "`max-timeout`"),
    ];
    for (tool, arguments, kind, rule) in rules {
        let refused = client.fails(tool, arguments, kind);
        assert!(refused["message"].as_str().unwrap().contains(rule), "{refused}");
    }
    assert_eq!(client.done("status", json!({"name": "w"}))["memory_mib"], 256);
    assert!(client.close().success());

    let refused = |text: &str, what: &str| {
        home.write("agents.toml", text);
        home.microagent(["serve", "mcp", "--policy", "agents.toml"]).run().code(2).says(what);
    };
    refused("keep = true\nnetwrok = \"user\"\n", "agents.toml, line 2, column 1: unknown key `netwrok`");
    refused("egress = \"public\"\n", "--network isolated");
    home.microagent(["serve", "mcp", "--policy", "none.toml"]).run().code(1);
    home.nothing_is_left();
}

#[test]
fn a_call_that_is_given_up_ends_its_command() {
    let home = home();
    let image = home.image("busybox");
    let client = server(&home, Era::Initialize, &[]);
    client.done("create", json!({"image": image, "name": "w"}));
    let call = client
        .begin("exec", json!({"name": "w", "shell": "touch /begun; exec sleep 4242", "timeout_s": 3000}));
    holds(&client, "w", "test -e /begun");
    call.give_up();
    holds(&client, "w", "! pidof sleep");

    let run = client.begin("run", json!({"image": image, "shell": "sleep 4242", "timeout_s": 3000}));
    wait_for("the run to have a workspace", DEADLINE, || {
        let workspaces = home.workspaces();
        if workspaces.len() == 2 { Ok(()) } else { Err(workspaces) }
    });
    run.give_up();
    wait_for("the run to be gone", DEADLINE, || {
        let workspaces = home.workspaces();
        if workspaces == ["w"] { Ok(()) } else { Err(workspaces) }
    });
    assert!(client.close().success());
    home.nothing_is_left();
}

#[test]
fn of_many_calls_at_once_those_beyond_the_limit_are_to_be_tried_again() {
    let home = home();
    let image = home.image("busybox");
    let client = server(&home, Era::Initialize, &[]);
    client.done("create", json!({"image": image, "name": "w"}));
    let line = "echo >> /begun; while [ ! -e /go ]; do sleep 0.2; done";
    let exec = json!({"name": "w", "shell": line, "timeout_s": 3000});
    let calls: Vec<_> = (0..50).map(|_| client.begin("exec", exec.clone())).collect();
    let guest = |line: &str| home.microagent(["exec", "w", "--", "sh", "-c", line]).run();
    wait_for("as many commands as a server runs", DEADLINE, || {
        let begun = guest("test $(wc -l < /begun) = 32");
        if begun.status.success() { Ok(()) } else { Err(begun.told()) }
    });
    guest("touch /go").code(0);
    let (done, refused): (Vec<_>, Vec<_>) =
        calls.into_iter().map(|call| call.finish()).partition(Result::is_ok);
    assert!(done.len() >= 32 && done.len() + refused.len() == 50, "{}", done.len());
    for error in refused.into_iter().filter_map(Result::err) {
        assert_eq!((&error["kind"], &error["retryable"]), (&json!("busy"), &json!(true)), "{error}");
    }
    assert_eq!(sh(&client, "w", "echo alive"), "alive\n");
    assert!(client.close().success());
    home.nothing_is_left();
}

#[test]
fn a_long_call_reports_its_progress_and_much_output_is_cut() {
    let home = home();
    let image = home.image("busybox");
    let client = server(&home, Era::Initialize, &[]);
    client.done("create", json!({"image": image, "name": "w"}));
    let line = "seq 1000000; while [ ! -e /go ]; do sleep 0.1; done";
    let call = client.begin("exec", json!({"name": "w", "shell": line, "timeout_s": 3000}));
    wait_for("a note of progress", DEADLINE, || {
        let notes = client.notes();
        if notes.iter().any(|note| note.contains("has printed")) { Ok(()) } else { Err(notes) }
    });
    client.done("write_file", json!({"name": "w", "path": "/go", "content": ""}));
    let result = call.finish().unwrap();
    let stdout = result["stdout"].as_str().unwrap();
    let omitted = result["stdout_omitted_bytes"].as_u64().unwrap();
    assert!(stdout.starts_with("1\n2\n") && stdout.ends_with("\n1000000\n"), "{}", stdout.len());
    // `seq 1000000` prints 6,888,896 bytes.
    assert!(
        omitted > 6_700_000 && stdout.contains(&format!("[... {omitted} bytes left out ...]")),
        "{omitted}"
    );
    assert!(client.close().success());
    home.nothing_is_left();
}

#[test]
fn the_end_of_the_client_ends_what_it_started_unless_it_is_kept() {
    let home = home();
    let image = home.image("busybox");
    let client = server(&home, Era::Initialize, &[]);
    client.done("create", json!({"image": image, "name": "w"}));
    let call = client
        .begin("exec", json!({"name": "w", "shell": "touch /begun; exec sleep 4242", "timeout_s": 3000}));
    holds(&client, "w", "test -e /begun");
    drop(call);
    assert!(client.close().success());
    home.nothing_is_left();

    let client = server(&home, Era::Initialize, &["--keep"]);
    client.done("create", json!({"image": image, "name": "kept"}));
    assert!(client.close().success());
    assert_eq!(home.state_of("kept"), "running");
    let client = server(&home, Era::Initialize, &[]);
    let listed = client.done("list", json!({}));
    assert_eq!(listed["workspaces"][0]["name"], "kept", "{listed}");
    client.done("delete", json!({"name": "kept"}));
    assert!(client.close().success());
    home.nothing_is_left();
}

#[test]
fn what_a_killed_server_left_goes_with_the_next_one() {
    let home = home();
    let image = home.image("busybox");
    let killed = server(&home, Era::Initialize, &[]);
    killed.done("create", json!({"image": image, "name": "w"}));
    kill_process(Pid::from_raw(killed.pid()).unwrap(), Signal::KILL).unwrap();
    killed.close();
    let next = server(&home, Era::Initialize, &[]);
    assert_eq!(sh(&next, "w", "echo alive"), "alive\n");
    // A server of another name has nothing to do with it.
    let other = server(&home, Era::Initialize, &["--name", "other"]);
    other.fails("status", json!({"name": "w"}), "not_found");
    assert!(other.close().success());
    assert_eq!(home.workspaces(), ["w"]);
    assert!(next.close().success());
    home.nothing_is_left();
}

#[test]
fn what_a_killed_server_left_ends_at_its_time_to_live() {
    let home = home();
    let image = home.image("busybox");
    let killed = server(&home, Era::Initialize, &["--ttl", "4"]);
    killed.done("create", json!({"image": image, "name": "w"}));
    let command = json!({"name": "w", "shell": "echo kept > /root/file; sync; exec sleep 4242"});
    killed.done("exec_start", command);
    kill_process(Pid::from_raw(killed.pid()).unwrap(), Signal::KILL).unwrap();
    killed.close();
    // Nobody is left that looks at it, but its supervisor.
    wait_for("the end of its time", DEADLINE, || match home.state_of("w") {
        state if state == "halted" => Ok(()),
        state => Err(state),
    });
    home.processes_end();
    assert!(home.microagent(["events", "w"]).success().text().contains("the time to live has ended"));

    let next = server(&home, Era::Discover, &[]);
    let listed = next.done("list", json!({}));
    assert_eq!(
        (&listed["workspaces"][0]["name"], &listed["workspaces"][0]["state"]),
        (&json!("w"), &json!("halted"))
    );
    next.done("start", json!({"name": "w"}));
    assert_eq!(sh(&next, "w", "cat /root/file"), "kept\n");
    assert!(next.close().success());
    home.nothing_is_left();
}

#[test]
fn standard_output_has_nothing_but_the_protocol() {
    let home = home();
    let message = |value: &Value| format!("{value}\n");
    let initialize = message(&json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}}));
    let call = |id: u32, name: &str, arguments: Value| {
        message(
            &json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": name, "arguments": arguments}}),
        )
    };
    let input = [
        initialize,
        message(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"})),
        call(2, "list", json!({})),
        "this is not JSON\n".to_owned(),
        "[[[[{}\n".to_owned(),
        call(3, "no_such_tool", json!({})),
        call(4, "exec", json!({"name": ["w"], "shell": 5})),
        format!("\"{}\"\n", "x".repeat(9 * 1024 * 1024)),
        message(&json!({"jsonrpc": "2.0", "id": 5, "method": "ping"})),
    ];
    home.write("requests", input.concat());
    let served = home.program().to_str().unwrap();
    let line =
        format!("(cat requests; until [ -e done ]; do sleep 0.1; done) | {served} serve mcp > answers");
    let running = home.other("sh").args(["-c", &line]).start();
    let messages = wait_for("the answer to the last request", DEADLINE, || {
        let text = std::fs::read_to_string(home.path().join("answers")).unwrap_or_default();
        if text.ends_with('\n') && text.contains(r#""id":5"#) { Ok(text) } else { Err(text) }
    });
    home.write("done", "");
    assert!(running.finish().code(0).text().is_empty());
    let messages: Vec<Value> = messages.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let answer = |id: u32| messages.iter().find(|message| message["id"] == id);
    for message in &messages {
        assert_eq!(message["jsonrpc"], "2.0", "{message}");
    }
    assert_eq!(answer(1).unwrap()["result"]["serverInfo"]["name"], "microagent");
    for id in [1, 5] {
        assert!(answer(id).unwrap()["result"].is_object(), "{messages:?}");
    }
    home.nothing_is_left();
}

#[test]
fn who_does_not_speak_the_protocol_is_told() {
    let home = home();
    // Closed at once: the client changed its mind.
    let ended = home.microagent(["serve", "mcp"]).stdin("").success();
    assert_eq!(ended.text(), "");
    home.microagent(["serve", "mcp", "--network", "nonsense"]).run().code(2);
    home.microagent(["serve", "mcp", "--allow-image", "a b"]).run().code(2);
    home.nothing_is_left();
}
