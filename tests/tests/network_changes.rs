//! The host's network changes while a guest runs.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::time::Duration;

use microagent_tests::{Home, User, host, user};

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
