//! Ports of UDP and of IPv6, ranges, and ports that are picked: as Docker's `-p` has them.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use microagent_tests::{Home, User, host, wait_for};

/// How long a service in a guest may take to answer: it is emulated, and others work.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

const READ_DEADLINE: Duration = Duration::from_secs(30);

/// Says at each TCP port from 8000 to 8002 which it is; sends datagrams to port 53 back, after their source's address.
const SERVICE: &str = r#"exec perl -e 'use Socket;
for $p (8000..8002) { next if fork; socket(S, PF_INET, SOCK_STREAM, 0); bind(S, sockaddr_in($p, INADDR_ANY)) or die;
  listen(S, 9); while (accept(C, S)) { syswrite C, "port $p"; close C } }
socket(U, PF_INET, SOCK_DGRAM, 0); bind(U, sockaddr_in(53, INADDR_ANY)) or die;
while ($c = recv(U, $m, 65535, 0)) { ($p, $a) = sockaddr_in($c); send(U, inet_ntoa($a) . " $m", 0, $c) }'"#;

fn home() -> Home {
    Home::new(User::unprivileged())
}

fn greeting(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(READ_DEADLINE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[track_caller]
fn says(address: SocketAddr, wanted: &str) {
    wait_for(&format!("`{wanted}` from {address}"), ANSWER_DEADLINE, || match greeting(address) {
        Ok(text) if text == wanted => Ok(()),
        seen => Err(seen),
    });
}

/// Sends a datagram until it comes back.
#[track_caller]
fn sends_back(address: SocketAddr, payload: &str) {
    let any = if address.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let wanted = format!("10.0.2.2 {payload}");
    wait_for(&format!("an answer from {address}"), ANSWER_DEADLINE, || {
        let mut answer = vec![0; 65535];
        let received = socket.send(payload.as_bytes()).and_then(|_| socket.recv(&mut answer));
        match received {
            Ok(len) if answer[..len] == *wanted.as_bytes() => Ok(()),
            seen => Err(seen),
        }
    });
}

#[test]
fn ports_are_published_as_docker_publishes_them() {
    let home = home();
    let first = host::own_ports();
    let second = first + 1;
    let has_ipv6 = UdpSocket::bind("[::1]:0").is_ok();
    let range = format!("{first}-{second}:8000-8001");
    let other_address = format!("127.0.0.2:{first}:8002");
    let image = home.image("debian");
    let create = [
        "create",
        "box",
        "--image",
        &image,
        "-p",
        &range,
        "-p",
        &other_address,
        "-p",
        "53/udp",
        "-p",
        "8000",
    ];
    let mut create = home.microagent(create).args(["--service-command", SERVICE]);
    if has_ipv6 {
        create = create.args(["-p", "[::1]::8001", "-p", "[::1]::53/udp"]);
    }
    create.success();
    let resting = home.microagent(["network", "box", "--json"]).success().json();
    assert_eq!(resting["network"]["port_forwards"][3]["protocol"], "udp");
    assert_eq!(resting["network"]["port_forwards"][3]["host_port"], 0);

    let started = home.microagent(["start", "box"]).success();
    let lines: Vec<_> = started.text().lines().filter_map(|line| line.strip_prefix("Published: ")).collect();
    let ports: Vec<(SocketAddr, &str)> = lines
        .iter()
        .map(|line| line.split_once(" -> ").unwrap())
        .map(|(host, guest)| (host.parse().unwrap(), guest))
        .collect();
    assert_eq!(ports[0], (format!("127.0.0.1:{first}").parse().unwrap(), "8000/tcp"));
    assert_eq!(ports[1], (format!("127.0.0.1:{second}").parse().unwrap(), "8001/tcp"));
    assert_eq!(ports[2], (format!("127.0.0.2:{first}").parse().unwrap(), "8002/tcp"));
    for (address, guest) in &ports {
        assert_ne!(address.port(), 0, "{lines:?}");
        match guest.split_once('/').unwrap() {
            (port, "tcp") => says(*address, &format!("port {port}")),
            _ => {
                sends_back(*address, "question");
                sends_back(*address, &"long".repeat(10_000));
            }
        }
    }
    assert_eq!(ports.len(), if has_ipv6 { 7 } else { 5 }, "{lines:?}");
    let log = home.microagent(["egress", "box", "--json"]).success().json();
    let lines = log["egress"].as_array().unwrap();
    assert!(lines.iter().any(|line| line["record"] == "published" && line["protocol"] == "udp"), "{log}");

    // A port that another workspace has, of the same protocol.
    let taken = ports.iter().find(|(_, guest)| *guest == "53/udp").unwrap().0;
    home.run("busybox", ["-p", &format!("{}:53/udp", taken.port())], &["true"])
        .run()
        .code(1)
        .says("cannot publish")
        .says("workspace `box` publishes that port of the host");
    home.microagent(["delete", "box", "--force", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_port_that_cannot_be_meant_is_refused_before_anything_is_done() {
    let home = home();
    for (port, told) in [
        ("8000-8010:80", "11 ports of the host and 1 of the guest"),
        ("80:80/sctp", "only `tcp` and `udp` can"),
        ("localhost:80:80", "is not an address of the host"),
        ("1-65535", "is not a range of 1 to 250 ports"),
    ] {
        home.run("busybox", ["-p", port], &["true"]).run().code(2).says(told);
    }
    let many = ["-p", "1000-1249", "-p", "2000"];
    home.run("busybox", many, &["true"]).run().code(2).says("251 published ports are more than 250");
    if UdpSocket::bind("[::1]:0").is_err() {
        host::skip("this host has no IPv6");
    } else {
        let refused = home.run("busybox", ["-p", "[2001:db8::1]:0:80"], &["true"]).run().code(1);
        refused.says("cannot publish [2001:db8::1]:0").says("this host has no address 2001:db8::1");
    }
    home.nothing_is_left();
}

#[test]
fn ports_are_added_to_and_removed_from_a_running_workspace() {
    let home = home();
    let image = home.image("debian");
    let create = ["create", "box", "--image", &image, "-p", "0:8000"];
    home.microagent(create).args(["--service-command", SERVICE]).success();
    home.microagent(["start", "box"]).success();
    let at = |line: &str| -> SocketAddr {
        let line = line.strip_prefix("Published: ").unwrap_or(line);
        line.split_once(" -> ").unwrap().0.parse().unwrap()
    };
    let listed = home.microagent(["port", "box"]).success();
    let first = at(listed.text().lines().next().unwrap());
    says(first, "port 8000");

    // One that is picked, and one of UDP, by one command; the workspace runs on.
    let added = home.microagent(["port", "add", "box", "8001", "53/udp"]).success();
    let [tcp, udp] = added.text().lines().map(at).collect::<Vec<_>>()[..] else { panic!("{}", added.told()) };
    says(tcp, "port 8001");
    sends_back(udp, "question");
    says(first, "port 8000");
    let network = home.microagent(["network", "box", "--json"]).success().json();
    assert_eq!(network["network"]["port_forwards"][1]["host_port"], tcp.port());
    assert_eq!(network["network"]["port_forwards"][2]["protocol"], "udp");

    // What is taken is refused, and nothing of the same command stays.
    let free = host::own_ports().to_string();
    let taken = format!("{}:8002", first.port());
    home.microagent(["port", "add", "box", &format!("{free}:8002"), &taken])
        .run()
        .code(2)
        .says("published twice");
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("{}:8002", holder.local_addr().unwrap().port());
    home.microagent(["port", "add", "box", &format!("{free}:8002"), &taken])
        .run()
        .code(1)
        .says("Address already in use")
        .says("another program has it");
    assert!(TcpStream::connect(format!("127.0.0.1:{free}")).is_err());
    home.microagent(["port", "remove", "box", "1"]).run().code(2).says("does not publish port 1/tcp");
    assert_eq!(home.microagent(["port", "box"]).success().text().lines().count(), 3);

    // Removed, it is free for others at once. A connection that is open stays open.
    let removed = home.microagent(["port", "remove", "box", &tcp.to_string()]).success();
    assert_eq!(removed.text(), format!("Removed: {tcp} -> 8001/tcp\n"));
    drop(TcpListener::bind(tcp).unwrap());
    assert!(TcpStream::connect(tcp).is_err());
    says(first, "port 8000");

    // What was added stays; port 0 is picked again.
    home.microagent(["restart", "box"]).success();
    let json = home.microagent(["port", "box", "--json"]).success().json();
    let forwards = json["port_forwards"].as_array().unwrap();
    assert_eq!(forwards.len(), 2, "{json}");
    assert_eq!((&forwards[1]["guest_port"], &forwards[1]["protocol"]), (&53.into(), &"udp".into()));
    let udp = format!("127.0.0.1:{}", forwards[1]["host_port"]);
    sends_back(udp.parse().unwrap(), "again");

    // One that rests has its ports changed for the next start.
    home.microagent(["halt", "box"]).success();
    home.microagent(["port", "remove", "box", "0/udp"]).success();
    home.microagent(["port", "add", "box", &format!("{free}:8002")]).success();
    home.microagent(["start", "box"]).success();
    says(format!("127.0.0.1:{free}").parse().unwrap(), "port 8002");
    home.microagent(["quarantine", "box", "--reason", "test"]).success();
    home.microagent(["port", "add", "box", "8001"]).run().code(1).says("quarantined");
    home.microagent(["delete", "box", "--force", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_workspace_without_network_publishes_nothing() {
    let home = home();
    home.microagent(["create", "box", "--image", &home.image("busybox"), "--network", "isolated"]).success();
    home.microagent(["port", "add", "box", "80"]).run().code(2).says("the network is isolated");
    home.microagent(["port", "add", "nobody", "80"]).run().code(1).says("nobody");
    assert_eq!(home.microagent(["port", "box"]).success().text(), "");
    home.microagent(["delete", "box", "--yes"]).success();
    home.nothing_is_left();
}
