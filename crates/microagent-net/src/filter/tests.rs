use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use super::*;
use crate::frame::flags::{ACK, RST, SYN};
use crate::testing::{self, FAR, dns_answer, dns_query, read_dns, reversed, streamed};
use crate::{Decision, EgressMode, EgressPolicy, GATEWAY, NAME_SERVER, Reason};

/// Far longer than anything takes here.
const DEADLINE: Duration = Duration::from_secs(30);

struct Lines(Arc<Mutex<Vec<Decision>>>);

impl DecisionLog for Lines {
    fn record(&mut self, decision: &Decision) {
        self.0.lock().unwrap().push(decision.clone());
    }
}

/// A filter with both ends in the test's hands.
struct Ends {
    qemu: UnixStream,
    passt: UnixStream,
    handle: FilterHandle,
    lines: Arc<Mutex<Vec<Decision>>>,
}

fn ends(policy: EgressPolicy, name_servers: &[std::net::SocketAddr]) -> Ends {
    let (qemu, their_qemu) = UnixStream::pair().unwrap();
    let (passt, their_passt) = UnixStream::pair().unwrap();
    for end in [&qemu, &passt] {
        end.set_read_timeout(Some(DEADLINE)).unwrap();
        end.set_write_timeout(Some(DEADLINE)).unwrap();
    }
    let options = FilterOptions {
        policy,
        published: vec![80],
        host_addresses: Vec::new(),
        name_servers: name_servers.to_vec(),
    };
    let lines = Arc::new(Mutex::new(Vec::new()));
    let log = Box::new(Lines(lines.clone()));
    let handle = start_filter(their_qemu.into(), their_passt.into(), options, log).unwrap();
    Ends { qemu, passt, handle, lines }
}

fn allowlist() -> EgressPolicy {
    EgressPolicy {
        mode: EgressMode::Allowlist,
        allow: vec!["example.org".parse().unwrap()],
        ..Default::default()
    }
}

fn frame_from(socket: &mut UnixStream) -> Vec<u8> {
    let mut len = [0; 4];
    socket.read_exact(&mut len).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(len) as usize];
    socket.read_exact(&mut frame).unwrap();
    frame
}

fn send_frame(socket: &mut UnixStream, frame: &[u8]) {
    socket.write_all(&streamed(frame)).unwrap();
}

fn is_readable(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: 0 };
    poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&timeout)).unwrap() == 1
}

/// Waits until the filter's thread has ended.
fn ended(handle: FilterHandle) {
    let (done, waits) = mpsc::channel();
    thread::spawn(move || {
        // Not `stop`: it is to end by itself.
        let mut handle = handle;
        handle.thread.take().unwrap().join().unwrap();
        done.send(()).unwrap();
    });
    waits.recv_timeout(DEADLINE).expect("the thread has not ended");
}

#[test]
fn frames_pass_in_both_directions_and_refusals_come_back() {
    let Ends { mut qemu, mut passt, handle, lines } = ends(EgressPolicy::default(), &[]);
    let syn = testing::tcp(FAR, 40_000, 443, SYN, b"");
    let refused = testing::tcp(Ipv4Addr::new(10, 1, 1, 1), 40_000, 443, SYN, b"");
    // In pieces, with the cut in the middle of a length and of a frame.
    let stream = [streamed(&refused), streamed(&syn)].concat();
    for piece in [&stream[..2], &stream[2..60], &stream[60..]] {
        qemu.write_all(piece).unwrap();
    }
    assert_eq!(frame_from(&mut passt), syn);
    assert_eq!(frame_from(&mut qemu)[47], RST | ACK);
    let answer = reversed(testing::tcp(FAR, 40_000, 443, SYN | ACK, b""));
    send_frame(&mut passt, &reversed(testing::tcp(FAR, 9, 9, ACK, b"stray")));
    send_frame(&mut passt, &answer);
    assert_eq!(frame_from(&mut qemu), answer);
    handle.stop();
    let allowed: Vec<bool> = lines.lock().unwrap().iter().map(|line| line.allowed).collect();
    assert_eq!(allowed, [false, true]);
    assert_eq!(qemu.read(&mut [0]).unwrap(), 0);
    assert_eq!(passt.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_side_that_does_not_take_holds_back_the_other_and_nothing_is_lost() {
    let Ends { mut qemu, mut passt, handle, .. } = ends(EgressPolicy::default(), &[]);
    send_frame(&mut qemu, &testing::tcp(FAR, 40_000, 443, SYN, b""));
    assert_eq!(frame_from(&mut passt)[47], SYN);
    let mut writer = qemu.try_clone().unwrap();
    let (count, size) = (3000_u32, 4000);
    let sender = thread::spawn(move || {
        for number in 0..count {
            let mut data = vec![0; size];
            data[..4].copy_from_slice(&number.to_be_bytes());
            send_frame(&mut writer, &testing::tcp(FAR, 40_000, 443, ACK, &data));
            // Frames of no flow in between, whose answers nobody takes.
            send_frame(&mut writer, &testing::tcp(FAR, 40_001, 443, ACK, b""));
        }
    });
    for number in 0..count {
        let frame = frame_from(&mut passt);
        assert_eq!(frame.len(), 54 + size);
        assert_eq!(frame[54..58], number.to_be_bytes());
    }
    sender.join().unwrap();
    // The answers that were kept are whole.
    for _ in 0..1000 {
        assert_eq!(frame_from(&mut qemu)[47], RST);
    }
    handle.stop();
}

#[test]
fn a_name_is_asked_for_at_the_host_and_opens_its_address() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(DEADLINE)).unwrap();
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let Ends { mut qemu, mut passt, handle, lines } = ends(allowlist(), &[server.local_addr().unwrap()]);
    let syn = testing::tcp(FAR, 40_000, 443, SYN, b"");
    send_frame(&mut qemu, &syn);
    assert_eq!(frame_from(&mut qemu)[47], RST | ACK);
    send_frame(&mut qemu, &testing::udp(NAME_SERVER, 5000, 53, &dns_query(7, "example.org", 1, None)));
    let mut query = [0; 512];
    let (count, from) = server.recv_from(&mut query).unwrap();
    let id = u16::from_be_bytes([query[0], query[1]]);
    assert_eq!(read_dns(&query[..count]).1, "example.org");
    // Somebody else knows id and port, but not the server's address.
    let forged = dns_answer(id, "example.org", &[[203, 0, 113, 66]], 60);
    stranger.send_to(&forged, from).unwrap();
    server.send_to(&dns_answer(id ^ 1, "example.org", &[[203, 0, 113, 66]], 60), from).unwrap();
    server.send_to(&dns_answer(id, "example.org", &[FAR.octets()], 60), from).unwrap();
    let answer = frame_from(&mut qemu);
    assert_eq!(read_dns(&answer[42..]).2, [(FAR, 60)]);
    send_frame(&mut qemu, &syn);
    assert_eq!(frame_from(&mut passt), syn);
    handle.stop();
    let reasons: Vec<Reason> = lines.lock().unwrap().iter().map(|line| line.reason).collect();
    assert_eq!(reasons, [Reason::NotListed, Reason::Rule, Reason::Name]);
}

#[test]
fn a_truncated_answer_is_fetched_by_tcp_from_the_next_server_if_the_first_is_not_there() {
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()) {
            break (udp, tcp);
        }
    };
    udp.set_read_timeout(Some(DEADLINE)).unwrap();
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let Ends { mut qemu, passt: _passt, handle, .. } =
        ends(allowlist(), &[nobody, udp.local_addr().unwrap()]);
    send_frame(&mut qemu, &testing::udp(NAME_SERVER, 5000, 53, &dns_query(7, "example.org", 1, None)));
    let mut query = [0; 512];
    let (_, from) = udp.recv_from(&mut query).unwrap();
    let mut cut = dns_answer(u16::from_be_bytes([query[0], query[1]]), "example.org", &[], 60);
    cut[2] |= 2;
    udp.send_to(&cut, from).unwrap();
    let (mut stream, _) = tcp.accept().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut len = [0; 2];
    stream.read_exact(&mut len).unwrap();
    let mut query = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut query).unwrap();
    let many: Vec<[u8; 4]> = (0..100).map(|n| [192, 0, 2, n]).collect();
    let message = dns_answer(u16::from_be_bytes([query[0], query[1]]), "example.org", &many, 60);
    let message = [&(message.len() as u16).to_be_bytes()[..], &message].concat();
    for piece in message.chunks(100) {
        stream.write_all(piece).unwrap();
    }
    let answer = frame_from(&mut qemu);
    let addresses = read_dns(&answer[42..]).2.len();
    assert!((10..100).contains(&addresses) && answer.len() <= 42 + 512, "{addresses}");
    handle.stop();
}

#[test]
fn when_passt_goes_qemu_notices_nothing_and_the_handle_tells() {
    let Ends { mut qemu, passt, handle, lines } = ends(EgressPolicy::default(), &[]);
    let syn = testing::tcp(FAR, 40_000, 443, SYN, b"");
    send_frame(&mut qemu, &syn);
    assert!(!is_readable(handle.network_down(), Duration::ZERO));
    drop(passt);
    assert!(is_readable(handle.network_down(), DEADLINE));
    send_frame(&mut qemu, &testing::arp(GATEWAY));
    let mut answer = frame_from(&mut qemu);
    // The connection that was there may have been reset first.
    while answer[12..14] != [8, 6] {
        answer = frame_from(&mut qemu);
    }
    for _ in 0..1000 {
        send_frame(&mut qemu, &syn);
        assert_eq!(frame_from(&mut qemu)[47], RST | ACK);
    }
    assert!(handle.is_running());
    drop(qemu);
    ended(handle);
    assert!(lines.lock().unwrap().iter().any(|line| line.reason == Reason::Down));
}

#[test]
fn when_passt_goes_while_nobody_takes_its_frames_there_is_no_standstill() {
    let Ends { mut qemu, mut passt, handle, .. } = ends(EgressPolicy::default(), &[]);
    send_frame(&mut qemu, &testing::tcp(FAR, 40_000, 443, SYN, b""));
    frame_from(&mut passt);
    let data = reversed(testing::tcp(FAR, 40_000, 443, ACK, &[0; 4000]));
    passt.set_nonblocking(true).unwrap();
    // Until both sockets are full, which may cut a frame in its middle.
    let mut sent = 0;
    while let Ok(count) = passt.write(&streamed(&data)) {
        sent += count;
        if count < 4 + data.len() {
            break;
        }
    }
    drop(passt);
    let whole = sent / (4 + data.len());
    for _ in 0..whole {
        assert_eq!(frame_from(&mut qemu), data);
    }
    assert!(is_readable(handle.network_down(), DEADLINE));
    drop(qemu);
    ended(handle);
}

#[test]
fn the_filter_ends_with_qemu_and_with_its_handle() {
    let Ends { qemu, mut passt, handle, .. } = ends(EgressPolicy::default(), &[]);
    drop(qemu);
    assert_eq!(passt.read(&mut [0]).unwrap(), 0);
    ended(handle);
    let Ends { mut qemu, mut passt, handle, .. } = ends(EgressPolicy::default(), &[]);
    drop(handle);
    assert_eq!(passt.read(&mut [0]).unwrap(), 0);
    assert_eq!(qemu.read(&mut [0]).unwrap(), 0);
}

/// A real passt behind the filter, ended with the test.
struct Passt(std::process::Child);

impl Drop for Passt {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_real_passt_takes_what_the_filter_lets_through() {
    let addresses = crate::host_addresses().unwrap();
    let Some(host) = addresses.iter().copied().find(|address| !address.is_loopback()) else {
        eprintln!("skipped: this host has no address but its loopback");
        return;
    };
    let (mut qemu, their_qemu) = UnixStream::pair().unwrap();
    qemu.set_read_timeout(Some(DEADLINE)).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).unwrap();
    let passt = std::process::Command::new("passt").args(crate::passt_args(theirs.as_fd(), &[])).spawn();
    drop(theirs);
    let _passt = match passt {
        Ok(child) => Passt(child),
        Err(error) => {
            eprintln!("skipped: passt cannot be started: {error}");
            return;
        }
    };
    let listener = TcpListener::bind((host, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let options = FilterOptions {
        policy: EgressPolicy { allow: vec![format!("{host}:{port}").parse().unwrap()], ..Default::default() },
        published: Vec::new(),
        host_addresses: addresses,
        name_servers: Vec::new(),
    };
    let log = Box::new(Lines(Arc::default()));
    let handle = start_filter(their_qemu.into(), ours.into(), options, log).unwrap();
    send_frame(&mut qemu, &testing::arp(GATEWAY));
    let answer = frame_from(&mut qemu);
    assert_eq!((answer[21], &answer[28..32]), (2, &GATEWAY.octets()[..]));
    // Refused by the filter, then let through: of the host, only what the rule names.
    send_frame(&mut qemu, &testing::tcp(host, 40_000, port ^ 1, SYN, b""));
    assert_eq!(frame_from(&mut qemu)[47], RST | ACK);
    send_frame(&mut qemu, &testing::tcp(host, 40_001, port, SYN, b""));
    let answer = frame_from(&mut qemu);
    assert_eq!((answer[47], &answer[42..46]), (SYN | ACK, &1001_u32.to_be_bytes()[..]));
    listener.accept().unwrap();
    handle.stop();
}
