//! A published port: bytes both ways and new connections, against QEMU's own user network and against passt.
//!
//! The raw machines are QEMU with the words that microagent starts it with, the same kernel and devices, and an initramfs
//! that sets up the same address and starts the same servers (busybox's `nc`). All guests run all the time; what is
//! measured takes turns.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use microagent_model::Publish;
use microagent_net::{GATEWAY, GUEST_ADDRESS, PREFIX_LEN};
use microagent_vm::choose_ports;
use rustix::io::{FdFlags, fcntl_setfd};
use serde_json::Value;

use crate::Bench;
use crate::cold::bare_words;
use crate::fixture::SMALL;
use crate::memory::Running;
use crate::program::{run, text};
use crate::sample::{Peer, Samples, Table, interleave, time};

const NAME: &str = "bench-published";

/// Bytes of one transfer.
const BYTES: usize = 16 << 20;

/// Connections, and answers on one connection, of one sample.
const CONNECTIONS: u32 = 10;
const ROUND_TRIPS: u32 = 100;

/// Ports in the guest: one takes bytes, one gives [`BYTES`], one gives back what it gets.
const SINK: usize = 0;
const SOURCE: usize = 1;
const ECHO: usize = 2;
const GUEST_PORTS: [u16; 3] = [9001, 9002, 9003];

/// What listens in a guest, as a shell line; `B` is busybox.
const SERVERS: &str = "B=/bin/busybox; \
    $B nc -ll -p 9001 -e $B dd of=/dev/null bs=64k 2>/dev/null & \
    $B nc -ll -p 9002 -e $B sh -c \"read x; exec $B dd if=/dev/zero bs=64k count=256\" 2>/dev/null & \
    $B nc -ll -p 9003 -e $B cat & \
    exec $B sleep 100000";
const _: () = assert!(BYTES == 256 * (64 << 10));

/// How long a guest may take to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(120);

const NAMES: [&str; 3] = ["raw QEMU, -netdev user,hostfwd", "raw QEMU, passt", "microagent, -p"];

/// What is done to a port of each guest, and how it is called.
type Trial = (&'static str, usize, fn(u16) -> Result<Duration>);

const TRIALS: [Trial; 4] = [
    ("16 MiB into the guest", SINK, send),
    ("16 MiB out of the guest", SOURCE, receive),
    ("a connection and its first answer", ECHO, connect),
    ("an answer on a connection that is open", ECHO, round_trip),
];

pub(crate) fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    bench.import(&bench.small_tar()?, SMALL)?;
    let machine = RawMachine::read(bench)?;
    let ours = Workspace::start(bench)?;
    let guests = [machine.start_slirp()?, machine.start_passt()?];
    let ports: Vec<[u16; 3]> = guests.iter().map(|guest| guest.ports).chain([ours.ports]).collect();
    for (name, ports) in NAMES.iter().zip(&ports) {
        await_answer(ports[ECHO]).with_context(|| format!("{name} does not answer"))?;
    }
    for (what, port, trial) in TRIALS {
        let mut peers: Vec<Peer<'_>> = Vec::new();
        for (name, ports) in NAMES.iter().zip(&ports) {
            peers.push((name, Box::new(move || trial(ports[port]))));
        }
        let samples = interleave(bench.runs, &mut peers)?;
        table.add_times(what, &NAMES, &samples);
        let of = |samples: &Samples| samples.median().as_secs_f64();
        let best = of(&samples[0]).min(of(&samples[1]));
        table.add(
            format!("{what}: microagent's time to the best other"),
            format!("{:.2}", of(&samples[2]) / best),
        );
    }
    Ok(())
}

fn send(port: u16) -> Result<Duration> {
    let mut stream = open(port)?;
    time(|| {
        let chunk = [0; 64 << 10];
        for _ in 0..BYTES / chunk.len() {
            stream.write_all(&chunk)?;
        }
        stream.shutdown(Shutdown::Write)?;
        // The other end closes when it has everything.
        ensure!(stream.read(&mut [0])? == 0, "the sink answers");
        Ok(())
    })
}

fn receive(port: u16) -> Result<Duration> {
    let mut stream = open(port)?;
    time(|| {
        // passt of Debian 12 does not let a server speak first.
        stream.write_all(b"\n")?;
        let got = io::copy(&mut stream, &mut io::sink())?;
        ensure!(got == BYTES as u64, "{got} bytes came");
        Ok(())
    })
}

fn connect(port: u16) -> Result<Duration> {
    let all = time(|| (0..CONNECTIONS).try_for_each(|_| answer(&mut open(port)?)))?;
    Ok(all / CONNECTIONS)
}

fn round_trip(port: u16) -> Result<Duration> {
    let mut stream = open(port)?;
    answer(&mut stream)?;
    Ok(time(|| (0..ROUND_TRIPS).try_for_each(|_| answer(&mut stream)))? / ROUND_TRIPS)
}

fn open(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
    Ok(stream)
}

fn answer(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"x")?;
    Ok(stream.read_exact(&mut [0])?)
}

fn await_answer(port: u16) -> Result<()> {
    let end = Instant::now() + ANSWER_DEADLINE;
    loop {
        match open(port).and_then(|mut stream| answer(&mut stream)) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// What raw machines are started from.
struct RawMachine<'a> {
    bench: &'a Bench,
    words: Vec<String>,
    disk: PathBuf,
}

/// A raw machine that runs; killed when dropped.
struct RawGuest {
    ports: [u16; 3],
    processes: Vec<Child>,
}

impl Drop for RawGuest {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // One that has ended needs no killing.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl<'a> RawMachine<'a> {
    fn read(bench: &'a Bench) -> Result<RawMachine<'a>> {
        let machine = Running::start(bench, &["--cold"], SMALL)?;
        let words = machine.qemu_command_line()?;
        let disk = machine.dir().join("disk.qcow2");
        let kept = bench.dir.join("published.qcow2");
        fs::copy(&disk, &kept).context("copying the disk of a machine")?;
        drop(machine);
        let from = text(&disk)?;
        let words =
            bare_words(&words, &initramfs(bench)?, " rdinit=/init", &|word| word.replace(from, DISK))?;
        Ok(RawMachine { bench, words, disk: kept })
    }

    fn start_slirp(&self) -> Result<RawGuest> {
        let published = free_ports()?;
        let forwards: String = published
            .iter()
            .map(|one| format!(",hostfwd=tcp:127.0.0.1:{}-10.0.2.15:{}", one.host_port, one.guest_port))
            .collect();
        let qemu = self.qemu("slirp", &|_| format!("user,id=net0{forwards}"))?;
        Ok(RawGuest { ports: ports_of(&published), processes: vec![qemu] })
    }

    fn start_passt(&self) -> Result<RawGuest> {
        let published = free_ports()?;
        let (device, theirs): (OwnedFd, OwnedFd) = pair()?;
        let mut passt = Command::new("passt");
        passt.args(passt_args(&theirs, &published));
        let passt = spawn(&mut passt, &theirs)?;
        drop(theirs);
        let netdev = format!("addr.str={}", device.as_raw_fd());
        let qemu = self.qemu_with("passt", &|word| replace_part(word, "addr.str=", &netdev), &device)?;
        Ok(RawGuest { ports: ports_of(&published), processes: vec![qemu, passt] })
    }

    fn qemu(&self, name: &str, netdev: &dyn Fn(&str) -> String) -> Result<Child> {
        let mut command = self.command(name, netdev)?;
        quiet(&mut command).spawn().context("cannot start QEMU")
    }

    fn qemu_with(&self, name: &str, netdev: &dyn Fn(&str) -> String, device: &OwnedFd) -> Result<Child> {
        spawn(&mut self.command(name, netdev)?, device)
    }

    /// QEMU with a disk of its own and this network.
    fn command(&self, name: &str, netdev: &dyn Fn(&str) -> String) -> Result<Command> {
        let disk = self.bench.dir.join(format!("published-{name}.qcow2"));
        fs::copy(&self.disk, &disk)?;
        let disk = text(&disk)?;
        let mut command = Command::new(&self.words[0]);
        let mut previous = "";
        for word in &self.words[1..] {
            command.arg(match previous {
                "-netdev" => netdev(word),
                _ => word.replace(DISK, disk),
            });
            previous = word;
        }
        Ok(command)
    }
}

/// passt's arguments for a guest with these ports.
fn passt_args(socket: &OwnedFd, published: &[Publish]) -> Vec<OsString> {
    let mut args: Vec<String> = vec!["--fd".to_owned(), socket.as_raw_fd().to_string()];
    for flag in ["--foreground", "--quiet", "--stderr", "--ipv4-only", "--no-map-gw", "--no-dhcp"] {
        args.push(flag.to_owned());
    }
    for (name, value) in [
        ("--address", GUEST_ADDRESS.to_string()),
        ("--netmask", PREFIX_LEN.to_string()),
        ("--gateway", GATEWAY.to_string()),
        ("--udp-ports", "none".to_owned()),
    ] {
        args.extend([name.to_owned(), value]);
    }
    for Publish { host, host_port, guest_port, .. } in published {
        args.extend(["--tcp-ports".to_owned(), format!("{host}/{host_port}:{guest_port}")]);
    }
    args.into_iter().map(OsString::from).collect()
}

/// Stands in the words of a machine for its disk.
const DISK: &str = "@DISK@";

/// The word with another value of one of its comma-separated parts.
fn replace_part(word: &str, prefix: &str, part: &str) -> String {
    let parts = word.split(',').map(|old| if old.starts_with(prefix) { part } else { old });
    parts.collect::<Vec<_>>().join(",")
}

fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let (one, other) = UnixStream::pair()?;
    Ok((one.into(), other.into()))
}

/// Starts a program that inherits this descriptor. Nothing else is started meanwhile.
fn spawn(command: &mut Command, inherited: &OwnedFd) -> Result<Child> {
    fcntl_setfd(inherited, FdFlags::empty())?;
    let child = quiet(command).spawn();
    fcntl_setfd(inherited, FdFlags::CLOEXEC)?;
    child.with_context(|| format!("cannot start {command:?}"))
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

fn free_ports() -> Result<Vec<Publish>> {
    let wanted = GUEST_PORTS.map(|port| format!("0:{port}").parse());
    Ok(choose_ports(&wanted.into_iter().collect::<Result<Vec<_>, _>>()?)?)
}

fn ports_of(published: &[Publish]) -> [u16; 3] {
    [SINK, SOURCE, ECHO].map(|at| published[at].host_port)
}

/// busybox and a first program that sets the network up and starts the servers.
fn initramfs(bench: &Bench) -> Result<PathBuf> {
    let dir = bench.dir.join("published");
    let bin = dir.join("bin");
    fs::create_dir_all(&bin)?;
    fs::create_dir_all(dir.join("dev"))?;
    fs::create_dir_all(dir.join("proc"))?;
    fs::copy("/bin/busybox", bin.join("busybox")).context("busybox-static is not installed")?;
    let init = format!(
        "#!/bin/busybox sh\nB=/bin/busybox\n$B mount -t devtmpfs dev /dev\n$B mount -t proc proc /proc\n\
         # passt of Debian 12 is several times as slow with the kernel's own.\n\
         echo 4096 131072 262144 > /proc/sys/net/ipv4/tcp_rmem\n$B ip link set lo up\n\
         $B ip addr add 10.0.2.15/24 dev eth0\n$B ip link set eth0 up\n$B ip route add default via 10.0.2.2\n\
         # passt knows where to send only when it has heard from the guest.\n\
         $B ping -c 1 10.0.2.2 >/dev/null 2>&1 &\n{SERVERS}\n"
    );
    fs::write(dir.join("init"), init)?;
    let archive = bench.dir.join("published.cpio");
    let pack = r#"cd "$1" && chmod +x init && printf 'bin\nbin/busybox\ndev\nproc\ninit\n' | busybox cpio -o -H newc >"$2""#;
    run(Command::new("sh").args(["-c", pack, "sh"]).arg(&dir).arg(&archive))?;
    Ok(archive)
}

/// A workspace that serves; killed and deleted when dropped.
struct Workspace<'a> {
    bench: &'a Bench,
    ports: [u16; 3],
}

impl<'a> Workspace<'a> {
    fn start(bench: &'a Bench) -> Result<Workspace<'a>> {
        let mut workspace = Workspace { bench, ports: [0; 3] };
        workspace.delete()?;
        let mut create = bench.microagent(&bench.state());
        create.args(["create", NAME, "--image", SMALL, "--service-command", SERVERS]);
        for port in GUEST_PORTS {
            create.args(["-p", &format!("0:{port}")]);
        }
        run(&mut create)?;
        let started = run(bench.microagent(&bench.state()).args(["start", NAME, "--json"]))?;
        let started: Value = serde_json::from_str(&started)?;
        for (at, port) in workspace.ports.iter_mut().enumerate() {
            let forward = started["port_forwards"][at]["host_port"].as_u64();
            *port = forward.and_then(|port| u16::try_from(port).ok()).context("a port was not published")?;
        }
        Ok(workspace)
    }

    fn delete(&self) -> Result<()> {
        let state = self.bench.state();
        run(self.bench.microagent(&state).args(["delete", NAME, "--force", "--yes"])).map(drop)
    }
}

impl Drop for Workspace<'_> {
    fn drop(&mut self) {
        // What cannot be ended here shows in the next round's `list`.
        let _ = self.delete();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_part_of_a_word_is_replaced() {
        let word = "stream,id=net0,server=off,addr.type=fd,addr.str=7";
        assert_eq!(
            replace_part(word, "addr.str=", "addr.str=12"),
            "stream,id=net0,server=off,addr.type=fd,addr.str=12"
        );
    }
}
