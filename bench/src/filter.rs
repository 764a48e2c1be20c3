//! Frames through the egress filter, against the bare socket pair that would be there without it.
//!
//! Both ends are threads of this program, so that nothing but the filter is measured: no guest, no passt. What QEMU sends
//! comes frame by frame, what passt sends in batches, as they do it.

use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use microagent_net::{
    Decision, DecisionLog, EgressPolicy, FilterHandle, FilterOptions, GUEST_ADDRESS, start_filter,
};

use crate::Bench;
use crate::sample::{Peer, Table, interleave, time};

const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const GUEST_PORT: u16 = 40_000;
const FAR_PORT: u16 = 443;
const SYN: u8 = 2;
const ACK: u8 = 16;

/// Data of a segment on a link of 1500 bytes.
const DATA_LEN: usize = 1460;
const FRAMES: usize = 100_000;
/// Frames that passt sends at once.
const BATCH: usize = 32;
const ROUND_TRIPS: usize = 2000;

/// Keeps nothing.
pub(crate) struct Silent;

impl DecisionLog for Silent {
    fn record(&mut self, _: &Decision) {}
}

/// The ends of QEMU and of passt, with or without a filter between them.
struct Ends {
    qemu: UnixStream,
    passt: UnixStream,
    _filter: Option<FilterHandle>,
}

impl Ends {
    fn bare() -> Result<Ends> {
        let (qemu, passt) = UnixStream::pair()?;
        Ok(Ends { qemu, passt, _filter: None })
    }

    /// With a connection that is open in the filter.
    fn filtered() -> Result<Ends> {
        let (mut qemu, their_qemu) = UnixStream::pair()?;
        let (mut passt, their_passt) = UnixStream::pair()?;
        let options = FilterOptions {
            policy: EgressPolicy { max_bytes: u64::MAX, ..EgressPolicy::default() },
            published: Vec::new(),
            host_addresses: Vec::new(),
            name_servers: Vec::new(),
        };
        let filter = start_filter(their_qemu.into(), their_passt.into(), options, Box::new(Silent))?;
        for (flags, from_guest) in [(SYN, true), (SYN | ACK, false), (ACK, true)] {
            let frame = segment(flags, &[], from_guest);
            let (from, to) = if from_guest { (&mut qemu, &mut passt) } else { (&mut passt, &mut qemu) };
            from.write_all(&frame)?;
            to.read_exact(&mut vec![0; frame.len()])?;
        }
        Ok(Ends { qemu, passt, _filter: Some(filter) })
    }
}

pub(crate) fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    let (bare, filtered) = (Ends::bare()?, Ends::filtered()?);
    let data = vec![0; DATA_LEN];
    let (out, back) = (segment(ACK, &data, true), segment(ACK, &data, false).repeat(BATCH));
    let megabytes = FRAMES * out.len() / 1_000_000;
    let names = ["socket pair", "through the filter"];
    for (what, from_guest, piece, count) in [
        (format!("{megabytes} MB of frames out, one by one"), true, &out, FRAMES),
        (format!("{megabytes} MB of frames in, {BATCH} at once"), false, &back, FRAMES / BATCH),
    ] {
        let moved = |ends: &Ends| time(|| transfer(ends, from_guest, piece, count));
        let mut peers: [Peer<'_>; 2] =
            [(names[0], Box::new(|| moved(&bare))), (names[1], Box::new(|| moved(&filtered)))];
        let samples = interleave(bench.runs, &mut peers)?;
        table.add_times(&what, &names, &samples);
    }
    let mut peers: [Peer<'_>; 2] =
        [(names[0], Box::new(|| round_trips(&bare))), (names[1], Box::new(|| round_trips(&filtered)))];
    let samples = interleave(bench.runs, &mut peers)?;
    table.add_times(&format!("{ROUND_TRIPS} round trips of a frame"), &names, &samples);
    Ok(())
}

/// Sends `count` pieces from one end and takes them at the other.
fn transfer(ends: &Ends, from_guest: bool, piece: &[u8], count: usize) -> Result<()> {
    let (mut from, mut to) = if from_guest { (&ends.qemu, &ends.passt) } else { (&ends.passt, &ends.qemu) };
    thread::scope(|scope| {
        let sender = scope.spawn(move || (0..count).try_for_each(|_| from.write_all(piece)));
        let mut left = count * piece.len();
        let mut buffer = vec![0; 128 * 1024];
        while left > 0 {
            let read = to.read(&mut buffer)?;
            anyhow::ensure!(read > 0, "the filter has ended");
            left -= read;
        }
        sender.join().ok().context("the sender panicked")??;
        Ok(())
    })
}

/// A small frame there and one back, again and again.
fn round_trips(ends: &Ends) -> Result<Duration> {
    let (mut qemu, mut passt) = (&ends.qemu, &ends.passt);
    let (out, back) = (segment(ACK, &[0; 64], true), segment(ACK, &[0; 64], false));
    let mut buffer = vec![0; out.len()];
    time(|| {
        thread::scope(|scope| {
            let echo = scope.spawn(move || -> Result<()> {
                let mut buffer = vec![0; back.len()];
                for _ in 0..ROUND_TRIPS {
                    passt.read_exact(&mut buffer)?;
                    passt.write_all(&back)?;
                }
                Ok(())
            });
            for _ in 0..ROUND_TRIPS {
                qemu.write_all(&out)?;
                qemu.read_exact(&mut buffer)?;
            }
            echo.join().ok().context("the other end panicked")?
        })
    })
}

/// A segment of the connection with its length before it. Checksums are nobody's business here.
fn segment(flags: u8, data: &[u8], from_guest: bool) -> Vec<u8> {
    let ends = [(GUEST_ADDRESS, GUEST_PORT), (FAR, FAR_PORT)];
    let (from, to) = if from_guest { (ends[0], ends[1]) } else { (ends[1], ends[0]) };
    let len = 40 + data.len();
    let mut frame = ((14 + len) as u32).to_be_bytes().to_vec();
    frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0]);
    frame.extend((len as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend(from.0.octets());
    frame.extend(to.0.octets());
    frame.extend(from.1.to_be_bytes());
    frame.extend(to.1.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend(data);
    frame
}
