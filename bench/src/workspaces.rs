//! Workspaces that stay: a command in a running one and bytes in and out of it, against podman; making and copying
//! one; and what many that idle cost the host.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::Bench;
use crate::fixture::{LARGE, SMALL};
use crate::memory::{mib, pss_kib};
use crate::podman::Podman;
use crate::program::{run, text};
use crate::sample::{Peer, Table, interleave, time};

/// The workspace, and the container, that is measured.
const NAME: &str = "bench-workspace";

/// Bytes of a transfer.
const TRANSFER_BYTES: u64 = 64 << 20;

/// Workspaces that idle side by side, and for how long their processor time is watched.
const IDLE: usize = 20;
const IDLE_WATCH: Duration = Duration::from_secs(20);

/// Clock ticks per second of `/proc/PID/stat`: the same on every Linux that we run on.
const TICKS_PER_SECOND: f64 = 100.0;

pub(crate) fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    bench.import(&bench.small_tar()?, SMALL)?;
    let podman = bench.podman().map_err(|e| eprintln!("note: not measured against podman: {e:#}")).ok();
    making(bench, podman.as_ref(), table)?;
    let workspace = Workspace::start(bench, NAME)?;
    if let Some(podman) = &podman {
        podman.start(NAME, SMALL, &["sleep", "3600"])?;
    }
    commands(bench, podman.as_ref(), table)?;
    transfers(bench, podman.as_ref(), table)?;
    if let Some(podman) = &podman {
        podman.delete(NAME)?;
    }
    drop(workspace);
    idle(bench, table)
}

/// A small workspace that runs; killed and deleted when dropped.
struct Workspace<'a> {
    bench: &'a Bench,
    name: String,
}

impl<'a> Workspace<'a> {
    fn start(bench: &'a Bench, name: &str) -> Result<Workspace<'a>> {
        let workspace = Workspace { bench, name: name.to_owned() };
        workspace.delete()?;
        let flags = ["--image", SMALL, "--profile", "tiny", "--network", "isolated"];
        run(bench.microagent(&bench.state()).args(["create", name]).args(flags))?;
        run(bench.microagent(&bench.state()).args(["start", name]))?;
        Ok(workspace)
    }

    fn delete(&self) -> Result<()> {
        run(self.bench.microagent(&self.bench.state()).args(["delete", &self.name, "--force"])).map(drop)
    }

    /// Its supervisor and its QEMU.
    fn processes(&self) -> Result<[u64; 2]> {
        let record = self.bench.state().join("workspaces").join(&self.name).join("machine/state.json");
        let record: Value = serde_json::from_slice(&fs::read(record)?)?;
        let pid = |who: &str| record[who]["pid"].as_u64().with_context(|| format!("no pid of {who}"));
        Ok([pid("supervisor")?, pid("vmm")?])
    }
}

impl Drop for Workspace<'_> {
    fn drop(&mut self) {
        // What cannot be deleted here is deleted by the next run.
        let _ = self.delete();
    }
}

/// A command in what runs already, from its start to its exit.
fn commands(bench: &Bench, podman: Option<&Podman>, table: &mut Table) -> Result<()> {
    let ours = || time(|| run(bench.microagent(&bench.state()).args(["exec", NAME, "--", "true"])));
    let mut peers: Vec<Peer<'_>> = Vec::new();
    if let Some(podman) = podman {
        peers.push(("podman exec", Box::new(|| time(|| podman.exec(NAME, &["true"])))));
    }
    peers.push(("microagent exec", Box::new(ours)));
    let samples = interleave(bench.runs, &mut peers)?;
    let names: Vec<_> = peers.iter().map(|(name, _)| *name).collect();
    table.add_times("`true` in what runs", &names, &samples);
    for (name, samples) in names.iter().zip(&samples) {
        table.add(format!("`true` in what runs: {name}, 95th percentile"), samples.percentile_95());
    }
    Ok(())
}

/// Many bytes through `exec` and `cp`, both ways.
fn transfers(bench: &Bench, podman: Option<&Podman>, table: &mut Table) -> Result<()> {
    let file = bench.dir.join("transfer");
    fs::write(&file, vec![0x5a; usize::try_from(TRANSFER_BYTES)?])?;
    let back = bench.dir.join("transfer-back");
    let inside = format!("{NAME}:/transfer");
    let copy = |command: Command, from: &str, to: &str| {
        let mut command = command;
        time(|| run(command.args(["cp", from, to])))
    };
    let (file_text, back_text) = (text(&file)?, text(&back)?);
    let ours = || bench.microagent(&bench.state());
    let exec = |words: &[&str], input: Stdio| {
        let mut command = ours();
        command.args(["exec"]).args(words).stdin(input).stdout(Stdio::null());
        time(|| {
            ensure!(command.status()?.success(), "{command:?} failed");
            Ok(())
        })
    };
    let rate = |took: Duration| format!("{:.0} MB/s", TRANSFER_BYTES as f64 / 1e6 / took.as_secs_f64());
    table.add("cp into a workspace", rate(copy(ours(), file_text, &inside)?));
    table.add("cp out of a workspace", rate(copy(ours(), &inside, back_text)?));
    if let Some(podman) = podman {
        table.add("podman cp into a container", rate(copy(podman.command(), file_text, &inside)?));
        table.add("podman cp out of a container", rate(copy(podman.command(), &inside, back_text)?));
    }
    let out = exec(&[NAME, "--", "busybox", "cat", "/transfer"], Stdio::null())?;
    table.add("exec, standard output", rate(out));
    let input = exec(&["-i", NAME, "--", "busybox", "wc", "-c"], fs::File::open(&file)?.into())?;
    table.add("exec, standard input", rate(input));
    fs::remove_file(&file)?;
    Ok(fs::remove_file(&back)?)
}

/// A workspace, and a container, from an image that is there; a copy of a workspace.
fn making(bench: &Bench, podman: Option<&Podman>, table: &mut Table) -> Result<()> {
    bench.import(&bench.large_tar()?, LARGE)?;
    if let Some(podman) = podman {
        podman.import(&bench.large_tar()?, LARGE)?;
    }
    let ours = |words: &[&str]| run(bench.microagent(&bench.state()).args(words)).map(drop);
    let made = "bench-made";
    let make = |image: &'static str| {
        move || {
            let took = time(|| ours(&["create", made, "--image", image]))?;
            ours(&["delete", made, "--yes"])?;
            Ok(took)
        }
    };
    let mut peers: Vec<Peer<'_>> = Vec::new();
    if let Some(podman) = podman {
        peers.push((
            "podman create, 1 GB image",
            Box::new(|| {
                let took = time(|| podman.create(made, LARGE))?;
                podman.delete(made)?;
                Ok(took)
            }),
        ));
    }
    peers.push(("microagent create, 1 GB image", Box::new(make(LARGE))));
    peers.push(("microagent create, 5 MB image", Box::new(make(SMALL))));
    let source = "bench-source";
    ours(&["delete", source, "--yes"])?;
    ours(&["create", source, "--image", LARGE])?;
    peers.push((
        "microagent clone, 1 GB image",
        Box::new(|| {
            let took = time(|| ours(&["clone", source, made]))?;
            ours(&["delete", made, "--yes"])?;
            Ok(took)
        }),
    ));
    let samples = interleave(bench.runs, &mut peers)?;
    let names: Vec<_> = peers.iter().map(|(name, _)| *name).collect();
    table.add_times("making a workspace", &names, &samples);
    drop(peers);
    ours(&["delete", source, "--yes"])
}

/// Workspaces without anything to do: memory of all their processes, and processor time of one.
fn idle(bench: &Bench, table: &mut Table) -> Result<()> {
    let workspaces = (0..IDLE)
        .map(|number| Workspace::start(bench, &format!("bench-idle-{number}")))
        .collect::<Result<Vec<_>>>()?;
    let processes: Vec<u64> =
        workspaces.iter().map(Workspace::processes).collect::<Result<Vec<_>>>()?.concat();
    let memory: u64 = processes.iter().map(|pid| pss_kib(*pid)).sum::<Result<u64>>()?;
    table.add(format!("one of {IDLE} idle workspaces: all its processes, PSS"), mib(memory / IDLE as u64));
    let ticks = || processes.iter().map(|pid| processor_ticks(*pid)).sum::<Result<u64>>();
    let (before, begun) = (ticks()?, Instant::now());
    std::thread::sleep(IDLE_WATCH);
    let seconds = (ticks()? - before) as f64 / TICKS_PER_SECOND;
    let percent = 100.0 * seconds / begun.elapsed().as_secs_f64() / IDLE as f64;
    table.add(format!("one of {IDLE} idle workspaces: of a processor"), format!("{percent:.2} %"));
    Ok(())
}

/// Processor time of a process so far, in clock ticks: user and system.
fn processor_ticks(pid: u64) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may contain anything; fields 14 and 15 of proc(5) are the 12th and 13th after it.
    let fields: Vec<&str> = stat.rsplit_once(')').context("no name in stat")?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    Ok(ticks(11).context("no user time")? + ticks(12).context("no system time")?)
}
