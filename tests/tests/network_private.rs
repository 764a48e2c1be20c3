//! Private networks: workspaces reach each other by name and address, and nobody else does.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::os::fd::OwnedFd;
use std::time::Duration;

use microagent_tests::process::Process;
use microagent_tests::{Finished, Home, User, wait_for};
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with,
};
use rustix::process::Signal;

const DEADLINE: Duration = Duration::from_secs(60);

/// Says at port 8000, after the other end's end, from whom how much came; resets connections to port 8001 after a byte;
/// sends datagrams to port 53 back, after their source's address.
const SERVICE: &str = r#"exec perl -e 'use Socket; $SIG{CHLD} = "IGNORE";
sub listening { socket(my $s, PF_INET, SOCK_STREAM, 0); setsockopt($s, SOL_SOCKET, SO_REUSEADDR, 1);
  bind($s, sockaddr_in($_[0], INADDR_ANY)) or die; listen($s, 99); $s }
if (!fork) { my $s = listening(8000); while (my $a = accept(my $c, $s)) { if (!fork) {
  my ($n, $b) = 0; $n += length $b while sysread($c, $b, 65536);
  syswrite $c, "$n from " . inet_ntoa((sockaddr_in($a))[1]); exit } close $c } exit }
if (!fork) { my $s = listening(8001); while (accept(my $c, $s)) { sysread($c, my $b, 1);
  setsockopt($c, SOL_SOCKET, SO_LINGER, pack("ii", 1, 0)); close $c } exit }
socket(U, PF_INET, SOCK_DGRAM, 0); bind(U, sockaddr_in(53, INADDR_ANY)) or die;
while ($c = recv(U, $m, 65535, 0)) { ($p, $a) = sockaddr_in($c); send(U, inet_ntoa($a) . " $m", 0, $c) }'"#;

/// Connects to `HOST PORT`, sends `COUNT` bytes, ends its half, and says what comes or what is wrong.
const CLIENT: &str = r#"use Socket; my ($h, $p, $n) = @ARGV; my $a = inet_aton($h) or die "no such name\n";
socket(S, PF_INET, SOCK_STREAM, 0); connect(S, sockaddr_in($p, $a)) or die "connect: $!\n";
while ($n > 0) { my $w = syswrite(S, "x" x ($n > 65536 ? 65536 : $n)); defined $w or die "write: $!\n"; $n -= $w }
shutdown(S, 1); my ($t, $r) = ""; while ($r = sysread(S, my $b, 65536)) { $t .= $b }
defined $r or die "read: $!\n"; print "$t\n";"#;

/// Sends a datagram to `HOST PORT` until one comes back, and says it.
const DATAGRAMS: &str = r#"use Socket; socket(S, PF_INET, SOCK_DGRAM, 0);
connect(S, sockaddr_in($ARGV[1], inet_aton($ARGV[0]))); for (1..30) { send(S, "hello", 0);
my $v = ""; vec($v, fileno(S), 1) = 1; if (select($v, undef, undef, 1)) { defined recv(S, my $m, 99, 0) or die "recv: $!\n"; print "$m\n"; exit } } die "no answer\n";"#;

fn home() -> Home {
    Home::new(User::unprivileged())
}

fn network(home: &Home, name: &str) -> serde_json::Value {
    home.microagent(["network", "create", name, "--json"]).success().json()
}

/// A workspace with the service, in these networks.
fn create(home: &Home, name: &str, flags: &[&str]) {
    let image = home.image("debian");
    let create = ["create", name, "--image", &image, "--profile", "tiny", "--service-command", SERVICE];
    home.microagent(create).args(flags).success();
}

fn started(home: &Home, name: &str, flags: &[&str]) {
    create(home, name, flags);
    home.microagent(["start", name]).success();
}

fn perl(home: &Home, workspace: &str, script: &str, words: &[&str]) -> Finished {
    let exec = home.microagent(["exec", workspace, "--", "perl", "-e", script]).args(words);
    exec.deadline(Duration::from_secs(100)).run()
}

/// What comes of a connection from one workspace to a port of a name or address: the answer, or the error.
fn calls(home: &Home, workspace: &str, host: &str, port: u16, count: usize) -> String {
    let finished = perl(home, workspace, CLIENT, &[host, &port.to_string(), &count.to_string()]);
    let said = if finished.text().is_empty() { finished.told() } else { finished.text().to_owned() };
    said.trim().to_owned()
}

/// Waits until the service of a workspace answers another one.
#[track_caller]
fn answers(home: &Home, workspace: &str, host: &str, wanted: &str) {
    wait_for(&format!("{workspace} -> {host}"), DEADLINE, || match calls(home, workspace, host, 8000, 5) {
        said if said == wanted => Ok(()),
        said => Err(said),
    });
}

fn address(home: &Home, network: &str, workspace: &str) -> String {
    let document = home.microagent(["network", "inspect", network, "--json"]).success().json();
    let members = document["members"].as_array().unwrap();
    let member = members.iter().find(|member| member["workspace"] == workspace).unwrap();
    member["address"].as_str().unwrap().to_owned()
}

fn process(home: &Home, workspace: &str, key: &str) -> Process {
    let document = home.microagent(["network", workspace, "--json"]).success().json();
    let status = home.microagent(["status", workspace, "--json"]).success().json();
    let pid = document["network"][key].as_i64().or(status[key].as_i64()).unwrap();
    home.processes().into_iter().find(|process| i64::from(process.pid) == pid).unwrap()
}

#[test]
fn members_reach_each_other_by_name_and_address_and_the_policy_stays() {
    let home = home();
    network(&home, "backend");
    started(&home, "db", &["--join", "backend", "--network", "isolated"]);
    started(&home, "web", &["--join", "backend", "--egress", "allowlist"]);
    let (db, web) = (address(&home, "backend", "db"), address(&home, "backend", "web"));
    for host in ["db", "DB.backend", &db] {
        answers(&home, "web", host, &format!("5 from {web}"));
    }
    answers(&home, "db", "web", &format!("5 from {db}"));
    // Half of the connection stays open, and all arrives.
    assert_eq!(calls(&home, "web", "db", 8000, 3_000_000), format!("3000000 from {web}"));
    assert!(calls(&home, "web", "db", 8001, 1).contains("reset by peer"));
    assert!(calls(&home, "web", "db", 8002, 1).contains("Connection refused"));
    assert!(calls(&home, "web", "10.210.0.200", 8000, 1).contains("Connection refused"));
    assert!(calls(&home, "web", "nobody", 8000, 1).contains("no such name"));
    assert_eq!(perl(&home, "web", DATAGRAMS, &["db", "53"]).text(), format!("{web} hello\n"));
    let many = "for i in $(seq 20); do perl -e \"$1\" db 8000 100000 & done; wait";
    let many = home.microagent(["exec", "web", "--", "sh", "-c", many, "sh", CLIENT]).success();
    assert_eq!(many.text(), format!("100000 from {web}\n").repeat(20));
    // An isolated member reaches members only.
    assert!(calls(&home, "db", "198.51.100.7", 80, 1).contains("Connection refused"));
    let log = home.microagent(["egress", "db", "--json"]).success().json();
    let of_member =
        |entry: &&serde_json::Value| entry["reason"] == "member" && entry["record"] == "published";
    let entry = log["egress"].as_array().unwrap().iter().find(of_member).unwrap();
    assert_eq!((&entry["name"], &entry["address"]), (&"web.backend".into(), &web.as_str().into()));
    let shown = home.microagent(["network", "web"]).success();
    assert!(
        shown.text().contains(&format!("Private network: backend: {web} of 10.210.")),
        "{}",
        shown.text()
    );

    // A member that starts later is found, one that ends is refused at once and takes nobody with it.
    started(&home, "cache", &["--join", "backend"]);
    answers(&home, "web", "cache", &format!("5 from {web}"));
    home.microagent(["halt", "db"]).success();
    assert!(calls(&home, "web", "db", 8000, 1).contains("Connection refused"));
    answers(&home, "cache", "web", &format!("5 from {}", address(&home, "backend", "cache")));
    home.microagent(["start", "db"]).success();
    answers(&home, "web", "db", &format!("5 from {web}"));
    home.microagent(["network", "backend"]).failure().says("microagent network inspect backend");
    home.microagent(["network", "delete", "backend", "--yes"]).failure().says("remove `backend` from `join`");
    home.microagent(["delete", "--force", "--yes", "db", "web", "cache"]).success();
    home.microagent(["network", "delete", "backend", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn networks_are_apart_and_one_workspace_can_be_in_several() {
    let home = home();
    for name in ["one", "two"] {
        network(&home, name);
    }
    started(&home, "first", &["--join", "one"]);
    started(&home, "second", &["--join", "two"]);
    started(&home, "both", &["--join", "one", "--join", "two", "--network", "isolated"]);
    answers(&home, "both", "first", &format!("5 from {}", address(&home, "one", "both")));
    answers(&home, "both", "second", &format!("5 from {}", address(&home, "two", "both")));
    answers(&home, "second", "both", &format!("5 from {}", address(&home, "two", "second")));
    let first = address(&home, "one", "first");
    assert!(calls(&home, "second", "first", 8000, 1).contains("no such name"));
    assert_ne!(
        calls(&home, "second", &first, 8000, 5),
        format!("5 from {}", address(&home, "two", "second"))
    );
    let outsider = home.run("debian", ["--profile", "tiny"], &["perl", "-e", CLIENT, &first, "8000", "5"]);
    outsider.success().says("Connection refused");
    home.microagent(["delete", "--force", "--yes", "first", "second", "both"]).success();
}

#[test]
fn what_dies_comes_back_and_what_lies_is_not_believed() {
    let home = home();
    network(&home, "backend");
    started(&home, "db", &["--join", "backend", "--network", "isolated"]);
    started(&home, "web", &["--join", "backend", "--network", "isolated"]);
    let (db, web) = (address(&home, "backend", "db"), address(&home, "backend", "web"));
    let wanted = format!("5 from {web}");
    answers(&home, "web", "db", &wanted);
    let socket = home.state().join("networks/backend/members").join(&db);
    let raw = || -> OwnedFd {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let raw = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        wait_for("a place at the member's socket", DEADLINE, || {
            connect(&raw, &SocketAddrUnix::new(&socket).unwrap())
        });
        raw
    };
    // Who says nothing, nonsense, the member's own address, or no address of the network.
    let mut stalled = Vec::new();
    for message in [&b""[..], &[7; 64], &[1, 10, 210, 0, 2], &[1, 192, 0, 2, 1], &[1, 10, 210, 0, 77]] {
        for _ in 0..50 {
            let line = raw();
            if !message.is_empty() {
                send(&line, message, SendFlags::NOSIGNAL).unwrap();
                // Flows without a socket, until nobody listens.
                for _ in 0..20 {
                    let _ = send(&line, &[0, 31, 64, 1, 1], SendFlags::NOSIGNAL);
                }
            }
            stalled.push(line);
        }
    }
    answers(&home, "web", "db", &wanted);
    drop(stalled);

    for workspace in ["db", "web"] {
        let stack = process(&home, workspace, "stack_pid");
        stack.signal(Signal::KILL);
        answers(&home, "web", "db", &wanted);
    }
    process(&home, "db", "supervisor_pid").signal(Signal::KILL);
    wait_for("a refusal", DEADLINE, || match calls(&home, "web", "db", 8000, 1) {
        said if said.contains("Connection refused") => Ok(()),
        said => Err(said),
    });
    home.microagent(["start", "db"]).success();
    answers(&home, "web", "db", &wanted);
    home.microagent(["delete", "--force", "--yes", "db", "web"]).success();
}

#[test]
fn members_are_renamed_cloned_and_changed_by_a_file() {
    let home = home();
    network(&home, "backend");
    create(&home, "db", &["--join", "backend", "--network", "isolated"]);
    let before = address(&home, "backend", "db");
    home.microagent(["rename", "db", "store"]).success();
    assert_eq!(address(&home, "backend", "store"), before);
    home.microagent(["clone", "store", "copy"]).success();
    assert_ne!(address(&home, "backend", "copy"), before);
    for name in ["store", "copy"] {
        home.microagent(["start", name]).success();
    }
    answers(&home, "copy", "store", &format!("5 from {}", address(&home, "backend", "copy")));
    home.microagent(["delete", "--force", "--yes", "copy"]).success();
    let listed = home.microagent(["network", "list", "--json"]).success().json();
    assert_eq!(listed["networks"][0]["members"].as_array().unwrap().len(), 1);

    // Without the network a member does not start, and says why.
    home.microagent(["network", "delete", "--force", "backend"]).success();
    home.microagent(["restart", "store"]).failure().says("no private network `backend`");
    let shown = home.microagent(["status", "store"]).success();
    assert!(shown.text().contains("State: running\n"), "{}", shown.text());
    home.microagent(["halt", "store"]).success();
    home.microagent(["start", "store"]).failure().says("no private network `backend`");
    home.write("spec.yaml", "network: {mode: isolated, join: []}\n");
    home.microagent(["apply", "store", "--file", "spec.yaml"]).success();
    home.microagent(["start", "store"]).success();
    let image = home.image("debian");
    home.microagent(["create", "late", "--image", &image, "--join", "backend"])
        .failure()
        .says("no private network `backend`");
    home.microagent(["delete", "--force", "--yes", "store"]).success();
}
