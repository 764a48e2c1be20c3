//! Memory that a guest has freed goes back to its host, however the guest was started, and what it uses has a bound.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use microagent_tests::kernel::executable;
use microagent_tests::{Home, User, process, wait_for};

const PATIENCE: Duration = Duration::from_secs(120);

const USED_KIB: u64 = 384 << 10;

/// What may be left of it: page tables, caches, and blocks that hold something else, too.
const KEPT_KIB: u64 = USED_KIB / 4;

/// The checksum of 32 MiB of `y` lines.
const SUM: &str = "6037343076825e4cb93dcbe7a79b33d6";

/// What the machine takes of the host's memory, without what it shares with others.
fn cost(home: &Home) -> u64 {
    let qemus = process::of_dir(&home.state()).into_iter().filter(process::Process::is_qemu);
    qemus.filter_map(|qemu| qemu.cost_kib()).sum()
}

/// Makes the guest use memory and free it, and waits until the host has it again.
fn use_and_free(home: &Home) {
    let sh = |line: &str| home.microagent(["exec", "web", "--", "sh", "-c", line]).success();
    let before = cost(home);
    sh("dd if=/dev/zero of=/dev/shm/fill bs=1M count=384 2> /dev/null");
    let full = cost(home);
    assert!(full > before + USED_KIB - KEPT_KIB, "{before} KiB before, {full} KiB full");
    sh("rm /dev/shm/fill");
    wait_for("the memory on the host again", PATIENCE, || match cost(home) {
        now if now < before + KEPT_KIB => Ok(()),
        now => Err(format!("{before} KiB before, {full} KiB full, {now} KiB now")),
    });
    // What was given back can be used again, and has what is written to it.
    let sum = sh("yes | head -n 16777216 > /dev/shm/again; md5sum < /dev/shm/again; rm /dev/shm/again");
    assert!(sum.text().contains(SUM), "{}", sum.told());
}

#[test]
fn memory_that_a_guest_frees_is_its_hosts_again() {
    let home = Home::new(User::unprivileged());
    home.create("web", ["--memory", "1024"]);
    // The first start makes the templates. The others restore one, which no machine has changed meanwhile.
    for _ in 0..3 {
        home.microagent(["start", "web"]).success();
        use_and_free(&home);
        home.microagent(["halt", "web"]).success();
    }
    let quick = ["--json", "--memory", "1024", "--network", "isolated"];
    let run = home.run("busybox", quick, &["true"]).success().json();
    assert_eq!(run["start"]["mode"], "warm", "{run}");

    home.call().args(["start", "web"]).env("MICROAGENT_WARM", "off").success();
    use_and_free(&home);
    home.microagent(["delete", "web", "--force"]).success();
    home.nothing_is_left();
}

/// A program of `pairs` times `push rax; pop rax`, which ends with 0. Under emulation, one byte of it becomes dozens.
fn long_program(pairs: usize) -> Vec<u8> {
    const EXIT: [u8; 12] = [0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05, 0x90, 0x90, 0x90];
    executable(&[[0x50, 0x58].repeat(pairs), EXIT.to_vec()].concat())
}

#[test]
fn a_machine_that_uses_all_it_can_costs_its_host_no_more_than_its_bound() {
    let home = Home::new(User::unprivileged());
    home.create("web", ["--memory", "256"]);
    home.microagent(["start", "web"]).success();
    let stats = home.microagent(["stats", "web", "--json"]).success().json();
    let bound = stats["memory_limit_bytes"].as_u64().unwrap() >> 10;
    let qemu = home.processes().into_iter().find(process::Process::is_qemu).unwrap();
    let run = "cat > /long && chmod 755 /long && /long";
    home.microagent(["exec", "-i", "web", "--", "sh", "-c", run]).stdin(long_program(2 << 20)).success();
    // Killed when nothing is left.
    home.microagent(["exec", "web", "--", "tail", "/dev/zero"]).run().code(137);
    let most = qemu.memory_kib("VmHWM").unwrap();
    // QEMU's own part of the bound is for queues and caches, which this machine hardly uses.
    let own = 128 << 10;
    assert!(most > bound - own && most <= bound, "{most} KiB, the bound is {bound} KiB");
    let status = home.microagent(["status", "web", "--json"]).success().json();
    let now = status["host_memory_bytes"].as_u64().unwrap() >> 10;
    assert!(now > 64 << 10 && now < bound, "{now} KiB, the bound is {bound} KiB");
    home.microagent(["delete", "web", "--force"]).success();
    home.nothing_is_left();
}

#[test]
fn disk_that_a_guest_frees_is_its_hosts_again() {
    let home = Home::new(User::unprivileged());
    home.microagent(["volume", "create", "data", "--size-mib", "512"]).success();
    home.create("web", ["-v", "data:/data"]);
    let mib = |path: &Path| (fs::metadata(path).unwrap().blocks() * 512) >> 20;
    let sh = |line: &str| home.microagent(["exec", "web", "--", "sh", "-c", line]).success();
    let root = home.workspace("web").join("disk.qcow2");
    let disks = [("/fill", root), ("/data/fill", home.state().join("volumes/data/disk.ext4"))];
    for warm in ["off", "on", "on"] {
        home.call().args(["start", "web"]).env("MICROAGENT_WARM", warm).success();
        for (file, disk) in &disks {
            let before = mib(disk);
            sh(&format!("dd if=/dev/zero of={file} bs=1M count=128 2> /dev/null; sync"));
            let full = mib(disk);
            assert!(full >= before + 120, "{file}: {before} MiB before, {full} MiB full");
            sh(&format!("rm {file}; sync"));
            wait_for("the blocks on the host again", PATIENCE, || match mib(disk) {
                now if now < before + 16 => Ok(()),
                now => Err(format!("{file}: {before} MiB before, {full} MiB full, {now} MiB now")),
            });
        }
        home.microagent(["halt", "web"]).success();
    }
    home.microagent(["delete", "web", "--yes"]).success();
    home.nothing_is_left();
}
