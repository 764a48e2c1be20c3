//! IPv6 of a guest, on a host of the test's own that has a network behind a router.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use microagent_tests::{Finished, Home, User, host, user, wait_for};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A server behind the router, at global addresses, and at a private one.
const FAR: &str = "2001:db8:ffff::7";
const PRIVATE: &str = "fd00:7::7";

/// The guest's gateway.
const GATEWAY: &str = "fd5c:8b21:46e7::2";

/// A network namespace, which lasts as long as a process that sleeps in it.
struct Namespace(Child);

impl Namespace {
    fn new() -> Namespace {
        let holder = Command::new("unshare").args(["--net", "sleep", "1000"]).stdin(Stdio::null()).spawn();
        let namespace = Namespace(holder.unwrap());
        let number =
            |process: &str| Path::new("/proc").join(process).join("ns/net").metadata().unwrap().ino();
        wait_for("a network namespace", Duration::from_secs(60), || {
            (number(&namespace.pid()) != number("self")).then_some(()).ok_or("still the host's")
        });
        namespace
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }

    /// Runs a shell line in it.
    #[track_caller]
    fn sh(&self, line: &str) {
        host::must("nsenter", &["-t", &self.pid(), "-n", "sh", "-ec", line]);
    }

    /// Does something in it, on a thread of its own.
    fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid())).unwrap();
        let thread = std::thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        });
        thread.join().unwrap()
    }

    /// Serves connections to this address in it; gives the port.
    fn serve(&self, address: &str, answer: fn(TcpStream)) -> u16 {
        let address: IpAddr = address.parse().unwrap();
        let listener = self.within(move || TcpListener::bind((address, 0)).unwrap());
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || answer(stream));
            }
        });
        port
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The host of the test, and what is behind its router.
struct Site {
    host: Namespace,
    far: Namespace,
    name_server: Child,
}

impl Site {
    fn new() -> Site {
        let (host, far) = (Namespace::new(), Namespace::new());
        host.sh(&format!(
            "ip link set lo up
             ip link add name here type veth peer name there netns {}
             ip address add 192.0.2.1/24 dev here
             ip address add 2001:db8:1::1/64 dev here nodad
             ip link set here up
             ip route add default via 192.0.2.2
             ip -6 route add unreachable 2001:db8:dead::/48
             echo '0 2147483647' > /proc/sys/net/ipv4/ping_group_range",
            far.pid()
        ));
        far.sh(&format!(
            "ip link set lo up
             ip address add 192.0.2.2/24 dev there
             ip address add 2001:db8:1::2/64 dev there nodad
             ip link set there up
             ip address add 203.0.113.7/32 dev lo
             ip address add {FAR}/128 dev lo
             ip address add {PRIVATE}/128 dev lo"
        ));
        host.sh("ip -6 route add default via 2001:db8:1::2");
        let name_server = Command::new("nsenter")
            .args(["-t", &far.pid(), "-n", "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null"])
            .args(["--no-resolv", "--no-hosts", "--bind-interfaces", "--user=", "--pid-file"])
            .args([&format!("--listen-address=203.0.113.7,{FAR}"), "--local=/example/"])
            .args([&format!("--host-record=six.example,{FAR}"), "--host-record=inside.example,fd00:8::8"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        wait_for("the name server", Duration::from_secs(60), || {
            far.within(|| TcpStream::connect((FAR.parse::<IpAddr>().unwrap(), 53)))
        });
        Site { host, far, name_server }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.name_server.kill();
        let _ = self.name_server.wait();
    }
}

/// Answers what the client sent, when it has ended its side, and how long that was.
fn after_the_end(mut stream: TcpStream) {
    let mut question = Vec::new();
    stream.read_to_end(&mut question).unwrap();
    stream.write_all(format!("{} bytes\n", question.len()).as_bytes()).unwrap();
    stream.write_all(&question).unwrap();
}

fn greet(mut stream: TcpStream) {
    stream.write_all(b"220 ready\n").unwrap();
}

fn guest(home: &Home, script: &str) -> Finished {
    let exec = home.microagent(["exec", "box", "--", "sh", "-c", script]);
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

/// Whether this host can be such a site. Says why not.
fn can_be_tried() -> bool {
    if !user::is_root() || !["ip", "dnsmasq", "nsenter"].into_iter().all(host::has_program) {
        host::skip("only root can make network namespaces, with `ip`, `nsenter` and `dnsmasq`");
        return false;
    }
    if !Path::new("/proc/net/if_inet6").exists() {
        host::skip("this host has no IPv6");
        return false;
    }
    true
}

#[test]
fn a_guest_reaches_what_its_host_reaches_by_ipv6_and_its_policy_allows() {
    if !can_be_tried() {
        return;
    }
    let (site, home) = (Site::new(), Home::new(User::Caller));
    let (echo, greeting) = (site.far.serve(FAR, after_the_end), site.far.serve(FAR, greet));
    let (private, other) = (site.far.serve(PRIVATE, greet), site.far.serve(PRIVATE, greet));
    let rule = format!("[{PRIVATE}]:{private}");
    let create = ["create", "box", "--image", &home.image("busybox"), "--dns", "203.0.113.7"];
    home.microagent(create).args(["--egress-allow", &rule, "-p", "[::1]:8080:80"]).success();
    let start = home.other("nsenter").args(["-t", &site.host.pid(), "-n"]).arg(home.program());
    start.args(["start", "box"]).success();

    addresses_and_pings(&home);
    connections(&home, echo, greeting);
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

fn connections(home: &Home, echo: u16, greeting: u16) {
    assert_eq!(knock(home, FAR, greeting), "220 ready\n");
    for len in [0, 1, 1003, 3_000_117] {
        let script = format!(
            "head -c {len} /dev/urandom > /tmp/sent; nc {FAR} {echo} < /tmp/sent > /tmp/got; \
                              head -n 1 /tmp/got; tail -n +2 /tmp/got | cmp - /tmp/sent && echo same"
        );
        assert_eq!(guest(home, &script).code(0).text(), format!("{len} bytes\nsame\n"));
    }
    let closed = knock(home, FAR, 9);
    assert!(closed.contains("Connection refused"), "{closed}");
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
