//! A machine that runs, and what it costs the host in memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::Bench;
use crate::fixture::SMALL;
use crate::program::text;
use crate::sample::Table;

/// How long a machine may take to be running.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// Guest memory of the profile that is measured, in KiB.
const GUEST_KIB: u64 = 512 * 1024;

/// A workspace whose command sleeps; ended and deleted when dropped.
pub(crate) struct Running<'a> {
    bench: &'a Bench,
    child: Child,
    name: String,
    record: Value,
}

impl<'a> Running<'a> {
    pub(crate) fn start(bench: &'a Bench, flags: &[&str], image: &str) -> Result<Running<'a>> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("bench-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut command = bench.microagent(&bench.state());
        command.args(["run", "--keep", "--name", &name]).args(flags).args([image, "sleep", "600"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().context("cannot start microagent")?;
        let mut running = Running { bench, child, name, record: Value::Null };
        let deadline = Instant::now() + START_DEADLINE;
        while running.record["state"] != "running" {
            if Instant::now() > deadline || running.child.try_wait()?.is_some() {
                bail!("{command:?} did not come to run; its last record is {}", running.record);
            }
            std::thread::sleep(Duration::from_millis(20));
            let record = fs::read(running.dir().join("machine/state.json")).unwrap_or_default();
            running.record = serde_json::from_slice(&record).unwrap_or_default();
        }
        // The command starts right after the machine is called running.
        std::thread::sleep(Duration::from_secs(1));
        Ok(running)
    }

    /// The workspace's directory.
    pub(crate) fn dir(&self) -> PathBuf {
        self.bench.state().join("workspaces").join(&self.name)
    }

    /// The words that QEMU was started with, with paths where it was given descriptors.
    pub(crate) fn qemu_command_line(&self) -> Result<Vec<String>> {
        let process = self.proc("vmm")?;
        let line = fs::read_to_string(process.join("cmdline"))?;
        let (mut words, mut previous) = (Vec::new(), "");
        for word in line.split_terminator('\0') {
            match (previous, word) {
                (_, "-add-fd") | ("-add-fd", _) => {}
                ("-kernel" | "-initrd", descriptor) => {
                    let number = descriptor.rsplit('/').next().unwrap_or_default();
                    words.push(text(&fs::read_link(process.join("fd").join(number))?)?.to_owned());
                }
                ("-blockdev", disk) => words.push(self.with_paths(&process, disk)?),
                _ => words.push(word.to_owned()),
            }
            previous = word;
        }
        Ok(words)
    }

    /// The root disk as QEMU was given it, with the paths of overlay and base disk.
    fn with_paths(&self, process: &Path, disk: &str) -> Result<String> {
        let mut disk: Value = serde_json::from_str(disk)?;
        disk["file"]["filename"] = text(&self.dir().join("disk.qcow2"))?.into();
        let base = fs::read_dir(process.join("fd"))?
            .filter_map(|descriptor| fs::read_link(descriptor.ok()?.path()).ok())
            .find(|file| file.extension().is_some_and(|name| name == "ext4"))
            .context("QEMU has no base disk open")?;
        disk["backing"]["file"]["filename"] = text(&base)?.into();
        Ok(disk.to_string())
    }

    /// Memory of QEMU in KiB; what it shares with others counts in shares.
    pub(crate) fn qemu_pss_kib(&self) -> Result<u64> {
        let pid = self.record["vmm"]["pid"].as_u64().context("the record has no pid of vmm")?;
        pss_kib(pid)
    }

    /// The directory of a microagent process in `/proc`; `who` is its key in the record.
    fn proc(&self, who: &str) -> Result<PathBuf> {
        let pid =
            self.record[who]["pid"].as_u64().with_context(|| format!("the record has no pid of {who}"))?;
        Ok(Path::new("/proc").join(pid.to_string()))
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // Best effort: what cannot be ended here shows in the next round's `list`.
        let _ = kill_process(Pid::from_child(&self.child), Signal::INT);
        let _ = self.child.wait();
        let _ = self.bench.microagent(&self.bench.state()).args(["delete", &self.name, "--yes"]).output();
    }
}

pub(crate) fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    bench.import(&bench.small_tar()?, SMALL)?;
    // A machine that starts from a template leaves one behind the first time.
    drop(Running::start(bench, &["--network", "isolated"], SMALL)?);
    for (name, flags) in
        [("cold", &["--network", "isolated", "--cold"][..]), ("from template", &["--network", "isolated"])]
    {
        let machine = Running::start(bench, flags, SMALL)?;
        let status = fs::read_to_string(machine.proc("supervisor")?.join("status"))?;
        let qemu = mappings(&fs::read_to_string(machine.proc("vmm")?.join("smaps"))?);
        let total: u64 = qemu.iter().map(|mapping| mapping.pss_kib).sum();
        let guest: u64 =
            qemu.iter().filter(|mapping| mapping.is_guest()).map(|mapping| mapping.pss_kib).sum();
        let code: u64 =
            qemu.iter().filter(|mapping| mapping.is_translated()).map(|mapping| mapping.pss_kib).sum();
        let peak = field(&status, "VmHWM:").context("no VmHWM")?;
        table.add(format!("memory, {name}: supervisor, most RSS ever"), mib(peak));
        table.add(format!("memory, {name}: QEMU, PSS"), mib(total));
        table.add(format!("memory, {name}: of which guest memory (of 512 MiB)"), mib(guest));
        table.add(format!("memory, {name}: of which translated code"), mib(code));
    }
    Ok(())
}

/// Memory of a process in KiB; what it shares with others counts in shares.
pub(crate) fn pss_kib(pid: u64) -> Result<u64> {
    let all = mappings(&fs::read_to_string(format!("/proc/{pid}/smaps"))?);
    Ok(all.iter().map(|mapping| mapping.pss_kib).sum())
}

/// The same of a process that may hide from its user; what is shared counts as a whole then.
pub(crate) fn hidden_kib(pid: u64) -> Result<u64> {
    pss_kib(pid).or_else(|_| {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        field(&status, "VmRSS:").context("no VmRSS")
    })
}

/// The same of a QEMU, without the memory of its guest and the code that it has translated.
pub(crate) fn pss_beside_guest_kib(pid: u64) -> Result<u64> {
    let all = mappings(&fs::read_to_string(format!("/proc/{pid}/smaps"))?);
    let own = all.iter().filter(|mapping| !mapping.is_guest() && !mapping.is_translated());
    Ok(own.map(|mapping| mapping.pss_kib).sum())
}

/// One mapping of a process.
struct Mapping {
    permissions: String,
    size_kib: u64,
    pss_kib: u64,
}

impl Mapping {
    fn is_guest(&self) -> bool {
        self.size_kib == GUEST_KIB && !self.permissions.contains('x')
    }

    /// QEMU's translator writes code into memory that it may execute.
    fn is_translated(&self) -> bool {
        self.permissions.starts_with("rwx")
    }
}

/// Reads `/proc/PID/smaps`.
fn mappings(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        match (first, second.parse(), mappings.last_mut()) {
            ("Size:", Ok(size), Some(mapping)) => mapping.size_kib = size,
            ("Pss:", Ok(pss), Some(mapping)) => mapping.pss_kib = pss,
            _ if !first.ends_with(':') => {
                mappings.push(Mapping { permissions: second.to_owned(), size_kib: 0, pss_kib: 0 });
            }
            _ => {}
        }
    }
    mappings
}

/// A value of `/proc/PID/status` in KiB.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// KiB for people.
pub(crate) fn mib(kib: u64) -> String {
    format!("{:.1} MiB", kib as f64 / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read_with_their_sizes() {
        let smaps = "7f0000000000-7f0020000000 rw-p 00000000 00:00 0 \nSize:             524288 kB\n\
                     Rss:               40000 kB\nPss:               39000 kB\nPss_Dirty:          1 kB\n\
                     7f0040000000-7f0080000000 rwxp 00000000 00:00 0 \nSize:            1048576 kB\nPss:  7000 kB\n";
        let mappings = mappings(smaps);
        assert_eq!(mappings.len(), 2);
        assert!(mappings[0].is_guest() && !mappings[0].is_translated());
        assert_eq!(mappings[0].pss_kib, 39000);
        assert!(mappings[1].is_translated() && !mappings[1].is_guest());
    }

    #[test]
    fn a_field_is_found_by_its_name() {
        assert_eq!(field("VmPeak:\t1 kB\nVmHWM:\t  9876 kB\n", "VmHWM:"), Some(9876));
    }
}
