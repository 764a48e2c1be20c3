//! Raw machines: QEMU with microagent's words, and another network.

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use microagent_model::Publish;
use microagent_net::{GATEWAY, GUEST_ADDRESS, PREFIX_LEN};
use microagent_vm::choose_ports;
use rustix::io::{FdFlags, fcntl_setfd};

use super::guests::{Machine, processor_time};
use super::server::PORT;
use crate::Bench;
use crate::cold::bare_words;
use crate::fixture::SMALL;
use crate::memory::{Running, hidden_kib, pss_beside_guest_kib};
use crate::program::{run, text};

/// What raw machines are started from.
pub(super) struct RawMachine<'a> {
    bench: &'a Bench,
    words: Vec<String>,
    disk: PathBuf,
}

/// A raw machine that runs; killed when dropped.
pub(super) struct RawGuest {
    port: u16,
    qemu: Child,
    /// passt, if that is its network.
    network: Option<Child>,
}

impl Machine for RawGuest {
    fn port(&self) -> u16 {
        self.port
    }

    fn processor_time(&self) -> Result<Duration> {
        let network = self.network.as_ref().map_or(Ok(Duration::ZERO), |passt| processor_time(passt.id()))?;
        Ok(network + processor_time(self.qemu.id())?)
    }

    fn memory_kib(&self) -> Result<u64> {
        let network = self.network.as_ref().map_or(Ok(0), |passt| hidden_kib(passt.id().into()))?;
        Ok(network + pss_beside_guest_kib(self.qemu.id().into())?)
    }
}

impl Drop for RawGuest {
    fn drop(&mut self) {
        for process in [Some(&mut self.qemu), self.network.as_mut()].into_iter().flatten() {
            // One that has ended needs no killing.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl<'a> RawMachine<'a> {
    pub(super) fn read(bench: &'a Bench, program: &Path) -> Result<RawMachine<'a>> {
        let machine = Running::start(bench, &["--cold"], SMALL)?;
        let words = machine.qemu_command_line()?;
        let disk = machine.dir().join("disk.qcow2");
        let kept = bench.dir.join("network.qcow2");
        fs::copy(&disk, &kept).context("copying the disk of a machine")?;
        drop(machine);
        let from = text(&disk)?;
        let words = bare_words(&words, &initramfs(bench, program)?, " rdinit=/init", &|word| {
            word.replace(from, DISK)
        })?;
        Ok(RawMachine { bench, words, disk: kept })
    }

    pub(super) fn start_slirp(&self) -> Result<RawGuest> {
        let port = free_port()?.host_port;
        let netdev = format!("user,id=net0,hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:{PORT}");
        let mut command = self.command("slirp", "", &|_| netdev.clone())?;
        let qemu = quiet(&mut command).spawn().context("cannot start QEMU")?;
        Ok(RawGuest { port, qemu, network: None })
    }

    pub(super) fn start_passt(&self) -> Result<RawGuest> {
        let published = free_port()?;
        let (device, theirs): (OwnedFd, OwnedFd) = pair()?;
        let mut passt = Command::new("passt");
        passt.args(passt_args(&theirs, &published));
        let mut passt = spawn(&mut passt, &theirs).context("package passt")?;
        drop(theirs);
        let netdev = format!("addr.str={}", device.as_raw_fd());
        let mut command =
            self.command("passt", SMALL_WINDOW, &|word| replace_part(word, "addr.str=", &netdev))?;
        match spawn(&mut command, &device) {
            Ok(qemu) => Ok(RawGuest { port: published.host_port, qemu, network: Some(passt) }),
            Err(error) => {
                passt.kill()?;
                passt.wait()?;
                Err(error)
            }
        }
    }

    /// QEMU with a disk of its own, this network, and a word for the guest.
    fn command(&self, name: &str, word: &str, netdev: &dyn Fn(&str) -> String) -> Result<Command> {
        let disk = self.bench.dir.join(format!("network-{name}.qcow2"));
        fs::copy(&self.disk, &disk)?;
        let disk = text(&disk)?;
        let mut command = Command::new(&self.words[0]);
        let mut previous = "";
        for given in &self.words[1..] {
            command.arg(match previous {
                "-netdev" => netdev(given),
                "-append" => format!("{given} {word}"),
                _ => given.replace(DISK, disk),
            });
            previous = given;
        }
        Ok(command)
    }
}

/// passt's arguments for a guest with these ports.
fn passt_args(socket: &OwnedFd, published: &Publish) -> Vec<OsString> {
    let mut args: Vec<String> = vec!["--fd".to_owned(), socket.as_raw_fd().to_string()];
    for flag in ["--foreground", "--quiet", "--stderr", "--ipv4-only", "--no-dhcp"] {
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
    let Publish { host, host_port, guest_port, .. } = published;
    args.extend(["--tcp-ports".to_owned(), format!("{host}/{host_port}:{guest_port}")]);
    args.into_iter().map(OsString::from).collect()
}

/// Tells a raw guest to keep its receive window small: passt of Debian 12 is several times as slow with the kernel's own.
const SMALL_WINDOW: &str = "bench_small_window";

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

fn free_port() -> Result<Publish> {
    let chosen = choose_ports(&[format!("0:{PORT}").parse()?])?;
    chosen.into_iter().next().context("no port was chosen")
}

/// busybox, the server, and a first program that sets the network up and starts it.
fn initramfs(bench: &Bench, program: &Path) -> Result<PathBuf> {
    let dir = bench.dir.join("network");
    let bin = dir.join("bin");
    fs::create_dir_all(&bin)?;
    fs::create_dir_all(dir.join("dev"))?;
    fs::create_dir_all(dir.join("proc"))?;
    fs::copy("/bin/busybox", bin.join("busybox")).context("busybox-static is not installed")?;
    fs::copy(program, dir.join("server"))?;
    let init = format!(
        "#!/bin/busybox sh\nB=/bin/busybox\n$B mount -t devtmpfs dev /dev\n$B mount -t proc proc /proc\n\
         if $B grep -q {SMALL_WINDOW} /proc/cmdline; then echo 4096 131072 262144 > /proc/sys/net/ipv4/tcp_rmem; fi\n\
         $B ip link set lo up\n\
         $B ip addr add 10.0.2.15/24 dev eth0\n$B ip link set eth0 up\n$B ip route add default via 10.0.2.2\n\
         # passt knows where to send only when it has heard from the guest.\n\
         $B ping -c 1 10.0.2.2 >/dev/null 2>&1 &\nexec /server\n"
    );
    fs::write(dir.join("init"), init)?;
    let archive = bench.dir.join("network.cpio");
    let pack = r#"cd "$1" && chmod +x init server && printf 'bin\nbin/busybox\ndev\nproc\ninit\nserver\n' | busybox cpio -o -H newc >"$2""#;
    run(Command::new("sh").args(["-c", pack, "sh"]).arg(&dir).arg(&archive))?;
    Ok(archive)
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
