//! Starts from templates: one after the other, many at once, and what idle guests cost the host together.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::Bench;
use crate::fixture::SMALL;
use crate::memory::{Running, mib};
use crate::podman::Podman;
use crate::sample::{Peer, Samples, Table, interleave, time};

const ISOLATED: [&str; 2] = ["--network", "isolated"];
const COLD: [&str; 3] = ["--network", "isolated", "--cold"];

/// Size of the crowd, and how many of it run at a time.
const CROWD: u32 = 100;
const WORKERS: u32 = 4;

/// Guests that idle side by side, of the smallest size.
const IDLE: usize = 20;
const IDLE_WARM: [&str; 4] = ["--network", "isolated", "--profile", "tiny"];
const IDLE_COLD: [&str; 5] = ["--network", "isolated", "--profile", "tiny", "--cold"];

pub(crate) fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    bench.import(&bench.small_tar()?, SMALL)?;
    let podman = bench.podman().map_err(|e| eprintln!("note: not measured against podman: {e:#}")).ok();
    one_after_the_other(bench, podman.as_ref(), table)?;
    freezing(bench, table)?;
    crowds(bench, podman.as_ref(), table)?;
    idle(bench, table)
}

/// Peers in turn; the ratio is to podman on the same kind of network, where there is one.
fn one_after_the_other(bench: &Bench, podman: Option<&Podman>, table: &mut Table) -> Result<()> {
    let network = podman.and_then(|podman| podman.network(SMALL));
    let networked = network.map_or_else(String::new, |network| format!("podman run {network}"));
    let run = |flags: &'static [&'static str]| move || time(|| bench.run_json(flags, SMALL, &["true"]));
    let mut peers: Vec<Peer<'_>> = Vec::new();
    if let Some(podman) = podman {
        peers.push(("podman run --net=none", Box::new(|| time(|| podman.run(SMALL, &["true"])))));
    }
    peers.push(("microagent run --network isolated, warm", Box::new(run(&ISOLATED))));
    peers.push(("microagent run --network isolated, cold", Box::new(run(&COLD))));
    let isolated = peers.len();
    if let (Some(podman), Some(network)) = (podman, network) {
        peers.push((&networked, Box::new(move || time(|| podman.run_on(network, SMALL, &["true"])))));
    }
    peers.push(("microagent run --network user, warm", Box::new(run(&[]))));
    let samples = interleave(bench.runs, &mut peers)?;
    let names: Vec<_> = peers.iter().map(|(name, _)| *name).collect();
    table.add_times("warm", &names[..isolated], &samples[..isolated]);
    table.add_times("warm, with network", &names[isolated..], &samples[isolated..]);
    let [warm, cold] = [isolated - 2, isolated - 1].map(|at| samples[at].median().as_secs_f64());
    table.add("warm against our own cold", format!("{:.2}", warm / cold));
    Ok(())
}

/// What making the template costs the run that makes it: the time for which its guest is paused.
fn freezing(bench: &Bench, table: &mut Table) -> Result<()> {
    let mut stood_still = Samples::default();
    for _ in 0..bench.runs {
        crate::program::run(bench.microagent(&bench.state()).args(["template", "prune", "--all"]))?;
        let document = bench.run_json(&ISOLATED, SMALL, &["true"])?;
        let freeze_us = document["timeline"]["freeze_us"].as_u64().context("no timeline.freeze_us")?;
        stood_still.push(Duration::from_micros(freeze_us));
    }
    table.add_times("the run that makes a template", &["its guest is paused"], &[stood_still]);
    Ok(())
}

/// Many runs by few workers: rates, and how many failed.
fn crowds(bench: &Bench, podman: Option<&Podman>, table: &mut Table) -> Result<()> {
    let ours = crowd("microagent", &|| bench.run_json(&ISOLATED, SMALL, &["true"]).map(drop));
    let theirs = podman.map(|podman| crowd("podman", &|| podman.run(SMALL, &["true"])));
    let title = |name: &str| format!("{CROWD} runs by {WORKERS} workers: {name}");
    table.add(title("microagent, warm"), ours.to_string());
    if let Some(theirs) = theirs {
        table.add(title("podman run --net=none"), theirs.to_string());
        table.add(title("our rate to podman's"), format!("{:.2}", ours.rate / theirs.rate));
    }
    Ok(())
}

/// What came of a crowd.
struct Crowd {
    /// Good runs per second.
    rate: f64,
    failures: u32,
}

impl std::fmt::Display for Crowd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} per second, {} failures", self.rate, self.failures)
    }
}

fn crowd(name: &str, one: &(dyn Fn() -> Result<()> + Sync)) -> Crowd {
    let (next, failures) = (AtomicU32::new(0), AtomicU32::new(0));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < CROWD {
                    if let Err(error) = one() {
                        eprintln!("a run of {name} failed: {error:#}");
                        failures.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner();
    Crowd { rate: f64::from(CROWD - failures) / begun.elapsed().as_secs_f64(), failures }
}

/// Memory of guests that sleep beside each other.
fn idle(bench: &Bench, table: &mut Table) -> Result<()> {
    // The first one makes the template.
    drop(Running::start(bench, &IDLE_WARM, SMALL)?);
    for (name, flags) in [("warm", &IDLE_WARM[..]), ("cold", &IDLE_COLD)] {
        let guests = (0..IDLE).map(|_| Running::start(bench, flags, SMALL)).collect::<Result<Vec<_>>>()?;
        let pss: u64 = guests.iter().map(Running::qemu_pss_kib).sum::<Result<u64>>()?;
        table.add(format!("one of {IDLE} idle guests, {name}: QEMU, PSS"), mib(pss / IDLE as u64));
    }
    Ok(())
}
