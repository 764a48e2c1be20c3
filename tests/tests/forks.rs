//! Forks: several machines that continue from one moment, each as a machine of its own.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use microagent_tests::hostile::let_the_agent_lie;
use microagent_tests::{Home, User, wait_for};
use rustix::process::Signal;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

fn home() -> Home {
    Home::new(User::unprivileged())
}

#[track_caller]
fn sh(home: &Home, name: &str, line: &str) -> String {
    home.microagent(["exec", name, "--", "sh", "-c", line]).success().text().to_owned()
}

/// Prints everything by which programs tell machines and times apart.
const IDENTITY: &str = "hostname; cat /etc/hostname /etc/machine-id /proc/sys/kernel/random/boot_id; \
     cat /sys/class/net/eth0/address; head -c 16 /dev/urandom | od -t x1 | head -n 1; grep -c $(hostname) /etc/hosts";

/// The addresses of the guest in private networks.
fn private_addresses(home: &Home, name: &str) -> Vec<String> {
    let shown = sh(home, name, "ip -4 -o addr show dev eth0");
    let addresses = shown.split_whitespace().filter(|word| word.starts_with("10.210."));
    addresses.filter_map(|word| word.split_once('/')).map(|(address, _)| address.to_owned()).collect()
}

/// The address that a network has for a member.
#[track_caller]
fn address_in(network: &Value, name: &str) -> String {
    let members = network["members"].as_array().unwrap();
    let member = members.iter().find(|member| member["workspace"] == name).unwrap();
    member["address"].as_str().unwrap().to_owned()
}

#[test]
fn forks_are_machines_of_their_own_and_the_source_continues() {
    let home = home();
    let service = "while true; do cat /proc/uptime > /tmp/now; sleep 0.1; done";
    let image = home.image("busybox");
    home.microagent(["network", "create", "team"]).success();
    let create = ["create", "lab", "--image", &image, "--publish", "0:80", "--service-command", service];
    home.microagent(create).args(["--join", "team"]).success();
    home.microagent(["start", "lab"]).success();
    sh(&home, "lab", "echo shared > /root/file; sleep 100000 > /dev/null 2>&1 &");
    // Ended in the forks, and not in the source.
    let session = home.microagent(["exec", "lab", "--", "sh", "-c", "echo ready; sleep 100001"]).start();
    session.prints("ready");
    let forked = home.microagent(["fork", "lab", "--count", "3", "--json"]).success().json();
    let names: Vec<_> =
        forked["forks"].as_array().unwrap().iter().map(|fork| fork["workspace"].as_str().unwrap()).collect();
    assert_eq!(names, ["lab-1", "lab-2", "lab-3"]);
    let machines = [&["lab"], &names[..]].concat();
    let identities: Vec<String> = machines.iter().map(|name| sh(&home, name, IDENTITY)).collect();
    // Each line but the last, of all machines, has another content.
    for line in 0..6 {
        let seen: HashSet<_> =
            identities.iter().map(|identity| identity.lines().nth(line).unwrap()).collect();
        assert_eq!(seen.len(), machines.len(), "line {line} of {identities:#?}");
    }
    assert!(identities.iter().all(|identity| identity.ends_with("\n1\n")), "{identities:#?}");
    let ports: HashSet<_> = forked["forks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fork| fork["port_forwards"][0]["host_port"].as_u64())
        .collect();
    assert_eq!(ports.len(), 3, "{forked}");
    let members = home.microagent(["network", "inspect", "team", "--json"]).success().json();
    for name in &machines {
        assert_eq!(private_addresses(&home, name), [address_in(&members, name)], "{members}");
    }
    // They reach each other without a restart.
    sh(&home, "lab-2", "echo hello > /tmp/hello; nc -l -p 8000 < /tmp/hello > /dev/null 2>&1 &");
    wait_for("a fork reaches another one", PATIENCE, || {
        let said = home.microagent(["exec", "lab-1", "--", "nc", "-w", "5", "lab-2", "8000"]).run();
        if said.text() == "hello\n" { Ok(()) } else { Err(said.told()) }
    });
    for name in &machines {
        let processes = sh(&home, name, "ps");
        assert!(processes.contains("sleep 100000"), "{name}: {processes}");
        assert_eq!(processes.contains("sleep 100001"), *name == "lab", "{name}: {processes}");
        assert_eq!(sh(&home, name, "cat /root/file; echo from-$(hostname) > /root/file; sync"), "shared\n");
        let now = || sh(&home, name, "cat /tmp/now");
        let before = now();
        wait_for("the service continues", PATIENCE, || {
            if now() == before { Err(before.clone()) } else { Ok(()) }
        });
    }
    session.kill();
    for name in &machines {
        assert_eq!(sh(&home, name, "cat /root/file"), format!("from-{name}\n"));
    }
    // The service is theirs, and gets its stop signal.
    home.microagent(["halt", "lab-1"]).success();
    // A fork can be forked, halted and started as any workspace, and the source may go.
    home.microagent(["branch", "lab-2", "again"]).success();
    assert_eq!(sh(&home, "again", "hostname; cat /root/file"), "again\nfrom-lab-2\n");
    let boots: HashSet<_> = ["lab", "lab-2", "again"]
        .map(|name| {
            sh(&home, name, "cat /proc/sys/kernel/random/boot_id; grep -c boot_id /proc/mounts || true")
        })
        .into();
    assert_eq!(boots.len(), 3, "{boots:?}");
    assert!(boots.iter().all(|boot| boot.lines().nth(1).unwrap() <= "1"), "{boots:?}");
    let members = home.microagent(["network", "inspect", "team", "--json"]).success().json();
    assert_eq!(private_addresses(&home, "again"), [address_in(&members, "again")], "{members}");
    home.microagent(["delete", "lab", "--force"]).success();
    home.microagent(["restart", "again"]).success();
    assert_eq!(sh(&home, "again", "cat /root/file; ls /tmp/now"), "from-lab-2\n/tmp/now\n");
    assert_eq!(home.microagent(["snapshot", "list", "again"]).success().text(), "No snapshots.\n");
    home.microagent(["delete", "lab-1", "lab-2", "lab-3", "again", "--force"]).success();
    home.microagent(["network", "delete", "team", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn hooks_run_before_the_processes_continue() {
    let home = home();
    home.create(
        "lab",
        ["--service-command", "while true; do [ -e /run/forked ] && touch /tmp/saw; sleep 0.1; done"],
    );
    home.microagent(["start", "lab"]).success();
    let hooks = "mkdir -p /etc/microagent/after-fork.d; cd /etc/microagent/after-fork.d; \
         printf '#!/bin/sh\\necho one-$(hostname) >> /root/ran; ls /tmp/saw; touch /run/forked\\n' > 10-one; \
         printf '#!/bin/sh\\nexit 3\\n' > 20-fails; printf '#!/bin/sh\\necho last >> /root/ran\\n' > 30-last; \
         printf 'not run' > 40-data; chmod +x 10-one 20-fails 30-last";
    sh(&home, "lab", hooks);
    let forked = home.microagent(["fork", "lab", "kid"]).success();
    forked.says("the hook /etc/microagent/after-fork.d/20-fails failed with exit code 3");
    assert_eq!(sh(&home, "kid", "cat /root/ran"), "one-kid\nlast\n");
    assert_eq!(sh(&home, "lab", "cat /root/ran 2> /dev/null || echo none"), "none\n");
    assert!(home.microagent(["logs", "kid"]).success().text().contains("20-fails failed"));
    // Programs are told, too, whatever makes the machine continue.
    let failed = |document: &Value| {
        let notices = document["notices"].to_string();
        assert!(notices.contains("20-fails failed with exit code 3"), "{document}");
    };
    let forked = home.microagent(["fork", "lab", "one", "two", "--json"]).success().json();
    forked["forks"].as_array().unwrap().iter().for_each(failed);
    home.microagent(["snapshot", "create", "lab", "--tag", "a"]).success();
    let create = ["create", "three", "--from-snapshot", "lab:a", "--start", "--json"];
    failed(&home.microagent(create).success().json());
    failed(&home.microagent(["snapshot", "restore", "lab", "a", "--yes", "--json"]).success().json());
    home.microagent(["kill", "lab"]).success();
    failed(&home.microagent(["start", "lab", "--from-snapshot", "a", "--json"]).success().json());
    home.microagent(["delete", "one", "two", "three", "--force"]).success();
    // One that hangs is killed with what it has started, and the fork starts all the same.
    sh(
        &home,
        "lab",
        "cd /etc/microagent/after-fork.d; printf '#!/bin/sh\\nsleep 1001 &\\nsetsid sleep 1002 &\\nsleep 1000\\n' > 00-hangs; \
         chmod +x 00-hangs",
    );
    home.microagent(["fork", "lab", "slow"]).success().says("00-hangs was killed");
    assert_eq!(sh(&home, "slow", "ps | grep '[s]leep 100' || echo none"), "none\n");
}

#[test]
fn connections_to_the_outside_are_reset_and_those_within_stay() {
    let home = home();
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    home.create("lab", ["--forward", &format!("9000=localhost:{port}")]);
    home.microagent(["start", "lab"]).success();
    sh(
        &home,
        "lab",
        // All of them wait for input that never comes.
        "cd /tmp; mkfifo a b c; (sleep 100000 > a & sleep 100000 > b & sleep 100000 > c &) > /dev/null 2>&1
         (nc host.microagent.internal 9000 < a; echo gone > outside) > /dev/null 2>&1 &
         (nc -l -p 7000 < b; echo ended > inside) > /dev/null 2>&1 &
         until netstat -ltn | grep -q 7000; do :; done
         (nc 127.0.0.1 7000 < c; echo ended > inside) > /dev/null 2>&1 &",
    );
    let (connection, _) = server.accept().unwrap();
    wait_for("the connection within", PATIENCE, || {
        let connections = sh(&home, "lab", "netstat -tn");
        if connections.matches("ESTABLISHED").count() == 3 { Ok(()) } else { Err(connections) }
    });
    home.microagent(["fork", "lab", "kid"]).success();
    wait_for("the connection is reset in the fork", PATIENCE, || {
        match sh(&home, "kid", "cat /tmp/outside 2> /dev/null || true").as_str() {
            "gone\n" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    assert_eq!(sh(&home, "lab", "cat /tmp/outside 2> /dev/null || echo open"), "open\n");
    assert_eq!(sh(&home, "kid", "cat /tmp/inside 2> /dev/null || echo open"), "open\n");
    drop(connection);
}

#[test]
fn a_brokers_value_is_in_no_file_of_a_snapshot() {
    const VALUE: &str = "correct-horse-battery-staple-4711";
    let home = home();
    home.create("lab", ["--broker", "API=https://localhost:9/v1,secret=env:TEST_KEY"]);
    home.microagent(["start", "lab"]).env("TEST_KEY", VALUE).success();
    home.microagent(["snapshot", "create", "lab", "--tag", "a"]).success();
    home.microagent(["fork", "lab", "kid"]).env("TEST_KEY", VALUE).success();
    let mut dirs = vec![home.state()];
    let mut searched = 0;
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let path: PathBuf = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if let Ok(bytes) = fs::read(&path) {
                searched += bytes.len();
                assert!(
                    !bytes.windows(VALUE.len()).any(|window| window == VALUE.as_bytes()),
                    "{}",
                    path.display()
                );
            }
        }
    }
    assert!(searched > 32 << 20, "the memory was searched: {searched} bytes");
}

#[test]
fn names_that_are_taken_or_given_twice_make_nothing() {
    let home = home();
    home.create("lab", []);
    home.microagent(["start", "lab"]).success();
    home.microagent(["fork", "lab", "a", "lab"]).run().code(1).says("choose another name, or delete it");
    home.microagent(["fork", "lab", "a", "a"]).run().code(2).says("the name `a` is given twice");
    home.microagent(["fork", "lab"]).run().code(2).says("microagent fork lab --count N");
    assert_eq!(home.workspaces(), ["lab"]);
    assert_eq!(home.microagent(["snapshot", "list", "lab"]).success().text(), "No snapshots.\n");
    // Of a resting workspace they are clones.
    home.microagent(["halt", "lab"]).success();
    let forked = home.microagent(["fork", "lab", "a", "b", "--json"]).success().json();
    let states: Vec<_> =
        forked["forks"].as_array().unwrap().iter().map(|fork| fork["state"].clone()).collect();
    assert_eq!(states, ["stopped", "stopped"].map(Value::from));
}

#[test]
fn a_guest_that_does_not_hold_still_is_not_captured_and_continues() {
    let home = home();
    home.create("lab", []);
    let_the_agent_lie(&home, "hold-mute");
    home.microagent(["start", "lab"]).env("MICROAGENT_WARM", "off").success();
    home.microagent(["snapshot", "create", "lab"]).run().code(1).says("did not flush its disk within");
    home.microagent(["fork", "lab", "kid"]).run().code(1);
    assert_eq!(home.state_of("lab"), "running");
    assert_eq!(home.workspaces(), ["lab"]);
    home.microagent(["halt", "lab"]).success();
}

#[test]
fn a_guest_that_knows_nothing_of_a_copy_fails_and_its_source_continues() {
    let home = home();
    home.create("lab", []);
    let_the_agent_lie(&home, "none");
    home.microagent(["start", "lab"]).env("MICROAGENT_WARM", "off").success();
    let fork = home.microagent(["fork", "lab", "kid"]).env("MICROAGENT_BOOT_TIMEOUT", "5").run();
    fork.code(1).says("kid");
    assert_eq!((home.state_of("lab"), home.state_of("kid")), ("running".to_owned(), "failed".to_owned()));
    assert_eq!(home.microagent(["snapshot", "list", "lab"]).success().text(), "No snapshots.\n");
}

#[test]
fn a_killed_fork_leaves_no_capture() {
    let home = home();
    home.create("lab", []);
    home.microagent(["start", "lab"]).success();
    let captured = || {
        let tmp = fs::read_dir(home.state().join("tmp")).unwrap().flatten();
        tmp.filter(|entry| entry.path().join("manifest.json").exists()).count()
    };
    let forking = home.microagent(["fork", "lab", "kid"]).start();
    wait_for("the capture", PATIENCE, || if captured() > 0 { Ok(()) } else { Err("none yet") });
    forking.kill();
    home.microagent(["delete", "kid", "--force"]).run();
    // What a killed command has left is removed when it is a minute old.
    for entry in fs::read_dir(home.state().join("tmp")).unwrap().flatten() {
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(600);
        fs::File::open(entry.path()).unwrap().set_modified(long_ago).unwrap();
    }
    home.microagent(["system", "prune", "--yes"]).success();
    assert_eq!(captured(), 0);
    assert_eq!(home.microagent(["snapshot", "list", "lab"]).success().text(), "No snapshots.\n");
    let record: Value =
        serde_json::from_slice(&fs::read(home.workspace("lab").join("workspace.json")).unwrap()).unwrap();
    let layers = fs::read_dir(home.state().join("layers")).unwrap().flatten();
    let layers = layers.filter(|entry| entry.path().extension().is_some_and(|end| end == "qcow2")).count();
    assert_eq!(layers, record["layers"].as_array().unwrap().len());
    home.microagent(["fork", "lab", "next"]).success();
    assert_eq!(sh(&home, "next", "hostname"), "next\n");
}

#[test]
fn forks_that_were_made_are_named_when_another_cannot_be() {
    let home = home();
    let image = home.image("busybox");
    home.microagent(["create", "lab", "--image", &image, "--publish", "0:80"]).success();
    home.microagent(["start", "lab"]).success();
    let forked = home.microagent(["fork", "lab", "--count", "4"]).env("MICROAGENT_MAX_RUNNING", "3").run();
    let forked = forked.code(75).says("fork `lab-3` was not started; started before: `lab-1`, `lab-2`");
    forked.says("MICROAGENT_MAX_RUNNING");
    assert_eq!(home.workspaces(), ["lab", "lab-1", "lab-2"]);
    // The text has the ports that were picked.
    home.microagent(["kill", "lab-1"]).success();
    let forked = home.microagent(["fork", "lab", "kid"]).success();
    let port = home.microagent(["status", "kid", "--json"]).success().json();
    let port = &port["port_forwards"][0]["host_port"];
    assert!(
        forked.text().starts_with(&format!("kid (running), 127.0.0.1:{port} -> 80/tcp")),
        "{}",
        forked.told()
    );
    // What no fork could have is missed before there is one.
    home.create("api", ["--broker", "API=https://localhost:9/v1,secret=env:TEST_KEY"]);
    home.microagent(["start", "api"]).env("TEST_KEY", "value").success();
    home.microagent(["fork", "api", "--count", "2"]).run().code(1).says("TEST_KEY");
    assert!(!home.workspace("api-1").exists());
    home.microagent(["snapshot", "create", "api", "--tag", "a"]).success();
    let create = ["create", "other", "--from-snapshot", "api:a", "--start"];
    home.microagent(create).run().code(1).says("TEST_KEY");
    assert!(!home.workspace("other").exists());
}

#[test]
fn a_cancelled_fork_leaves_nothing_and_a_cancelled_restore_is_completed() {
    let home = home();
    home.create("lab", []);
    home.microagent(["start", "lab"]).success();
    let fork = home.microagent(["fork", "lab", "--count", "2"]).start();
    fork.tells("Restoring lab-1");
    fork.signal(Signal::INT);
    fork.finish().code(130).says("cancelled");
    assert_eq!(home.workspaces(), ["lab"]);

    sh(&home, "lab", "echo before > /root/file; sync");
    home.microagent(["snapshot", "create", "lab", "--tag", "a"]).success();
    sh(&home, "lab", "echo after > /root/file; sync");
    let restore = home.microagent(["snapshot", "restore", "lab", "a", "--yes"]).start();
    restore.tells("Restoring lab");
    restore.signal(Signal::INT);
    restore.finish().code(0).says("too late to cancel");
    assert_eq!(home.state_of("lab"), "running");
    assert_eq!(sh(&home, "lab", "cat /root/file"), "before\n");

    // Names that are made up are nobody's fault.
    let forks = ["fork", "lab", "--count", "1"];
    let both = [home.microagent(forks).start(), home.microagent(forks).start()];
    for fork in both {
        fork.finish().code(0);
    }
    assert_eq!(home.workspaces(), ["lab", "lab-1", "lab-2"]);

    // Before the disk is restored, nothing has changed; after it, the error says what is true.
    home.microagent(["kill", "lab"]).success();
    let start = home.microagent(["start", "lab", "--from-snapshot", "a"]).start();
    start.tells("Restoring lab");
    start.signal(Signal::INT);
    start.finish().code(130).says("workspace `lab` is stopped and has the disk of snapshot `a`");
    assert_eq!(home.state_of("lab"), "stopped");
}

/// The script of the how-to, word for word.
#[test]
fn the_script_of_the_documentation_keeps_the_best_and_rolls_the_source_back() {
    let home = home();
    let page = include_str!("../../docs/how-to/snapshots.md");
    let (_, rest) = page.split_once("```sh\n").unwrap();
    let (script, _) = rest.split_once("```").unwrap();
    let path = home.write("try.sh", script);
    let image = home.image("busybox");
    let programs = home.program().parent().unwrap().to_str().unwrap().to_owned();
    let search = format!("{programs}:{}", std::env::var("PATH").unwrap());
    let done = home.other("sh").args([path.to_str().unwrap(), &image]).env("PATH", search).success();
    assert!(done.text().contains("the best is lab-"), "{}", done.told());
    assert!(done.text().ends_with("500 /work/data\n"), "{}", done.told());
    assert_eq!(home.workspaces().len(), 2);
}
