//! A host that has no more descriptors for the network of a guest.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use microagent_tests::{Home, User, far_end, host, wait_for};

const DEADLINE: Duration = Duration::from_secs(60);

/// Descriptors that are left to the stack.
const LEFT: u64 = 6;

/// Connects twenty times and stays; says what is wrong with some of them.
const MANY: &str =
    "for n in $(seq 20); do (sleep 1000 | nc \"$1\" \"$2\" > /tmp/said-$n 2>&1) > /dev/null 2>&1 & done";

fn greeting(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn a_stack_without_descriptors_refuses_at_once_and_serves_again_when_it_has_some() {
    let Some(address) = host::outward_address() else { return host::skip("no address but loopback") };
    let server = TcpListener::bind((address, 0)).unwrap();
    let server = far_end::serve(server, |mut stream| drop(stream.read_to_end(&mut Vec::new())));
    let home = Home::new(User::unprivileged());
    let create = ["create", "box", "--image", &home.image("busybox"), "--egress", "open", "-p", "0:80"];
    home.microagent(create).args(["--service-command", "exec nc -ll -p 80 -e echo 220 ready"]).success();
    home.microagent(["start", "box"]).success();
    let network = || home.microagent(["network", "box", "--json"]).success().json()["network"].clone();
    let port = u16::try_from(network()["port_forwards"][0]["host_port"].as_u64().unwrap()).unwrap();
    wait_for("the server", DEADLINE, || match greeting(port) {
        Ok(text) if text == "220 ready\n" => Ok(()),
        seen => Err(seen),
    });

    let stack = network()["stack_pid"].as_i64().unwrap();
    let used = fs::read_dir(format!("/proc/{stack}/fd")).unwrap().count() as u64;
    let limits = fs::read_to_string(format!("/proc/{stack}/limits")).unwrap();
    let limits = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let hard = limits.split_whitespace().nth(1).unwrap();
    // By the user whose process it is: not every root may.
    let limit = |soft: &str| {
        let words = [format!("--pid={stack}"), format!("--nofile={soft}:{hard}")];
        home.other("prlimit").args(words).success();
    };
    limit(&(used + LEFT).to_string());
    let (to, at) = (address.to_string(), server.to_string());
    let connect = || home.microagent(["exec", "box", "--", "sh", "-c", MANY, "sh", &to, &at]).success();
    connect();
    wait_for("a connection that is refused", DEADLINE, || {
        let said = home.microagent(["exec", "box", "--", "sh", "-c", "cat /tmp/said-*"]).success();
        if said.text().contains("Connection refused") { Ok(()) } else { Err(said.told()) }
    });
    wait_for("a line of the log", DEADLINE, || {
        let log = home.microagent(["egress", "box"]).success();
        if log.text().contains("too many connections are open") { Ok(()) } else { Err(log.told()) }
    });
    // Its client waits at the host's socket.
    let waiting = std::thread::spawn(move || greeting(port));
    limit(hard);
    assert_eq!(waiting.join().unwrap().unwrap(), "220 ready\n");
    home.microagent(["exec", "box", "--", "sh", "-c", "killall sleep; rm /tmp/said-*"]).success();
    connect();
    let opened = format!("{address}:{server}");
    wait_for("connections", DEADLINE, || {
        let said =
            home.microagent(["exec", "box", "--", "sh", "-c", "netstat -tn; cat /tmp/said-*"]).success();
        let open = said.text().lines().filter(|line| line.contains(&opened) && line.contains("ESTABLISHED"));
        if open.count() == 20 { Ok(()) } else { Err(said.told()) }
    });
    assert_eq!(network()["stack_pid"], stack, "it is the same one");
    home.microagent(["delete", "box", "--force", "--yes"]).success();
    home.nothing_is_left();
}
