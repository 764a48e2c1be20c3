//! The network of a guest: bytes, connections, processor time and memory, against QEMU's own user network and passt.
//!
//! The raw machines are QEMU with the words that microagent starts it with, the same kernel and devices, and an initramfs
//! that sets up the same address and starts the same server. All guests run all the time; what is measured takes turns.

mod alone;
mod guests;
mod raw;
#[path = "../guest/server.rs"]
mod server;

use std::cell::RefCell;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use microagent_net::GATEWAY;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::Bench;
use crate::fixture::SMALL;
use crate::memory::mib;
use crate::sample::{Peer, Table, interleave, time};
use guests::{Machine, Workspace};

/// Bytes of one transfer, of how many connections at most.
const BYTES: u64 = 64 << 20;
const SEVERAL: u64 = 8;

/// Connections in a row, and answers on one, of one sample.
const IN_A_ROW: u64 = 20;
const SHORT: u64 = 1000;
const ROUND_TRIPS: u64 = 200;

/// Transfers at once, and the bytes of each.
const AT_ONCE: u64 = 50;
const EACH: u64 = 1 << 20;

/// Connections that are open and idle.
const IDLE: usize = 1000;

/// Rounds of what takes seconds.
const FEW: u32 = 5;

/// How long a guest may take to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(120);

const NAMES: [&str; 3] = ["raw QEMU, -netdev user", "raw QEMU, passt", "microagent"];

/// Where a guest is reached from the host, and where it reaches the host.
#[derive(Debug, Clone, Copy)]
struct Place {
    published: (Ipv4Addr, u16),
    host: (Ipv4Addr, u16),
}

/// What is done, how it is called, and how many bytes are moved.
type Trial = (&'static str, u64, fn(Place) -> Result<Duration>);

const TRANSFERS: [Trial; 4] = [
    ("64 MiB into the guest, one connection", BYTES, |place| several(place, b's', 1)),
    ("64 MiB into the guest, eight connections", BYTES, |place| several(place, b's', SEVERAL)),
    ("64 MiB out of the guest, one connection", BYTES, |place| several(place, b'g', 1)),
    ("64 MiB out of the guest, eight connections", BYTES, |place| several(place, b'g', SEVERAL)),
];

const LATENCIES: [Trial; 4] = [
    ("a connection to the guest and its first byte", 0, |place| {
        Ok(server::begin(place.published, b'c', IN_A_ROW)? / IN_A_ROW as u32)
    }),
    ("a connection of the guest and its first byte", 0, |place| {
        Ok(guests::ask(place.published, place.host, b'c', IN_A_ROW)? / IN_A_ROW as u32)
    }),
    ("a round trip to the guest on an open connection", 0, |place| {
        Ok(server::begin(place.published, b'r', ROUND_TRIPS)? / ROUND_TRIPS as u32)
    }),
    ("a round trip from the guest on an open connection", 0, |place| {
        Ok(guests::ask(place.published, place.host, b'r', ROUND_TRIPS)? / ROUND_TRIPS as u32)
    }),
];

pub(crate) fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    // Each of a thousand connections has a descriptor, here and in QEMU.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    bench.import(&bench.small_tar()?, SMALL)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let host_port = listener.local_addr()?.port();
    thread::spawn(move || server::serve(listener));
    let program = guests::compile(bench)?;
    peers(bench, &program, host_port, table)?;
    members(bench, &program, table)?;
    starts(bench, table)?;
    alone::measure(bench, host_port, table)
}

/// What can be compared.
fn peers(bench: &Bench, program: &Path, host_port: u16, table: &mut Table) -> Result<()> {
    let raw = raw::RawMachine::read(bench, program)?;
    let machines: [Box<dyn Machine + '_>; 3] = [
        Box::new(raw.start_slirp()?),
        Box::new(raw.start_passt()?),
        Box::new(Workspace::start(
            bench,
            program,
            "bench-network",
            &["--forward", &format!("{host_port}=localhost:{host_port}")],
        )?),
    ];
    let places = machines.each_ref().map(|machine| Place {
        published: (Ipv4Addr::LOCALHOST, machine.port()),
        host: (GATEWAY, host_port),
    });
    for (name, place) in NAMES.iter().zip(places) {
        await_answer(place).with_context(|| format!("{name} does not answer"))?;
    }
    memory(&machines, &places, table)?;
    for trial in TRANSFERS {
        compare(bench.runs, trial, &machines, &places, table)?;
    }
    for trial in LATENCIES {
        compare(bench.runs, trial, &machines, &places, table)?;
    }
    let short: Trial = ("1000 short connections to the guest, one after the other", 0, |place| {
        Ok(server::begin(place.published, b'c', SHORT)?)
    });
    compare(bench.runs.min(FEW), short, &machines, &places, table)?;
    at_once(bench.runs.min(FEW), &places, table)
}

/// Has all do the same in turn. What has moved bytes says what it cost the host.
fn compare(
    runs: u32,
    (what, bytes, trial): Trial,
    machines: &[Box<dyn Machine + '_>; 3],
    places: &[Place; 3],
    table: &mut Table,
) -> Result<()> {
    let spent = RefCell::new([(0, Duration::ZERO); 3]);
    let mut peers: Vec<Peer<'_>> = Vec::new();
    for (number, name) in NAMES.iter().enumerate() {
        let (spent, machine, place) = (&spent, &machines[number], places[number]);
        let work = move || {
            let before = machine.processor_time()?;
            let took = trial(place)?;
            let (moved, time) = &mut spent.borrow_mut()[number];
            (*moved, *time) = (*moved + bytes, *time + machine.processor_time()?.saturating_sub(before));
            Ok(took)
        };
        peers.push((name, Box::new(work)));
    }
    let samples = interleave(runs, &mut peers)?;
    drop(peers);
    table.add_times(what, &NAMES, &samples);
    let of = |number: usize| samples[number].median().as_secs_f64();
    table.add(
        format!("{what}: microagent's time to the best other"),
        format!("{:.2}", of(2) / of(0).min(of(1))),
    );
    for (name, (moved, time)) in NAMES.iter().zip(spent.into_inner()).filter(|(_, (moved, _))| *moved > 0) {
        let gibibytes = moved as f64 / f64::from(1 << 30);
        let seconds = time.as_secs_f64() / gibibytes;
        table.add(format!("{what}: {name}: processor time of the host for a GiB"), format!("{seconds:.2} s"));
    }
    Ok(())
}

/// Moves the bytes on so many connections at once.
fn several(place: Place, kind: u8, connections: u64) -> Result<Duration> {
    time(|| {
        let each = || server::begin(place.published, kind, BYTES / connections);
        thread::scope(|scope| {
            let threads: Vec<_> = (0..connections).map(|_| scope.spawn(each)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("it does not panic").map(drop))
        })?;
        Ok(())
    })
}

/// Fifty transfers out of the guest at once. One that fails, or that brings other bytes, counts as a failure.
fn at_once(runs: u32, places: &[Place; 3], table: &mut Table) -> Result<()> {
    let failures = RefCell::new([0; 3]);
    let mut peers: Vec<Peer<'_>> = Vec::new();
    for (number, name) in NAMES.iter().enumerate() {
        let (failures, place) = (&failures, places[number]);
        let work = move || {
            time(|| {
                let each = || server::begin(place.published, b'g', EACH);
                let failed = thread::scope(|scope| {
                    let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(each)).collect();
                    let ends = threads.into_iter().map(|thread| thread.join().expect("it does not panic"));
                    ends.filter(Result::is_err).count()
                });
                failures.borrow_mut()[number] += failed;
                Ok(())
            })
        };
        peers.push((name, Box::new(work)));
    }
    let samples = interleave(runs, &mut peers)?;
    drop(peers);
    let what = "50 connections at once, 1 MiB out of the guest each";
    table.add_times(what, &NAMES, &samples);
    for (name, failed) in NAMES.iter().zip(failures.into_inner()) {
        table.add(format!("{what}: {name}: failures in all rounds"), failed.to_string());
    }
    Ok(())
}

/// What a machine takes of the host's memory beside the guest's own, without connections and with many.
fn memory(machines: &[Box<dyn Machine + '_>; 3], places: &[Place; 3], table: &mut Table) -> Result<()> {
    for ((name, machine), place) in NAMES.iter().zip(machines).zip(places) {
        let idle = machine.memory_kib()?;
        let mut open = Vec::new();
        for _ in 0..IDLE {
            let mut stream = server::open(place.published)?;
            server::echo(&mut stream, b"ex").with_context(|| format!("{name}: connection {}", open.len()))?;
            open.push(stream);
        }
        let busy = machine.memory_kib()?;
        table.add(format!("memory beside the guest's: {name}: idle"), mib(idle));
        table.add(format!("memory beside the guest's: {name}: with 1000 connections"), mib(busy));
    }
    Ok(())
}

/// Between two workspaces of a private network.
fn members(bench: &Bench, program: &Path, table: &mut Table) -> Result<()> {
    const NETWORK: &str = "bench";
    let network = guests::PrivateNetwork::create(bench, NETWORK)?;
    let [one, other] = ["bench-member-1", "bench-member-2"]
        .map(|name| Workspace::start(bench, program, name, &["--join", NETWORK]));
    let (one, other) = (one?, other?);
    let member = (network.address_of("bench-member-2")?, server::PORT);
    let published = (Ipv4Addr::LOCALHOST, one.port());
    for machine in [&one, &other] {
        await_answer(Place { published: (Ipv4Addr::LOCALHOST, machine.port()), host: member })?;
    }
    for (what, kind, count, parts) in [
        ("64 MiB to a member", b's', BYTES, 1),
        ("64 MiB from a member", b'g', BYTES, 1),
        ("a connection to a member and its first byte", b'c', IN_A_ROW, IN_A_ROW),
        ("a round trip to a member on an open connection", b'r', ROUND_TRIPS, ROUND_TRIPS),
    ] {
        let work = move || Ok(guests::ask(published, member, kind, count)? / parts as u32);
        let samples = interleave(bench.runs, &mut [("private network", Box::new(work))])?;
        table.add_times(what, &["private network"], &samples);
    }
    Ok(())
}

/// What a network costs a run that starts from a template.
fn starts(bench: &Bench, table: &mut Table) -> Result<()> {
    let names = ["--network isolated", "--network user"];
    let run = |flags: [&'static str; 2]| move || time(|| bench.run_json(&flags, SMALL, &["true"]));
    let mut peers: Vec<Peer<'_>> = vec![
        (names[0], Box::new(run(["--network", "isolated"]))),
        (names[1], Box::new(run(["--network", "user"]))),
    ];
    let samples = interleave(bench.runs, &mut peers)?;
    table.add_times("a warm run", &names, &samples);
    let more = samples[1].median().as_secs_f64() - samples[0].median().as_secs_f64();
    table.add("a warm run: what the network adds", format!("{:.1} ms", more * 1000.0));
    Ok(())
}

fn await_answer(place: Place) -> Result<()> {
    let end = Instant::now() + ANSWER_DEADLINE;
    loop {
        match server::begin(place.published, b'c', 1) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > end => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}
