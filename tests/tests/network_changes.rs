//! The host's network changes while a guest runs.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io::Write;
use std::time::Duration;

use microagent_tests::site::{FAR_V4, Site};
use microagent_tests::{Home, User, far_end, host, user, wait_for};

/// A host of its own, with a workspace; gets the command, an image and an empty directory.
const CHANGES: &str = r#"set -e
microagent=$1 image=$2 etc=$3
cp -a /etc/. "$etc"
mount --bind "$etc" /etc
ip link set lo up
ip link add name here type veth peer name there
ip address add 192.0.2.1/24 dev here
ip link set here up
ip link set there up
serve() {
    dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --bind-interfaces --user= --pid-file \
        --listen-address="$1" --address="/host.example/$2" &
    servers="$servers $!"
}
servers=
trap 'kill $servers' EXIT
serve 127.0.0.2 203.0.113.1
serve 127.0.0.3 203.0.113.2

guest_says() {
    for attempt in $(seq 100); do
        if "$microagent" exec box -- sh -c "$1" 2>&1 | grep -q "$2"; then return; fi
        sleep 0.5
    done
    echo "the guest never says $2"
    exit 1
}
log_says() {
    for attempt in $(seq 100); do
        "$microagent" exec box -- sh -c 'nc -w 1 203.0.113.50 1007 < /dev/null || true' > /dev/null 2>&1
        if "$microagent" egress box | grep 203.0.113.50:1007 | tail -n 1 | grep -q "$1"; then return; fi
        sleep 0.5
    done
    echo "the log never says $1"
    "$microagent" egress box
    exit 1
}

rm -f /etc/resolv.conf
echo nameserver 127.0.0.2 > /etc/resolv.conf
"$microagent" create box --image "$image" --dns-host
"$microagent" start box
guest_says 'nslookup host.example' 203.0.113.1
echo nameserver 127.0.0.3 > /etc/resolv.new
mv /etc/resolv.new /etc/resolv.conf
guest_says 'nslookup host.example' 203.0.113.2
echo 203.0.113.99 added.example >> /etc/hosts
guest_says 'nslookup added.example' 203.0.113.99

ip address add 203.0.113.50/32 dev here
log_says 'refused .*the host or one of its networks'
ip address delete 203.0.113.50/32 dev here
log_says 'allowed '
ip link set here down
ip link set here up
"$microagent" exec box -- echo alive
"$microagent" delete box --force --yes
echo all seen
"#;

#[test]
fn new_lookups_and_connections_follow_the_hosts_network() {
    if !user::is_root() || !["ip", "dnsmasq"].into_iter().all(host::has_program) {
        return host::skip("only root can make a network namespace, with `ip` and `dnsmasq`");
    }
    let home = Home::new(User::Caller);
    let (image, etc) = (home.image("busybox"), home.make_dir("etc"));
    let run = home.other("unshare").args(["--net", "--mount", "sh", "-c", CHANGES, "sh"]).arg(home.program());
    let run = run.arg(&image).arg(&etc).deadline(Duration::from_secs(300)).success();
    assert!(run.text().ends_with("all seen\n"), "{}", run.told());
    home.nothing_is_left();
}

#[test]
fn connections_follow_an_interface_that_goes_down_comes_back_and_gets_another_address() {
    if !Site::can_be_tried() {
        return;
    }
    let (site, home) = (Site::start(), Home::new(User::Caller));
    let server = far_end::serve(site.far.listen(FAR_V4), |mut stream| {
        let client = stream.peer_addr().map(|client| client.ip().to_string());
        let _ = stream.write_all(client.unwrap_or_default().as_bytes());
    });
    home.microagent(["create", "box", "--image", &home.image("busybox"), "--dns", FAR_V4]).success();
    site.call(&home).args(["start", "box"]).success();
    let script = format!("nc -w 60 {FAR_V4} {server} < /dev/null 2>&1");
    let says = |wanted: &str| {
        wait_for(&format!("`{wanted}`"), Duration::from_secs(60), || {
            let said = home.microagent(["exec", "box", "--", "sh", "-c", &script]).run();
            if said.text().contains(wanted) { Ok(()) } else { Err(said.told()) }
        });
    };
    says("192.0.2.1");
    site.host.sh("ip link set here down");
    says("Network is unreachable");
    site.host.sh("ip link set here up; ip route add default via 192.0.2.2");
    says("192.0.2.1");
    let move_on = "ip address delete 192.0.2.1/24 dev here; ip address add 192.0.2.77/24 dev here; \
        ip route add default via 192.0.2.2";
    site.host.sh(move_on);
    says("192.0.2.77");
    home.microagent(["delete", "box", "--force", "--yes"]).success();
    home.nothing_is_left();
}
