//! Names and servers that the user gives a guest: name servers, search domains, added hosts, forwarded ports.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use microagent_tests::{Finished, Home, User, host, wait_for};

fn home() -> Home {
    Home::new(User::unprivileged())
}

fn guest(home: &Home, script: &str) -> Finished {
    let exec = home.microagent(["exec", "box", "--", "sh", "-c", script]);
    exec.deadline(Duration::from_secs(100)).run()
}

fn create_and_start(home: &Home, image: &str, flags: &[&str]) {
    home.microagent(["create", "box", "--image", &home.image(image)]).args(flags).success();
    home.microagent(["start", "box"]).success();
}

fn delete(home: &Home) {
    home.microagent(["delete", "box", "--force", "--yes"]).success();
    home.nothing_is_left();
}

/// A real name server on loopback, and its port. It ends with the test.
struct NameServer {
    server: Child,
    port: u16,
}

impl NameServer {
    fn start(records: &[String]) -> NameServer {
        let port = host::own_ports();
        let server = Command::new("dnsmasq")
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"])
            .args(["--listen-address=127.0.0.1", "--bind-interfaces", "--user=", "--pid-file"])
            .args(["--local=/example/", "--auth-ttl=300", &format!("--port={port}")])
            .args(records)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start dnsmasq: {error}"));
        let query =
            [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], b"\x04ping\x07example\x00\x00\x01\x00\x01"].concat();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        wait_for("the name server", Duration::from_secs(60), || {
            socket.send_to(&query, (Ipv4Addr::LOCALHOST, port)).unwrap();
            socket.recv_from(&mut [0; 512])
        });
        NameServer { server, port }
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn record(name: &str, address: &str) -> String {
    format!("--host-record={name}.example,{address}")
}

/// What `getent` says of a name: its addresses, once each.
fn addresses(home: &Home, name: &str) -> Vec<String> {
    let said = guest(home, &format!("getent ahostsv4 {name}"));
    let mut found: Vec<String> =
        said.text().lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    found.sort();
    found.dedup();
    found
}

#[test]
fn a_guest_looks_names_up_as_its_user_says() {
    let mut records = vec![record("www.corp", "203.0.113.9"), record("inside.corp", "10.99.0.5")];
    records.extend((1..=60).map(|n| record("many", &format!("203.0.113.{n}"))));
    let server = NameServer::start(&records);
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let silent_address = format!("127.0.0.1:{}", silent.local_addr().unwrap().port());
    let (home, server_address) = (home(), server.address());
    let flags = [
        &["--dns", &silent_address, "--dns", &server_address, "--dns-search", "corp.example"][..],
        &["--add-host", "db.internal:203.0.113.77", "--add-host", "proxy:host-gateway"],
        &["--egress-allow", ".example", "--hostname", "box"],
    ]
    .concat();
    create_and_start(&home, "debian", &flags);

    assert!(guest(&home, "cat /etc/resolv.conf").text().contains("search corp.example\n"));
    // Of two name servers the first says nothing.
    assert_eq!(addresses(&home, "www"), ["203.0.113.9"]);
    // More than a datagram holds: the C library asks again by TCP.
    assert_eq!(addresses(&home, "many.example.").len(), 60);
    assert_eq!(addresses(&home, "db.internal"), ["203.0.113.77"]);
    assert_eq!(addresses(&home, "proxy"), ["10.0.2.2"]);
    assert_eq!(addresses(&home, "host.docker.internal"), ["10.0.2.2"]);
    assert_eq!(addresses(&home, "any.localhost"), ["127.0.0.1"]);
    assert!(addresses(&home, "nobody.example").is_empty());
    let reverse = guest(&home, "getent hosts 10.0.2.2 203.0.113.77; getent hosts 10.0.2.99 || echo nobody");
    for name in ["host.microagent.internal", "db.internal", "nobody"] {
        assert!(reverse.text().contains(name), "{}", reverse.told());
    }
    // A name that leads inside is told, and opens nothing.
    assert_eq!(addresses(&home, "inside"), ["10.99.0.5"]);
    let knock = "exec 3<>/dev/tcp/inside.corp.example/80";
    let refused = home.microagent(["exec", "box", "--", "timeout", "60", "bash", "-c", knock]).run().code(1);
    assert!(refused.stderr.contains("Connection refused"), "{}", refused.told());
    let log = home.microagent(["egress", "box"]).success();
    let line = log.text().lines().find(|line| line.contains("10.99.0.5:80")).unwrap().to_owned();
    assert!(line.contains("  refused  inside.corp.example (10.99.0.5:80)"), "{line}");

    let status = home.microagent(["status", "box"]).success();
    for line in ["Search domain: corp.example\n", "Added host: db.internal:203.0.113.77\n"] {
        assert!(status.text().contains(line), "{}", status.told());
    }
    let document = home.microagent(["network", "box", "--json"]).success().json();
    assert_eq!(document["network"]["dns"]["hosts"][1], "proxy:host-gateway");
    delete(&home);
}

#[test]
fn a_name_server_that_takes_four_seconds_is_waited_for() {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = format!("127.0.0.1:{}", server.local_addr().unwrap().port());
    std::thread::spawn(move || {
        let mut query = [0; 1500];
        while let Ok((len, client)) = server.recv_from(&mut query) {
            let server = server.try_clone().unwrap();
            let end = 12 + query[12..len].iter().position(|byte| *byte == 0).unwrap() + 5;
            let header = [&query[..2], &[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]].concat();
            let record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, 7];
            let answer = [&header, &query[12..end], &record[..]].concat();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_secs(4));
                server.send_to(&answer, client)
            });
        }
    });
    let home = home();
    let run = home.microagent(["run", "--dns", &address, &home.image("debian")]);
    let run = run.args(["getent", "ahostsv4", "slow.example"]).deadline(Duration::from_secs(100)).success();
    assert!(run.guest_output().starts_with("203.0.113.7 "), "{}", run.told());
    home.nothing_is_left();
}

/// A server that says what it is, and its port.
fn serve(says: &'static str) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut line = [0; 5];
            // A client that goes away is not what is tested.
            let _ = stream.read_exact(&mut line).and_then(|()| stream.write_all(says.as_bytes()));
        }
    });
    port
}

#[test]
fn a_guest_reaches_the_servers_of_the_host_that_are_forwarded_and_no_others() {
    let (model, other) = (serve("model\n"), serve("other\n"));
    let home = home();
    let forward = format!("8000=localhost:{model}");
    for flags in [&["--egress", "allowlist"][..], &["--network", "isolated"]] {
        create_and_start(&home, "busybox", &[flags, &["--forward", &forward]].concat());
        let ask = "echo ask! | nc -w 60 host.microagent.internal 8000";
        assert_eq!(guest(&home, ask).code(0).text(), "model\n", "{flags:?}");
        for (name, port) in [("host.microagent.internal", model), ("10.0.2.2", other), ("127.0.0.1", other)] {
            let refused = guest(&home, &format!("nc -w 60 {name} {port} < /dev/null"));
            assert!(refused.stderr.contains("onnection refused"), "{name}:{port}: {}", refused.told());
        }
        let nobody = guest(&home, "nslookup www.example.org");
        assert_eq!(nobody.status.code(), Some(1), "{flags:?}: {}", nobody.told());
        let knock = guest(&home, "nc -w 60 203.0.113.1 443 < /dev/null");
        assert!(knock.stderr.contains("onnection refused"), "{flags:?}: {}", knock.told());

        let network = home.microagent(["network", "box"]).success();
        let line = format!("Forwarded: host.microagent.internal:8000/tcp -> 127.0.0.1:{model}\n");
        assert!(network.text().contains(&line), "{}", network.told());
        let log = home.microagent(["egress", "box"]).success();
        let line = format!("tcp to 127.0.0.1:{model}: the port is forwarded");
        assert!(log.text().lines().any(|said| said.ends_with(&line)), "{}", log.told());
        let document = home.microagent(["egress", "box", "--json"]).success().json();
        let target = format!("127.0.0.1:{model}");
        assert!(document["egress"].as_array().unwrap().iter().any(|one| one["target"] == target.as_str()));
        delete(&home);
    }
}

#[test]
fn settings_that_contradict_are_refused_and_a_spec_file_has_them_all() {
    let home = home();
    let image = home.image("busybox");
    for (flags, says) in [
        (&["--forward", "80=127.0.0.1:1", "--forward", "80=127.0.0.1:2", "--dns", "x"][..], "name server"),
        (&["--network", "isolated", "--dns", "192.0.2.1"], "with --network isolated"),
        (&["--forward", "80=db.example:80"], "not an IPv4 address or `localhost`"),
        (&["--add-host", "db"], "not NAME:ADDRESS"),
        (
            &["--dns", "192.0.2.1", "--dns", "192.0.2.2", "--dns", "192.0.2.3", "--dns", "192.0.2.4"],
            "more than 3",
        ),
    ] {
        let refused = home.microagent(["run"]).args(flags).args([&image, "true"]).run();
        assert_ne!(refused.status.code(), Some(0), "{flags:?}");
        assert!(refused.stderr.contains(says), "{flags:?}: {}", refused.told());
    }
    let port = serve("spec!\n");
    let text = format!(
        "name: box\nimage: {image}\nnetwork:\n  addHosts: ['db.internal:203.0.113.77']\n  \
         dnsSearch: [internal]\n  hostForwards: [{{guestPort: 99, host: localhost, hostPort: {port}}}]\n"
    );
    let spec = home.write("microagent.yaml", &text);
    let spec = spec.to_str().unwrap();
    home.microagent(["create", "--file", spec]).success();
    home.microagent(["start", "box"]).success();
    let said = guest(&home, "nslookup db; echo ask! | nc -w 60 host.microagent.internal 99").code(0);
    assert!(said.text().contains("203.0.113.77") && said.text().ends_with("spec!\n"), "{}", said.told());
    home.microagent(["halt", "box"]).success();
    home.write(
        "microagent.yaml",
        text.replace("203.0.113.77", "203.0.113.78").replace("guestPort: 99", "guestPort: 98"),
    );
    let applied = home.microagent(["apply", "--file", spec]).success();
    for change in ["network.addHosts: db.internal:203.0.113.77 -> db.internal:203.0.113.78", "98="] {
        assert!(applied.text().contains(change), "{}", applied.told());
    }
    home.microagent(["start", "box"]).success();
    let said = guest(&home, "nslookup db.internal; echo ask! | nc -w 60 host.microagent.internal 98").code(0);
    assert!(said.text().contains("203.0.113.78") && said.text().ends_with("spec!\n"), "{}", said.told());
    delete(&home);
}

#[test]
fn an_added_host_of_the_local_network_is_open_when_its_name_is_allowed() {
    let Some(address) = host::outward_address() else { return host::skip("no address but loopback") };
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"inside\n");
        }
    });
    let home = home();
    let added = format!("db.internal:{address}");
    let script = format!("nc -w 60 db.internal {port} < /dev/null");
    let run = |flags: &[&str]| {
        let run = home.microagent(["run", "--add-host", &added]).args(flags);
        run.args([&home.image("busybox"), "sh", "-c", &script]).success()
    };
    let refused = run(&[]);
    assert!(refused.stderr.contains("onnection refused"), "{}", refused.told());
    let notice = format!(
        "the network refused TCP to db.internal ({address}:{port}): the host or one of its networks; \
         --egress-allow {address}:{port} opens it"
    );
    assert_eq!(refused.stderr.matches(&notice).count(), 1, "{}", refused.told());
    let open = run(&["--egress", "allowlist", "--egress-allow", "db.internal"]);
    assert_eq!(open.guest_output(), "inside\n", "{}", open.told());
    home.nothing_is_left();
}
