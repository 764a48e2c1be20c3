//! Snapshots of running workspaces and forks: how long the source is stopped, and what a fork costs in comparison with
//! a workspace that is created and started.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::Bench;
use crate::fixture::SMALL;
use crate::memory::{mib, pss_kib};
use crate::program::run;
use crate::sample::{Peer, Table, interleave, time};

/// The workspace that is captured.
const NAME: &str = "bench-captured";

/// What is made from it.
const MADE: &str = "bench-fork";

/// Memory that the guest has used, in MiB.
const TOUCHED_MIB: [u32; 2] = [50, 200];

/// Forks of one capture.
const FORKS: usize = 20;

pub(crate) fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    bench.import(&bench.small_tar()?, SMALL)?;
    for touched in TOUCHED_MIB {
        start(bench, NAME, &["--memory", "512"])?;
        let size = format!("count={touched}");
        let touch = ["exec", NAME, "--", "busybox", "dd", "if=/dev/urandom", "of=/dev/shm/x", "bs=1M", &size];
        call(bench, &touch)?;
        standstill(bench, touched, table)?;
        call(bench, &["delete", NAME, "--force"])?;
    }
    start(bench, NAME, &["--profile", "tiny"])?;
    one(bench, table)?;
    many(bench, table)?;
    call(bench, &["delete", NAME, "--force"])
}

fn call(bench: &Bench, words: &[&str]) -> Result<()> {
    run(bench.microagent(&bench.state()).args(words)).map(drop)
}

fn start(bench: &Bench, name: &str, flags: &[&str]) -> Result<()> {
    call(bench, &["delete", name, "--force"])?;
    let create = [&["create", name, "--image", SMALL, "--network", "isolated"], flags].concat();
    call(bench, &create)?;
    call(bench, &["start", name])
}

/// How long the processors of the source are stopped, and what a snapshot takes.
fn standstill(bench: &Bench, touched: u32, table: &mut Table) -> Result<()> {
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..bench.runs {
        let create = ["snapshot", "create", NAME, "--tag", "bench", "--json"];
        let made: Value = serde_json::from_str(&run(bench.microagent(&bench.state()).args(create))?)?;
        times.push(made["standstill_us"].as_u64().context("no time")?);
        bytes = made["memory_bytes"].as_u64().context("no memory")?;
        call(bench, &["snapshot", "delete", NAME, "bench", "--yes"])?;
    }
    times.sort_unstable();
    let median = Duration::from_micros(times[times.len() / 2]);
    table.add(format!("capture, {touched} MiB used: processors are stopped"), format!("{median:.0?}"));
    table.add(format!("capture, {touched} MiB used: memory on disk"), mib(bytes / 1024));
    Ok(())
}

/// From a command's start to a command in the new machine.
fn one(bench: &Bench, table: &mut Table) -> Result<()> {
    let exec = |name: &str| call(bench, &["exec", name, "--", "true"]);
    let gone = || call(bench, &["delete", MADE, "--force"]);
    let fork = || {
        let took = time(|| call(bench, &["fork", NAME, MADE]).and_then(|()| exec(MADE)))?;
        gone().map(|()| took)
    };
    let fresh = || {
        let took = time(|| start(bench, MADE, &["--profile", "tiny"]).and_then(|()| exec(MADE)))?;
        gone().map(|()| took)
    };
    call(bench, &["snapshot", "create", NAME, "--tag", "bench"])?;
    let restore = ["snapshot", "restore", NAME, "bench", "--yes"];
    let rolled_back = || time(|| call(bench, &restore).and_then(|()| exec(NAME)));
    let mut peers: Vec<Peer<'_>> = vec![
        ("fork and exec", Box::new(fork)),
        ("create, start and exec", Box::new(fresh)),
        ("snapshot restore and exec", Box::new(rolled_back)),
    ];
    let samples = interleave(bench.runs, &mut peers)?;
    let names: Vec<_> = peers.iter().map(|(name, _)| *name).collect();
    table.add_times("a machine that continues", &names, &samples);
    call(bench, &["snapshot", "delete", NAME, "bench", "--yes"])
}

/// Many forks of one capture, against as many starts.
fn many(bench: &Bench, table: &mut Table) -> Result<()> {
    let names: Vec<String> = (0..FORKS).map(|number| format!("{MADE}-{number}")).collect();
    let words: Vec<&str> = names.iter().map(String::as_str).collect();
    let delete = || call(bench, &[&["delete", "--force"], &words[..]].concat());
    let took = time(|| call(bench, &[&["fork", NAME], &words[..]].concat()))?;
    table.add(format!("{FORKS} forks of one capture"), format!("{took:.1?}"));
    table.add(format!("one of {FORKS} forks: QEMU, PSS"), mib(average_pss(bench, &words)?));
    delete()?;
    let took = time(|| words.iter().try_for_each(|name| start(bench, name, &["--profile", "tiny"])))?;
    table.add(format!("{FORKS} workspaces created and started"), format!("{took:.1?}"));
    table.add(format!("one of {FORKS} started ones: QEMU, PSS"), mib(average_pss(bench, &words)?));
    delete()
}

fn average_pss(bench: &Bench, names: &[&str]) -> Result<u64> {
    let of = |name: &&str| {
        let path = bench.state().join("workspaces").join(name).join("machine/state.json");
        let state: Value = serde_json::from_slice(&fs::read(path)?)?;
        pss_kib(state["vmm"]["pid"].as_u64().context("no machine")?)
    };
    let all = names.iter().map(of).sum::<Result<u64>>()?;
    Ok(all / names.len() as u64)
}
