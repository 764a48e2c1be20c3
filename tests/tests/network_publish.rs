//! Ports of the host that lead into a guest, and what becomes of them.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use microagent_tests::process::Process;
use microagent_tests::{Finished, Home, User, host, wait_for};
use rustix::process::Signal;

/// How long a service in a guest may take to answer: it is emulated, and others work.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

const READ_DEADLINE: Duration = Duration::from_secs(30);

fn home() -> Home {
    Home::new(User::unprivileged())
}

/// The host's ports that an answer names, in its order.
fn published(answer: &Finished) -> Vec<u16> {
    let lines = answer.text().lines().filter_map(|line| line.strip_prefix("Published: "));
    lines.map(|line| line.split([':', ' ']).nth(1).unwrap().parse().unwrap()).collect()
}

fn fetch_once(host: Ipv4Addr, port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((host, port))?;
    stream.set_read_timeout(Some(READ_DEADLINE))?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: web\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

/// What a web server in the guest gives, once it does.
#[track_caller]
fn fetch(host: Ipv4Addr, port: u16, wanted: &str) {
    wait_for(&format!("`{wanted}` from port {port} of {host}"), ANSWER_DEADLINE, || {
        match fetch_once(host, port) {
            Ok(page) if page.contains(wanted) => Ok(()),
            seen => Err(seen),
        }
    });
}

/// What a server says to a client that says nothing.
fn greeting(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(READ_DEADLINE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn is_refused(host: Ipv4Addr, port: u16) -> bool {
    TcpStream::connect((host, port)).is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
}

#[test]
fn nginx_is_reached_through_its_ports_until_the_network_is_killed_and_again_after_a_start() {
    let home = home();
    let image = home.image("services");
    let web = ["create", "web", "--image", &image, "-p", "0:80", "--publish", "0.0.0.0:0:80/tcp"];
    home.microagent(web).args(["--service-command", "nginx -g 'daemon off;'"]).success();
    let resting = home.microagent(["network", "web", "--json"]).success().json();
    assert_eq!(resting["network"]["port_forwards"][0]["host_port"], 0);
    assert!(resting["network"]["link"].is_null());

    let [local, open] = published(&home.microagent(["start", "web"]).success())[..] else {
        panic!("two ports")
    };
    fetch(Ipv4Addr::LOCALHOST, local, "Welcome to nginx");
    fetch(Ipv4Addr::LOCALHOST, open, "Welcome to nginx");
    if let Some(address) = host::outward_address() {
        fetch(address, open, "Welcome to nginx");
        assert!(is_refused(address, local), "127.0.0.1 is for this host alone");
    }
    let network = home.microagent(["network", "web", "--json"]).success().json();
    assert_eq!(network["state"], "running");
    assert_eq!((&network["network"]["mode"], &network["network"]["link"]), (&"user".into(), &"up".into()));
    let forwards = &network["network"]["port_forwards"];
    assert_eq!((&forwards[0]["host"], &forwards[1]["host"]), (&"127.0.0.1".into(), &"0.0.0.0".into()));
    assert_eq!((&forwards[0]["host_port"], &forwards[1]["host_port"]), (&local.into(), &open.into()));
    assert_eq!((&forwards[0]["guest_port"], &forwards[0]["protocol"]), (&80.into(), &"tcp".into()));
    assert_eq!(network["runtime"]["ip"], "10.0.2.15");
    assert_eq!(
        &home.microagent(["ps", "--json"]).success().json()["workspaces"][0]["port_forwards"],
        forwards
    );
    assert_eq!(&home.microagent(["status", "web", "--json"]).success().json()["port_forwards"], forwards);
    let log = home.microagent(["egress", "web"]).success();
    assert!(log.text().contains("published: the port is published"), "{}", log.told());

    let stack = home.processes().into_iter().find(Process::is_network_stack).unwrap();
    assert_eq!(network["network"]["stack_pid"], stack.pid);
    home.processes().into_iter().find(Process::is_network_keeper).unwrap().signal(Signal::KILL);
    wait_for("the loss of the network", Duration::from_secs(60), || {
        let events = home.microagent(["events", "web"]).success();
        if events.text().contains("the network is gone") { Ok(()) } else { Err(events.told()) }
    });
    let network = home.microagent(["network", "web"]).success();
    assert!(network.text().contains("State: running\nNetwork: user\nLink: down\n"), "{}", network.told());
    assert!(is_refused(Ipv4Addr::LOCALHOST, local));
    assert_eq!(home.microagent(["exec", "web", "--", "echo", "alive"]).success().text(), "alive\n");

    home.microagent(["halt", "web"]).success();
    let again = home.microagent(["start", "web"]).success();
    fetch(Ipv4Addr::LOCALHOST, published(&again)[0], "Welcome to nginx");
    let network = home.microagent(["network", "inspect", "web"]).success();
    assert!(network.text().contains("Link: up\n"), "{}", network.told());
    home.microagent(["delete", "web", "--force", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_taken_port_is_said_before_anything_is_done() {
    let home = home();
    let port = host::own_ports();
    let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let publish = format!("{port}:80");
    let told = format!("cannot publish 127.0.0.1:{port}: Address already in use");

    home.run("busybox", ["-p", &publish], &["true"])
        .run()
        .code(1)
        .says(&told)
        .says("Hint: another program has it");
    let refused = home.run("busybox", ["--json", "-p", &publish], &["true"]).run().code(1).json_error();
    assert_eq!((&refused["kind"], &refused["retryable"]), (&"port_unavailable".into(), &false.into()));
    assert_eq!(home.workspaces(), [] as [&str; 0]);

    // A server that speaks first.
    let serve = ["--service-command", "exec nc -ll -p 80 -e echo 220 ready"];
    for name in ["one", "two"] {
        let create = ["create", name, "--image", &home.image("busybox"), "-p", &publish];
        home.microagent(create).args(serve).success();
    }
    home.microagent(["start", "one"]).run().code(1).says(&told);
    assert_eq!(home.state_of("one"), "prepared");
    drop(holder);
    assert_eq!(published(&home.microagent(["start", "one"]).success()), [port]);
    let refused = home.microagent(["start", "two"]).run().code(1);
    refused.says(&format!("cannot publish 127.0.0.1:{port}:80/tcp: workspace `one` publishes that port"));
    assert_eq!(home.state_of("two"), "prepared");
    home.microagent(["halt", "one"]).success();
    assert_eq!(published(&home.microagent(["start", "two"]).success()), [port]);
    wait_for("the server's greeting", ANSWER_DEADLINE, || match greeting(port) {
        Ok(text) if text == "220 ready\n" => Ok(()),
        seen => Err(seen),
    });
    for name in ["one", "two"] {
        home.microagent(["delete", name, "--force", "--yes"]).success();
    }
    home.nothing_is_left();
}

#[test]
fn a_port_that_cannot_be_had_is_refused_with_the_reason() {
    let home = home();
    home.run("busybox", ["-p", "203.0.113.1:0:80"], &["true"]).run().code(1).says("this host has no address");
    home.run("busybox", ["-p", "8080:80", "-p", "8080:81"], &["true"]).run().code(2).says("published twice");
    home.run("busybox", ["--network", "isolated", "-p", "0:80"], &["true"]).run().code(2).says("no network");
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    if first.trim() == "1024" {
        home.run("busybox", ["-p", "81:80"], &["true"]).run().code(1).says("ports below 1024");
    } else {
        host::skip("every port is everybody's on this host");
    }
    home.nothing_is_left();
}
