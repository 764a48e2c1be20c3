//! The control port: found by name, waited on without cost, then a byte stream for the session.
//!
//! A virtio-serial port knows no connections. Reading gives 0 bytes and polling a hang-up while nobody on
//! the host has it open, and writing then would block for ever. While idle that is waited out; in a session
//! it is the session's end, even if the host comes back at once: a host that wants another session after
//! it closed the port pings first, so that old news has been taken.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use microagent_proto::{GENERATION, PORT_NAME, Preamble, PreambleScanner};
use rustix::event::epoll;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::hold::Hold;
use crate::sys;

/// Bytes that are read at once while programs are held.
const SIFTED_BYTES: usize = 4096;

const PORTS: &str = "/sys/class/virtio-ports";

/// Pause between two looks for the port, or for room in it.
const LOOK_PAUSE: Duration = Duration::from_micros(500);

/// How long the host may take to make room for an answer of 32 bytes.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// Finds the port by its name and opens it.
pub(crate) fn open(deadline: Duration) -> io::Result<OwnedFd> {
    let start = Instant::now();
    loop {
        if let Some(device) = find()? {
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
            return Ok(openat(CWD, format!("/dev/{device}"), flags, Mode::empty())?);
        }
        if start.elapsed() > deadline {
            let text = format!("no virtio-serial port is named {PORT_NAME}");
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        std::thread::sleep(LOOK_PAUSE);
    }
}

fn find() -> io::Result<Option<String>> {
    let entries = match fs::read_dir(PORTS) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        // The name file appears with the host's answer to the driver, a moment after the port.
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end() == PORT_NAME {
            return Ok(entry.file_name().into_string().ok());
        }
    }
    Ok(None)
}

/// Waits for a preamble. Takes no processor time while nobody speaks, and reads byte by byte, because what
/// follows the preamble belongs to the session.
pub(crate) fn await_preamble(port: &OwnedFd) -> io::Result<Preamble> {
    let waiter = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    // Edge-triggered: an absent host is a lasting hang-up, which level-triggered polling reports for ever.
    epoll::add(&waiter, port, epoll::EventData::new_u64(0), epoll::EventFlags::IN | epoll::EventFlags::ET)?;
    let mut scanner = PreambleScanner::default();
    loop {
        let mut byte = [0];
        match rustix::io::read(port, &mut byte) {
            Ok(1) => {
                if let Some(asked) = scanner.push(byte[0]) {
                    return Ok(asked);
                }
            }
            Ok(_) | Err(Errno::AGAIN) => {
                let mut events =
                    [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
                match epoll::wait(&waiter, &mut events, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Sends the preamble back with our generation. A host that has gone away in the meantime misses nothing.
pub(crate) fn answer(port: &OwnedFd, asked: &Preamble) {
    let reply = Preamble { generation: GENERATION, ..*asked }.encode();
    let mut rest = &reply[..];
    let start = Instant::now();
    while !rest.is_empty() && start.elapsed() < ANSWER_DEADLINE {
        match rustix::io::write(port, rest) {
            Ok(count) => rest = &rest[count..],
            // No room, or the host's bytes have overtaken the news that it has opened the port: polling
            // would report a hang-up at once and for as long as that lasts.
            Err(Errno::AGAIN) => std::thread::sleep(LOOK_PAUSE),
            Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// The port as a byte stream.
#[derive(Debug)]
pub(crate) struct Channel {
    fd: AsyncFd<OwnedFd>,
    hold: Arc<Hold>,
    /// Bytes that were read and belong to the session.
    ahead: VecDeque<u8>,
    /// Bytes that may be the beginning of another one.
    doubtful: Vec<u8>,
}

impl Channel {
    /// Registers the port with the running event loop. The channel ends when a new session is asked for.
    pub(crate) fn new(port: OwnedFd, hold: Arc<Hold>) -> io::Result<Channel> {
        Ok(Channel { fd: sys::watch(port)?, hold, ahead: VecDeque::new(), doubtful: Vec::new() })
    }

    /// Reads what there is; nothing at the end.
    fn poll_bytes(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(cx))?;
            let closed = guard.ready().is_read_closed();
            match guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *buffer)?)) {
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(done) => return Poll::Ready(done),
                // A hang-up stays "ready" in the event loop; without this look it would spin here.
                Err(_would_block) if closed => return Poll::Ready(Ok(0)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncRead for Channel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let channel = self.get_mut();
        while channel.ahead.is_empty() {
            if channel.hold.is_renewed() {
                return Poll::Ready(Ok(()));
            }
            if channel.doubtful.is_empty() && !channel.hold.is_held() {
                let count = ready!(channel.poll_bytes(cx, buf.initialize_unfilled()))?;
                buf.advance(count);
                return Poll::Ready(Ok(()));
            }
            let mut bytes = [0; SIFTED_BYTES];
            let count = ready!(channel.poll_bytes(cx, &mut bytes))?;
            if count == 0 {
                return Poll::Ready(Ok(()));
            }
            match channel.hold.sift(&mut channel.doubtful, &bytes[..count]) {
                Some(cleared) => channel.ahead.extend(cleared),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = channel.ahead.len().min(buf.remaining());
        for byte in channel.ahead.drain(..count) {
            buf.put_slice(&[byte]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Channel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd.poll_write_ready(cx))?;
            let closed = guard.ready().is_write_closed();
            match guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(done) => return Poll::Ready(done),
                Err(_would_block) if closed => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
