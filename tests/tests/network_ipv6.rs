//! IPv6 of a guest, on a host of the test's own that has a network behind a router.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io::Read;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use microagent_tests::site::{FAR, PRIVATE, Site};
use microagent_tests::{Finished, Home, User, far_end, wait_for};

/// The guest's gateway.
const GATEWAY: &str = "fd5c:8b21:46e7::2";

fn guest(home: &Home, script: &str) -> Finished {
    guest_of(home, "box", script)
}

fn guest_of(home: &Home, name: &str, script: &str) -> Finished {
    let exec = home.microagent(["exec", name, "--", "sh", "-c", script]);
    exec.deadline(Duration::from_secs(100)).run()
}

/// What the guest says of a connection, without an error or with one.
fn knock(home: &Home, address: &str, port: u16) -> String {
    let said = guest(home, &format!("nc -w 60 {address} {port} < /dev/null 2>&1"));
    said.text().to_owned()
}

/// The newest line of the log about this address.
#[track_caller]
fn logged(home: &Home, address: &str) -> String {
    wait_for(&format!("a line about {address}"), Duration::from_secs(60), || {
        let log = home.microagent(["egress", "box"]).success();
        log.text().lines().rev().find(|line| line.contains(address)).map(str::to_owned).ok_or(log)
    })
}

#[test]
fn a_guest_reaches_what_its_host_reaches_by_ipv6_and_its_policy_allows() {
    if !Site::can_be_tried() {
        return;
    }
    let (site, home) = (Site::start(), Home::new(User::Caller));
    let [greeting, private, other] =
        [FAR, PRIVATE, PRIVATE].map(|address| far_end::serve(site.far.listen(address), far_end::greet));
    let rule = format!("[{PRIVATE}]:{private}");
    let create = ["create", "box", "--image", &home.image("busybox"), "--dns", "203.0.113.7"];
    home.microagent(create).args(["--egress-allow", &rule, "-p", "[::1]:8080:80"]).success();
    site.call(&home).args(["start", "box"]).success();

    addresses_and_pings(&home);
    connections(&home, &site);
    names(&home, greeting);
    refusals(&home, private, other);

    guest(&home, "nc -ll -p 80 -e sh -c 'echo web; cat' > /dev/null 2>&1 &").code(0);
    let answered = site.host.within(|| {
        wait_for("the published port", Duration::from_secs(60), || {
            let mut client = TcpStream::connect(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 8080)))?;
            client.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            client.read_to_string(&mut answer)?;
            Ok::<_, std::io::Error>(answer)
        })
    });
    assert_eq!(answered, "web\n");

    without_a_way(&home, &site, greeting);
    home.microagent(["delete", "box", "--force", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_guest_that_continues_elsewhere_has_ipv6_there_and_its_connections_are_reset() {
    if !Site::can_be_tried() {
        return;
    }
    let (site, home) = (Site::start(), Home::new(User::Caller));
    let open = far_end::serve(site.far.listen(FAR), far_end::after_the_end);
    let greeting = far_end::serve(site.far.listen(FAR), far_end::greet);
    let inside = |words: &[&str]| site.call(&home).args(words).success();
    let create = ["create", "box", "--image", &home.image("busybox"), "--dns", "203.0.113.7"];
    home.microagent(create).success();
    inside(&["start", "box"]);
    // A connection that the guest never ends.
    let hold = format!(
        "cd /tmp; mkfifo never; sleep 100000 > never 2> /dev/null & cd /tmp;
         (nc {FAR} {open} < never; echo gone > outside) > /dev/null 2>&1 &"
    );
    guest(&home, &hold).code(0);
    wait_for("the connection", Duration::from_secs(60), || {
        let connections = guest(&home, "netstat -tn");
        if connections.text().contains("ESTABLISHED") { Ok(()) } else { Err(connections) }
    });
    home.microagent(["snapshot", "create", "box", "--tag", "a"]).success();
    inside(&["fork", "box", "kid"]);
    let works_in = |name: &str| {
        let device = guest_of(&home, name, "ip -6 address show scope global; ip -6 route").code(0);
        for line in ["inet6 fd5c:8b21:46e7::15/64 scope global", "default via fd5c:8b21:46e7::2 dev eth0"] {
            assert!(device.text().contains(line), "{name}: {}", device.told());
        }
        for server in [FAR, "six.example"] {
            let line = format!("nc -w 60 {server} {greeting} < /dev/null 2>&1");
            assert_eq!(guest_of(&home, name, &line).text(), "220 ready\n", "{name} to {server}");
        }
    };
    let is_reset = |name: &str| {
        wait_for("the connection is reset", Duration::from_secs(60), || {
            let said = guest_of(&home, name, "cat /tmp/outside 2> /dev/null || echo open");
            if said.text() == "gone\n" { Ok(()) } else { Err(said) }
        });
    };
    is_reset("kid");
    works_in("kid");
    assert_eq!(guest(&home, "cat /tmp/outside 2> /dev/null || echo open").text(), "open\n");
    inside(&["snapshot", "restore", "box", "a", "--yes"]);
    is_reset("box");
    works_in("box");
    home.microagent(["delete", "box", "kid", "--force"]).success();
    home.nothing_is_left();
}

fn addresses_and_pings(home: &Home) {
    let device = guest(home, "ip -6 address show scope global; ip -6 route").code(0);
    for line in ["inet6 fd5c:8b21:46e7::15/64 scope global", "default via fd5c:8b21:46e7::2 dev eth0"] {
        assert!(device.text().contains(line), "{}", device.told());
    }
    assert!(!device.text().contains("tentative"), "{}", device.told());
    let network = home.microagent(["network", "box", "--json"]).success().json();
    assert_eq!(network["runtime"]["ipv6"], "fd5c:8b21:46e7::15");
    for (program, address) in
        [("ping6", GATEWAY), ("ping", "10.0.2.2"), ("ping6", FAR), ("ping", "203.0.113.7")]
    {
        let ping = guest(home, &format!("{program} -c 1 -W 60 {address}")).code(0);
        assert!(ping.text().contains("1 packets received"), "{}", ping.told());
    }
}

fn connections(home: &Home, site: &Site) {
    let far = FAR.parse().unwrap();
    far_end::check_connections(far, 9, |script| guest(home, script).code(0), || site.far.listen(FAR));
    let unreachable = knock(home, "2001:db8:dead::1", 80);
    assert!(unreachable.contains("No route to host"), "{unreachable}");
    // A datagram and its answer.
    let asked = guest(home, &format!("nslookup -type=aaaa six.example {FAR}")).code(0);
    assert!(asked.text().contains(&format!("Address: {FAR}")), "{}", asked.told());
    let told = logged(home, &format!("[{FAR}]:53"));
    assert!(told.contains("  allowed  "), "{told}");
}

fn names(home: &Home, greeting: u16) {
    // The name has no address of IPv4.
    assert_eq!(knock(home, "six.example", greeting), "220 ready\n");
    let told = logged(home, &format!("six.example ([{FAR}]:{greeting})"));
    assert!(told.contains("  allowed  "), "{told}");
    let host = guest(home, "nslookup -type=aaaa host.microagent.internal; nslookup fd5c:8b21:46e7::2");
    for text in [format!("Address: {GATEWAY}"), "name = host.microagent.internal".to_owned()] {
        assert!(host.text().contains(&text), "{}", host.told());
    }
    let localhost = guest(home, "nslookup -type=aaaa any.localhost").code(0);
    assert!(localhost.text().contains("Address: ::1"), "{}", localhost.told());
}

fn refusals(home: &Home, private: u16, other: u16) {
    assert_eq!(knock(home, PRIVATE, private), "220 ready\n");
    let (inside, never) = ("the host or one of its networks", "this address is never reachable");
    for (address, port, why) in [
        (PRIVATE, other, inside),
        ("2001:db8:1::1", 80, inside),
        ("2001:db8:1::2", 53, inside),
        ("64:ff9b::a01:203", 80, inside),
        ("inside.example", 80, inside),
        ("fd00:ec2::254", 80, never),
        ("64:ff9b::a9fe:a9fe", 80, never),
        ("::ffff:0:127.0.0.1", 80, never),
        ("2002:a01:203::1", 80, never),
        (GATEWAY, 80, "no other host is in the guest's network"),
    ] {
        let said = knock(home, address, port);
        assert!(said.contains("Connection refused"), "{address}: {said}");
        let address = if address == "inside.example" { "fd00:8::8" } else { address };
        let address: IpAddr = address.parse().unwrap();
        let line = logged(home, &SocketAddr::new(address, port).to_string());
        assert!(line.contains("  refused  ") && line.ends_with(why), "{line}");
    }
}

/// The host loses its way: who knows only addresses of IPv6 is told at once, and nobody else is told of them.
fn without_a_way(home: &Home, site: &Site, greeting: u16) {
    site.host.sh("ip -6 route delete default");
    wait_for("no address of IPv6", Duration::from_secs(60), || {
        let asked = guest(home, "nslookup -type=aaaa six.example");
        (!asked.text().contains(FAR)).then_some(()).ok_or(asked)
    });
    let said = knock(home, FAR, greeting);
    assert!(said.contains("Network is unreachable"), "{said}");
    let said = knock(home, "203.0.113.7", 53);
    assert_eq!(said, "", "IPv4 works as before");
}
