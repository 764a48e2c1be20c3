//! Rates of disk and network: what is slower than it could be. A rate is asserted as the most that can have passed in the time
//! that it took, with half of it as room: a busy host makes nothing faster.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::time::{Duration, Instant};

use microagent_tests::{Home, User, wait_for};

/// How long a guest may take for anything here.
const DEADLINE: Duration = Duration::from_secs(200);

/// Bytes per second that the workspace's network may pass.
const NET_BPS: u64 = 1_000_000;

/// Bytes that are sent each way.
const SENT: u64 = 4_000_000;

fn home() -> Home {
    Home::new(User::unprivileged())
}

/// Fails the test if more passed than double the rate allows.
#[track_caller]
fn was_held_up(what: &str, bytes: u64, rate: u64, took: Duration) {
    let least = Duration::from_secs(bytes / rate / 2);
    assert!(took >= least, "{what}: {bytes} bytes at {rate} a second took {} ms", took.as_millis());
}

/// Asks a server in the guest, and says how long its answer took once it was there.
fn exchange(port: u16, sent: u64, answer: impl Fn(&[u8]) -> bool) -> Duration {
    wait_for("a server in the guest", DEADLINE, || {
        let begun = Instant::now();
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(|e| e.to_string())?;
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut bytes = Vec::new();
        let sent = stream.write_all(&vec![b'x'; usize::try_from(sent).unwrap()]);
        let _ = sent.and_then(|()| stream.shutdown(Shutdown::Write));
        stream.read_to_end(&mut bytes).map_err(|e| e.to_string())?;
        if answer(&bytes) { Ok(begun.elapsed()) } else { Err(format!("{} bytes", bytes.len())) }
    })
}

#[test]
fn a_guest_is_no_faster_than_its_limits() {
    let home = home();
    let limits = ["--disk-bps", "4m", "--disk-iops", "1000", "--net-bps", "1000000"];
    let line = format!(
        "while :; do nc -l -p 9000 -e sh -c 'head -c {SENT} | wc -c'; done &
         while :; do nc -l -p 9001 -e head -c {SENT} /dev/zero; done"
    );
    home.microagent(["create", "slow", "--profile", "tiny", "-p", "0:9000", "-p", "0:9001", "--image"])
        .arg(home.image("busybox"))
        .args(["-v", "data:/data", "--service-command", &line])
        .args(limits)
        .success();
    // The second start is from a template, with the disks added in another way.
    for _ in 0..2 {
        home.microagent(["start", "slow"]).success();
        let status = home.microagent(["status", "slow", "--json"]).success().json();
        let limits = &status["limits"];
        assert_eq!((&limits["disk_bps"], &limits["disk_iops"]), (&4_194_304.into(), &1000.into()));
        assert_eq!(limits["net_bps"], NET_BPS);
        let ports = status["port_forwards"].as_array().unwrap();
        let ports: Vec<_> =
            ports.iter().map(|port| u16::try_from(port["host_port"].as_u64().unwrap()).unwrap()).collect();
        // Both disks together have the rate.
        let write = "dd if=/dev/zero of=/file bs=1M count=8 conv=fsync & dd if=/dev/zero of=/data/file bs=1M count=8 \
                     conv=fsync; wait";
        let begun = Instant::now();
        home.microagent(["exec", "slow", "--", "sh", "-c", write]).deadline(DEADLINE).success();
        was_held_up("the disks", 16 << 20, 4 << 20, begun.elapsed());
        let took = exchange(ports[0], SENT, |answer| answer == format!("{SENT}\n").as_bytes());
        was_held_up("what the guest gets", SENT, NET_BPS, took);
        let took = exchange(ports[1], 0, |answer| answer.len() as u64 == SENT);
        was_held_up("what the guest sends", SENT, NET_BPS, took);
        home.microagent(["halt", "slow"]).success();
    }
    let text = home.microagent(["status", "slow"]).success();
    assert!(text.text().contains("Limits: disk="), "{}", text.told());
    home.microagent(["delete", "slow", "--yes"]).success();
    home.microagent(["volume", "delete", "data", "--yes"]).success();
}

#[test]
fn limits_come_from_a_spec_file_and_change_with_it() {
    let home = home();
    let write = |limits: &str| {
        home.write("microagent.yaml", format!("name: web\nprofile: tiny\nlimits: {{{limits}}}\n"));
    };
    write("diskBps: 2000000, netBps: 500000");
    home.microagent(["create", "--image"])
        .arg(home.image("busybox"))
        .args(["--file", "microagent.yaml"])
        .dir(home.path())
        .success();
    write("diskBps: 3000000, diskIops: 200");
    let applied = home.microagent(["apply", "--file", "microagent.yaml"]).dir(home.path()).success();
    for change in ["limits.diskBps: 2000000 -> 3000000", "limits.diskIops: none -> 200"] {
        assert!(applied.text().contains(change), "{}", applied.told());
    }
    let limits = home.microagent(["status", "web", "--json"]).success().json()["limits"].clone();
    let is = (&limits["disk_bps"], &limits["disk_iops"], &limits["net_bps"]);
    assert_eq!(is, (&3_000_000.into(), &200.into(), &500_000.into()), "what the file does not name stays");
    let image = home.image("busybox");
    for (words, text) in [
        (["--disk-bps", "1k"], "is less than 1048576"),
        (["--disk-iops", "1"], "is less than 100"),
        (["--net-bps", "1"], "is less than 65536"),
    ] {
        home.microagent(["run", "--profile", "tiny"]).args(words).args([&image, "true"]).failure().says(text);
    }
    home.microagent(["run", "--network", "isolated", "--net-bps", "1m", &image, "true"])
        .failure()
        .says("no network device");
}
