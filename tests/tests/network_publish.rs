//! Ports of the host that lead into a guest, and what becomes of them.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use microagent_tests::{Finished, Home, User, host, wait_for};
use rustix::process::Signal;

/// How long a service in a guest may take to answer: it is emulated, and others work.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

const READ_DEADLINE: Duration = Duration::from_secs(5);

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

/// A port that nobody has, for the moment.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn nginx_is_reached_through_its_ports_until_passt_is_killed_and_again_after_a_start() {
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

    let passt = home.processes().into_iter().find(microagent_tests::process::Process::is_passt).unwrap();
    assert_eq!(network["network"]["passt_pid"], passt.pid);
    passt.signal(Signal::KILL);
    wait_for("the loss of the network", Duration::from_secs(20), || {
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
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
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
    home.microagent(["start", "two"]).run().code(1).says(&told);
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

/// A program in the place of passt that waits until it may go on to be passt.
struct SlowPasst {
    dir: PathBuf,
    search_path: String,
}

impl SlowPasst {
    fn new(home: &Home) -> SlowPasst {
        let dir = home.make_dir("slow");
        let script = format!(
            "#!/bin/sh\nnumber=0\nwhile [ -e {dir}/call-$number ]; do number=$((number + 1)); done\n\
             echo \"$@\" > {dir}/new; mv {dir}/new {dir}/call-$number\n\
             while [ ! -e {dir}/go-$number ]; do sleep 0.02; done\nexec {passt} \"$@\"\n",
            dir = dir.display(),
            passt = host::find_program("passt").display(),
        );
        let program = home.write("slow/passt", script);
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let path = std::env::var("PATH").unwrap();
        SlowPasst { search_path: format!("{}:{path}", dir.display()), dir }
    }

    /// The port of this call, counted from 0, once it is made.
    fn port_of(&self, call: usize) -> u16 {
        let path = self.dir.join(format!("call-{call}"));
        let words = wait_for("passt's call", Duration::from_secs(60), || fs::read_to_string(&path));
        let (_, rest) = words.split_once("127.0.0.1/").unwrap();
        rest.split(':').next().unwrap().parse().unwrap()
    }

    fn let_go(&self, call: usize) {
        fs::write(self.dir.join(format!("go-{call}")), "").unwrap();
    }
}

#[test]
fn a_port_that_is_taken_between_check_and_start_is_said() {
    let home = home();
    let slow = SlowPasst::new(&home);
    let port = free_port();
    home.microagent(["create", "web", "--image", &home.image("busybox"), "-p", &format!("{port}:80")])
        .success();
    let start = home.microagent(["start", "web"]).env("PATH", &slow.search_path).start();
    assert_eq!(slow.port_of(0), port);
    let thief = TcpListener::bind(("127.0.0.1", port)).unwrap();
    slow.let_go(0);
    let told = format!("cannot publish 127.0.0.1:{port}: Address already in use");
    start.finish().code(1).says(&told).says("Hint: another program was quicker");
    assert_eq!(home.state_of("web"), "failed");
    drop(thief);
    assert_eq!(published(&home.microagent(["start", "web"]).success()), [port]);
    home.microagent(["delete", "web", "--force", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_picked_port_that_is_lost_is_picked_anew() {
    let home = home();
    let slow = SlowPasst::new(&home);
    let serve = "mkdir /www; echo here > /www/index.html; httpd -f -h /www";
    let run = home.run("busybox", ["--name", "picked", "-p", "0:80"], &["sh", "-c", serve]);
    let run = run.env("PATH", &slow.search_path).start();
    let lost = slow.port_of(0);
    let thief = TcpListener::bind(("127.0.0.1", lost)).unwrap();
    slow.let_go(0);
    let picked = slow.port_of(1);
    assert_ne!(picked, lost);
    slow.let_go(1);
    fetch(Ipv4Addr::LOCALHOST, picked, "here");
    drop(thief);
    run.signal(Signal::INT);
    run.finish().code(130).says(&format!("Note: published 127.0.0.1:{picked} -> 80/tcp"));
    home.nothing_is_left();
}
