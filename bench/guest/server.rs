//! What serves in the guests of the network benchmark, and on the host for those that connect to it. The benchmark
//! compiles it with nothing but the standard library, because a guest has no other.
//!
//! A connection begins with a letter. `e`: what comes is sent back. `s` and a length: so many bytes are taken, and answered
//! with whether they are right. `g` and a length: so many bytes are given. `b`, an address, a port, a letter and a count:
//! the server itself connects there, does what the letter says, and answers with the microseconds that it took.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Where it listens in a guest.
pub(crate) const PORT: u16 = 9001;

/// Length after which the data repeats, and most bytes that are sent at once.
const PERIOD: usize = 65_521;
const PIECE: usize = 65_536;

/// How long nothing may happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Answers if what `b` began has failed.
pub(crate) const FAILED: u64 = u64::MAX;

#[allow(dead_code, reason = "the benchmark has a main of its own")]
fn main() {
    serve(TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).expect("the port is free"));
}

/// Serves each connection on a thread of its own.
pub(crate) fn serve(listener: TcpListener) {
    for stream in listener.incoming().flatten() {
        // A client that is told nothing counts a failure.
        let _ = std::thread::Builder::new().stack_size(64 << 10).spawn(move || drop(answer(stream)));
    }
}

/// Bytes in which a piece that is lost, doubled or moved shows.
fn data() -> Vec<u8> {
    (0..PERIOD + PIECE).map(|n| ((n % PERIOD).wrapping_mul(2_654_435_761) >> 9) as u8).collect()
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    match kind[0] {
        b'e' => {
            let mut bytes = [0; 4096];
            loop {
                match stream.read(&mut bytes)? {
                    0 => return Ok(()),
                    count => stream.write_all(&bytes[..count])?,
                }
            }
        }
        b's' => {
            let len = number(&mut stream)?;
            let is_right = take(&mut stream, len)?;
            stream.write_all(&[u8::from(is_right)])
        }
        b'g' => {
            let len = number(&mut stream)?;
            give(&mut stream, len)
        }
        _ => {
            let mut place = [0; 7];
            stream.read_exact(&mut place)?;
            let count = number(&mut stream)?;
            let address = Ipv4Addr::new(place[0], place[1], place[2], place[3]);
            let port = u16::from_be_bytes([place[4], place[5]]);
            let took = begin((address, port), place[6], count);
            let took = took.map_or(FAILED, |took| took.as_micros() as u64);
            stream.write_all(&took.to_be_bytes())
        }
    }
}

fn number(stream: &mut TcpStream) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

/// Takes bytes; says whether they are the right ones.
pub(crate) fn take(stream: &mut TcpStream, len: u64) -> io::Result<bool> {
    let (data, mut bytes, mut at, mut is_right) = (data(), vec![0; PIECE], 0_u64, true);
    while at < len {
        let most = (len - at).min(PIECE as u64) as usize;
        let count = stream.read(&mut bytes[..most])?;
        if count == 0 {
            return Ok(false);
        }
        let from = (at % PERIOD as u64) as usize;
        is_right &= bytes[..count] == data[from..from + count];
        at += count as u64;
    }
    Ok(is_right)
}

/// Gives bytes.
pub(crate) fn give(stream: &mut TcpStream, len: u64) -> io::Result<()> {
    let (data, mut at) = (data(), 0_u64);
    while at < len {
        let from = (at % PERIOD as u64) as usize;
        let most = (len - at).min(PIECE as u64) as usize;
        at += stream.write(&data[from..from + most])? as u64;
    }
    Ok(())
}

/// Connects.
pub(crate) fn open(place: (Ipv4Addr, u16)) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(place)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Connects and does something: `c` so many connections with an answer each, `r` so many answers on one connection, `s`
/// and `g` so many bytes. Says how long it took.
pub(crate) fn begin(place: (Ipv4Addr, u16), kind: u8, count: u64) -> io::Result<Duration> {
    let wrong = || io::Error::other("other bytes came than were sent");
    let begun = Instant::now();
    if kind == b'c' {
        for _ in 0..count {
            echo(&mut open(place)?, b"ex")?;
        }
        return Ok(begun.elapsed());
    }
    let mut stream = open(place)?;
    match kind {
        b'r' => {
            echo(&mut stream, b"ex")?;
            let begun = Instant::now();
            for _ in 0..count {
                echo(&mut stream, b"x")?;
            }
            return Ok(begun.elapsed());
        }
        b's' => {
            stream.write_all(&[&b"s"[..], &count.to_be_bytes()].concat())?;
            give(&mut stream, count)?;
            let mut is_right = [0];
            stream.read_exact(&mut is_right)?;
            (is_right == [1]).then_some(()).ok_or_else(wrong)?;
        }
        _ => {
            stream.write_all(&[&b"g"[..], &count.to_be_bytes()].concat())?;
            take(&mut stream, count)?.then_some(()).ok_or_else(wrong)?;
        }
    }
    Ok(begun.elapsed())
}

/// Sends something and waits for the byte that comes back.
pub(crate) fn echo(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.read_exact(&mut [0])
}
