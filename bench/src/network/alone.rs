//! The stack without a guest: how much one processor passes. The guest is a few lines that make and read frames.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU16;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use microagent_model::Forward;
use microagent_model::egress::{Decision, EgressPolicy};
use microagent_net::{
    Channels, Controller, GATEWAY, GUEST_ADDRESS, HostAddresses, LENGTH_LEN, NameOptions, Order,
    StackOptions, run_stack,
};
use rustix::time::{ClockId, clock_gettime};

use super::server;
use crate::Bench;
use crate::sample::Table;

/// Bytes of one transfer.
const BYTES: u64 = 1 << 30;

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const ETHERNET_LEN: usize = 14;
const IP_LEN: usize = 20;
const TCP_LEN: usize = 20;
const HEADERS: usize = LENGTH_LEN + ETHERNET_LEN + IP_LEN + TCP_LEN;

const SYN: u8 = 2;
const RST: u8 = 4;
const PSH_ACK: u8 = 0x18;
const ACK: u8 = 0x10;

/// Shift of the windows that this guest offers.
const SCALE: u8 = 7;

pub(super) fn measure(bench: &Bench, host_port: u16, table: &mut Table) -> Result<()> {
    for mtu in [1500, 65_520] {
        for (what, kind) in [("into the guest", b'g'), ("out of the guest", b's')] {
            let mut rates = Vec::new();
            for _ in 0..bench.runs.min(super::FEW) {
                let stack = Stack::start(mtu, host_port)?;
                let mut guest = Guest::connect(stack.link.try_clone()?, mtu, host_port)?;
                match kind {
                    b'g' => guest.take()?,
                    _ => guest.give()?,
                }
                guest.send(RST, &[])?;
                let spent = stack.end()?;
                rates.push(BYTES as f64 * 8.0 / spent.as_secs_f64() / 1e9);
            }
            rates.sort_by(f64::total_cmp);
            let what =
                format!("the stack alone, frames of {mtu} bytes, {what}: for a second of its processor");
            table.add(what, format!("{:.2} Gbit/s", rates[rates.len() / 2]));
        }
    }
    Ok(())
}

/// A stack on a thread of its own.
struct Stack {
    link: UnixStream,
    thread: JoinHandle<Result<Duration>>,
}

impl Stack {
    fn start(mtu: u16, host_port: u16) -> Result<Stack> {
        let guest_port = NonZeroU16::new(host_port).context("no port is 0")?;
        let options = StackOptions {
            policy: EgressPolicy::default(),
            guest_mac: MAC,
            mtu,
            host_addresses: HostAddresses::default(),
            name_servers: Vec::new(),
            names: NameOptions::default(),
            forwards: vec![Forward { guest_port, target: SocketAddrV4::new(Ipv4Addr::LOCALHOST, host_port) }],
            brokers: 0,
            memberships: Vec::new(),
            moved_bytes: 0,
        };
        let (link, qemu) = UnixStream::pair()?;
        link.set_read_timeout(Some(server::PATIENCE))?;
        let channels = Channels {
            qemu: qemu.into(),
            controls: Vec::new(),
            brokers: None,
            members: Vec::new(),
            rate: None,
            is_resumed: false,
        };
        let thread = thread::spawn(move || {
            run_stack(options, channels, &mut Silent)?;
            Ok(Duration::try_from(clock_gettime(ClockId::ThreadCPUTime))?)
        });
        Ok(Stack { link, thread })
    }

    /// Ends it; gives the processor time that it took.
    fn end(self) -> Result<Duration> {
        self.link.shutdown(std::net::Shutdown::Both)?;
        self.thread.join().expect("it does not panic")
    }
}

/// Who has nothing to say to a stack.
struct Silent;

impl Controller for Silent {
    fn record(&mut self, _decision: &Decision) {}
    fn flush(&mut self) {}
    fn moved(&mut self, _bytes: u64) {}
    fn connect(&mut self, _network: u8, _address: Ipv4Addr) {}
    fn order(&mut self) -> Order {
        Order::Nothing
    }
}

/// One connection of a guest that loses nothing and looks at no checksum.
struct Guest {
    link: UnixStream,
    came: Vec<u8>,
    port: u16,
    /// Bytes of data in a frame at most.
    segment: usize,
    sequence: u32,
    /// What was received, and is acknowledged.
    received: u32,
    /// The stack's last acknowledgement, its window, and the shift of that.
    acknowledged: u32,
    window: u32,
    scale: u8,
    /// Data that came in order.
    data: u64,
}

impl Guest {
    fn connect(link: UnixStream, mtu: u16, port: u16) -> Result<Guest> {
        let segment = usize::from(mtu) - IP_LEN - TCP_LEN;
        let mut guest = Guest {
            link,
            came: Vec::new(),
            port,
            segment,
            sequence: 1000,
            received: 0,
            acknowledged: 1000,
            window: 0,
            scale: 0,
            data: 0,
        };
        let [high, low] = u16::try_from(segment)?.to_be_bytes();
        let options = [2, 4, high, low, 1, 3, 3, SCALE];
        let mut frame = guest.frame(SYN, &options);
        // The options are part of the header.
        frame[LENGTH_LEN + ETHERNET_LEN + IP_LEN + 12] = ((TCP_LEN + options.len()) as u8 / 4) << 4;
        guest.link.write_all(&frame)?;
        guest.sequence += 1;
        while guest.acknowledged != guest.sequence {
            guest.read()?;
        }
        Ok(guest)
    }

    /// Takes the bytes that it asks for.
    fn take(&mut self) -> Result<()> {
        self.send(PSH_ACK, &[&b"g"[..], &BYTES.to_be_bytes()].concat())?;
        while self.data < BYTES {
            self.read()?;
            self.send(ACK, &[])?;
        }
        Ok(())
    }

    /// Gives bytes; the far end says whether they were right.
    fn give(&mut self) -> Result<()> {
        self.send(PSH_ACK, &[&b"s"[..], &BYTES.to_be_bytes()].concat())?;
        let begun = self.sequence;
        let piece = vec![0; self.segment];
        let mut given = 0;
        while given < BYTES {
            let mut burst = Vec::new();
            while given < BYTES {
                let room = self.window.saturating_sub(self.sequence.wrapping_sub(self.acknowledged));
                let count = (BYTES - given).min(u64::from(room)).min(piece.len() as u64);
                if count == 0 {
                    break;
                }
                burst.extend_from_slice(&self.frame(ACK, &piece[..count as usize]));
                self.sequence = self.sequence.wrapping_add(count as u32);
                given += count;
            }
            self.link.write_all(&burst)?;
            self.read()?;
        }
        // What was given has no pattern: the answer is "wrong", and it comes when all has come.
        while self.data == 0 {
            self.read()?;
        }
        ensure!(self.sequence == begun.wrapping_add(BYTES as u32), "the guest has lost count");
        Ok(())
    }

    fn send(&mut self, flags: u8, data: &[u8]) -> Result<()> {
        let frame = self.frame(flags, data);
        self.sequence = self.sequence.wrapping_add(data.len() as u32);
        Ok(self.link.write_all(&frame)?)
    }

    /// A frame with this segment.
    fn frame(&self, flags: u8, data: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; HEADERS + data.len()];
        let (length, ethernet) = frame.split_at_mut(LENGTH_LEN);
        length.copy_from_slice(&(ethernet.len() as u32).to_be_bytes());
        ethernet[..6].copy_from_slice(&[0x52, 0x55, 10, 0, 2, 2]);
        ethernet[6..12].copy_from_slice(&MAC);
        ethernet[12..ETHERNET_LEN].copy_from_slice(&[8, 0]);
        let ip = &mut ethernet[ETHERNET_LEN..];
        let total = ip.len() as u16;
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        ip[6..10].copy_from_slice(&[0x40, 0, 64, 6]);
        ip[12..16].copy_from_slice(&GUEST_ADDRESS.octets());
        ip[16..20].copy_from_slice(&GATEWAY.octets());
        let tcp = &mut ip[IP_LEN..];
        tcp[..2].copy_from_slice(&40_000_u16.to_be_bytes());
        tcp[2..4].copy_from_slice(&self.port.to_be_bytes());
        tcp[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        tcp[8..12].copy_from_slice(&self.received.to_be_bytes());
        tcp[12] = (TCP_LEN as u8 / 4) << 4;
        tcp[13] = flags;
        tcp[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
        tcp[TCP_LEN..].copy_from_slice(data);
        frame
    }

    /// Reads what there is, at least something.
    fn read(&mut self) -> Result<()> {
        let mut piece = [0; 256 << 10];
        let count = self.link.read(&mut piece).context("the stack says nothing")?;
        ensure!(count > 0, "the stack has closed the link");
        self.came.extend_from_slice(&piece[..count]);
        let came = std::mem::take(&mut self.came);
        let mut at = 0;
        while let Some(length) = came[at..].first_chunk::<LENGTH_LEN>() {
            let end = at + LENGTH_LEN + u32::from_be_bytes(*length) as usize;
            let Some(frame) = came.get(at + LENGTH_LEN..end) else { break };
            if frame[12..ETHERNET_LEN] == [8, 0] {
                self.segment(&frame[ETHERNET_LEN..])?;
            }
            at = end;
        }
        self.came = came[at..].to_vec();
        Ok(())
    }

    fn segment(&mut self, ip: &[u8]) -> Result<()> {
        let tcp = &ip[IP_LEN..];
        let number = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
        let (sequence, flags, header_len) = (number(4), tcp[13], usize::from(tcp[12] >> 4) * 4);
        ensure!(flags & RST == 0, "the stack has reset the connection");
        let data = usize::from(u16::from_be_bytes([ip[2], ip[3]])) - IP_LEN - header_len;
        let window = u32::from(u16::from_be_bytes([tcp[14], tcp[15]]));
        self.acknowledged = number(8);
        if flags & SYN != 0 {
            self.received = sequence.wrapping_add(1);
            let shift = tcp[TCP_LEN..header_len].windows(3).find(|option| option[..2] == [3, 3]);
            self.scale = shift.map_or(0, |option| option[2]);
            self.window = window;
        } else {
            self.window = window << self.scale;
            if sequence == self.received {
                self.received = sequence.wrapping_add(data as u32);
                self.data += data as u64;
            }
        }
        Ok(())
    }
}
