//! The stack as it runs: one thread that waits for QEMU's socket, listeners, sockets of flows and name servers at once.
//!
//! It reads the clock once per turn. It ends when QEMU's socket closes, or its controller has it end.

mod frames;
mod host;
pub(crate) mod members;
mod pace;

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use microagent_model::PortProtocol;
use microagent_model::egress::Decision;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, acceptfrom_with, recv, recvfrom, send};

use crate::egress::Now;
use crate::sockets::{PortNumber, Readiness};
use crate::stack::{HostChange, Stack, StackOptions};
use frames::FrameReader;
use host::{HostSockets, HostStream};
use members::IncomingConnections;
use pace::Pace;

/// Tokens of what is no flow; those count from 1. Each kind has a bit.
const QEMU: u64 = 1 << 63;
const CONTROL: u64 = 1 << 62;
const LISTENER: u64 = 1 << 61;
const RESOLVER: u64 = 1 << 60;
const MEMBER_LISTENER: u64 = 1 << 59;
const MEMBER: u64 = 1 << 58;
const KINDS: u64 = QEMU | CONTROL | LISTENER | RESOLVER | MEMBER_LISTENER | MEMBER;

/// Events that are taken at once.
const EVENTS: usize = 256;

/// Connections or datagrams that are taken at one listener before others have their turn.
const ACCEPTS: usize = 64;

/// Time after which a listener is tried again that could not accept: the host has no descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Times that QEMU's socket is read in a turn.
const READS: usize = 4;

/// What is told of QEMU's socket. That it takes something is told only while it does not: else each frame that QEMU takes
/// would wake the stack.
const LINK_EVENTS: epoll::EventFlags = epoll::EventFlags::IN.union(epoll::EventFlags::ET);

/// Most bytes that are written at once, or one frame. A socket of the UNIX domain is writable while at most a quarter of its
/// buffer is used; the rest of the usual buffer (208 KiB) takes this much and what the kernel adds to it, so that no
/// frame is cut. A stack that is killed leaves whole frames behind, and the next one continues.
///
/// # Source
/// Linux `net/unix/af_unix.c`, `unix_writable` and `unix_stream_sendmsg`.
const WRITE_MAX: usize = 96 * 1024;

/// What the stack is connected to.
#[derive(Debug)]
pub struct Channels {
    /// The link: a stream of frames, each with four bytes of length before it, big-endian.
    pub qemu: OwnedFd,
    /// Each is readable when the controller may have an order.
    pub controls: Vec<OwnedFd>,
    /// Where the process of the brokers takes connections: a socket of messages, each with a connection's other end.
    pub brokers: Option<OwnedFd>,
    /// Where the stacks of other members connect: a listening socket for each private network, in their order.
    pub members: Vec<OwnedFd>,
    /// Most bytes per second on the link in each direction, without the length before each frame counted in.
    pub rate: Option<NonZeroU64>,
    /// Whether another stack has served the link before and has ended at any moment.
    pub is_resumed: bool,
}

/// Who a stack works for. Nothing of it blocks.
pub trait Controller {
    /// Records a decision.
    fn record(&mut self, decision: &Decision);

    /// Passes on what was recorded and waits. Called now and then.
    fn flush(&mut self);

    /// Notes how many bytes were moved in all, as the policy counts them.
    fn moved(&mut self, bytes: u64);

    /// Asks for a connection to a member of a private network; [`Order::ConnectMember`] answers.
    fn connect(&mut self, network: u8, address: Ipv4Addr);

    /// The next order.
    fn order(&mut self) -> Order;
}

/// What a controller wants of its stack.
#[derive(Debug)]
pub enum Order {
    /// Nothing more for now.
    Nothing,
    /// Serve clients of a published port. One of the same number is replaced.
    Open(PortNumber, Listener),
    /// Take no more clients at a published port. Connections that are open stay open, flows of datagrams end.
    Close(PortNumber),
    /// Take what has changed on the host.
    Follow(Box<HostChange>),
    /// Take the connection to a member of a private network that was asked for; nobody may be there.
    ConnectMember(u8, Ipv4Addr, Option<OwnedFd>),
    /// End.
    End,
}

/// A socket of the host at which clients of a published port come in: of TCP a listening one, of UDP a bound one.
#[derive(Debug)]
pub struct Listener {
    /// The socket; it does not block.
    pub socket: OwnedFd,
    /// Its protocol.
    pub protocol: PortProtocol,
    /// The guest's port.
    pub guest_port: u16,
}

/// Runs a stack until its link closes or its controller ends it.
///
/// # Errors
/// When the host cannot wait for sockets.
pub fn run_stack(
    options: StackOptions,
    channels: Channels,
    controller: &mut dyn Controller,
) -> io::Result<()> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &channels.qemu, epoll::EventData::new_u64(QEMU), LINK_EVENTS)?;
    for control in &channels.controls {
        epoll::add(&epoll, control, epoll::EventData::new_u64(CONTROL), epoll::EventFlags::IN)?;
    }
    let room = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&room, &channels.qemu, epoll::EventData::new_u64(QEMU), epoll::EventFlags::OUT)?;
    let networks = options.memberships.iter().map(|joined| (joined.subnet, joined.address));
    let listeners = channels.members.into_iter().zip(networks);
    let listeners = listeners.map(|(socket, (subnet, address))| (socket, subnet, address)).collect();
    let begun = Instant::now();
    let sockets = HostSockets::new(epoll.try_clone()?, channels.brokers);
    let resumes_at = channels.is_resumed.then_some(options.guest_mac);
    let mut runner = Runner {
        members: IncomingConnections::new(&epoll, MEMBER_LISTENER, listeners)?,
        epoll,
        room,
        qemu: channels.qemu,
        listeners: BTreeMap::new(),
        stack: Stack::new(options, sockets, now(begun)),
        begun,
        reader: FrameReader::new(resumes_at),
        datagram: vec![0; usize::from(u16::MAX)].into_boxed_slice(),
        is_readable: true,
        is_writable: true,
        is_watching: false,
        heard: Pace::new(channels.rate),
        told: Pace::new(channels.rate),
        controller,
    };
    while let Turn::Next = runner.turn()? {}
    Ok(())
}

/// Whether there is another turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Next,
    Last,
}

/// A published port, as the runner watches it.
struct Entrance {
    number: PortNumber,
    socket: OwnedFd,
    protocol: PortProtocol,
    guest_port: u16,
    is_ready: bool,
    /// When it is tried again.
    again: Option<Duration>,
}

struct Runner<'a> {
    epoll: OwnedFd,
    /// Has an event while QEMU's socket takes [`WRITE_MAX`] bytes.
    room: OwnedFd,
    qemu: OwnedFd,
    listeners: BTreeMap<PortNumber, Entrance>,
    members: IncomingConnections,
    stack: Stack<HostSockets>,
    begun: Instant,
    reader: FrameReader,
    /// Room for a datagram of a client.
    datagram: Box<[u8]>,
    /// Whether QEMU's socket may have something, and may take something.
    is_readable: bool,
    is_writable: bool,
    /// Whether it is told when it takes something again.
    is_watching: bool,
    /// What the guest sends, and what it gets.
    heard: Pace,
    told: Pace,
    controller: &'a mut dyn Controller,
}

impl Runner<'_> {
    /// Waits for something to happen and does what can be done.
    fn turn(&mut self) -> io::Result<Turn> {
        let waiting = self.stack.outbox().pending().len();
        if let Turn::Last = self.wait()? {
            return Ok(Turn::Last);
        }
        // While the guest does not take what waits for it, it is not heard.
        let now = self.begun.elapsed();
        for _ in 0..READS {
            if !self.is_readable || !self.stack.outbox().has_room() || !self.heard.is_open(now) {
                break;
            }
            if let Turn::Last = self.read_qemu() {
                return Ok(Turn::Last);
            }
        }
        self.accept();
        self.members.attend(&self.epoll, MEMBER, now, &mut self.stack);
        // What was added meanwhile are answers, which do not wait: they are counted.
        self.count_told(waiting);
        while self.told.is_open(now) {
            let waiting = self.stack.outbox().pending().len();
            let is_busy = self.stack.advance();
            self.count_told(waiting);
            if !is_busy || !self.stack.outbox().has_room() {
                break;
            }
        }
        let turn = self.write_qemu()?;
        for (network, address) in self.stack.sockets().outgoing().take_wanted() {
            self.controller.connect(network, address);
        }
        for decision in self.stack.take_decisions() {
            self.controller.record(&decision);
        }
        self.controller.flush();
        self.controller.moved(self.stack.moved_bytes());
        Ok(turn)
    }

    fn wait(&mut self) -> io::Result<Turn> {
        let mut events = [MaybeUninit::uninit(); EVENTS];
        let timeout = self.timeout();
        let (events, _) = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok(events) => events,
            Err(Errno::INTR) => (&mut [][..], &mut [][..]),
            Err(error) => return Err(error.into()),
        };
        self.stack.set_time(now(self.begun));
        let is_over =
            |flags: epoll::EventFlags| flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        let mut is_ordered = false;
        for event in events.iter() {
            let (token, flags) = (event.data.u64(), event.flags);
            let is_readable =
                flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP) || is_over(flags);
            let is_writable = flags.contains(epoll::EventFlags::OUT) || is_over(flags);
            match token {
                QEMU => {
                    self.is_readable |= is_readable;
                    if is_writable && !self.is_writable {
                        (self.is_writable, self.is_watching) = (true, false);
                        self.watch_link(LINK_EVENTS)?;
                    }
                }
                CONTROL => is_ordered = true,
                _ if token & LISTENER != 0 => {
                    if let Some(listener) = self.listeners.get_mut(&(token & !LISTENER)) {
                        listener.is_ready = true;
                    }
                }
                _ if token & MEMBER_LISTENER != 0 => self.members.listener_ready(token & !MEMBER_LISTENER),
                _ if token & MEMBER != 0 => self.members.connection_ready(token & !MEMBER),
                _ if token & RESOLVER != 0 => HostSockets::attend(&mut self.stack, token & !RESOLVER),
                _ => self.stack.ready(token, Readiness { is_readable, is_writable }),
            }
        }
        if is_ordered { self.obey() } else { Ok(Turn::Next) }
    }

    /// Does what the controller wants.
    fn obey(&mut self) -> io::Result<Turn> {
        loop {
            match self.controller.order() {
                Order::Nothing => return Ok(Turn::Next),
                Order::End => return Ok(Turn::Last),
                Order::Open(number, listener) => self.open_port(number & !KINDS, listener)?,
                Order::Close(number) => self.close_port(number),
                Order::Follow(change) => self.stack.follow(*change),
                Order::ConnectMember(network, address, socket) => {
                    self.stack.sockets().outgoing().take(network, address, socket);
                }
            }
        }
    }

    fn open_port(
        &mut self,
        number: PortNumber,
        Listener { socket, protocol, guest_port }: Listener,
    ) -> io::Result<()> {
        self.close_port(number);
        let token = epoll::EventData::new_u64(LISTENER | number);
        epoll::add(&self.epoll, &socket, token, epoll::EventFlags::IN | epoll::EventFlags::ET)?;
        if protocol == PortProtocol::Udp {
            self.stack.sockets().add_port(number, socket.try_clone()?);
        }
        let entrance = Entrance { number, socket, protocol, guest_port, is_ready: true, again: None };
        self.listeners.insert(number, entrance);
        Ok(())
    }

    fn close_port(&mut self, number: PortNumber) {
        if let Some(entrance) = self.listeners.remove(&number) {
            // Others may have its socket, too, so closing it is not enough. It is watched, so this does not fail.
            let _ = epoll::delete(&self.epoll, &entrance.socket);
            self.stack.sockets().remove_port(number);
            self.stack.close_published(number);
        }
    }

    /// How long nothing is to be done, if nothing happens.
    fn timeout(&mut self) -> Option<Timespec> {
        let has_room = self.stack.outbox().has_room();
        let hears = (has_room && self.is_readable).then(|| self.heard.opens_at());
        let tells = (has_room && self.stack.is_busy()).then(|| self.told.opens_at());
        // While nothing may pass to the guest, the stack does not look at its timers.
        let timers = self.stack.deadline().map(|at| at.max(self.told.opens_at()));
        let again = self.listeners.values().filter_map(|listener| listener.again).min();
        let members = match self.members.is_busy() {
            true => Some(Duration::ZERO),
            false => self.members.deadline(),
        };
        let at = [hears, tells, timers, again, members].into_iter().flatten().min();
        let left = at?.saturating_sub(self.begun.elapsed());
        // Rounded up to a microsecond, so that the time has come when it returns.
        let left = if left.is_zero() { left } else { left + Duration::from_micros(1) };
        Some(Timespec { tv_sec: left.as_secs().min(3600) as i64, tv_nsec: left.subsec_nanos().into() })
    }

    /// Counts what was added for the guest since this much waited.
    fn count_told(&mut self, waiting: usize) {
        let added = self.stack.outbox().pending().len() - waiting;
        self.told.count(self.begun.elapsed(), added);
    }

    fn read_qemu(&mut self) -> Turn {
        match recv(&self.qemu, self.reader.spare(), RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Turn::Last,
            Ok((count, _)) => {
                self.heard.count(self.begun.elapsed(), count);
                let stack = &mut self.stack;
                self.reader.take(count, |frame| stack.receive(frame));
            }
            Err(Errno::AGAIN) => self.is_readable = false,
            Err(Errno::INTR) => {}
            Err(_) => return Turn::Last,
        }
        Turn::Next
    }

    /// Writes whole frames for as long as QEMU's socket has room for them.
    fn write_qemu(&mut self) -> io::Result<Turn> {
        let outbox = self.stack.outbox();
        while self.is_writable && !outbox.pending().is_empty() {
            if !has_event(&self.room) {
                self.is_writable = false;
                break;
            }
            let batch = &outbox.pending()[..outbox.batch(WRITE_MAX)];
            match send(&self.qemu, batch, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => outbox.advance(count),
                Err(Errno::AGAIN) => self.is_writable = false,
                Err(Errno::INTR) => {}
                Err(_) => return Ok(Turn::Last),
            }
        }
        if !self.is_writable && !self.is_watching {
            self.is_watching = true;
            self.watch_link(LINK_EVENTS | epoll::EventFlags::OUT)?;
        }
        Ok(Turn::Next)
    }

    /// Sets what is told of QEMU's socket; what is true already is told again.
    fn watch_link(&self, events: epoll::EventFlags) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, &self.qemu, epoll::EventData::new_u64(QEMU), events)?)
    }

    fn accept(&mut self) {
        let elapsed = self.begun.elapsed();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        for listener in self.listeners.values_mut() {
            if listener.again.is_some_and(|again| again <= elapsed) {
                (listener.again, listener.is_ready) = (None, true);
            }
            for _ in 0..ACCEPTS {
                if !listener.is_ready {
                    break;
                }
                let taken = match listener.protocol {
                    PortProtocol::Tcp => acceptfrom_with(&listener.socket, flags).map(|(socket, client)| {
                        if let Some(client) = client.and_then(|client| SocketAddr::try_from(client).ok()) {
                            self.stack.accept(HostStream::accepted(socket), client, listener.guest_port);
                        }
                    }),
                    // While the guest does not take what waits for it, the host's kernel keeps what comes, or drops it.
                    PortProtocol::Udp if !self.stack.outbox().has_room() => break,
                    PortProtocol::Udp => recvfrom(&listener.socket, &mut *self.datagram, RecvFlags::empty())
                        .map(|(len, _, client)| {
                            if let Some(client) = client.and_then(|client| SocketAddr::try_from(client).ok())
                            {
                                let payload = &self.datagram[..len.min(self.datagram.len())];
                                self.stack.receive_published(
                                    listener.number,
                                    client,
                                    listener.guest_port,
                                    payload,
                                );
                            }
                        }),
                };
                match taken {
                    Ok(()) => {}
                    Err(Errno::INTR | Errno::CONNABORTED) => {}
                    Err(Errno::AGAIN) => listener.is_ready = false,
                    Err(_) => {
                        listener.is_ready = false;
                        listener.again = Some(elapsed + ACCEPT_AGAIN);
                    }
                }
            }
        }
    }
}

/// A stack with the host's sockets, of a guest without rules.
#[cfg(test)]
fn tests_stack(epoll: &OwnedFd) -> Stack<HostSockets> {
    let options = StackOptions {
        policy: microagent_model::egress::EgressPolicy::default(),
        guest_mac: crate::testing::GUEST_MAC,
        mtu: 1500,
        host_addresses: crate::HostAddresses::default(),
        name_servers: Vec::new(),
        names: crate::NameOptions::default(),
        forwards: Vec::new(),
        brokers: 0,
        memberships: Vec::new(),
        moved_bytes: 0,
    };
    let sockets = HostSockets::new(epoll.try_clone().expect("a descriptor"), None);
    Stack::new(options, sockets, now(Instant::now()))
}

/// Whether an epoll has an event now.
fn has_event(epoll: &OwnedFd) -> bool {
    let mut events = [MaybeUninit::uninit(); 1];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    epoll::wait(epoll, &mut events, Some(&at_once)).is_ok_and(|(events, _)| !events.is_empty())
}

fn now(begun: Instant) -> Now {
    Now { running: begun.elapsed(), day: Timestamp::now() }
}
