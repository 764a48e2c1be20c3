//! A real distribution in the guest, and the way out to its package mirror.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use microagent_tests::{Home, User, host};

#[test]
fn a_debian_guest_installs_a_package_over_network_user() {
    let reachable = ("deb.debian.org", 80).to_socket_addrs().ok().and_then(|mut addresses| {
        addresses.find(|address| {
            address.is_ipv4() && TcpStream::connect_timeout(address, Duration::from_secs(10)).is_ok()
        })
    });
    if reachable.is_none() {
        return host::skip("this host cannot reach deb.debian.org itself");
    }
    let home = Home::new(User::unprivileged());
    let setup =
        ["--setup", "apt-get update -qq", "--setup", "apt-get install -y -qq --no-install-recommends jq"];
    let run = home
        .call()
        .args(["run", "--image", &home.image("debian")])
        .args(setup)
        .args(["--exec", "jq --version"]);
    let run = run.deadline(Duration::from_secs(280)).success();
    assert_eq!(run.summary("Exit code"), "0", "{}", run.told());
    assert!(run.guest_output().lines().last().unwrap().starts_with("jq-1."), "{}", run.told());
    home.nothing_is_left();
}
