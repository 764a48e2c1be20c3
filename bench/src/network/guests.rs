//! Guests with the benchmark's server, as microagent has them, and what of a machine is measured.

use std::fs;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::server::{FAILED, PORT, open};
use crate::Bench;
use crate::memory::{hidden_kib, pss_beside_guest_kib};
use crate::program::run;
use crate::serving::ServingWorkspace;

/// Ticks of a second in `/proc/PID/stat`, on every Linux that these machines have.
const TICKS: u64 = 100;

/// A machine with the server.
pub(super) trait Machine {
    /// The port of the host that leads to the server.
    fn port(&self) -> u16;

    /// Processor time that QEMU and what is beside it for the network have taken so far.
    fn processor_time(&self) -> Result<Duration>;

    /// Memory of the same, without that of the guest and of translated code.
    fn memory_kib(&self) -> Result<u64>;
}

/// Compiles the server, which needs no library.
pub(super) fn compile(bench: &Bench) -> Result<PathBuf> {
    let program = bench.dir.join("network-server");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/server.rs");
    let mut rustc = Command::new("rustc");
    rustc
        .args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-o"])
        .arg(&program)
        .arg(&source);
    run(rustc.current_dir(env!("CARGO_MANIFEST_DIR"))).context("compiling the server of the guests")?;
    Ok(program)
}

/// Has the server at `published` connect to a place; gives how long it took there.
pub(super) fn ask(published: (Ipv4Addr, u16), to: (Ipv4Addr, u16), kind: u8, count: u64) -> Result<Duration> {
    let mut stream = open(published)?;
    let [high, low] = to.1.to_be_bytes();
    let question = [&b"b"[..], &to.0.octets(), &[high, low, kind], &count.to_be_bytes()].concat();
    stream.write_all(&question)?;
    let mut took = [0; 8];
    stream.read_exact(&mut took)?;
    let took = u64::from_be_bytes(took);
    ensure!(took != FAILED, "what the guest began with {}:{} has failed", to.0, to.1);
    Ok(Duration::from_micros(took))
}

/// A workspace with the server.
pub(super) struct Workspace<'a> {
    _workspace: ServingWorkspace<'a>,
    port: u16,
    qemu: u64,
    /// The processes of its network.
    network: Vec<u64>,
}

impl<'a> Workspace<'a> {
    pub(super) fn start(
        bench: &'a Bench,
        program: &Path,
        name: &'static str,
        flags: &[&str],
    ) -> Result<Workspace<'a>> {
        let publish = format!("0:{PORT}");
        let flags = [&["--service-command", "exec /server", "-p", &publish], flags].concat();
        let workspace = ServingWorkspace::create(bench, name, &[], &flags)?;
        run(workspace.call(&["cp"]).arg(program).arg(format!("{name}:/server")))?;
        let port = *workspace.start()?.first().context("no port was published")?;
        let record = fs::read(bench.state().join("workspaces").join(name).join("machine/state.json"))?;
        let record: Value = serde_json::from_slice(&record)?;
        let qemu = record["vmm"]["pid"].as_u64().context("the record has no pid of QEMU")?;
        let network: Value = serde_json::from_str(&run(&mut workspace.call(&["network", name, "--json"]))?)?;
        let stack =
            network["network"]["stack_pid"].as_u64().context("there is no pid of the network stack")?;
        // The one that started it keeps it.
        let keeper = fields_of(stack)?.get(1).and_then(|parent| parent.parse().ok());
        let network = vec![stack, keeper.context("the network stack has no parent")?];
        Ok(Workspace { _workspace: workspace, port, qemu, network })
    }
}

impl Machine for Workspace<'_> {
    fn port(&self) -> u16 {
        self.port
    }

    fn processor_time(&self) -> Result<Duration> {
        let pids = self.network.iter().chain([&self.qemu]);
        pids.map(|pid| processor_time(u32::try_from(*pid)?)).sum()
    }

    fn memory_kib(&self) -> Result<u64> {
        let network: Result<u64> = self.network.iter().map(|pid| hidden_kib(*pid)).sum();
        Ok(network? + pss_beside_guest_kib(self.qemu)?)
    }
}

/// Processor time of a process.
pub(super) fn processor_time(pid: u32) -> Result<Duration> {
    let fields = fields_of(pid.into())?;
    // The 14th and 15th of the line.
    let ticks = fields.get(11..13).context("/proc/PID/stat is short")?;
    let ticks: u64 = ticks.iter().map(|ticks| ticks.parse::<u64>()).sum::<Result<_, _>>()?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS))
}

/// The fields of `/proc/PID/stat` behind the name, which may have spaces; the first is the third of the line.
fn fields_of(pid: u64) -> Result<Vec<String>> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).context("a process has ended")?;
    let (_, fields) = line.rsplit_once(')').context("/proc/PID/stat has no name")?;
    Ok(fields.split_whitespace().map(str::to_owned).collect())
}

/// A private network; deleted when dropped.
pub(super) struct PrivateNetwork<'a> {
    bench: &'a Bench,
    name: &'static str,
}

impl<'a> PrivateNetwork<'a> {
    pub(super) fn create(bench: &'a Bench, name: &'static str) -> Result<PrivateNetwork<'a>> {
        let network = PrivateNetwork { bench, name };
        // One that an earlier call has left.
        let _ = network.call(&["delete", name, "--force", "--yes"]);
        network.call(&["create", name])?;
        Ok(network)
    }

    /// The address of a member.
    pub(super) fn address_of(&self, workspace: &str) -> Result<Ipv4Addr> {
        let document: Value = serde_json::from_str(&self.call(&["inspect", self.name, "--json"])?)?;
        let members = document["members"].as_array().context("there are no members")?;
        let member = members.iter().find(|member| member["workspace"] == workspace);
        let address = member.and_then(|member| member["address"].as_str());
        Ok(address.context("the workspace is no member")?.parse()?)
    }

    fn call(&self, words: &[&str]) -> Result<String> {
        run(self.bench.microagent(&self.bench.state()).arg("network").args(words))
    }
}

impl Drop for PrivateNetwork<'_> {
    fn drop(&mut self) {
        // The next call removes what is left.
        let _ = self.call(&["delete", self.name, "--force", "--yes"]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_spent_time_and_has_a_parent() {
        let own = std::process::id();
        let begun = std::time::Instant::now();
        let before = processor_time(own).unwrap();
        while processor_time(own).unwrap() == before {
            assert!(begun.elapsed() < Duration::from_secs(60), "this loop takes no time");
        }
        let parent: u32 = fields_of(own.into()).unwrap()[1].parse().unwrap();
        assert_eq!(parent, std::os::unix::process::parent_id());
    }
}
