//! What a guest may reach and what not, and what the log says of it.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use microagent_tests::{Finished, Home, User, host, user, wait_for};

/// A documentation address: public, and nobody's.
const NOBODY: &str = "203.0.113.1";

/// Where clouds have their metadata.
const METADATA: &str = "169.254.169.254";

fn home() -> Home {
    Home::new(User::unprivileged())
}

/// A server of the host's own, on one of its addresses, and its port. Nobody has to take the connections.
fn server(address: Ipv4Addr) -> (TcpListener, u16) {
    let server = TcpListener::bind((address, 0)).unwrap();
    let port = server.local_addr().unwrap().port();
    (server, port)
}

/// Knocks from the guest, with as much patience as a guest may need; says `open`, or what the system says.
fn knock(home: &Home, workspace: &str, address: &str, port: u16) -> String {
    let script = format!("nc -w 60 {address} {port} < /dev/null && echo open");
    let knocked = home.microagent(["exec", workspace, "--", "sh", "-c", &script]).run();
    format!("{}{}", knocked.text(), knocked.stderr)
}

#[track_caller]
fn assert_refused(home: &Home, workspace: &str, address: &str, port: u16) {
    let said = knock(home, workspace, address, port);
    // Refused at once, not when patience is over.
    let is_refused =
        ["Connection refused", "No route to host", "Network is unreachable", "Operation not permitted"]
            .iter()
            .any(|word| said.contains(word));
    assert!(is_refused, "{address}:{port}: {said}");
}

/// The line of the log about this host, once it is there.
#[track_caller]
fn logged(home: &Home, workspace: &str, host: &str) -> String {
    wait_for(&format!("a line about {host}"), Duration::from_secs(60), || {
        let log = home.microagent(["egress", workspace]).success();
        log.text().lines().find(|line| line.contains(host)).map(str::to_owned).ok_or(log)
    })
}

#[test]
fn a_workspace_reaches_its_package_mirror_and_nothing_else() {
    let Some(mirror) = host::package_mirror() else { return };
    let home = home();
    let rules = ["--egress", "allowlist", "--egress-allow", &mirror.name];
    let create = home.microagent(["create", "box", "--image", &home.image("debian")]).args(rules);
    create.args(mirror.allowed_inside()).deadline(Duration::from_secs(280)).success();
    home.microagent(["start", "box"]).success();
    let install = "apt-get update -qq && apt-get install -y -qq --no-install-recommends jq && jq --version";
    let installed = home.microagent(["exec", "box", "--", "sh", "-c", install]);
    let installed = installed.deadline(Duration::from_secs(280)).success();
    assert!(installed.text().lines().last().unwrap().starts_with("jq-1."), "{}", installed.told());
    let line = logged(&home, "box", &format!("{} (", mirror.name));
    assert!(line.contains("  allowed  ") && line.ends_with("a rule allows it"), "{line}");

    let bash =
        |script: &str| home.microagent(["exec", "box", "--", "timeout", "60", "bash", "-c", script]).run();
    let refused = |address: &str, port: u16| {
        let knocked = bash(&format!("exec 3<>/dev/tcp/{address}/{port}")).code(1);
        assert!(knocked.stderr.contains("onnection refused"), "{address}:{port}: {}", knocked.told());
        let line = logged(&home, "box", &format!("{address}:{port}"));
        assert!(line.contains("  refused  "), "{line}");
    };
    let (loopback, port) = server(Ipv4Addr::LOCALHOST);
    let gateway = bash(&format!("exec 3<>/dev/tcp/10.0.2.2/{port}"));
    assert_eq!(gateway.status.code(), Some(1), "{}", gateway.told());
    assert_nobody_came(&loopback);
    if let Some(address) = host::outward_address() {
        let (server, port) = server(address);
        refused(&address.to_string(), port);
        assert_nobody_came(&server);
    }
    refused(NOBODY, 443);
    refused(METADATA, 80);
    let other = bash("getent hosts other.example");
    assert_eq!(other.status.code(), Some(2), "{}", other.told());
    let line = logged(&home, "box", "other.example");
    assert!(line.contains("  refused  ") && line.ends_with("name: no rule allows it"), "{line}");

    let document = home.microagent(["egress", "box", "--json"]).success().json();
    let decisions = document["egress"].as_array().unwrap();
    assert!(decisions.iter().any(|one| one["name"] == mirror.name.as_str() && one["allowed"] == true));
    assert!(
        decisions.iter().any(|one| one["address"] == NOBODY && one["reason"] == "not_listed"),
        "{document}"
    );
    home.microagent(["delete", "box", "--force", "--yes"]).success();
    home.nothing_is_left();
}

#[track_caller]
fn assert_nobody_came(server: &TcpListener) {
    server.set_nonblocking(true).unwrap();
    assert!(server.accept().is_err(), "somebody came through");
}

#[test]
fn the_mode_says_whether_the_host_can_be_reached_and_none_opens_what_is_never_open() {
    let Some(address) = host::outward_address() else {
        return host::skip("this host has no IPv4 address besides loopback");
    };
    let home = home();
    let (outward, port) = server(address);
    let (loopback, inner_port) = server(Ipv4Addr::LOCALHOST);
    let host_address = address.to_string();
    for (name, flags) in [("public", &[][..]), ("open", &["--egress", "open", "--egress-allow", METADATA])] {
        home.microagent(["create", name, "--image", &home.image("busybox")]).args(flags).success();
        home.microagent(["start", name]).success();
        for forbidden in [METADATA, "10.0.2.2", "10.0.2.3", "127.0.0.2", "0.0.0.0"] {
            assert_refused(&home, name, forbidden, inner_port);
        }
        let line = logged(&home, name, &format!("{METADATA}:{inner_port}"));
        assert!(line.contains("  refused  ") && line.ends_with("this address is never reachable"), "{line}");
    }
    assert_refused(&home, "public", &host_address, port);
    let line = logged(&home, "public", &format!("{host_address}:{port}"));
    assert!(line.contains("  refused  ") && line.ends_with("the host or one of its networks"), "{line}");
    assert_nobody_came(&outward);
    outward.set_nonblocking(false).unwrap();
    std::thread::spawn(move || outward.accept());
    let said = knock(&home, "open", &host_address, port);
    assert_eq!(said, "open\n");
    assert_nobody_came(&loopback);
    for name in ["public", "open"] {
        home.microagent(["delete", name, "--force", "--yes"]).success();
    }
    home.nothing_is_left();
}

#[test]
fn the_log_stays_through_starts_and_is_followed_until_the_workspace_rests() {
    let home = home();
    home.create("alone", []);
    assert_eq!(home.microagent(["egress", "alone"]).success().text(), "");
    assert_eq!(
        home.microagent(["egress", "alone", "--json"]).success().json()["egress"],
        serde_json::json!([])
    );
    home.microagent(["egress", "nobody"]).run().code(1).says("no workspace `nobody`");
    home.microagent(["egress", "alone", "-f", "--json"]).run().code(2);

    let limits = ["--egress", "allowlist", "--egress-max-connections", "8"];
    home.microagent(["create", "box", "--image", &home.image("busybox")]).args(limits).success();
    home.microagent(["start", "box"]).success();
    assert_refused(&home, "box", NOBODY, 1001);
    logged(&home, "box", "203.0.113.1:1001");
    home.microagent(["halt", "box"]).success();
    home.microagent(["start", "box"]).success();
    let following = home.microagent(["egress", "box", "-f"]).start();
    assert_refused(&home, "box", NOBODY, 1002);
    logged(&home, "box", "203.0.113.1:1002");
    home.microagent(["halt", "box"]).success();
    let followed: Finished = following.finish().code(0);
    let hosts: Vec<_> = followed.text().lines().filter_map(|line| line.split("  ").nth(2)).collect();
    assert_eq!(hosts, ["203.0.113.1:1001", "203.0.113.1:1002"], "{}", followed.told());
    for name in ["alone", "box"] {
        home.microagent(["delete", name, "--yes"]).success();
    }
    home.nothing_is_left();
}

/// Routes of a host in a network namespace of its own; then the rest of the words is executed.
const ROUTES: &str = "set -e
    ip link set lo up
    ip route add local 198.51.100.0/24 dev lo
    ip address add 198.18.7.1/24 dev lo
    ip link add name here type veth peer name there
    ip address add 192.0.2.1/24 dev here
    ip link set here up
    exec \"$@\"";

#[test]
fn addresses_that_no_interface_has_and_the_hosts_neighbours_are_refused() {
    if !user::is_root() || !host::has_program("ip") {
        return host::skip("only root can make a network namespace, and `ip` makes its routes");
    }
    let home = Home::new(User::Caller);
    let knocks = "for to in 198.51.100.77 198.18.7.200 192.0.2.1 192.0.2.9 203.0.113.1; \
                  do nc -w 60 $to 1007 < /dev/null; done; true";
    let run = home.other("unshare").args(["--net", "sh", "-c", ROUTES, "sh"]).arg(home.program());
    let image = home.image("busybox");
    run.args(["run", "--keep", "--name", "box", &image, "sh", "-c", knocks]).success();
    for (address, what) in [
        ("198.51.100.77", "this address is never reachable"),
        ("198.18.7.200", "this address is never reachable"),
        ("192.0.2.1", "the host or one of its networks"),
        ("192.0.2.9", "the host or one of its networks"),
    ] {
        let line = logged(&home, "box", &format!("{address}:1007"));
        assert!(line.contains("  refused  ") && line.ends_with(what), "{line}");
    }
    let line = logged(&home, "box", "203.0.113.1:1007");
    assert!(line.contains("  allowed  "), "a public address is reached: {line}");
    home.microagent(["delete", "box", "--yes"]).success();
    home.nothing_is_left();
}
