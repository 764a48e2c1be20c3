//! What `run` promises about the command, its result and its machine.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io::Read;
use std::net::TcpListener;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use microagent_tests::{Home, User, host};
use serde_json::{Value, json};

fn home() -> Home {
    Home::new(User::Caller)
}

#[test]
fn the_guests_exit_code_is_reported_and_passed_through_on_request() {
    let home = home();
    let run = home.run("busybox", [], &["sh", "-c", "echo out; exit 3"]).success();
    assert_eq!(run.summary("Exit code"), "3");
    assert_eq!(run.guest_output(), "out\n");
    home.run("busybox", ["--propagate-exit-code", "--network", "isolated"], &["sh", "-c", "exit 3"])
        .run()
        .code(3);
    // Not the command itself: it is process 1, which the kernel protects from its own signals.
    let line = "sh -c 'kill -9 $$'; exit $?";
    let killed = home.run("busybox", ["--network", "isolated"], &["sh", "-c", line]).success();
    assert_eq!(killed.summary("Exit code"), "137");
    home.nothing_is_left();
}

#[test]
fn json_has_the_whole_story_and_keeps_the_streams_apart() {
    let home = home();
    let words = ["sh", "-c", "echo out; echo err >&2; printf 'gr\\303\\274n\\n'"];
    let run = home.run("busybox", ["--json", "--profile", "tiny", "--hostname", "box"], &words).success();
    let document = run.json();
    let keys = ["workspace", "final_state", "profile", "network", "resources", "image", "result", "backend"];
    for key in keys {
        assert!(!document[key].is_null(), "no `{key}`\n{}", run.told());
    }
    assert_eq!(document["final_state"], "stopped");
    assert_eq!(document["profile"], "tiny");
    assert_eq!(document["network"], "user");
    // The disk of `tiny` is smaller than any image and the room that stays free beside it.
    assert_eq!(document["resources"], json!({ "memory_mib": 256, "cpu_count": 1, "size_mib": 1024 }));
    let backend = document["backend"].as_str().unwrap_or_default();
    assert!(["linux-kvm", "linux-tcg"].contains(&backend), "{backend}");
    let result = &document["result"];
    assert_eq!(result["exit_code"], 0);
    assert_eq!(result["stdout"], "out\ngrün\n");
    assert_eq!(result["stderr"], "err\n");
    let [started, exited] =
        ["started_at", "exited_at"].map(|key| result[key].as_str().unwrap_or_default().to_owned());
    assert!(started.starts_with("20") && started.ends_with('Z') && started < exited, "{started} {exited}");
    assert_snake_case(&document);
    assert_eq!(run.stderr, "", "no progress with --json");
}

fn assert_snake_case(value: &Value) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                assert!(
                    key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
                    "{key}"
                );
                assert_snake_case(value);
            }
        }
        Value::Array(values) => values.iter().for_each(assert_snake_case),
        _ => {}
    }
}

#[test]
fn binary_output_survives_in_json_and_in_text() {
    let home = home();
    let words = ["sh", "-c", "printf '\\377\\000\\001\\n'"];
    let run = home.run("busybox", ["--json", "--network", "isolated"], &words).success();
    let result = &run.json()["result"];
    assert_eq!(result["stdout_encoding"], "base64", "{}", run.told());
    assert_eq!(result["stdout"], STANDARD.encode(b"\xff\x00\x01\n"));
    let run = home.run("busybox", ["--network", "isolated"], &words).success();
    assert!(run.stdout.ends_with(b"\n\n\xff\x00\x01\n"), "{}", run.told());
}

/// All bytes of a large output arrive, in order.
#[test]
fn much_output_arrives_whole() {
    let home = home();
    let run = home.run("busybox", ["--network", "isolated"], &["seq", "300000"]).success();
    let expected: String = (1..=300_000).map(|number| format!("{number}\n")).collect();
    assert!(
        run.guest_output() == expected,
        "{} bytes instead of {}",
        run.guest_output().len(),
        expected.len()
    );
}

#[test]
fn the_images_configuration_is_honoured() {
    let home = home();
    let config = [
        "--config.entrypoint=/bin/sh",
        "--config.entrypoint=-c",
        "--config.cmd=id -u; id -g; pwd; echo $COLOUR",
        "--config.user=1000:1001",
        "--config.workingdir=/srv/app",
        "--config.env=COLOUR=green",
    ];
    let image = home.configured_image("busybox", &config);
    let run = home.microagent(["run", &image]).success();
    assert_eq!(run.guest_output(), "1000\n1001\n/srv/app\ngreen\n");
    let run = ["run", "-e", "COLOUR=red", "--user", "root", "--workdir", "/tmp", &image];
    assert_eq!(home.microagent(run).success().guest_output(), "0\n0\n/tmp\nred\n");
    let run = home.microagent(["run", &image, "echo $0 $HOME", "words"]).success();
    assert!(run.guest_output().starts_with("words /"), "{}", run.told());
    let run = ["run", "--entrypoint", "echo", &image, "only", "this"];
    assert_eq!(home.microagent(run).success().guest_output(), "only this\n");
}

#[test]
fn the_machine_has_the_size_that_was_asked_for() {
    let home = home();
    let probe = "nproc; grep MemTotal /proc/meminfo | tr -dc 0-9; echo; df -m / | tail -n 1; hostname; cat /etc/hostname";
    let options = ["--memory", "300", "--cpus", "3", "--size-mib", "3000", "--hostname", "my-box"];
    let run = home.run("busybox", options, &["sh", "-c", probe]).success();
    assert_eq!(run.summary("Resources"), "memory=300MiB cpus=3 disk=3000MiB");
    let lines: Vec<_> = run.guest_output().lines().collect();
    assert_eq!(lines[0], "3", "{}", run.told());
    let memory_mib = lines[1].parse::<u64>().unwrap() / 1024;
    assert!((230..=300).contains(&memory_mib), "{memory_mib} MiB\n{}", run.told());
    let disk_mib: u64 = lines[2].split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((2700..=3000).contains(&disk_mib), "{disk_mib} MiB\n{}", run.told());
    assert_eq!(lines[3..], ["my-box", "my-box"], "{}", run.told());
}

#[test]
fn a_disk_too_small_for_its_image_grows_and_says_so() {
    let home = home();
    let run =
        home.run("debian", ["--profile", "tiny", "--network", "isolated"], &["df", "-m", "/"]).success();
    assert_eq!(run.summary("Resources"), "memory=256MiB cpus=1 disk=1024MiB");
    let run = run.says("raised from 512 to 1024 MiB");
    let row = run.guest_output().lines().last().unwrap_or_default();
    let available: u64 = row.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert!(available >= 400, "{available} MiB are left\n{}", run.told());
}

#[test]
fn an_isolated_guest_has_loopback_only() {
    let home = home();
    let run = home.run(
        "busybox",
        ["--network", "isolated"],
        &["sh", "-c", "ls -d /sys/class/net/*/; cat /proc/net/route | wc -l"],
    );
    let run = run.success();
    assert_eq!(run.summary("Network"), "isolated");
    assert_eq!(run.guest_output(), "/sys/class/net/lo/\n1\n");
}

/// A server on the host's loopback that answers nobody it should not answer.
fn loopback_server() -> (TcpListener, u16) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    server.set_nonblocking(true).unwrap();
    (server, port)
}

#[test]
fn a_guest_on_network_user_cannot_reach_the_hosts_loopback() {
    let home = home();
    let (server, port) = loopback_server();
    let knock = format!(
        "for host in 10.0.2.2 127.0.0.1 10.0.2.15 10.0.2.3; do \
           if echo knock | nc -w 3 $host {port}; then echo reached $host; else echo closed; fi; done; ls /sys/class/net; cat /etc/resolv.conf"
    );
    let run = home.run("busybox", [], &["sh", "-c", &knock]).success();
    assert!(!run.guest_output().contains("reached"), "{}", run.told());
    assert_eq!(run.guest_output().matches("closed").count(), 4, "{}", run.told());
    assert!(run.guest_output().contains("eth0"), "{}", run.told());
    assert!(run.guest_output().contains("nameserver 10.0.2.3"), "{}", run.told());
    assert!(server.accept().is_err(), "somebody reached the host's loopback");
}

/// The other half: the way out is open. The host's own address on its network stands for the world, so it takes the mode
/// that lets that through.
#[test]
fn a_guest_on_network_user_reaches_other_hosts() {
    let Some(address) = host::outward_address() else {
        host::skip("this host has no IPv4 address besides loopback");
        return;
    };
    let home = home();
    let server = TcpListener::bind((address, 0)).unwrap();
    let port = server.local_addr().unwrap().port();
    let heard = std::thread::spawn(move || {
        let (mut peer, _) = server.accept().unwrap();
        let mut text = String::new();
        peer.read_to_string(&mut text).map(|_| text)
    });
    let knock = format!("echo knock | nc -w 60 {address} {port}");
    let run = home.run("busybox", ["--egress", "open"], &["sh", "-c", &knock]).success();
    assert_eq!(run.summary("Exit code"), "0", "{}", run.told());
    assert_eq!(heard.join().unwrap().unwrap(), "knock\n");
}

#[test]
fn no_two_runs_are_alike() {
    let home = home();
    let probe = "cat /etc/machine-id; head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo; hostname";
    let runs = [(); 2].map(|()| home.run("busybox", [], &["sh", "-c", probe]).success());
    let [first, second] =
        runs.each_ref().map(|run| run.guest_output().lines().map(str::to_owned).collect::<Vec<_>>());
    assert_eq!(first[0].len(), 32);
    for (line, other) in first.iter().zip(&second) {
        assert_ne!(line, other);
    }
}

#[test]
fn the_guests_clock_is_right() {
    let home = home();
    let before = unix_time();
    let run = home.run("busybox", ["--network", "isolated"], &["date", "+%s"]).success();
    let guest: u64 = run.guest_output().trim().parse().unwrap();
    assert!((before..=unix_time()).contains(&guest), "{before} {guest}");
}

fn unix_time() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

#[test]
fn a_failing_setup_step_fails_the_run_and_is_named() {
    let home = home();
    let options = ["--setup", "echo one", "--setup", "echo two; exit 7", "--setup", "echo three"];
    let run = home.run("busybox", options, &["echo", "never"]).run().code(1);
    let run = run.says("setup step 2 failed with exit code 7: echo two; exit 7");
    assert_eq!(run.text(), "one\ntwo\n");
    let name = run.failed_workspace();
    assert_eq!(home.state_of(name), "failed");
    home.microagent(["delete", name, "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_command_that_is_not_there_is_127_and_one_that_is_not_executable_126() {
    let home = home();
    for (command, code) in [("no-such-program", 127), ("/etc/passwd", 126), ("/etc", 126)] {
        let run = home.run("busybox", ["--json", "--network", "isolated"], &[command]).success();
        let result = &run.json()["result"];
        assert_eq!(result["exit_code"], code, "{}", run.told());
        let error = result["start_error"].as_str().unwrap_or_default();
        assert!(error.contains(command), "{}", run.told());
    }
    let run = home
        .run("busybox", ["--propagate-exit-code", "--network", "isolated"], &["no-such-program"])
        .run()
        .code(127);
    let run = run.says("no-such-program");
    assert_eq!(run.summary("Exit code"), "127");
    let run = home.run("busybox", ["--network", "isolated", "--user", "nobody-here"], &["true"]).run();
    assert!(run.stderr.contains("nobody-here"), "{}", run.told());
    home.nothing_is_left();
}
