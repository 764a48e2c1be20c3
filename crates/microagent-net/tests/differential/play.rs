//! One end of a connection does what a scenario says.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{set_socket_linger, socket_error};

use crate::scenario::Step;

/// How long one step may take: others work on this host.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes that are sent at once.
const PIECE: usize = 65_536;

/// Length of the data, which repeats then: a piece that is lost, doubled or moved shows.
const PERIOD: usize = 65_521;

/// The connection has failed: it was reset, or nobody takes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed;

/// An end of a connection. Nothing of it blocks but `pass_time`.
pub(crate) trait End {
    /// Sends; how much was taken.
    fn send(&mut self, bytes: &[u8]) -> Result<usize, Failed>;

    /// Receives; `None` when nothing is there now, 0 at the end.
    fn receive(&mut self, bytes: &mut [u8]) -> Result<Option<usize>, Failed>;

    /// How much has come that was not received.
    fn waiting(&mut self) -> usize;

    /// Whether the system tells of a failure.
    fn has_failed(&mut self) -> bool;

    fn half_close(&mut self);

    fn reset(&mut self);

    fn close(&mut self);

    /// Waits a little, or until there may be more to do.
    fn pass_time(&mut self, sends: bool);
}

/// Does all steps; gives what was seen.
pub(crate) fn play(steps: &[Step], end: &mut dyn End) -> Vec<String> {
    let data: Vec<u8> =
        (0..PERIOD + PIECE).map(|n| ((n % PERIOD).wrapping_mul(2_654_435_761) >> 9) as u8).collect();
    let mut player = Player { end, data, sent: 0, received: 0 };
    let mut seen = Vec::new();
    for step in steps {
        let (saw, goes_on) = player.step(*step);
        seen.push(format!("{step} {saw}"));
        if !goes_on {
            break;
        }
    }
    seen
}

struct Player<'a> {
    end: &'a mut dyn End,
    data: Vec<u8>,
    sent: usize,
    received: usize,
}

impl Player<'_> {
    fn step(&mut self, step: Step) -> (String, bool) {
        let moved = match step {
            Step::Send(count) => self.transfer(count, 0, PIECE),
            Step::Trickle(count) => self.transfer(count, 0, 1),
            Step::Receive(count) => self.transfer(0, count, PIECE),
            Step::Exchange(send, receive) => self.transfer(send, receive, PIECE),
            Step::ReceiveAll => return (self.receive_all(), true),
            Step::SendUntilFailure => return (self.send_until_failure(), true),
            Step::Await(count) => self.wait(|end| end.waiting() >= count),
            Step::AwaitFailure => self.wait(|end| end.has_failed()),
            Step::Pause(time) => {
                let until = Instant::now() + Duration::from_millis(time as u64);
                while Instant::now() < until {
                    self.end.pass_time(false);
                }
                Ok(())
            }
            Step::HalfClose => {
                self.end.half_close();
                Ok(())
            }
            Step::Reset => {
                self.end.reset();
                Ok(())
            }
            Step::Close => {
                self.end.close();
                Ok(())
            }
        };
        match moved {
            Ok(()) => ("done".to_owned(), true),
            Err(what) => (what, false),
        }
    }

    fn transfer(&mut self, mut send: usize, mut receive: usize, piece: usize) -> Result<(), String> {
        let mut until = Instant::now() + PATIENCE;
        while send > 0 || receive > 0 {
            let mut moved = 0;
            if send > 0 {
                let from = self.sent % PERIOD;
                let bytes = &self.data[from..from + piece.min(send)];
                let count = self.end.send(bytes).map_err(|Failed| "cannot send".to_owned())?;
                (self.sent, send, moved) = (self.sent + count, send - count, moved + count);
            }
            if receive > 0 {
                match self.receive(receive)? {
                    Some(0) => return Err(format!("ended {receive} bytes early")),
                    Some(count) => (receive, moved) = (receive - count, moved + count),
                    None => {}
                }
            }
            if moved > 0 {
                until = Instant::now() + PATIENCE;
            } else if Instant::now() > until {
                return Err(format!("hangs: {send} bytes to send, {receive} to receive"));
            } else {
                self.end.pass_time(send > 0);
            }
        }
        Ok(())
    }

    /// Receives at most so much, which must be the right data.
    fn receive(&mut self, most: usize) -> Result<Option<usize>, String> {
        let mut bytes = [0; PIECE];
        let most = most.min(PIECE);
        let count = self.end.receive(&mut bytes[..most]).map_err(|Failed| "failed".to_owned())?;
        let from = self.received % PERIOD;
        let len = count.unwrap_or(0);
        if bytes[..len] != self.data[from..from + len] {
            return Err(format!("other data than was sent from byte {} on", self.received));
        }
        self.received += len;
        Ok(count)
    }

    fn receive_all(&mut self) -> String {
        let (mut all, mut until) = (0, Instant::now() + PATIENCE);
        loop {
            match self.receive(PIECE) {
                Ok(Some(0)) => return format!("{all} bytes, then the end"),
                Ok(Some(count)) => (all, until) = (all + count, Instant::now() + PATIENCE),
                Ok(None) if Instant::now() > until => return format!("hangs after {all} bytes"),
                Ok(None) => self.end.pass_time(false),
                Err(what) => return format!("{all} bytes, then: {what}"),
            }
        }
    }

    fn send_until_failure(&mut self) -> String {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if self.end.send(b"x").is_err() {
                return "fails".to_owned();
            }
            self.end.pass_time(false);
        }
        "never fails".to_owned()
    }

    fn wait(&mut self, mut is_there: impl FnMut(&mut dyn End) -> bool) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        while !is_there(self.end) {
            if Instant::now() > until {
                return Err("never comes".to_owned());
            }
            self.end.pass_time(false);
        }
        Ok(())
    }
}

/// An end of the host's own.
pub(crate) struct HostEnd(Option<TcpStream>);

impl HostEnd {
    pub(crate) fn new(stream: TcpStream) -> HostEnd {
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        HostEnd(Some(stream))
    }

    fn stream(&mut self) -> &mut TcpStream {
        self.0.as_mut().expect("nothing is done after the end")
    }
}

impl End for HostEnd {
    fn send(&mut self, bytes: &[u8]) -> Result<usize, Failed> {
        match self.stream().write(bytes) {
            Ok(count) => Ok(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(_) => Err(Failed),
        }
    }

    fn receive(&mut self, bytes: &mut [u8]) -> Result<Option<usize>, Failed> {
        match self.stream().read(bytes) {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(_) => Err(Failed),
        }
    }

    fn waiting(&mut self) -> usize {
        self.stream().peek(&mut [0; PIECE]).unwrap_or(0)
    }

    fn has_failed(&mut self) -> bool {
        socket_error(self.stream()).unwrap().is_err()
    }

    fn half_close(&mut self) {
        self.stream().shutdown(Shutdown::Write).unwrap();
    }

    fn reset(&mut self) {
        set_socket_linger(self.stream(), Some(Duration::ZERO)).unwrap();
        self.0 = None;
    }

    fn close(&mut self) {
        self.0 = None;
    }

    fn pass_time(&mut self, sends: bool) {
        let stream = self.stream();
        let wanted = if sends { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let millisecond = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        let begun = Instant::now();
        let _ = poll(&mut [PollFd::from_borrowed_fd(stream.as_fd(), wanted)], Some(&millisecond));
        // Who waits for something else than what is there waits all the same.
        if !sends && begun.elapsed() < Duration::from_micros(200) {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}
