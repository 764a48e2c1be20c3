//! The filter as it runs: a thread between QEMU's socket and passt's, around the [`Engine`].
//!
//! The thread owns both sockets, the engine and the sockets to name servers, and waits for all of them at once. It reads
//! the clock once per turn, and no allocation of it depends on the number of frames. It ends when QEMU's socket closes
//! or the [`FilterHandle`] goes. When passt's socket closes it says so ([`FilterHandle::network_down`]) and goes on:
//! QEMU notices nothing, and the guest's packets are refused instead of waiting.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use jiff::Timestamp;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg};

use crate::decision::DecisionLog;
use crate::engine::{Engine, FilterOptions, Now};
use crate::lane::Lane;
use crate::reply::Outbox;
use crate::upstream::{Arrival, Upstream};

/// Places of the sockets among those that are waited for; name servers' come behind.
const STOP: usize = 0;
const QEMU: usize = 1;
const PASST: usize = 2;
const UPSTREAM: usize = 3;

/// A filter that runs. Dropping it ends the filter, which closes both sockets.
#[derive(Debug)]
pub struct FilterHandle {
    stop: Arc<OwnedFd>,
    down: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl FilterHandle {
    /// Becomes readable, and stays so, when passt's socket has closed while QEMU's is open. Not to be read from.
    pub fn network_down(&self) -> BorrowedFd<'_> {
        self.down.as_fd()
    }

    /// Whether the thread has not ended: QEMU's socket is open.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Ends the filter and waits for its thread, which takes as long as a line takes the log.
    pub fn stop(mut self) {
        signal(&self.stop);
        if let Some(thread) = self.thread.take() {
            // It panicked: it has ended all the same.
            let _ = thread.join();
        }
    }
}

impl Drop for FilterHandle {
    fn drop(&mut self) {
        signal(&self.stop);
    }
}

/// Starts the filter's thread between two stream sockets.
///
/// # Errors
///
/// When there is no thread or no descriptor for it. Both sockets are closed then.
pub fn start_filter(
    qemu: OwnedFd,
    passt: OwnedFd,
    options: FilterOptions,
    log: Box<dyn DecisionLog + Send>,
) -> io::Result<FilterHandle> {
    let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Arc::new);
    let (stop, down) = (event()?, event()?);
    let (their_stop, their_down) = (stop.clone(), down.clone());
    let thread = thread::Builder::new().name("egress-filter".to_owned()).spawn(move || {
        let begun = Instant::now();
        let mut filter = Filter {
            qemu,
            passt: Some(passt),
            stop: their_stop,
            down: their_down,
            engine: Engine::new(options, now(begun)),
            begun,
            to_passt: Lane::default(),
            to_guest: Lane::default(),
            upstream: Upstream::default(),
            log,
            qemu_is_full: false,
            passt_is_full: false,
        };
        // There is nobody to tell why it ended; that it did, both sockets say.
        while let Ok(Turn::Next) = filter.turn() {}
    })?;
    Ok(FilterHandle { stop, down, thread: Some(thread) })
}

/// Whether there is another turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Next,
    Last,
}

struct Filter {
    qemu: OwnedFd,
    /// None once it has closed.
    passt: Option<OwnedFd>,
    stop: Arc<OwnedFd>,
    down: Arc<OwnedFd>,
    engine: Engine,
    begun: Instant,
    to_passt: Lane,
    to_guest: Lane,
    upstream: Upstream,
    log: Box<dyn DecisionLog + Send>,
    /// Something waits to be written, and the socket did not take it.
    qemu_is_full: bool,
    passt_is_full: bool,
}

impl Filter {
    /// Waits for something to happen and does what is to be done.
    fn turn(&mut self) -> io::Result<Turn> {
        let happened = self.wait()?;
        if !happened[STOP].is_empty() {
            return Ok(Turn::Last);
        }
        self.engine.set_time(now(self.begun));
        // A socket that is closed is readable; one that is closed while the other does not take has no more to say.
        if happened[QEMU].intersects(PollFlags::HUP | PollFlags::ERR) && !self.to_passt.takes() {
            return Ok(Turn::Last);
        }
        if !happened[QEMU].is_empty() && self.to_passt.takes() {
            match receive(&self.qemu, self.to_passt.spare()) {
                Received::Bytes(count) => {
                    self.to_passt.take(count, |frame| self.engine.from_guest(frame));
                }
                Received::Nothing => {}
                Received::End => return Ok(Turn::Last),
            }
        }
        if !happened[PASST].is_empty()
            && self.to_guest.takes()
            && let Some(passt) = &self.passt
        {
            match receive(passt, self.to_guest.spare()) {
                Received::Bytes(count) => {
                    self.to_guest.take(count, |frame| self.engine.from_passt(frame));
                }
                Received::Nothing => {}
                Received::End => self.end_network(),
            }
        }
        self.upstream.attend(
            |number| happened.get(UPSTREAM + number).is_some_and(|flags| !flags.is_empty()),
            |arrival| match arrival {
                Arrival::Message(ticket, message) => self.engine.receive_answer(ticket, message),
                Arrival::Failure(ticket) => self.engine.fail_answer(ticket),
            },
        );
        self.engine.tick();
        self.run_errands();
        self.write_passt();
        let turn = self.write_qemu();
        for decision in self.engine.take_decisions() {
            self.log.record(&decision);
        }
        Ok(turn)
    }

    /// What happened to each socket, in the order of their places.
    fn wait(&self) -> io::Result<Vec<PollFlags>> {
        let wish = |condition: bool, flag: PollFlags| if condition { flag } else { PollFlags::empty() };
        let mut sockets = vec![
            PollFd::new(&self.stop, PollFlags::IN),
            PollFd::new(&self.qemu, {
                wish(self.to_passt.takes(), PollFlags::IN) | wish(self.qemu_is_full, PollFlags::OUT)
            }),
        ];
        let of_passt = wish(self.to_guest.takes(), PollFlags::IN) | wish(self.passt_is_full, PollFlags::OUT);
        // One that is closed always has something to say: it is asked only when it is listened to.
        match &self.passt {
            Some(passt) if !of_passt.is_empty() => sockets.push(PollFd::new(passt, of_passt)),
            _ => sockets.push(PollFd::new(&self.stop, PollFlags::empty())),
        }
        sockets
            .extend(self.upstream.interests().map(|(socket, flags)| PollFd::from_borrowed_fd(socket, flags)));
        let timeout = self.engine.deadline().map(|at| at.saturating_sub(self.begun.elapsed()));
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs().min(3600) as i64,
            tv_nsec: timeout.subsec_nanos().into(),
        });
        match poll(&mut sockets, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(sockets.iter().map(PollFd::revents).collect()),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks name servers; a failure may have the next one asked at once. Attempts are counted, so this ends.
    fn run_errands(&mut self) {
        loop {
            let errands = self.engine.take_errands();
            if errands.is_empty() {
                return;
            }
            for errand in errands {
                if let Err(ticket) = self.upstream.carry_out(errand) {
                    self.engine.fail_answer(ticket);
                }
            }
        }
    }

    fn write_passt(&mut self) {
        self.passt_is_full = false;
        let Some(passt) = &self.passt else { return };
        match write_lane(passt, &mut self.to_passt) {
            Written::All => {}
            Written::Full => self.passt_is_full = true,
            Written::Gone => self.end_network(),
        }
    }

    fn write_qemu(&mut self) -> Turn {
        self.qemu_is_full = false;
        // Our own frames go first, but never into the middle of others.
        let mut written = Written::All;
        if self.to_guest.is_mid_run() {
            written = write_lane(&self.qemu, &mut self.to_guest);
        }
        if written == Written::All {
            written = write_outbox(&self.qemu, self.engine.outbox());
        }
        if written == Written::All {
            written = write_lane(&self.qemu, &mut self.to_guest);
        }
        match written {
            Written::All => Turn::Next,
            Written::Full => {
                self.qemu_is_full = true;
                Turn::Next
            }
            Written::Gone => Turn::Last,
        }
    }

    /// passt is gone: nothing goes there any more, and the guest is told with every packet.
    fn end_network(&mut self) {
        self.passt = None;
        self.to_passt.give_up();
        self.upstream.clear();
        self.engine.network_down();
        signal(&self.down);
    }
}

/// What a read gave.
enum Received {
    Bytes(usize),
    Nothing,
    End,
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Received {
    match recv(socket, buffer, RecvFlags::DONTWAIT) {
        Ok((0, _)) => Received::End,
        Ok((count, _)) => Received::Bytes(count),
        Err(Errno::AGAIN | Errno::INTR) => Received::Nothing,
        Err(_) => Received::End,
    }
}

/// How far writing got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    All,
    Full,
    Gone,
}

const SEND: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

fn write_lane(socket: &OwnedFd, lane: &mut Lane) -> Written {
    while !lane.takes() {
        let mut slices: Vec<IoSlice<'_>> = Vec::new();
        lane.pending(&mut slices);
        match sendmsg(socket, &slices, &mut SendAncillaryBuffer::default(), SEND) {
            Ok(count) => lane.advance(count),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Written::Full,
            Err(_) => return Written::Gone,
        }
    }
    Written::All
}

fn write_outbox(socket: &OwnedFd, outbox: &mut Outbox) -> Written {
    while !outbox.pending().is_empty() {
        match send(socket, outbox.pending(), SEND) {
            Ok(count) => outbox.advance(count),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Written::Full,
            Err(_) => return Written::Gone,
        }
    }
    Written::All
}

fn signal(event: &OwnedFd) {
    // Fails only when the counter is full: it was signalled then.
    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
}

fn now(begun: Instant) -> Now {
    Now { running: begun.elapsed(), day: Timestamp::now() }
}

#[cfg(test)]
mod tests;
