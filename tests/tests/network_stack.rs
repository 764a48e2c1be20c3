//! What programs of a guest notice of their connections: the same as on the host.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use microagent_tests::far_end::{self, pattern, sha256};
use microagent_tests::{Finished, Home, User, host, wait_for};

/// Short connections in a row, and transfers at once.
const SHORT: usize = 1000;
const AT_ONCE: usize = 50;

fn home() -> Home {
    Home::new(User::unprivileged())
}

/// A workspace that may reach this host.
fn open_workspace(home: &Home) {
    home.microagent(["create", "box", "--image", &home.image("busybox"), "--egress", "open"]).success();
    home.microagent(["start", "box"]).success();
}

fn guest(home: &Home, script: &str) -> Finished {
    let exec = home.microagent(["exec", "box", "--", "sh", "-c", script]);
    exec.deadline(Duration::from_secs(200)).success()
}

/// Answers the length that is asked for, after the line.
fn after_the_line(mut stream: TcpStream) {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).unwrap_or(0) == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    let Ok(len) = String::from_utf8_lossy(&line).parse() else { return };
    let _ = stream.write_all(&pattern(len));
}

#[test]
fn a_connection_is_what_it_is_on_the_host() {
    let Some(address) = host::outward_address() else { return host::skip("no address but loopback") };
    let home = home();
    open_workspace(&home);

    let listen = || TcpListener::bind((address, 0)).unwrap();
    far_end::check_connections(address.into(), host::own_ports(), |script| guest(&home, script), listen);

    let port = far_end::serve(listen(), after_the_line);
    let one = format!("echo 1048576 | nc {address} {port} | sha256sum");
    let all = guest(&home, &format!("for n in $(seq {AT_ONCE}); do ({one}) & done; wait"));
    let expected = sha256(&pattern(1 << 20));
    let right = all.text().lines().filter(|line| line.starts_with(&expected)).count();
    assert_eq!(right, AT_ONCE, "{}", all.told());

    home.microagent(["delete", "box", "--force", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_published_server_answers_a_thousand_clients_and_those_that_end_their_side() {
    let home = home();
    let serve = "exec nc -ll -p 80 -e sh -c 'head -c 12 | sha256sum; head -c 300000 /dev/zero'";
    let create = ["create", "box", "--image", &home.image("busybox"), "-p", "0:80"];
    home.microagent(create).args(["--service-command", serve]).success();
    let start = home.microagent(["start", "box"]).success();
    let line = start.text().lines().find_map(|line| line.strip_prefix("Published: ")).unwrap();
    let port: u16 = line.split([':', ' ']).nth(1).unwrap().parse().unwrap();
    let answer = || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.write_all(b"half a world")?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    let expected = [format!("{}  -\n", sha256(b"half a world")).into_bytes(), vec![0; 300_000]].concat();
    wait_for("the server", Duration::from_secs(60), || match answer() {
        Ok(answer) if answer == expected => Ok(()),
        Ok(answer) => Err(format!("{} bytes", answer.len())),
        Err(error) => Err(error.to_string()),
    });
    let knock = || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(b"half a world").unwrap();
        let mut first = [0; 64];
        stream.read_exact(&mut first).map(|()| first)
    };
    let wrong = (0..SHORT).filter(|_| !knock().is_ok_and(|first| expected.starts_with(&first))).count();
    assert_eq!(wrong, 0, "of {SHORT}");
    home.microagent(["delete", "box", "--force", "--yes"]).success();
    home.nothing_is_left();
}

/// Where the name server of a test is. Every host has all of 127.0.0.0/8.
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(127, 83, 7, 53);

/// A name as it travels.
fn wire_name(name: &str) -> Vec<u8> {
    let labels = name.split('.').flat_map(|label| [&[label.len() as u8][..], label.as_bytes()].concat());
    labels.chain([0]).collect()
}

/// The answer to a question: `host.corp.example` has an address, `pkg.test.example` sixteen aliases and an address.
fn name_server_answer(question: &[u8]) -> Vec<u8> {
    let end = 12 + question[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
    let (name, kind) = (&question[12..end - 4], &question[end - 4..end - 2]);
    let mut records: Vec<(Vec<u8>, u8, Vec<u8>)> = Vec::new();
    let lower = name.to_ascii_lowercase();
    if lower == wire_name("host.corp.example") {
        records.push((name.to_vec(), 1, vec![192, 0, 2, 77]));
    } else if lower == wire_name("pkg.test.example") {
        let alias = |n: usize| wire_name(&format!("alias-number-{n}.test.example"));
        let owner = |n: usize| if n == 0 { name.to_vec() } else { alias(n) };
        records.extend((0..16).map(|n| (owner(n), 5, alias(n + 1))));
        records.push((alias(16), 1, vec![192, 0, 2, 78]));
    }
    let code = if records.is_empty() { 3 } else { 0 };
    if kind != [0, 1] {
        records.clear();
    }
    let mut answer =
        [&question[..2], &[0x81, 0x80 | code, 0, 1, 0, records.len() as u8, 0, 0, 0, 0]].concat();
    answer.extend(&question[12..end]);
    for (owner, kind, data) in records {
        answer.extend(owner);
        answer.extend([0, kind, 0, 1, 0, 0, 0, 60, 0, data.len() as u8]);
        answer.extend(data);
    }
    answer
}

#[test]
fn names_resolve_as_on_the_host() {
    if !rustix::process::geteuid().is_root() {
        return host::skip("only root can listen at port 53 and mount a file");
    }
    let server = UdpSocket::bind((NAME_SERVER, 53)).unwrap();
    std::thread::spawn(move || {
        let mut question = [0; 1500];
        while let Ok((len, client)) = server.recv_from(&mut question) {
            server.send_to(&name_server_answer(&question[..len]), client).unwrap();
        }
    });
    let home = Home::new(User::Caller);
    let text = format!("nameserver {NAME_SERVER}\nsearch corp.example\noptions ndots:2\n");
    let resolv_conf = home.write("resolv.conf", text);
    // A link, as systemd-resolved makes it.
    let line = "cp -a /etc/. \"$2\" && ln -sfn \"$1\" \"$2/resolv.conf\" && mount --bind \"$2\" /etc && \
                shift 2 && exec \"$@\"";
    let etc = home.make_dir("etc");
    let run = home.other("unshare").args(["--mount", "sh", "-c", line, "sh"]).args([&resolv_conf, &etc]);
    let script = "cat /etc/resolv.conf; for name in host pkg.test.example nobody.example; \
                  do getent ahostsv4 $name | head -n 1; done";
    let run = run.arg(home.program()).args(["run", &home.image("debian"), "sh", "-c", script]);
    let run = run.deadline(Duration::from_secs(200)).success();
    let said = run.guest_output();
    assert!(said.contains("search corp.example\noptions ndots:2\n"), "{}", run.told());
    let addresses: Vec<&str> =
        said.lines().filter_map(|line| line.strip_suffix("host.corp.example")).collect();
    assert!(addresses.len() == 1 && addresses[0].starts_with("192.0.2.77"), "{}", run.told());
    assert!(said.contains("192.0.2.78"), "sixteen aliases are followed: {}", run.told());
    home.nothing_is_left();
}
