//! A host of a test's own: network namespaces, with a router between the host and its servers.

use std::fs::File;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{Home, Invocation, host, user, wait_for};

/// Global addresses of a server behind the router, which is a name server, too.
pub const FAR: &str = "2001:db8:ffff::7";
/// The same of IPv4.
pub const FAR_V4: &str = "203.0.113.7";

/// A private address of it.
pub const PRIVATE: &str = "fd00:7::7";

/// A network namespace, which lasts as long as a process that sleeps in it.
#[derive(Debug)]
pub struct Namespace(Child);

impl Namespace {
    #[track_caller]
    fn new() -> Namespace {
        let holder = Command::new("unshare").args(["--net", "sleep", "1000"]).stdin(Stdio::null()).spawn();
        let namespace = Namespace(holder.expect("`unshare` can be started"));
        let number = |process: &str| {
            let path = Path::new("/proc").join(process).join("ns/net");
            path.metadata().expect("a process has a network namespace").ino()
        };
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
    pub fn sh(&self, line: &str) {
        host::must("nsenter", &["-t", &self.pid(), "-n", "sh", "-ec", line]);
    }

    /// Does something in it, on a thread of its own.
    pub fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid())).expect("its process sleeps");
        let thread = std::thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root can enter a namespace");
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Listens at a port of this address in it.
    pub fn listen(&self, address: &str) -> TcpListener {
        let address: IpAddr = address.parse().expect("an address");
        self.within(move || TcpListener::bind((address, 0)).expect("an address of the namespace"))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The host of the test, and what is behind its router.
#[derive(Debug)]
pub struct Site {
    /// Where the machine under test runs.
    pub host: Namespace,
    /// Where the servers are.
    pub far: Namespace,
    name_server: Child,
}

impl Site {
    /// Whether this host can be such a site. Says why not.
    pub fn can_be_tried() -> bool {
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

    /// A host with addresses of both families, and a router to the far ones.
    #[track_caller]
    pub fn start() -> Site {
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
             ip address add {FAR_V4}/32 dev lo
             ip address add {FAR}/128 dev lo
             ip address add {PRIVATE}/128 dev lo"
        ));
        host.sh("ip -6 route add default via 2001:db8:1::2");
        let name_server = Command::new("nsenter")
            .args(["-t", &far.pid(), "-n", "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null"])
            .args(["--no-resolv", "--no-hosts", "--bind-interfaces", "--user=", "--pid-file"])
            .args([&format!("--listen-address={FAR_V4},{FAR}"), "--local=/example/"])
            .args([&format!("--host-record=six.example,{FAR}"), "--host-record=inside.example,fd00:8::8"])
            .stdin(Stdio::null())
            .spawn()
            .expect("dnsmasq can be started");
        wait_for("the name server", Duration::from_secs(60), || {
            far.within(|| TcpStream::connect((FAR.parse::<IpAddr>().expect("an address"), 53)))
        });
        Site { host, far, name_server }
    }

    /// Begins a call of `microagent` on the host of the site.
    pub fn call<'a>(&self, home: &'a Home) -> Invocation<'a> {
        home.other("nsenter").args(["-t", &self.host.pid(), "-n"]).arg(home.program())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.name_server.kill();
        let _ = self.name_server.wait();
    }
}
