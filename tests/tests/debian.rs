//! A real distribution in the guest, and the way out to its package mirror.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use microagent_tests::{Home, User, host};

#[test]
fn a_debian_guest_installs_a_package_over_network_user() {
    let Some(mirror) = mirror() else {
        return host::skip("this host's own apt names no mirror over http");
    };
    let reachable = (mirror.as_str(), 80).to_socket_addrs().ok().and_then(|mut addresses| {
        addresses.find(|address| {
            address.is_ipv4() && TcpStream::connect_timeout(address, Duration::from_secs(10)).is_ok()
        })
    });
    if reachable.is_none() {
        return host::skip(&format!("this host cannot reach {mirror} itself"));
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

/// The package mirror of this host, as its apt knows it.
fn mirror() -> Option<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(
        fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path()),
    );
    // What apt itself reads: other files in that directory are switched off.
    files.retain(|file| {
        file.extension().is_some_and(|extension| extension == "list" || extension == "sources")
    });
    files.iter().filter_map(|file| fs::read_to_string(file).ok()).find_map(|text| {
        let line = text.lines().find(|line| !line.starts_with('#') && line.contains("http://"))?;
        let (_, rest) = line.split_once("http://")?;
        Some(rest.split(['/', ' ']).next()?.to_owned())
    })
}
