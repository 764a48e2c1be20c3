//! A real distribution in the guest, and the way out to its package mirror.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::time::Duration;

use microagent_tests::{Home, User, host};

#[test]
fn a_debian_guest_installs_a_package_over_network_user() {
    let Some(mirror) = host::package_mirror() else { return };
    let home = Home::new(User::unprivileged());
    let setup =
        ["--setup", "apt-get update -qq", "--setup", "apt-get install -y -qq --no-install-recommends jq"];
    let run = home
        .call()
        .args(["run", "--image", &home.image("debian")])
        .args(mirror.allowed_inside())
        .args(setup)
        .args(["--exec", "jq --version"]);
    let run = run.deadline(Duration::from_secs(280)).success();
    assert_eq!(run.summary("Exit code"), "0", "{}", run.told());
    assert!(run.guest_output().lines().last().unwrap().starts_with("jq-1."), "{}", run.told());
    home.nothing_is_left();
}
