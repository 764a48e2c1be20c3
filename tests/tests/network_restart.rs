//! A network stack that ends while its guest runs is started again.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use microagent_tests::process::Process;
use microagent_tests::{Home, User, host, wait_for};
use rustix::process::Signal;

const DEADLINE: Duration = Duration::from_secs(60);

/// Bytes of the transfers during which a stack is killed. None of them comes to its end.
const ENDLESS: u64 = 1 << 40;

fn home() -> Home {
    Home::new(User::unprivileged())
}

fn stack_pid(home: &Home, workspace: &str) -> Option<i64> {
    let network = home.microagent(["network", workspace, "--json"]).success().json();
    assert_eq!(network["network"]["link"] == "up", network["network"]["stack_pid"].is_i64());
    network["network"]["stack_pid"].as_i64()
}

/// Kills the network stack, and waits until another one has its place.
fn kill_stack(home: &Home, workspace: &str) {
    let before = stack_pid(home, workspace).unwrap();
    let processes = home.processes();
    processes.iter().find(|process| i64::from(process.pid) == before).unwrap().signal(Signal::KILL);
    wait_for("another network stack", DEADLINE, || match stack_pid(home, workspace) {
        Some(pid) if pid != before => Ok(()),
        seen => Err(seen),
    });
}

/// Connections that send as fast as they can, or take what comes; gives its port and counts the bytes.
fn endless(address: Ipv4Addr, sends: bool, moved: Arc<AtomicUsize>) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let moved = Arc::clone(&moved);
            std::thread::spawn(move || {
                let mut bytes = vec![0x5a; 64 * 1024];
                let mut step = || if sends { stream.write(&bytes) } else { stream.read(&mut bytes) };
                while let Ok(count @ 1..) = step() {
                    moved.fetch_add(count, Ordering::Relaxed);
                }
            });
        }
    });
    port
}

fn greeting(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn a_stack_that_is_killed_in_the_middle_of_transfers_is_replaced_and_ports_work_again() {
    let Some(address) = host::outward_address() else { return host::skip("no address but loopback") };
    let home = home();
    let create = ["create", "web", "--image", &home.image("busybox"), "--egress", "open", "-p", "0:80"];
    let service = ["--service-command", "while true; do echo served | nc -l -p 80; done"];
    home.microagent(create).args(service).success();
    home.microagent(["start", "web"]).success();
    let network = home.microagent(["network", "web", "--json"]).success().json();
    let port = u16::try_from(network["network"]["port_forwards"][0]["host_port"].as_u64().unwrap()).unwrap();

    let moved = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let [sent, taken] =
        [true, false].map(|sends| endless(address, sends, Arc::clone(&moved[usize::from(sends)])));
    let load = format!(
        "for n in 1 2; do (while true; do nc {address} {sent} < /dev/null | head -c {ENDLESS} > /dev/null; done) & \
         (while true; do head -c {ENDLESS} /dev/zero | nc {address} {taken}; done) & done; wait"
    );
    let load = home.microagent(["exec", "web", "--", "sh", "-c", &load]).start();
    let seen = || moved.each_ref().map(|moved| moved.load(Ordering::Relaxed));
    for _ in 0..4 {
        // Both directions are busy with large frames when it is killed, and again afterwards.
        let before = seen();
        wait_for("transfers in both directions", DEADLINE, || {
            let grown = seen().iter().zip(before).all(|(now, before)| *now > before + (4 << 20));
            if grown { Ok(()) } else { Err(seen()) }
        });
        kill_stack(&home, "web");
    }
    drop(load);
    wait_for("the published port", DEADLINE, || match greeting(port) {
        Ok(text) if text == "served\n" => Ok(()),
        seen => Err(seen),
    });
    let events = home.microagent(["events", "web"]).success();
    assert!(events.text().contains("the network is interrupted and starts again: "), "{}", events.told());
    assert!(events.text().contains("the network is back; its connections were reset"), "{}", events.told());
    let log = home.microagent(["egress", "web"]).success();
    assert!(log.text().contains("the network is up again"), "{}", log.told());
    home.microagent(["delete", "web", "--force", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn what_a_guest_may_move_is_counted_over_all_stacks_of_a_start() {
    let Some(address) = host::outward_address() else { return host::skip("no address but loopback") };
    let home = home();
    let create = ["create", "box", "--image", &home.image("busybox"), "--egress", "open"];
    home.microagent(create).args(["--egress-max-bytes", "3000000"]).success();
    home.microagent(["start", "box"]).success();
    let moved = Arc::new(AtomicUsize::new(0));
    let port = endless(address, false, Arc::clone(&moved));
    let send = format!("head -c 2000000 /dev/zero | nc -w 5 {address} {port}");
    let send = || home.microagent(["exec", "box", "--", "sh", "-c", &send]);
    send().success();
    kill_stack(&home, "box");
    // `nc` also ends with 0 when it reads the end of the connection before it writes again.
    send().run();
    let moved = moved.load(Ordering::Relaxed);
    assert!((2_000_000..=3_000_000).contains(&moved), "{moved} bytes came through");
    let log = home.microagent(["egress", "box"]).success();
    assert!(log.text().contains("the byte limit is reached"), "{}", log.told());
    home.microagent(["delete", "box", "--force", "--yes"]).success();
    home.nothing_is_left();
}

#[test]
fn a_keeper_that_is_killed_takes_the_network_for_this_start() {
    let home = home();
    home.microagent(["create", "box", "--image", &home.image("busybox"), "-p", "0:80"]).success();
    home.microagent(["start", "box"]).success();
    let network = home.microagent(["network", "box", "--json"]).success().json();
    let port = u16::try_from(network["network"]["port_forwards"][0]["host_port"].as_u64().unwrap()).unwrap();
    home.processes().into_iter().find(Process::is_network_keeper).unwrap().signal(Signal::KILL);
    wait_for("the loss of the network", DEADLINE, || {
        let events = home.microagent(["events", "box"]).success();
        if events.text().contains("the network is gone until the next start") {
            Ok(())
        } else {
            Err(events.told())
        }
    });
    let network = home.microagent(["network", "box"]).success();
    assert!(network.text().contains("State: running\nNetwork: user\nLink: down\n"), "{}", network.told());
    assert!(!home.processes().iter().any(Process::is_network_stack));
    let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map(drop);
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(home.microagent(["exec", "box", "--", "echo", "alive"]).success().text(), "alive\n");
    home.microagent(["restart", "box"]).success();
    assert!(stack_pid(&home, "box").is_some());
    home.microagent(["delete", "box", "--force", "--yes"]).success();
    home.nothing_is_left();
}
