//! What programs of a guest notice of their connections: the same as on the host.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use microagent_tests::{Finished, Home, User, host, wait_for};
use sha2::{Digest, Sha256};

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

/// Serves each connection with `answer` on a thread of its own; gives the port.
fn serve(address: Ipv4Addr, answer: impl Fn(TcpStream) + Send + Sync + Copy + 'static) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    port
}

/// Bytes in which a piece that is lost, doubled or moved shows.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 29) as u8).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Answers the length that is asked for, when the client has ended its side.
fn after_the_end(mut stream: TcpStream) {
    let mut question = String::new();
    stream.read_to_string(&mut question).unwrap();
    // A client that is gone is what some of the tests want.
    let _ = stream.write_all(&pattern(question.trim().parse().unwrap()));
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

/// Says how much came, and what it was.
fn count(mut stream: TcpStream) {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    stream.write_all(format!("{} {}\n", bytes.len(), sha256(&bytes)).as_bytes()).unwrap();
}

fn greet(mut stream: TcpStream) {
    stream.write_all(b"220 ready\n").unwrap();
}

#[test]
fn a_connection_is_what_it_is_on_the_host() {
    let Some(address) = host::outward_address() else { return host::skip("no address but loopback") };
    let home = home();
    open_workspace(&home);

    let port = serve(address, after_the_end);
    for len in [0, 1, 10, 1003, 50_115, 3_000_117] {
        let got = guest(&home, &format!("echo {len} | nc {address} {port} | sha256sum"));
        assert_eq!(got.text().split(' ').next().unwrap(), sha256(&pattern(len)), "{len} bytes");
    }

    let port = serve(address, count);
    let sent = guest(&home, &format!("head -c 5000000 /dev/zero | nc {address} {port}"));
    assert_eq!(sent.text(), format!("5000000 {}\n", sha256(&[0; 5_000_000])));

    let port = serve(address, greet);
    assert_eq!(guest(&home, &format!("nc {address} {port} < /dev/null")).text(), "220 ready\n");

    let port = serve(address, after_the_line);
    let one = format!("echo 1048576 | nc {address} {port} | sha256sum");
    let all = guest(&home, &format!("for n in $(seq {AT_ONCE}); do ({one}) & done; wait"));
    let expected = sha256(&pattern(1 << 20));
    let right = all.text().lines().filter(|line| line.starts_with(&expected)).count();
    assert_eq!(right, AT_ONCE, "{}", all.told());

    // Refused is said at once, and as what it is.
    let closed = TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port();
    let refused = guest(&home, &format!("nc -w 60 {address} {closed} < /dev/null 2>&1 || true"));
    assert!(refused.text().contains("Connection refused"), "{}", refused.told());

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
